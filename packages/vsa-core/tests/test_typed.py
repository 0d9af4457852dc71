"""Values of JSON become exactly what the types of a dataclass allow; everything else is refused by name."""

import json
import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from vsa_core.hub.typed import as_dataclass


@dataclass(frozen=True)
class Left:
    """One of two parts."""

    size: int = 1


@dataclass(frozen=True)
class Right:
    """The other part, with a field that has no default."""

    share: float


@dataclass(frozen=True)
class Settings:
    """A field of each kind."""

    kind_of: ClassVar[int] = 3
    flag: bool = False
    count: int = 0
    rate: float = 0.5
    name: str = ""
    path: Path | None = None
    choice: Literal["a", "b"] | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[str, ...] = ()
    grid: int | tuple[int, ...] = 1
    part: Left | Right = field(default_factory=Left)

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


def read(**found):
    return as_dataclass(Settings, json.loads(json.dumps({"part": {"kind": "Left"}} | found)), "net")


def test_what_fits_becomes_the_dataclass():
    assert read() == Settings()
    found = read(flag=True, count=2, rate=3, name="x", path="a/b", choice="b", pair=[1, 2.5], many=["u", "v"], grid=[2, 2])
    expected = Settings(True, 2, 3, "x", Path("a/b"), "b", (1, 2.5), ("u", "v"), (2, 2))
    assert found == expected
    assert read(rate=inf, path=None, grid=4).rate == inf
    assert read(part={"kind": "Right", "share": 1}).part == Right(1)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"flag": 1}, "net.flag is 1; expected true or false"),
        ({"count": 2.0}, "net.count is 2.0; expected a whole number"),
        ({"count": True}, "net.count is true; expected a whole number"),
        ({"count": None}, "net.count is null; expected a whole number"),
        ({"rate": "0.1"}, 'net.rate is "0.1"; expected a number'),
        ({"rate": 10**400}, f"net.rate is 1{'0' * 76}...; expected a number"),
        ({"name": ["a\nb"]}, 'net.name is ["a\\nb"]; expected text'),
        ({"path": 3}, "net.path is 3; expected a path or null"),
        ({"choice": "c"}, 'net.choice is "c"; expected one of a, b or null'),
        ({"choice": ["a"]}, 'net.choice is ["a"]; expected one of a, b or null'),
        ({"pair": [1]}, "net.pair is [1]; expected a list of 2 (each entry a number)"),
        ({"pair": [1, {}]}, "net.pair[1] is {}; expected a number"),
        ({"many": "uv"}, 'net.many is "uv"; expected a list (each entry text)'),
        ({"grid": [1, 2.0]}, "net.grid[1] is 2.0; expected a whole number"),
        ({"part": {}}, "net.part.kind is null; expected one of Left, Right"),
        ({"part": {"kind": "Left", "size": "big"}}, 'net.part.size is "big"; expected a whole number'),
        ({"part": {"kind": "Right"}}, "net.part.share is missing; expected a number"),
        ({"part": [1]}, "net.part is [1]; expected fields of Left or fields of Right"),
        ({"kind_of": 3}, "net.kind_of is unknown; expected flag, count, rate, name, path, choice, pair, many, grid, part"),
        ({"a\nb": 3}, 'net."a\\nb" is unknown; expected flag, count, rate, name, path, choice, pair, many, grid, part'),
        ({"count": -1}, "count is negative"),
    ],
)
def test_what_does_not_fit_is_named(found, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        read(**found)


@pytest.mark.parametrize("found", [None, 3, "text", [1]])
def test_settings_are_a_mapping(found):
    with pytest.raises(ValueError, match=r"^it is .*; expected fields of Settings$"):
        as_dataclass(Settings, found)


def test_a_part_must_be_there():
    with pytest.raises(ValueError, match=r"^part is missing; expected fields of Left or fields of Right$"):
        as_dataclass(Settings, {})
