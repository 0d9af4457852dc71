"""`mimonets throughput` with durations of our own, so that what it tells is known."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch

import mimoconv
from mimo_benchmarks import environment as environment_module
from mimo_benchmarks.cli.throughput import execute_throughput, measurement_table
from mimo_benchmarks.environment import device_name, environment
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.networks.datamux import DataMUXConvConfig
from mimo_benchmarks.presets.find import PRESETS
from mimo_benchmarks.settings import RunConfig
from mimoconv import MIMOConv, MIMOConvConfig, WideResNetConfig
from vsa_core import graphs

CPU = torch.device("cpu")
RUNS = {
    "small": RunConfig(model=MIMOConvConfig(capacity=4, depth=10, width=0.25, stem_channels=8, image_size=8)),
    "plain": RunConfig(model=WideResNetConfig(depth=10, width=0.25, image_size=8)),
    "begun": RunConfig(
        model=MIMOConvConfig(depth=10, width=0.25, stem_channels=8, image_size=8),
        n=(4,),
        n_odds=(1,),
        curriculum=(2,),
        curriculum_share=0.5,
    ),
    "mux": RunConfig(model=DataMUXConvConfig(capacity=2), n=(2,), n_odds=(1,)),
}


@pytest.fixture(autouse=True)
def set_up(monkeypatch, tmp_path, one_thread):
    monkeypatch.chdir(tmp_path)
    for name in RUNS:
        monkeypatch.setitem(PRESETS, name, partial(RUNS.__getitem__, name))
    takes(monkeypatch, 0.001)


def takes(monkeypatch, seconds):
    """Every call takes 9, 10 or 11 times as long, so the median is 10 times."""
    monkeypatch.setattr(rates, "durations", lambda call, *_: call() is None or [9 * seconds, 10 * seconds, 11 * seconds])


def run(*arguments):
    execute_throughput([*map(str, arguments), "--device", "cpu"])


COSTS = ["kernels, ms", "memory, MB"]


def lines(capsys):
    """The table's cells."""
    found = [line[1:-1].split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in found]


def test_a_table_is_printed_and_the_numbers_are_written(capsys, tmp_path):
    run("small", "--passes", 6, "--rounds", 3)
    head, rule, *rows = lines(capsys)
    timed = [cell for what in ("one", "6") for cell in (f"{what} pass{'es' * (what == '6')}, ms (quartiles)", *COSTS)]
    assert head == ["n", *timed, "inputs/s (quartiles)", "of peak"]
    assert len(rule) == 9
    assert all(set(cell[:-1]) == {"-"} and cell[-1] == ":" for cell in rule)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert rows[2][1:8] == [*["10 (9.5 to 10.5)", "-", "-"] * 2, "2,400 (2,286 to 2,526)"]
    (file,) = (tmp_path / "runs").iterdir()
    assert file.name == "throughput-small-001.json"
    content = json.loads(file.read_text())
    expected = {"preset": "small", "passes": 6, "precision": "no", "device": device_name(CPU), "rounds": 3}
    expected |= {"compile": False, "cuda_graphs": True}
    assert {name: content[name] for name in expected} == expected
    assert content["network"]["kind"] == "MIMOConvConfig"
    assert content["network"]["width"] == 0.25
    assert content["peak"] == pytest.approx(2 * 1024**3 / 0.009)
    assert content["environment"] == environment(CPU)
    row = content["rows"][1]
    assert (row["n"], row["inputs_per_second"]) == (2, 1200)
    assert row["latency"] == row["batch"]
    assert row["latency"] == pytest.approx({"median": 0.01, "low": 0.0095, "high": 0.0105, "peak_bytes": None, "kernels": None})
    assert row["inputs_per_second_quartiles"] == pytest.approx([12 / 0.0105, 12 / 0.0095])
    assert row["macs"] == mimoconv.count_macs(MIMOConv(RUNS["small"].model), 2)
    assert rows[1][8] == f"{2 * row['macs'] * 1200 / content['peak']:.1%}"


