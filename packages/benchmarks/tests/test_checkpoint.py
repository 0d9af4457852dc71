"""Checkpoints that outlive whatever happens to the process, the disk and the files."""

import errno
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from mimo_benchmarks.errors import CheckpointError
from mimo_benchmarks.training.checkpoint import (
    MANIFEST,
    UNFINISHED,
    flatten_optimizer,
    load_checkpoint,
    manifest_text,
    newest_state,
    restore_optimizer,
    save_checkpoint,
)
from mimo_benchmarks.training.muon import Muon


def content(step):
    """Tensors and state that tell the step, in every byte of theirs."""
    tensors = {"model": {"weight": torch.arange(6.0).view(2, 3) + step, "bias": torch.tensor(step)}, "counts": {}}
    return tensors, {"step": step, "nested": [{"a": 0.1 + step, "b": None, "c": "é"}]}


def same(found, step):
    """Whether that step's checkpoint is what was found."""
    tensors, state = content(step)
    assert found.step == step
    assert found.state == state
    assert found.tensors.keys() == tensors.keys()
    for part, values in tensors.items():
        assert found.tensors[part].keys() == values.keys()
        assert all(torch.equal(found.tensors[part][name], value) for name, value in values.items())
    return True


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


DTYPES = [getattr(torch, kind + bits) for kind in ("uint", "int") for bits in ("8", "16", "32", "64")]
DTYPES += [torch.bool, torch.half, torch.bfloat16, torch.float, torch.double, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)], ids=str)
def test_bits_dtypes_and_shapes_come_back(tmp_path, dtype, shape):
    """Random bytes, so NaNs with their payloads too."""
    size = torch.zeros(shape, dtype=dtype).nbytes
    value = torch.randint(2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8).view(dtype).view(shape)
    save_checkpoint(tmp_path, 1, {"model": {"x": value}}, {})
    back = load_checkpoint(tmp_path).tensors["model"]["x"]
    assert (back.dtype, back.shape) == (dtype, shape)
    assert torch.equal(bits(back), bits(value))


def test_layouts_and_shared_memory_come_back(tmp_path):
    base = torch.randn(2, 3, 4, 5)
    values = {
        "base": base,
        "again": base,
        "part": base[1],
        "transposed": base.mT,
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "every_other": base[..., ::2],
        "expanded": torch.randn(1).expand(7),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,  # its memory has the other sign
    }
    save_checkpoint(tmp_path, 1, {"model": values}, {})
    found = load_checkpoint(tmp_path).tensors["model"]
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], value) for name, value in values.items())
    found["base"].zero_()
    assert torch.equal(found["again"], base)
    assert all(value.is_meta for value in load_checkpoint(tmp_path, "meta").tensors["model"].values())


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def optimizers():
    yield "sgd", lambda p: SGD(p, 0.1, momentum=0.9)
    yield "sgd without momentum", lambda p: SGD(p, 0.1)
    yield "adamw", lambda p: AdamW([{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:]}], 0.1, betas=(0.8, 0.9))
    yield "muon", lambda p: Muon([{"params": p[:1], "hidden": True}, {"params": p[1:]}], 0.1)


def take_step(parameters, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)
    optimizer.step()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in optimizers()])
def test_the_step_after_is_bit_equal(tmp_path, make, device):
    shapes = [(3, 4), *[(2,)] * 11]  # "10" comes before "2" among names
    ours = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    optimizer = make(ours)
    schedule = OneCycleLR(optimizer, 0.1, 10, cycle_momentum="betas" in optimizer.defaults)
    for seed in range(3):
        take_step(ours, optimizer, seed)
        schedule.step()
    tensors, groups = flatten_optimizer(optimizer.state_dict())
    save_checkpoint(tmp_path, 3, {"optimizer": tensors}, {"groups": groups})
    found = load_checkpoint(tmp_path, device)

    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    other = make(theirs)
    other.load_state_dict(restore_optimizer(found.tensors["optimizer"], found.state["groups"]))
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for seed in range(3, 5):
        take_step(ours, optimizer, seed)
        take_step(theirs, other, seed)
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def test_optimizer_state_that_is_no_tensor_comes_back():
    state = {0: {"momentum_buffer": None}, 11: {"step": 3, "exp.avg": torch.ones(2)}, 2: {"step": torch.tensor(1.0)}}
    given = {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.8, 0.9), "params": [0, 11]}, {"lr": 1, "params": [2]}]}
    tensors, groups = flatten_optimizer(given)
    assert set(tensors) == {"11.exp.avg", "2.step"}
    back = restore_optimizer(tensors, json.loads(json.dumps(groups)))
    assert back["param_groups"] == given["param_groups"]
    assert {index: {**values} for index, values in back["state"].items()} == state


