"""Hold what training one network has shown: an experiment makes a `Result`, a report shows it, result.json keeps it."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from mimo_benchmarks.errors import OtherVersion
from mimo_benchmarks.presets.paper import Reported

STAGES = ("before", "after")
"""When crosstalk is measured: before and after training."""
Crosstalk = Mapping[str, Mapping[str, float | None]]
"""Share of the variance that the other inputs cause, for each n (as text) and each place in the network; None where features do
not vary, or are not finite."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A rate, or a ratio of two, and the range in which it lies over the timing rounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements of a network at one n; accuracies and shares are from 0 to 1."""

    n: int
    """Inputs per pass, or the side of a MIMOFormer's grid."""
    inputs: int
    """Inputs per pass."""
    accuracy: float
    """Share of right answers on the test set."""
    accuracy_batch_statistics: float | None
    """Accuracy if BatchNorm normalises by the test batch instead of training statistics; None without BatchNorm."""
    accuracy_per_slot: tuple[float, ...]
    """Accuracy for each slot: of the inputs that come first, second, .. in their pass."""
    changed_by_regrouping: float | None
    """Share of the answers that change when inputs are grouped differently; None with one input per pass."""
    macs: float
    """Multiply-adds per input."""
    inputs_per_second: float | None
    """Throughput: the median over the timing rounds; None if it was not measured."""
    inputs_per_second_quartiles: tuple[float, float] | None
    """Lower and upper quartile of the throughput over the timing rounds; None if it was not measured."""

    @property
    def rate(self) -> Spread | None:
        """Return the throughput with its quartiles; None if it was not measured."""
        if self.inputs_per_second is None or self.inputs_per_second_quartiles is None:
            return None
        low, high = self.inputs_per_second_quartiles
        return Spread(value=self.inputs_per_second, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was found out about a network that was trained and evaluated. Every number is finite."""

    preset: str
    control: str | None
    """The name of a control, such as thin; None for the network of the preset itself."""
    model: str
    """What tables call the network."""
    superposed: bool
    """Whether several inputs can share a pass."""
    task: str
    seed: int
    paper: Reported = field(default_factory=dict)
    """What the paper reports, if the settings match the paper's."""
    rows: tuple[Row, ...]
    guesses: Mapping[str, float]
    """Accuracy of guesses that ignore the question, such as the most frequent class."""
    crosstalk: Mapping[str, Crosstalk] | None
    """Crosstalk "before" and "after" training; None where it is not measured."""
    steps: int
    inputs_seen: int
    skipped_updates: int
    train_seconds: float
    wall_seconds: float
    """Seconds from the last start of the experiment to this result."""
    peak_memory_bytes: int | None
    """Most memory in use during training; on a CPU, in the whole process so far. None if not known."""
    command: str
    """The command line of the first start."""
    device: str
    """Model of the device of the last start, for a CPU with torch's threads. All throughputs were measured on it."""
    processes: int
    versions: Mapping[str, str]
    git_revision: str

    def to_json(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Result":
        """Check the content of a result.json, and return the result.

        Text is put on one line, without characters that control a terminal or the direction of writing.

        Raises:
            OtherVersion: an entry is missing.
            ValueError: an entry is of the wrong type, not finite, or out of range.
        """
        try:
            crosstalk = found["crosstalk"]
            plain: dict[str, Any] = {
                **{name: one_line(found[name]) for name in ("preset", "model", "task", "command", "device", "git_revision")},
                **{name: whole(found[name]) for name in ("seed", "steps", "inputs_seen", "skipped_updates")},
                "processes": whole(found["processes"], 1),
            }
            result = cls(
                **plain,
                control=None if found["control"] is None else one_line(found["control"]),
                superposed=boolean(found["superposed"]),
                paper={one_line(n): (finite(mean, 0, 100), optional(seconds, std)) for n, (mean, std) in found["paper"].items()},
                rows=tuple(map(row_from_json, found["rows"])),
                guesses=mapping(found["guesses"], share),
                crosstalk=None if crosstalk is None else {when: mapping(crosstalk[when], crosstalk_shares) for when in STAGES},
                train_seconds=seconds(found["train_seconds"]),
                wall_seconds=seconds(found["wall_seconds"]),
                peak_memory_bytes=None if found["peak_memory_bytes"] is None else whole(found["peak_memory_bytes"]),
                versions=mapping(found["versions"], one_line),
            )
        except KeyError as error:
            raise OtherVersion(f"it has no entry {one_line(error.args[0])}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"an entry has an unexpected form ({error})") from error
        if not result.rows:
            raise ValueError("there are no rows")
        return result


def row_from_json(found: Mapping[str, Any]) -> Row:
    """Check a row of a result.json, and return it."""
    rate, quartiles = optional(positive, found["inputs_per_second"]), found["inputs_per_second_quartiles"]
    if quartiles is not None:
        low, high = map(positive, quartiles)
        quartiles = low, high
    if (rate is None) != (quartiles is None) or (rate is not None and not low <= rate <= high):
        raise ValueError(f"inputs_per_second is {rate}, its quartiles {quartiles}: it is not between them")
    return Row(
        n=whole(found["n"], 1),
        inputs=whole(found["inputs"], 1),
        accuracy=share(found["accuracy"]),
        accuracy_batch_statistics=optional(share, found["accuracy_batch_statistics"]),
        accuracy_per_slot=tuple(map(share, found["accuracy_per_slot"])),
        changed_by_regrouping=optional(share, found["changed_by_regrouping"]),
        macs=positive(found["macs"]),
        inputs_per_second=rate,
        inputs_per_second_quartiles=quartiles,
    )


def one_line(value: object) -> str:
    """Return a text on one line, without characters that control a terminal or the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in str(value)).strip()


def finite(value: object, low: float = -inf, high: float = inf) -> float:
    """Return the value if it is a finite number within bounds; otherwise raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r} is not a finite number")
    if not low <= value <= high:
        raise ValueError(f"{value!r} is not a number from {low:g} to {high:g}")
    return float(value)


def share(value: object) -> float:
    """Return the value if it is a number from 0 to 1; otherwise raise ValueError."""
    return finite(value, 0, 1)


def positive(value: object) -> float:
    """Return the value if it is a number above 0, of a size with which reports can calculate; otherwise raise ValueError."""
    return finite(value, 1e-9, 1e24)


def seconds(value: object) -> float:
    """Return the value if it is a number of seconds; otherwise raise ValueError."""
    return finite(value, 0)


def whole(value: object, low: int = 0) -> int:
    """Return the value if it is a whole number, not below the lowest, that 64 bits hold; otherwise raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if not low <= value < 2**63:
        raise ValueError(f"{value!r} is not a number from {low} to 2^63 - 1")
    return value


def boolean(value: object) -> bool:
    """Return the value if it is true or false; otherwise raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def optional(check: Callable[[Any], float], value: object) -> float | None:
    """Return the value if it is None or passes a check; otherwise raise ValueError."""
    return None if value is None else check(value)


def mapping(found: Mapping[str, Any], check: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a mapping whose values have all passed a check."""
    return {one_line(name): check(value) for name, value in found.items()}


def crosstalk_shares(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a mapping whose values are all crosstalk or None; estimates of it can lie somewhat above 1."""
    return mapping(found, lambda value: None if value is None else finite(value, 0, 10))
