"""Find a preset by name. A preset is a function that returns settings; its docstring says what was reported and measured."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

from mimo_benchmarks.data.vision.augment import NONE
from mimo_benchmarks.errors import ConfigError, suggestion
from mimo_benchmarks.presets import published
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimoconv import MIMOConvConfig

SHORT = 1 / 20
"""Share of a preset's steps that its form `short` has."""


def quickstart() -> RunConfig:
    """scikit-learn's handwritten digits, 8 x 8 pixels: no download, a minute on two CPU cores.

    The README has the measured numbers; the paper has no such run.
    """
    digits = MIMOConvConfig(capacity=4, depth=10, width=2, stem_channels=32, in_channels=1, image_size=8)
    return RunConfig(task="digits", model=digits, controls=True)


def mnist() -> RunConfig:
    """MNIST, 28 x 28 pixels, from the data folder."""
    model = MIMOConvConfig(capacity=4, depth=10, width=1, stem_channels=32, in_channels=1, image_size=28)
    return replace(quickstart(), task="mnist", model=model, optim=OptimConfig(steps=600))


def cifar10() -> RunConfig:
    """CIFAR-10, 32 x 32 pixels in colour, from the data folder: a few minutes on a GPU."""
    model = MIMOConvConfig(capacity=4, depth=16, width=4)
    optim = OptimConfig(steps=5000, groups=64, lr=2e-3, weight_decay=0.05, label_smoothing=0.1)
    return RunConfig(task="cifar10", model=model, optim=optim, augment=replace(NONE, crop=4, flip=True), controls=True)


def cifar10_fast_n4() -> RunConfig:
    """MIMOConv-28-10 with N = 4 in 5,000 steps of SGD in bf16, without mixup, isometry and a ReLU before binding.

    Measured: 67.4 and 67.5 % (seeds 0 and 1, H200, commit e924f82); the paper has no such run. docs/running.md has the controls.
    """
    optim = replace(published.CONV, steps=5000, reject=0.0, isometry=0.0)
    augment = replace(NONE, crop=4, flip=True)
    model = MIMOConvConfig(capacity=4)
    return RunConfig(task="cifar10", model=model, n=(4,), n_odds=(1,), optim=optim, augment=augment, precision="bf16")


def cifar10_muon_n4() -> RunConfig:
    """cifar10_fast_n4 with Muon for the weights of the body. Measured: 78.1 % (seed 0, H200, commit e924f82)."""
    base = cifar10_fast_n4()
    return replace(base, optim=replace(base.optim, optimizer="muon", lr=0.02, momentum=(0.95, 0.95)))


def with_docstring(name: str, about: str, make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Return a preset of a family with its docstring: what it is, what the paper reports, and where our results are."""
    reported = [f"{mean} ± {std} %" if std is not None else f"{mean} %" for mean, std in PAPER.get(name, {}).values()]
    make.__doc__ = (
        f"{about}: {', '.join(reported) or 'no figure'} in Menet et al. (2023); docs/results.md has what came out here."
    )
    return make


OWN: tuple[Callable[[], RunConfig], ...] = (
    quickstart,
    mnist,
    cifar10,
    cifar10_fast_n4,
    cifar10_muon_n4,
)
"""Presets that are not from the paper."""
FAMILIES = (
    published.table1,
    published.figure4,
    published.table2,
    published.table3,
    published.mqar,
    published.ablations,
)
PRESETS: dict[str, Callable[[], RunConfig]] = {
    **{make.__name__: make for make in OWN},
    **{name: with_docstring(name, about, make) for family in FAMILIES for name, about, make in family()},
}


def shortened(config: RunConfig, share: float) -> RunConfig:
    """Return settings with a share of the steps, rounded up, and as many evaluations on the dev split."""
    steps, dev = (ceil(round(share * count, 6)) for count in (config.optim.steps, config.dev_every))
    return replace(config, optim=replace(config.optim, steps=steps), dev_every=dev)


def find_preset(name: str) -> RunConfig:
    """Return the settings of a preset, or of a form of it: NAME.short, NAME.thin and other controls, NAME.short.thin.

    Raises:
        ConfigError: there is no such preset or form; the message suggests names that are close.
    """
    base, *forms = name.split(".")
    if base not in PRESETS:
        near = suggestion(base, PRESETS)
        raise ConfigError(f"there is no preset {base!r}: {near if near.startswith('did') else '`mimonets list` shows all'}")
    config = PRESETS[base]()
    if forms and forms[0] == "short":
        forms.pop(0)
        config = shortened(config, SHORT)
    if forms:
        plain = controls(config.model, config.n)
        if len(forms) > 1 or forms[0] not in plain:
            raise ConfigError(f"there is no preset {name!r}: {base} has the forms {', '.join(['short', *plain])}")
        config = replace(config, model=plain[forms[0]], controls=False)
    return config