def test_the_table_has_kernels_and_memory_of_both_times():
    timings = [
        rates.Timing(median=second, low=second, high=second, peak_bytes=size, kernels=second / 2)
        for second, size in ((1, 10**9), (2, 3 * 10**9))
    ]
    rest = {"inputs_per_second": 5.0, "inputs_per_second_quartiles": (4.0, 6.0), "macs": 1.0, "share": 0.5}
    row = rates.Measurement(n=2, latency=timings[0], batch=timings[1], **rest)
    cells = measurement_table([row], 5, {}).splitlines()[-1].split(" | ")
    assert [cells[place].strip() for place in (2, 3, 5, 6)] == ["500", "1,000", "1e+03", "3,000"]


def test_a_progress_bar_counts_every_timed_call(monkeypatch, capsys):
    """Of one pass and of all, for three n."""
    monkeypatch.setattr("mimo_benchmarks.progress.LOG_INTERVAL", 0)  # a line after every call
    run("small", "--rounds", 3)
    lines = [line.partition(" [")[0] for line in capsys.readouterr().err.splitlines()]
    assert (lines[0], lines[-1]) == ("small: 0 of 18 calls", "small: 18 of 18 calls")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor : 0\nmodel name\t: Some CPU @ 2 GHz \nmodel name : another\n", "Some CPU @ 2 GHz"),
        ("processor : 0\nmodel name\t:\nFeatures : fp\n", "an architecture"),
        (None, "an architecture"),
    ],
)
def test_the_device_is_the_model_of_the_cpu_and_its_threads(content, name, monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(environment_module, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.setattr(environment_module.platform, "processor", lambda: "an architecture")
    assert device_name(CPU) == f"{name} (threads = 1)"
    torch.set_num_threads(2)
    assert device_name(CPU) == f"{name} (threads = 2)"


def test_files_are_numbered_and_never_overwritten(tmp_path):
    run("small", "--n", 1)
    run("small", "--n", 1)
    assert sorted(file.name for file in (tmp_path / "runs").iterdir()) == [f"throughput-small-00{i}.json" for i in (1, 2)]
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match=r"taken.json exists already, and is never overwritten: choose another --out"):
        run("small", "--out", taken)
    assert taken.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"below.json cannot be written .*choose another --out"):
        run("small", "--out", taken / "below.json")
    with pytest.raises(ConfigError, match=r"x.json cannot be written .*too long.*choose another --out"):
        run("small", "--n", 1, "--out", "x" * 300 + "x.json")


def test_a_file_that_appears_meanwhile_is_kept(monkeypatch, tmp_path):
    def durations(*_):
        (tmp_path / "new.json").write_text("mine")
        return [1.0]

    monkeypatch.setattr(rates, "durations", durations)
    with pytest.raises(ConfigError, match=r"new.json cannot be written"):
        run("small", "--n", 1, "--out", "new.json")
    assert (tmp_path / "new.json").read_text() == "mine"


def test_a_plain_network_is_measured_once_one_by_one(capsys):
    with pytest.raises(ConfigError, match=r"n = \(4,\), but the network of plain takes its inputs one by one"):
        run("plain", "--n", 4)
    run("plain", "--passes", 6)
    (row,) = lines(capsys)[2:]
    assert (row[0], row[7].split()[0]) == ("1", "600")


def test_a_curriculum_is_of_training_alone(capsys):
    run("begun", "--n", 1)
    assert lines(capsys)[2][0] == "1"


def test_compare_tells_how_many_times_faster_each_n_is_now(capsys, monkeypatch):
    run("small", "--n", 2, 4, "--out", "old.json")
    takes(monkeypatch, 0.0004)
    lines(capsys)
    run("small", "--n", 1, 2, "--compare", "old.json")
    head, rule, one, two = lines(capsys)
    assert head[9:] == ["one pass, old/new", "64 passes, old/new"]
    assert len(rule) == len(head)
    assert one[9:] == ["-", "-"]
    assert two[9:] == ["2.50x", "2.50x"]


