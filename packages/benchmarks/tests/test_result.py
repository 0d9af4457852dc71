"""A result comes back from its JSON as it was, and whatever is damaged in that JSON is refused."""

import json
import math
import random
from dataclasses import asdict, replace

import pytest

from mimo_benchmarks.errors import ConfigError, OtherVersion
from mimo_benchmarks.result import Result, Row, Spread
from mimo_benchmarks.run_directory import RunDirectory, read_result, read_settings, settings_as_json
from mimo_benchmarks.settings import RunConfig

ROW = Row(
    n=1,
    inputs=1,
    accuracy=0.9,
    accuracy_batch_statistics=None,
    accuracy_per_slot=(0.9,),
    changed_by_regrouping=None,
    macs=1e6,
    inputs_per_second=1500.5,
    inputs_per_second_quartiles=(1400.0, 1600.5),
)
TWO = replace(
    ROW,
    n=2,
    inputs=4,
    accuracy_batch_statistics=0.8,
    accuracy_per_slot=(0.9, 0.8),
    changed_by_regrouping=0.1,
    inputs_per_second=None,
    inputs_per_second_quartiles=None,
)
RESULT = Result(
    preset="quickstart",
    control=None,
    model="MIMOConv-10-2",
    superposed=True,
    task="digits",
    seed=3,
    paper={"2": (96.52, 2.79), "4": (90.0, None)},
    rows=(ROW, TWO),
    guesses={"the most frequent class": 0.1},
    crosstalk={"before": {"2": {"logits": 0.5}}, "after": {"2": {"logits": 0.25}}},
    steps=650,
    inputs_seen=1000,
    skipped_updates=0,
    train_seconds=1.5,
    wall_seconds=2.5,
    peak_memory_bytes=7,
    command="python run.py",
    device="cpu",
    processes=1,
    versions={"torch": "2.6"},
    git_revision="unknown",
)
CONTROL = replace(RESULT, control="thin", superposed=False, paper={}, rows=(ROW,), crosstalk=None, peak_memory_bytes=None)


@pytest.mark.parametrize("result", [RESULT, CONTROL], ids=["network", "control"])
def test_a_result_comes_back_from_json(result):
    """Through text, as a file has it, and without it."""
    assert Result.from_json(result.to_json()) == result
    assert Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


def test_crosstalk_may_be_unknown():
    found = Result.from_json(changed(("crosstalk", "after", "2", "logits"), None))
    assert found.crosstalk["after"] == {"2": {"logits": None}}


def places(value, path=()):
    """Every place in a result's JSON, from the whole inwards."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, part in inside for found in [(*path, name), *places(part, (*path, name))]]


def changed(path, value):
    """A result's JSON with another value at a place."""
    content = json.loads(json.dumps(RESULT.to_json()))
    inside = content
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    return content


def at(path):
    """What a result's JSON has at a place."""
    value = json.loads(json.dumps(RESULT.to_json()))
    for name in path:
        value = value[name]
    return value


