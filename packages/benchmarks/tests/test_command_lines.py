"""Random command lines: each ends with exit code 2 and a message, answers, or gets as far as the work that it asks for."""

import io
import os
import random
import shutil
import signal
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.networks import registry
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.presets.find import PRESETS, find_preset
from mimo_benchmarks.run_directory import RunDirectory, flatten_settings, settings_as_json
from mimo_benchmarks.tasks.catalogue import sets
from mimo_benchmarks.tasks.registry import TASKS

pytestmark = [pytest.mark.once, pytest.mark.unchecked]
NUMBERS = ["0", "1", "2", "3", "4", "5", "8", "16", "64", "-1", "-0", "1.0", "0.5", "0.9", "1e-3", "1e-300", "1e300", "1e400"]
NUMBERS += ["1e9", "nan", "inf", "-inf", "1_000", "0x10", "٣", "9" * 30, "9" * 5000]
NUMBERS += [str(2**power - less) for power in (31, 32, 63) for less in (0, 1)]
TEXTS = ["", " ", "None", "True", "false", "é", "\u202e\x1b[31m", "\udcff", "a b", "-", "--", "---", "'", "{}", "[1]", "~", "="]
PATHS = [".", "..", "file", "folder", "folder/image.png", "folder/text.txt", "run", "run/model", "run/config.json"]
PATHS += ["started", "empty", "pipe", "dangling", "new", "new/deep", "file/below", "/dev/null", "caf\udce9", "x" * 300, "a::b"]
PATHS += ["~/x", "runs"]
PRESET_FORMS = [*PRESETS, "quickstart.short", "quickstart.thin", "cifar10.short.equal_cost_n4", "recall_n2_att.thin", "mnist."]
OWN = ("quickstart", "recall_n2_att", "induction_n2_att_dpfp", "recall_datamux_n2", "quickstart.thin", "quickstart.short")
"""Presets of tasks that need no data folder."""
FLAGS = {
    "list": ["estimate"],
    "report": ["out"],
    "throughput": ["n", "passes", "rounds", "precision", "compile", "device", "threads", "compare", "tolerance", "out"],
    "predict": ["text", "n", "passes"],
    "data": ["data-dir", "download"],
}
"""Flags of all commands but train."""


class Started(BaseException):
    """A command has begun with what it was asked for."""


class Hung(BaseException):
    """A command takes minutes."""


def start(*_, **__):
    raise Started


def hang(*_):
    raise Hung


def value(draw):
    return draw.choice(draw.choice([NUMBERS, NUMBERS, TEXTS, PATHS, PRESET_FORMS, list(TASKS)]))


def flag(draw, name, fitting):
    """A flag with values, which often are of its kind."""
    name = f"--{name}".replace("_", "-")
    if isinstance(fitting, bool) or (fitting is None and draw.random() < 0.2):
        parent, dot, own = name.rpartition(".")
        return [draw.choice([name, f"{parent}{dot}no-{own}" if dot else f"--no-{name[2:]}", f"{name}={value(draw)}"])]
    values = fitting if isinstance(fitting, list) else [fitting]
    if draw.random() < 0.25 or fitting is None:
        values = [value(draw) for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 3]))]
    values = [str(each) for each in values]
    return [f"{name}={values[0]}", *values[1:]] if values and draw.random() < 0.2 else [name, *values]


def train_line(draw):
    preset = draw.choice([*OWN, *OWN, draw.choice(PRESET_FORMS), value(draw), ""])
    known = {name: flatten_settings(settings_as_json(find_preset(name))) for name in draw.sample(OWN, 2)}
    before, other = known.values()
    flags = [
        part
        for name in draw.choices([name for name in before if name != "model.kind"], k=draw.choice([0, 1, 1, 2, 2, 3, 5, 8]))
        for part in flag(draw, name, draw.choice([before, other]).get(name))
    ]
    if draw.random() < 0.15:
        flags += ["--resume", draw.choice([*PATHS, "run", "run"])]
    return ["train"] * (draw.random() < 0.2) + [preset] * (preset != "") + flags