def test_compare_tells_latency_and_batch_apart(capsys, tmp_path):
    run("small", "--n", 2, "--out", "old.json")
    old = json.loads((tmp_path / "old.json").read_text())
    old["rows"][0]["latency"]["median"] = 0.04
    old["rows"][0]["batch"]["median"] = 0.0096
    (tmp_path / "old.json").write_text(json.dumps(old))
    lines(capsys)
    run("small", "--n", 2, "--compare", "old.json")
    assert lines(capsys)[2][9:] == ["4.00x", "0.96x"]


def earlier(tmp_path, **medians):
    """A file like that of a run, in which other medians stand."""
    run("small", "--n", 2, 4, "--out", "old.json")
    content = json.loads((tmp_path / "old.json").read_text())
    for name, median in medians.items():
        content["rows"][1][name]["median"] = median
    (tmp_path / "old.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("medians", "flags", "told"),
    [
        ({}, [], None),
        ({"latency": 0.0091, "batch": 0.0091}, [], None),  # 9.9 % slower
        ({"latency": 0.001}, ["--tolerance", 9.1], None),
        ({"latency": 0.5, "batch": 0.5}, ["--tolerance", 0], None),  # faster now
        ({"latency": 0.009}, [], "by more than 10%: n = 4, one pass: 10 ms, and 9 ms there$"),
        ({"batch": 0.009}, [], "by more than 10%: n = 4, 64 passes: 10 ms, and 9 ms there$"),
        ({"batch": 0.0099}, ["--tolerance", 0], "by more than 0%: n = 4, 64 passes: 10 ms, and 9.9 ms there$"),
        ({"latency": 0.002, "batch": 0.001}, [], "one pass: 10 ms, and 2 ms there; n = 4, 64 passes: 10 ms, and 1 ms there$"),
    ],
)
def test_compare_fails_where_an_n_is_slower_than_it_was(medians, flags, told, tmp_path, capsys):
    """After the table and the file, which say more."""
    earlier(tmp_path, **medians)
    lines(capsys)
    with nullcontext() if told is None else pytest.raises(ConfigError, match=f"^slower than in old.json .*{told}"):
        run("small", "--n", 2, 4, "--compare", "old.json", "--out", "new.json", *flags)
    assert len(lines(capsys)) == 4
    assert json.loads((tmp_path / "new.json").read_text())["rows"][1]["n"] == 4


def test_compare_needs_a_shared_n(tmp_path):
    earlier(tmp_path)
    with pytest.raises(ConfigError, match=r"old.json cannot be compared: its n are \[2, 4\], and here they are \[1\]"):
        run("small", "--n", 1, "--compare", "old.json")


@pytest.mark.parametrize("flags", [[], ["--no-cuda-graphs"]])
def test_cuda_graphs_are_used_unless_they_are_switched_off(flags, monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(rates, "durations", lambda *_: used.append(graphs.ENABLED.get()) or [1.0])
    run("small", "--n", 1, "--out", "new.json", *flags)
    assert used[1:] == [not flags] * 2
    assert json.loads((tmp_path / "new.json").read_text())["cuda_graphs"] is (not flags)
    assert graphs.ENABLED.get()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["other"], "its preset is small, and here it is other"),
        (["--passes", 3], "its passes is 6, and here it is 3"),
        (["--precision", "bf16"], "its precision is no, and here it is bf16"),
        ([], "its network.width is 0.25, and here it is 0.5"),
    ],
)
def test_compare_refuses_other_settings_before_it_measures(flags, told, monkeypatch):
    run("small", "--passes", 6, "--n", 1, "--out", "old.json")
    model = RUNS["small"].model if flags else replace(RUNS["small"].model, width=0.5)
    for name in ("small", "other"):
        monkeypatch.setitem(PRESETS, name, lambda: replace(RUNS["small"], model=model))
    monkeypatch.setattr(rates, "durations", lambda *_: pytest.fail("it was measured"))
    if flags[:1] != ["other"]:
        flags = ["small", *flags]
    with pytest.raises(ConfigError, match=rf"old.json cannot be compared: {told}"):
        run(*flags, *([] if "--passes" in flags else ["--passes", 6]), "--compare", "old.json")