def test_the_state_is_read_without_tensors(tmp_path):
    """Of the newest checkpoint whose state is whole; what is damaged, missing or a pipe is passed over."""
    assert newest_state(tmp_path) is newest_state(tmp_path / "nowhere") is None
    paths = [save_checkpoint(tmp_path, step, *content(step), keep=5) for step in range(1, 6)]
    whole = [json.loads((path / "state.json").read_text()) for path in paths]
    (paths[4] / "model.safetensors").unlink()
    assert newest_state(tmp_path) == (paths[4], whole[4])
    (paths[4] / "state.json").write_text("{}")
    (paths[3] / MANIFEST).write_text("[]")
    (paths[2] / "state.json").unlink()
    os.mkfifo(paths[2] / "state.json")
    (paths[1] / MANIFEST).unlink()
    assert newest_state(tmp_path) == (paths[0], whole[0])
    shutil.rmtree(paths[0])
    assert newest_state(tmp_path) is None


def test_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "nowhere") is None
    assert load_checkpoint(tmp_path) is None
    (tmp_path / UNFINISHED).mkdir()
    assert load_checkpoint(tmp_path) is None


def test_older_ones_are_pruned(tmp_path):
    for step in (1, 2, 10, 100_000_000):
        path = save_checkpoint(tmp_path, step, *content(step), keep=3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000002", "step-00000010", "step-100000000"]
    assert path == load_checkpoint(tmp_path).path == tmp_path / "step-100000000"
    save_checkpoint(tmp_path, 5, *content(5), keep=1)  # the run went back: what it had left stays, and this is no older one
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000005", "step-00000010", "step-100000000"]
    with pytest.raises(ValueError, match="got 0"):
        save_checkpoint(tmp_path, 6, *content(6), keep=0)


def test_damaged_ones_are_passed_over_newest_first(tmp_path):
    for step in (1, 2, 3, 4):
        path = save_checkpoint(tmp_path, step, *content(step), keep=4)
    (path / "more.safetensors").touch()
    (tmp_path / "step-00000003" / "model.safetensors").unlink()
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    found = load_checkpoint(tmp_path)
    assert same(found, 1)
    named = ["step-00000004: .*more.safetensors", "step-00000003: .*model.safetensors", "step-00000002: .*state.json"]
    assert all(re.search(name, reason) for name, reason in zip(named, found.skipped, strict=True))
    (tmp_path / "step-00000001" / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tmp_path)
    assert all(f"step-0000000{step}" in str(raised.value) for step in (1, 2, 3, 4))


def test_what_cannot_be_removed_is_removed_by_the_next_save(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EACCES, "Permission denied")

    for step in (1, 2):
        save_checkpoint(tmp_path, step, *content(step))
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        save_checkpoint(tmp_path, 3, *content(3))
    assert same(load_checkpoint(tmp_path), 3)
    save_checkpoint(tmp_path, 4, *content(4))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


CIRCLE = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: 2}, {1}, torch.ones(1), object(), CIRCLE], ids=lambda value: type(value).__name__
)
def test_state_that_json_does_not_have_is_refused(tmp_path, value):
    save_checkpoint(tmp_path, 1, *content(1))
    with pytest.raises(CheckpointError, match=r"step-00000002.* leave only dicts"):
        save_checkpoint(tmp_path, 2, {}, {"deep": [value]})
    assert same(load_checkpoint(tmp_path), 1)


class SimulatedKill(BaseException):
    """The process is dead, and so is everything that it wanted to do afterwards."""