EVERYWHERE = places(json.loads(json.dumps(RESULT.to_json())))
NUMBERS = [path for path in EVERYWHERE if isinstance(at(path), int | float) and not isinstance(at(path), bool)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", [], {}], ids=repr)
@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_numbers_that_are_none_are_refused(path, value):
    with pytest.raises(ValueError, match=r"is not a"):
        Result.from_json(changed(path, value))


@pytest.mark.parametrize(
    "path", [path for path in NUMBERS if isinstance(at(path), int)], ids=lambda path: ".".join(map(str, path))
)
def test_counts_are_whole(path):
    with pytest.raises(ValueError, match=r"1\.5 is not a whole number"):
        Result.from_json(changed(path, 1.5))


def test_a_cost_is_above_zero():
    with pytest.raises(ValueError, match=r"0 is not a number from 1e-09 to 1e\+24"):
        Result.from_json(changed(("rows", 0, "macs"), 0))


MUST_BE_POSITIVE = ("macs", "inputs_per_second", "inputs_per_second_quartiles")


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_numbers_are_of_a_size_that_they_can_have(path):
    """None is negative, and a cost or a rate is no number that is lost in a division."""
    for value in [-1, -5e-324, 10**400, *[5e-324, 1e-30, 1e300] * any(name in MUST_BE_POSITIVE for name in path)]:
        with pytest.raises(ValueError, match=r"is not a .*number"):
            Result.from_json(changed(path, value))


@pytest.mark.parametrize(
    "quartiles", [None, [], [1500.5], [1, 2, 3000], [0, 1600], [-1, 1600], [1501, 1600], [1400, 1500]], ids=repr
)
def test_a_rate_lies_between_its_quartiles_above_zero(quartiles):
    with pytest.raises(ValueError, match=r"inputs_per_second is 1500\.5, its quartiles|values to unpack|is not a number from"):
        Result.from_json(changed(("rows", 0, "inputs_per_second_quartiles"), quartiles))


def test_quartiles_belong_to_a_rate():
    with pytest.raises(ValueError, match=r"inputs_per_second is None, its quartiles \(1400\.0, 1600\.5\)"):
        Result.from_json(changed(("rows", 0, "inputs_per_second"), None))


def test_a_rate_has_a_spread():
    assert ROW.rate == Spread(value=1500.5, low=1400.0, high=1600.5)
    assert TWO.rate is None


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_superposed_is_a_boolean(value):
    with pytest.raises(ValueError, match="is not true or false"):
        Result.from_json(changed(("superposed",), value))


@pytest.mark.parametrize(
    "name", [*asdict(RESULT), *(f"rows.{name}" for name in asdict(ROW)), "crosstalk.before", "crosstalk.after"]
)
def test_what_is_missing_is_named(name):
    content = json.loads(json.dumps(RESULT.to_json()))
    inside = content["rows"][0] if name.startswith("rows.") else content["crosstalk"] if "." in name else content
    del inside[name.rpartition(".")[2]]
    with pytest.raises(OtherVersion, match=f"^it has no entry {name.rpartition('.')[2]}$"):
        Result.from_json(content)


@pytest.mark.parametrize("value", [None, 3, "text", "", [], [3], [None], [{}]], ids=repr)
@pytest.mark.parametrize("name", ["paper", "rows", "guesses", "versions", "crosstalk"])
def test_what_has_another_form_is_refused(name, value):
    if name == "crosstalk" and value is None:
        assert Result.from_json(changed((name,), value)).crosstalk is None
        return
    with pytest.raises(
        ValueError, match=r"^(an entry has an unexpected form|it has no entry|there are no rows|.* values to unpack)"
    ) as error:
        Result.from_json(changed((name,), value))
    assert "Error" not in str(error.value)


def test_there_must_be_rows():
    with pytest.raises(ValueError, match="there are no rows"):
        Result.from_json(changed(("rows",), []))


def test_text_stands_on_one_line():
    """Without what steers a terminal or turns the direction of writing."""
    found = Result.from_json(changed(("model",), "a\x1b[31m\nb\u202ec "))
    assert found.model == "a [31m b c"


@pytest.mark.parametrize("name", ["model", "optim", "augment"])
def test_settings_that_are_missing_are_named(name, tmp_path):
    config = settings_as_json(RunConfig())
    del config[name]
    (tmp_path / "config.json").write_text(json.dumps({"preset": "x", "config": config}))
    with pytest.raises(ConfigError, match=f"does not hold settings of this version \\({name} is missing; expected "):
        read_settings(tmp_path)


@pytest.mark.parametrize("seeds", [range(200), pytest.param(range(200, 20_200), marks=pytest.mark.torture)], ids=len)
def test_other_bytes_than_were_written_are_no_other_result(seeds, tmp_path):
    """Single bytes, or a sector that holds nothing, noise, or another part of the file."""
    RunDirectory(tmp_path).write_with_checksum("result.json", RESULT.to_json())
    file = tmp_path / "result.json"
    whole, refused = file.read_bytes(), 0
    for seed in seeds:
        draw, read = random.Random(seed), bytearray(whole)
        at, other = draw.randrange(len(whole)), draw.randrange(len(whole))
        match draw.choice(["byte", "byte", "digit", "zeros", "noise", "moved"]):
            case "byte":
                read[at] = draw.randrange(256)
            case "digit":
                places = [place for place, byte in enumerate(whole) if chr(byte).isdigit()]
                for place in draw.sample(places, 3):
                    read[place] = draw.choice(b"0123456789")
            case "zeros":
                read[at : at + 512] = bytes(len(read[at : at + 512]))
            case "noise":
                read[at : at + 512] = draw.randbytes(len(read[at : at + 512]))
            case _:
                read[at : at + 512] = whole[other : other + 512]
        file.write_bytes(read)
        try:
            assert read_result(tmp_path) == RESULT, seed
        except ConfigError:
            refused += 1
    assert refused > len(seeds) / 2