def test_compare_refuses_another_device(monkeypatch):
    run("small", "--n", 1, "--out", "old.json")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    with pytest.raises(ConfigError, match=r"its device is .+ \(threads = 1\), and here it is .+ \(threads = 8\)"):
        run("small", "--compare", "old.json")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"preset": "small"}'])
def test_compare_refuses_what_is_no_such_file(content, tmp_path):
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(ConfigError, match=r"old.json is not a file of `mimonets throughput`"):
        run("small", "--compare", "old.json")


def test_compare_refuses_damaged_rows(tmp_path):
    run("small", "--n", 1, "--out", "old.json")
    whole = json.loads((tmp_path / "old.json").read_text())
    good = {"n": 1, "latency": {"median": 1.0}, "batch": {"median": 1.0}}
    wrong = [{"n": n} for n in (1.5, True, "1", math.inf)] + [
        {"batch": {"median": each}} for each in (None, "1", math.nan, 0, -1.0)
    ]
    for rows in (5, [5], [{"n": 1}], *([good | each] for each in wrong)):
        (tmp_path / "old.json").write_text(json.dumps({**whole, "rows": rows}))
        with pytest.raises(ConfigError, match=r"old.json is not a file of"):
            run("small", "--compare", "old.json")
    (tmp_path / "old.json").write_text(json.dumps({**whole, "network": 3}))
    with pytest.raises(ConfigError, match=r"old.json is not a file of"):
        run("small", "--compare", "old.json")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--n", 5], "n = 5, but the model has room for 4"),
        (["--n", 2, 2], "n must not repeat a number"),
        (["--passes", 0], "passes must be from 1 to"),
        (["--passes", 2**31], "passes must be from 1 to"),
        (["--rounds", 0], "rounds must be from 1 to"),
        (["--tolerance", -0.1], "tolerance must be finite and not negative, got -0.1"),
        (["--tolerance", "inf"], "tolerance must be finite and not negative, got inf"),
        (["--precision", "fp16"], "precision = fp16 is for GPUs: choose bf16 or no"),
        (["--threads", 0], r"threads = 0, but this process may use 1 to \d+"),
        (["--threads", 10**6], "threads = 1000000, but this process may use 1 to"),
    ],
)
def test_what_cannot_work_is_refused(flags, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        run("small", *flags)
    assert not list(tmp_path.iterdir())


def test_datamux_has_one_n(capsys):
    run("mux", "--passes", 6)
    assert lines(capsys)[2][7].split()[0] == "1,200"
    with pytest.raises(ConfigError, match="DataMUX"):
        run("mux", "--n", 1)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device = cuda, but torch finds no GPU: choose --device cpu"):
        execute_throughput(["small", "--device", "cuda"])


def test_threads_are_set():
    torch.set_num_threads(2)
    run("small", "--n", 1, "--threads", 1)
    assert torch.get_num_threads() == 1


def test_help_tells_of_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        execute_throughput(["--help"])
    assert exit_.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: mimonets throughput" in told
    for flag in (
        "--n ",
        "--passes",
        "--rounds",
        "--precision {no,bf16,fp16}",
        "--compile",
        "--device {None,cpu,cuda}",
        "--threads",
    ):
        assert flag in told
    assert "an earlier file of this command; adds how many times faster each n is now, and fails if one is slower" in told
    assert "before that fails; faster never fails. (default: 0.1)" in told
    assert "file to write, which must not exist yet; runs/throughput-PRESET-001.json, -002, .. unless given" in told
