"""A result holds what was measured of the network, split and n that it names."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.environment import device_name
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.experiment.findings import Trained, evaluate_network, reported_by_paper, write_result
from mimo_benchmarks.networks.convolutional import MIMOConvNetwork
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.result import Result, Spread
from mimo_benchmarks.run_directory import RunDirectory, read_result
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.image_task import ImageTask, numbered
from mimo_benchmarks.training.state import Training
from mimoconv import MIMOConvConfig, WideResNet, WideResNetConfig, count_macs

CPU = torch.device("cpu")
SMALL = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
CONFIG = RunConfig(model=SMALL, optim=OptimConfig(steps=2, groups=4), threads=1)
THIN = replace(CONFIG, model=WideResNetConfig(depth=10, width=0.5, in_channels=1, image_size=8))


@pytest.fixture
def task():
    """200 images whose pixels tell their number, and 200 more to test, whose labels are the last digit of it."""
    index = torch.arange(200)
    split = Split(images=index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), labels=index % 10)
    return ImageTask(name="numbered", train=split, test=split, class_names=numbered(10), scale=1)


class Worsening(MIMOConvNetwork):
    """Answers right but for the first 20 images the first time that it answers all 200, the first 40 the second time, .."""

    def __init__(self, config):
        super().__init__(config)
        self.answered, self.calls = 0, []

    def predict(self, module, inputs, n, mask=None):
        wrong, number = 20 * (1 + self.answered // 200), inputs[:, 0, 0, 0].long()
        in_order = bool((number.diff() == 1).all())
        self.answered += len(inputs)
        self.calls.append((n, len(inputs), in_order))
        return torch.nn.functional.one_hot((number + (number < wrong)) % 10, 10).float()


def trained(config, folder, name="quickstart", rows=(), crosstalk=None):
    training = Training(build(config.model), config, Accelerator(cpu=True))
    training.progress.step = 2
    directory = RunDirectory(folder / name)
    directory.begin(name, config, CPU)
    return Trained(
        config=config,
        name=name,
        module=training.network.eval(),
        directory=directory,
        progress=training.progress,
        inputs_seen=28,
        peak_memory_bytes=7,
        rows=rows,
        crosstalk=crosstalk,
    )


def test_rows_hold_what_was_measured(task):
    """In eval mode all at once, by statistics of batches of four passes, and in other company where passes have any."""
    network, module = Worsening(SMALL), build(SMALL)
    rows = evaluate_network(network, module, task, CONFIG)
    assert [row.n for row in rows] == [row.inputs for row in rows] == [1, 2, 4]
    assert [row.accuracy for row in rows] == pytest.approx([0.9, 0.7, 0.4])
    assert [row.accuracy_batch_statistics for row in rows] == pytest.approx([0.8, 0.6, 0.3])
    assert [len(row.accuracy_per_slot) for row in rows] == [1, 2, 4]
    assert [sum(row.accuracy_per_slot) / row.n for row in rows] == pytest.approx([0.9, 0.7, 0.4])
    assert [row.changed_by_regrouping for row in rows] == [None, 0.2, 0.2]
    assert [row.macs for row in rows] == [count_macs(module, n) for n in (1, 2, 4)]
    assert [row.rate for row in rows] == [None] * 3
    in_order = [call for call in network.calls if call[2]]
    assert in_order == [
        *[(1, 200, True), *[(1, 4, True)] * 50],
        *[(2, 200, True), *[(2, 8, True)] * 25],
        *[(4, 200, True), *[(4, 16, True)] * 12, (4, 8, True)],
    ]
    assert [call for call in network.calls if not call[2]] == [(2, 200, False), (4, 200, False)]


def test_a_result_says_where_and_how_it_came_about(task, tmp_path):
    """The command is that of the first start, the rest is of the last; what is returned is what stands in the file."""
    rows = evaluate_network(describe(SMALL), build(SMALL), task, CONFIG)
    crosstalk = {"before": {"2": {"logits": 0.5}}, "after": {"2": {"logits": 0.25}}}
    one = trained(CONFIG, tmp_path, rows=rows, crosstalk=crosstalk)
    (first,) = one.directory.starts
    assert first["device"] == device_name(CPU)
    one.directory.starts.append(first | {"command": "run.py --resume", "device": "another", "processes": 2})
    rates = {n: Spread(value=10.0 * place, low=9.0 * place, high=12.0 * place) for place, n in enumerate((1, 2, 4), 1)}
    run = write_result(one, one, task, rates, 9.0)
    found = run.result
    assert (found.command, found.device, found.processes) == (first["command"], "another", 2)
    assert [row.rate for row in found.rows] == list(rates.values())
    assert [replace(row, inputs_per_second=None, inputs_per_second_quartiles=None) for row in found.rows] == list(rows)
    assert (found.preset, found.control, found.model, found.superposed) == ("quickstart", None, SMALL.label, True)
    assert (found.steps, found.inputs_seen, found.peak_memory_bytes, found.wall_seconds) == (2, 28, 7, 9.0)
    assert (found.task, found.seed, found.crosstalk) == ("numbered", 0, crosstalk)
    assert found.guesses == {"the most frequent class": 0.1}
    assert read_result(one.directory.path) == found
    assert Result.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert (run.path, run.root) == (one.directory.path, one.directory.path.resolve())


def test_forms_of_a_preset_are_told_apart(task, tmp_path):
    """The control is named apart from the preset, and has no figure of the paper."""
    named = {
        "quickstart.thin": ("quickstart", "thin"),
        "quickstart.short": ("quickstart.short", None),
        "quickstart.short.equal_cost_n4": ("quickstart.short", "equal_cost_n4"),
    }
    rows = evaluate_network(describe(THIN.model), build(THIN.model), task, THIN)
    assert [row.n for row in rows] == [1]
    for name, (preset, control) in named.items():
        one = trained(THIN, tmp_path, name, rows)
        found = write_result(one, one, task, {1: Spread(value=1.0, low=1.0, high=1.0)}, 0.0).result
        assert (found.preset, found.control, found.superposed, found.paper) == (preset, control, False, {})


def test_the_paper_s_figure_stands_beside_the_run_that_it_is_of():
    """And beside no other network, task, training or control, however it is called."""
    config = find_preset("recall_n2_att")
    figures = {"2": (96.52, 2.79)}
    assert reported_by_paper(config, "recall_n2_att") == figures
    same = replace(config, seed=3, threads=1, log_every=7, optim=replace(config.optim, accumulate=2))
    assert reported_by_paper(same, "recall_n2_att") == figures
    for other in (
        replace(config, task="induction"),
        replace(config, n=(1,)),
        replace(config, dev_every=7),
        replace(config, model=replace(config.model, layers=1)),
        replace(config, optim=replace(config.optim, steps=9)),
    ):
        assert reported_by_paper(other, "recall_n2_att") == {}
    for form in ("recall_n2_att.thin", "recall_n2_att.short"):
        assert reported_by_paper(find_preset(form), form) == {}


def candidates(*configs):
    modules = [(describe(config.model), build(config.model).eval(), config) for config in configs]
    return [(network, module, n) for network, module, config in modules for n in network.evaluated_n(config.n)]


def test_throughput_is_measured_in_one_go(monkeypatch):
    """Each network at each n, on as many random inputs as whole passes of all of them hold."""

    def inputs_per_second(candidates, inputs):
        assert [n for _, _, n in candidates] == [1, 2, 4, 1]
        assert isinstance(candidates[-1][1], WideResNet)
        assert inputs.shape == (960, 1, 8, 8)
        return found

    found = [Spread(value=value, low=value, high=value) for value in (1.0, 2.0, 3.0, 4.0)]
    both = candidates(CONFIG, THIN)
    monkeypatch.setattr(rates, "inputs_per_second", inputs_per_second)
    assert rates.measure_throughput(both, CPU) == found
    monkeypatch.setitem(rates.BUDGET, "cpu", 1.0)
    counts = []
    monkeypatch.setattr(rates, "inputs_per_second", lambda candidates, inputs: counts.append(len(inputs)) or found)
    assert rates.measure_throughput(both, CPU) == found
    assert counts == [4]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_fewer_inputs_where_memory_does_not_hold_them(error, monkeypatch):
    def inputs_per_second(candidates, inputs):
        if len(inputs) > 100:
            raise error
        return [len(inputs)] * len(candidates)

    monkeypatch.setattr(rates, "inputs_per_second", inputs_per_second)
    assert rates.measure_throughput(candidates(CONFIG), CPU) == [60, 60, 60]
