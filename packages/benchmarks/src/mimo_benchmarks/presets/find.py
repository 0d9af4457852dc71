"""Every experiment as a function; its docstring is the evidence: what was reported, and what was measured here."""

from collections.abc import Callable
from dataclasses import replace

from mimo_benchmarks.data.vision.augment import NONE
from mimo_benchmarks.errors import ConfigError, suggestion
from mimo_benchmarks.presets import published
from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimoconv import MIMOConvConfig

SHORT = 20
"""A `short` preset takes one in so many of the steps."""


def quickstart() -> RunConfig:
    """scikit-learn's handwritten digits, 8 x 8 pixels: no download, a minute and a half on two CPU cores.

    The README has what was measured; the paper has no such run.
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
    """The same with Muon for the weights of the body. Measured: 78.1 % (seed 0, H200, commit e924f82)."""
    base = cifar10_fast_n4()
    return replace(base, optim=replace(base.optim, optimizer="muon", lr=0.02, momentum=(0.95, 0.95)))


def documented(name: str, about: str, make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """One of a family, its docstring filled in."""
    reported = [f"{mean} ± {std} %" if std is not None else f"{mean} %" for mean, std in PAPER.get(name, {}).values()]
    make.__doc__ = f"{about}: {', '.join(reported) or 'no figure'} in Menet et al. (2023); not run to the end here."
    return make


OWN = (quickstart, mnist, cifar10, cifar10_fast_n4, cifar10_muon_n4)
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
    **{name: documented(name, about, make) for family in FAMILIES for name, about, make in family()},
}


def find_preset(name: str) -> RunConfig:
    """The preset of that name, or a form of it: NAME.short, or NAME.thin and other controls, or NAME.short.thin.

    Raises:
        ConfigError: there is none; the nearest names are suggested.
    """
    base, *forms = name.split(".")
    if base not in PRESETS:
        near = suggestion(base, PRESETS)
        raise ConfigError(f"there is no preset {base!r}: {near if near.startswith('did') else '`mimonets list` shows all'}")
    config = PRESETS[base]()
    if forms and forms[0] == "short":
        forms.pop(0)
        steps, dev = -(-config.optim.steps // SHORT), -(-config.dev_every // SHORT)
        config = replace(config, optim=replace(config.optim, steps=steps), dev_every=dev)
    if forms:
        plain = controls(config.model, config.n)
        if len(forms) > 1 or forms[0] not in plain:
            raise ConfigError(f"there is no preset {name!r}: {base} has the forms {', '.join(['short', *plain])}")
        config = replace(config, model=plain[forms[0]], controls=False)
    return config
