"""Which runs make up the tables and figures of the paper: presets, their controls, and the plain networks beside them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from mimo_benchmarks.presets.controls import controls
from mimo_benchmarks.presets.find import PRESETS, find_preset, shortened
from mimo_benchmarks.settings import RunConfig, require


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of a table."""

    preset: str
    """Name of the preset, followed by a dot and the name of a control if it is one."""
    variant: str = ""
    """What is otherwise than in the preset, as part of file names."""
    changes: tuple[tuple[str, Any], ...] = ()
    """Fields of the preset's `optim` that are changed."""

    @property
    def name(self) -> str:
        """Return the name of the row: that of the preset, followed by the variant."""
        return self.preset + (f"-{self.variant}" if self.variant else "")

    def config(self, share: float) -> RunConfig:
        """Return the settings with a share of the steps, without controls."""
        published = find_preset(self.preset)
        changed = replace(published, optim=replace(published.optim, **dict(self.changes)), controls=False)
        return shortened(changed, share)

    def flags(self, share: float) -> list[str]:
        """Return the flags that turn the preset into this row."""
        published, config = find_preset(self.preset), self.config(share)
        changes = {f"optim.{name}": getattr(config.optim, name) for name in dict.fromkeys((*dict(self.changes), "steps"))}
        before = {name: getattr(published.optim, name.removeprefix("optim.")) for name in changes}
        changes["dev_every"], before["dev_every"] = config.dev_every, published.dev_every
        words = [
            [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
            for name, value in changes.items()
            if value != before[name]
        ]
        return [word for each in words for word in each]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of the paper."""

    title: str
    about: str
    """What it shows, and what our rows do otherwise, for the page of results."""
    rows: tuple[Row, ...]
    """In the order in which they run."""
    share: float
    """Share of the published steps."""
    at_once: int
    """Networks that train at the same time on one GPU."""


def controls_of(*presets: str) -> Iterator[Row]:
    """Yield the rows of the controls of presets."""
    for preset in presets:
        config = find_preset(preset)
        yield from (Row(preset=f"{preset}.{name}") for name in controls(config.model, config.n))


MUON: tuple[tuple[str, Any], ...] = (("optimizer", "muon"), ("lr", 0.02), ("momentum", (0.95, 0.95)))
"""Changes that let Muon train a network, with the rates of the preset cifar10_muon_n4."""
LONG = (("steps", 1_200 * 390),)
"""The steps of MIMOConv with N = 2; a plain wide ResNet has a sixth of them."""


def table1() -> Iterator[Row]:
    """Yield the rows of Table 1; a plain network also for the steps of MIMOConv, and both with Muon."""
    for task in ("cifar10", "cifar100"):
        plain = [f"{task}_{name}" for name in ("wide_resnet", "wide_isonet")]
        ours = [f"{task}_mimoconv_{name}" for name in ("n2", "n4", "n1", "dynamic")]
        yield from (Row(preset=name) for name in plain + ours)
        yield from controls_of(*ours)
        yield Row(preset=plain[0], variant="long", changes=LONG)
        yield from (Row(preset=name, variant="muon", changes=(*MUON, *LONG)) for name in (plain[0], ours[0]))


def figure4() -> Iterator[Row]:
    """Yield the rows of Figure 4, largest N first."""
    ns = (16, 8, 4, 2, 1)
    yield from (Row(preset=f"mnist_{kind}_n{n}") for n in ns for kind in ("mimoconv", "datamux"))
    yield from controls_of(*(f"mnist_mimoconv_n{n}" for n in ns))


def table2() -> Iterator[Row]:
    """Yield the rows of Table 2, deep networks first."""
    ours = ("n2_att", "n4_att", "n4_att_curriculum", "n2_att_mlp", "n2_blurry", "n4_att_mlp")
    for size in ("deep", "wide"):
        for task in ("listops", "image", "text", "pathfinder", "retrieval"):
            names = ("transformer", "performer", *ours, "datamux_n2")
            yield from (Row(preset=name) for name in (f"{task}_{size}_{row}" for row in names) if name in PRESETS)
            yield from controls_of(f"{task}_{size}_n2_att")


def table3() -> Iterator[Row]:
    """Yield the rows of Table 3, with the blurry variant."""
    for task in ("recall", "induction"):
        rows = ("transformer", "performer", "n2_att", "n2_att_dpfp", "datamux_n2", "n2_blurry")
        yield from (Row(preset=f"{task}_{row}") for row in rows)
        yield from controls_of(f"{task}_n2_att")


def mqar() -> Iterator[Row]:
    """Yield the rows of Zoology's multi-query recall."""
    for length in (64, 128):
        for row in ("transformer", "performer", "n2_att", "n2_att_dpfp"):
            yield Row(preset=f"mqar_{length}_{row}")


def ablations() -> Iterator[Row]:
    """Yield the ablations of MIMOConv with N = 4, which itself is a row of Table 1."""
    for name in ("no_isometry", "d16", "d32", "d128", "frozen_keys"):
        yield Row(preset=f"cifar10_mimoconv_n4_{name}")


KINDS: dict[str, tuple[str, str, Callable[[], Iterator[Row]], float, int]] = {
    "figure4": (
        "Figure 4: MNIST",
        "The inner 20 x 20 pixels of MNIST, MIMOConv-10-1 beside DataMUX's CNN, both for DataMUX's 28,125 steps. The paper gives "
        "figures for N = 16 alone.",
        figure4, 1.0, 6,
    ),
    "table3": (
        "Table 3: associative recall and the induction head",
        "H3's synthetic tasks with two layers of 32 dimensions. Every network is causal, and those in superposition compute the "
        "exact causal form in chunks. The paper's own seeds spread by up to 34 points, so each seed is shown.",
        table3, 1.0, 4,
    ),
    "mqar": (
        "Multi-query associative recall",
        "Zoology's task with 64 and 128 tokens, which the paper has not.",
        mqar, 1.0, 2,
    ),
    "table2": (
        "Table 2: Long Range Arena",
        "Retrieval needs a corpus of papers that has to be fetched by hand: docs/data.md.",
        table2, 1.0, 1,
    ),
    "table1": (
        "Table 1: CIFAR-10 and CIFAR-100",
        "At a tenth of the published steps unless a row says otherwise. Plain networks have fewer published steps than MIMOConv "
        "(78,000 against 468,000), so a row marked long has MIMOConv's. Rows marked muon have the rates of `cifar10_muon_n4`, "
        "tuned for neither network.",
        table1, 0.1, 1,
    ),
    "ablations": (
        "Ablations on CIFAR-10",
        "MIMOConv-28-10 with N = 4, whole in Table 1, without one part each. The paper's text gives no figures for them.",
        ablations, 0.1, 1,
    ),
}  # fmt: skip
"""Title, text, rows, share of the steps and networks at once of each table, in the order of what they prove."""


@cache
def find_table(name: str) -> Table:
    """Return a table of the paper.

    Raises:
        ConfigError: there is no such table.
    """
    require(name in KINDS, f"there is no table {name!r}: choose one of {', '.join(KINDS)}")
    title, about, rows, share, at_once = KINDS[name]
    return Table(title=title, about=about, rows=tuple(dict.fromkeys(rows())), share=share, at_once=at_once)
