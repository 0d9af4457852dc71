from dataclasses import replace

import pytest

from mimo_benchmarks.baselines.equal_cost import STEP, equal_cost
from mimo_benchmarks.experiment import controls
from mimo_benchmarks.presets import PRESETS
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, count_macs


@pytest.mark.parametrize("preset", PRESETS)
def test_controls_cost_what_each_n_costs(preset):
    model = MIMOConv(PRESETS[preset]().model)
    for n in PRESETS[preset]().n:
        config = equal_cost(model.config, count_macs(model, n))
        assert count_macs(WideResNet(config)) == pytest.approx(count_macs(model, n), rel=0.06)
        assert all(channels % STEP == 0 for channels in (*config.stages, config.stem_channels))
        assert (config.depth, config.image_size) == (model.config.depth, model.config.image_size)


def test_controls_off_their_cost_say_so():
    """At a quarter of the usual width no plain network of whole vector lanes is as cheap: one control, under its true name."""
    model = MIMOConv(replace(PRESETS["quickstart"]().model, width=0.25))
    (name,) = controls(model, {2, 4})
    ratio = count_macs(WideResNet(controls(model, {4})[name])) / count_macs(model, 4)
    assert ratio > 1.1
    assert name == f"plain CNN, {ratio:.2f}x the cost of n=4"


def test_the_narrowest_network_is_the_floor():
    assert equal_cost(MIMOConvConfig(depth=10, image_size=8), 1.0).stages == (8, 16, 32)