def other_line(draw, command):
    words = {
        "list": lambda: draw.choice([value(draw), "*", "cifar10*", "quickstart.short", "[", "recall_n2_att"]),
        "report": lambda: draw.choice(PATHS),
        "throughput": lambda: draw.choice([*PRESET_FORMS, value(draw)]),
        "predict": lambda: draw.choice([*PATHS, "run", "run", "folder", value(draw)]),
        "data": lambda: draw.choice(["list", "prepare", "verify", *TASKS, *sets(), value(draw)]),
    }[command]
    line = [words() for _ in range(draw.choice([0, 1, 1, 1, 2, 2, 3]))]
    for name in draw.choices(FLAGS[command], k=draw.choice([0, 0, 1, 1, 2, 3])):
        line += flag(draw, name, {"n": 2, "passes": 3, "precision": "bf16", "out": "new", "data-dir": "empty"}.get(name))
    return [command, *line]


def command_line(seed):
    draw = random.Random(seed)
    command = draw.choice(["train", "train", "train", "train", *FLAGS])
    line = train_line(draw) if command == "train" else other_line(draw, command)
    match draw.random():
        case chance if chance < 0.05:
            line.insert(draw.randrange(len(line) + 1), value(draw))
        case chance if chance < 0.1:
            line += [draw.choice(["--help", "-h", "--version", "--unknown", "-x", "--optim.lr", "--n"])]
        case chance if chance < 0.15:
            draw.shuffle(line)
    return line


def furnish(folder, run):
    """Put into a folder all that command lines name."""
    (folder / "folder").mkdir(parents=True)
    Image.new("L", (8, 8), 7).save(folder / "folder" / "image.png")
    (folder / "folder" / "text.txt").write_text("a text")
    (folder / "file").write_text("{}")
    (folder / "caf\udce9").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    shutil.copytree(run, folder / "run")
    shutil.copytree(run, folder / "started", ignore=shutil.ignore_patterns("model"))


def content(folder):
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path):
    """A run that is finished but for its result."""
    path, config = tmp_path / "run", find_preset("quickstart.thin")
    RunDirectory(path).begin("quickstart.thin", config, torch.device("cpu"))
    network = registry.describe(config.model)
    module = network.build()
    module.config = replace(module.config, mean=(0.5,), std=(0.5,))
    network.library.save(module, path / "model", accuracy={1: 0.5})
    return path


@pytest.fixture
def stubbed(monkeypatch, tmp_path):
    """The work that commands begin raises `Started` instead; networks take no memory, and tasks are loaded once."""
    for work in (
        "mimo_benchmarks.experiment.experiment.train_and_evaluate",
        "mimo_benchmarks.cli.throughput.build",
        "mimo_benchmarks.cli.estimate.training_seconds",
        "mimo_benchmarks.cli.data.fetch",
        "mimo_benchmarks.data.storage.generated.write_cache",
        "mimo_benchmarks.data.synthetic.mqar.mqar_splits",
    ):
        monkeypatch.setattr(work, start)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    for name in ("digits", "recall", "induction"):
        loaded = TASKS[name].load(Path())
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], load=lambda _, loaded=loaded: loaded))
    build = Network.build

    def build_on_meta(network):
        with torch.device("meta"):
            return build(network)

    monkeypatch.setattr(Network, "build", build_on_meta)
    monkeypatch.setattr(experiment, "untrained_network", lambda config, accelerator: registry.build(config.model))
    monkeypatch.setattr(os, "environ", os.environ | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"})
    for name in ("MIMO_DATA", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)


@contextmanager
def limits(seconds, gigabytes):
    """Raise `Hung` after a while, and let allocations fail beyond some memory."""
    resource = pytest.importorskip("resource")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(gigabytes * 2**30), before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(line, capsys):
    """What became of a command line: "started", or its exit code and what it printed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    threads = torch.get_num_threads()
    try:
        with limits(60, 4):
            main(line)
        code = 0
    except Started:
        code = "started"
    except SystemExit as exit_:
        code = exit_.code
    except BaseException as error:
        code = repr(error)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 2100), marks=pytest.mark.torture)], ids=len)
def test_a_command_line_ends_in_a_message_or_starts(seeds, run, stubbed, tmp_path, monkeypatch, capsys):
    place = tmp_path / "place"
    furnish(place, run)
    before, wrong, codes = content(place), {}, Counter()
    for seed in seeds:
        line = command_line(seed)
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text\n")))
        code, said = outcome(line, capsys)
        codes[code] += 1
        after = content(place)
        if code not in (0, 2, "started") or "Traceback" in said or (code == 2 and (not said.strip() or after != before)):
            wrong[seed] = ascii(line), code, said[-300:], after.items() ^ before.items()
        if after != before:
            shutil.rmtree(place)
            furnish(place, run)
            before = content(place)
    print(codes)
    assert not wrong