class Disk:
    """Counts what a save does to the disk, and at the k-th fails once, fails from then on, or kills the process and all power.

    What was not synced is lost then: content of files, entries of folders, renames.
    """

    def __init__(self, patch, folder, manner, fails_at):
        self.folder, self.manner, self.fails_at = folder, manner, fails_at
        self.count, self.failing, self.real = 0, False, {}
        self.unsynced, self.renames = set(), []
        for module, name in [(os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (Path, "write_bytes")]:
            self.real[name] = getattr(module, name)
            patch.setattr(module, name, lambda *args, name=name, **kwargs: self.call(name, *args, **kwargs))

    def call(self, name, *args, **kwargs):
        self.count += 1
        if self.failing or self.count == self.fails_at:
            self.fail(name, *args)
        result = self.real[name](*args, **kwargs)
        if name == "fsync":
            synced = os.fstat(args[0]).st_ino
            self.unsynced.discard(synced)
            self.renames = [] if synced == self.folder.stat().st_ino else self.renames
        elif name == "write_bytes":
            self.unsynced |= {args[0].stat().st_ino, args[0].parent.stat().st_ino}
        elif name == "rename":
            self.renames.append(args)
        return result

    def fail(self, name, *args):
        if name == "write_bytes" and not self.failing:
            path, data = args
            self.real[name](path, data[: len(data) // 2])
        if self.manner == "kill":
            if not self.failing:
                self.lose()
            self.failing = True
            raise SimulatedKill
        self.failing = self.manner == "for good"
        raise OSError(errno.ENOSPC, "No space left on device")

    def lose(self):
        for path in [path for path in self.folder.rglob("*") if path.stat().st_ino in self.unsynced]:
            if path.is_dir():
                self.real["unlink"](max(path.iterdir()))
            elif path.exists():
                os.truncate(path, path.stat().st_size // 2)
        for old, new in reversed(self.renames):
            self.real["rename"](new, old)


SAVES = {"another": ([1, 2], 3), "the same": ([1, 2], 2), "the only one": ([1], 1)}


@pytest.mark.parametrize("manner", ["kill", "once", "for good"])
@pytest.mark.parametrize(("steps", "step"), SAVES.values(), ids=SAVES)
def test_whatever_fails_a_valid_one_loads_and_the_next_save_works(tmp_path, monkeypatch, steps, step, manner):
    """At every write, fsync, rename and removal of a save."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # takes its time, and `Disk` knows what would be lost without
    k = last = 0
    while k <= last:
        folder = tmp_path / str(k)
        for number in steps:
            save_checkpoint(folder, number, *content(number))
        copytree(folder / f"step-{steps[-1]:08}", folder / UNFINISHED)  # as of a save that was killed
        error = None
        with monkeypatch.context() as patch:
            disk = Disk(patch, folder, manner, fails_at=k)
            try:
                save_checkpoint(folder, step, *content(step))
            except (SimulatedKill, CheckpointError) as raised:
                error = raised
        if isinstance(error, CheckpointError):
            assert "No space left" in str(error)
            assert f"make room in {folder}" in str(error)
            assert manner == "for good" or not (folder / UNFINISHED).exists()
        last = last or disk.count  # of the save that nothing failed
        found = load_checkpoint(folder)
        assert found.step in ({steps[-1], step} if error else {step})
        assert same(found, found.step)
        save_checkpoint(folder, 9, *content(9))
        assert same(load_checkpoint(folder), 9)
        assert not (folder / UNFINISHED).exists()
        k += 1
    assert last > 20


def test_what_cannot_be_a_folder_is_named(tmp_path):
    """As root writes anywhere, a file in the way stands for what may not be written."""
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(CheckpointError, match=f"{place}.* make room"):
            save_checkpoint(place, 1, *content(1))
    with pytest.raises(CheckpointError, match="file cannot be read"):
        load_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("name", [UNFINISHED, ".replaced-step-00000002", "step-00000002"])
@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_what_stands_in_the_way_of_a_save_gives_way(name, make, tmp_path):
    save_checkpoint(tmp_path, 2, *content(2))
    if name == "step-00000002":
        rmtree(tmp_path / name)
    make(tmp_path / name)
    save_checkpoint(tmp_path, 2, *content(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert same(load_checkpoint(tmp_path), 2)


def test_a_file_that_outgrows_its_limit_leaves_the_old_one(tmp_path):
    """A write that really fails, in the midst of a file."""
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, 1, *content(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step-00000002 cannot be written.* make room"):
            save_checkpoint(tmp_path, 2, {"model": {"weight": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert same(load_checkpoint(tmp_path), 1)


SAVER = """
import os, sys
from pathlib import Path
import torch
from mimo_benchmarks.training.checkpoint import load_checkpoint, save_checkpoint

def told(do):
    def call(*args, **kwargs):
        print("at", do.__name__, flush=True)
        return do(*args, **kwargs)
    return call

while sys.stdin.readline():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("dead", flush=True)
        continue
    print(os.getpid(), flush=True)
    os.fsync, os.rename, os.unlink, os.mkdir = map(told, (os.fsync, os.rename, os.unlink, os.mkdir))
    folder = Path(sys.argv[1])
    kept = load_checkpoint(folder)
    step = kept.step if kept else 0
    while True:
        step += 1
        save_checkpoint(folder, step, {"model": {"x": torch.full((50_000,), step)}}, {"step": step})
        print("saved", step, flush=True)
"""
"""Forks, when told to, a process that goes on saving, and tells what it is about to do."""


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.torture)])
@pytest.mark.once
def test_kill_9_inside_saves(tmp_path, kills):
    """After a number of lines that is drawn; what was said to be saved is there."""
    draw, last = random.Random(0), 0
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SAVER, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as saver:
        for _ in range(kills):
            print("go", file=saver.stdin)
            child, awaited = int(saver.stdout.readline()), draw.randrange(20, 60)
            for count, line in enumerate(iter(saver.stdout.readline, "dead\n")):
                if line.startswith("saved"):
                    last = int(line.split()[1])
                if count == awaited:
                    os.kill(child, signal.SIGKILL)
            assert count >= awaited, "it ended by itself"
            found = load_checkpoint(tmp_path)
            assert found.step in (last, last + 1)
            assert found.state == {"step": found.step}
            assert found.tensors["model"]["x"].eq(found.step).all()
            assert not found.skipped
        saver.stdin.close()
    assert last > kills


def changed(draw, data, other):
    """Bytes after each sort of damage to them; `other` are those of the same file in another checkpoint."""
    at, to = sorted(draw.choices(range(len(data) + 1), k=2))
    noise = draw.randbytes(draw.randrange(1, 40))
    flipped = bytearray(data)
    flipped[at - 1] ^= 1 << draw.randrange(8)
    digit = draw.choice([place for place, byte in enumerate(data) if chr(byte).isdigit()] or [0])
    return {
        "flip": bytes(flipped),
        "truncate": data[:at],
        "cut": data[:at] + data[to:],
        "repeat": data[:to] + data[at:],
        "overwrite": data[:at] + noise + data[at + len(noise) :],
        "insert": data[:at] + noise + data[at:],
        "zeros": data[:at] + bytes(to - at) + data[to:],
        "digit": data[:digit] + draw.choice(b"0123456789").to_bytes() + data[digit + 1 :],
        "nested": draw.choice([b"[", b'{"files":', b"9"]) * draw.choice([1, 1_000, 300_000]),
        "swap": other,
    }


def damage(draw, folder):
    """Damage the newer of two checkpoints in one way; returns how, and whether that changed anything."""
    newest = folder / "step-00000002"
    path = draw.choice(sorted(newest.iterdir()))
    before = path.read_bytes()
    contents = changed(draw, before, (folder / "step-00000001" / path.name).read_bytes())
    kind = draw.choice([*contents, "add", "rename", "delete", "pipe", "folder"])
    match kind:
        case "add":
            (newest / draw.choice(["more.safetensors", "model.pt", ".hidden"])).write_bytes(before)
        case "rename":
            newest.rename(folder / draw.choice(["step-00000003", "step-20000000", ".replaced-step-00000020"]))
        case "delete" | "pipe" | "folder":
            path.unlink()
            {"delete": lambda path: None, "pipe": os.mkfifo, "folder": os.mkdir}[kind](path)
        case _:
            path.write_bytes(contents[kind])
    return f"{kind} {path.name}", contents.get(kind) != before


def survives(folder, seed):
    """Damage the newer of two checkpoints, then remove what is in the older."""
    how, harmful = damage(random.Random(seed), folder)
    if not harmful:
        assert same(load_checkpoint(folder), 2), how
        return
    found = load_checkpoint(folder)
    assert same(found, 1), how
    assert len(found.skipped) == 1, how
    assert "\n" not in found.skipped[0], how
    for file in (folder / "step-00000001").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint is valid.*step-.*step-00000001: "):
        load_checkpoint(folder)


@pytest.mark.parametrize("tries", [300, pytest.param(10_000, marks=pytest.mark.torture)])
def test_damaged_files_are_never_loaded(tmp_path, tries):
    for step in (1, 2):
        save_checkpoint(tmp_path / "whole", step, *content(step))
    for seed in range(tries):
        survives(copytree(tmp_path / "whole", tmp_path / str(seed)), seed)
        rmtree(tmp_path / str(seed))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", MANIFEST, "model.pt", "more.safetensors"])
@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "zip", "legacy"])
def test_pickles_are_not_executed(tmp_path, name, protocol):
    """Neither where the manifest tells them, nor where it was made for them."""
    sign, pickled = tmp_path / "executed", tmp_path / "pickled"
    if isinstance(protocol, int):
        pickled.write_bytes(pickle.dumps(Malicious(sign), protocol))
    else:
        torch.save(Malicious(sign), pickled, _use_new_zipfile_serialization=protocol == "zip")
    for fitting in (False, True):
        folder = tmp_path / str(fitting)
        path = save_checkpoint(folder, 1, *content(1))
        (path / name).write_bytes(pickled.read_bytes())
        if fitting and name != MANIFEST:
            files = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.name != MANIFEST}
            (path / MANIFEST).write_bytes(manifest_text(path.name, files))
        with pytest.raises(CheckpointError, match="no checkpoint is valid"):
            load_checkpoint(folder)
    assert not sign.exists()
    torch.load(pickled, weights_only=False) if isinstance(protocol, str) else pickle.loads(pickled.read_bytes())
    assert sign.exists()  # that is, it would have been
