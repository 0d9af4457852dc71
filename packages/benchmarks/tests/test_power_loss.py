"""What is on the disk after a loss of power at any moment, on a file system that keeps nothing that was not synced."""

import os
import random
from contextlib import contextmanager

import pytest
import torch

from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.run_directory import (
    RunDirectory,
    make_run_directory,
    read_json,
    read_metrics,
    read_settings,
    require_unchanged,
)
from mimo_benchmarks.training.checkpoint import load_checkpoint, save_checkpoint
from mimoconv import MIMOConv, MIMOConvConfig
from mimoconv.hub import LIBRARY

CALLS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync")
"""Functions of os after each of which the power may go."""


class Disk:
    """Watches a folder, and knows what of it is sure to be on the disk: synced content of files, synced entries of folders.

    Files and folders are known by their inode, and are kept open, so that no inode is used again.
    """

    def __init__(self, root):
        self.root, self.top, self.open = root, root.stat().st_ino, {}
        self.content, self.entries, self.promised = {}, {}, {}
        self.moments = []
        """After each call: what is there, what of it is synced, both by inode, and what has been promised to last."""

    def look(self):
        """What is there: content of files and entries of folders, by inode."""
        content, entries = {}, {}
        for path in (self.root, *self.root.rglob("*")):
            inode = path.stat().st_ino
            if inode not in self.open:
                self.open[inode] = os.open(path, os.O_RDONLY)
            if path.is_dir():
                entries[inode] = {each.name: each.stat().st_ino for each in path.iterdir()}
            else:
                content[inode] = path.read_bytes()
        return content, entries

    @contextmanager
    def watching(self, patch):
        """Note a moment after every call."""
        real = {name: getattr(os, name) for name in CALLS}

        def call(name, *args, **kwargs):
            result = None if name == "fsync" else real[name](*args, **kwargs)  # which takes its time
            content, entries = self.look()
            if name == "fsync":
                inode = os.fstat(args[0]).st_ino
                for synced, now in ((self.content, content), (self.entries, entries)):
                    synced.update({inode: now[inode]} if inode in now else {})
            self.moments.append((content, entries, dict(self.content), dict(self.entries), dict(self.promised)))
            return result

        with patch.context() as inner:
            for name in CALLS:
                inner.setattr(os, name, lambda *args, name=name, **kwargs: call(name, *args, **kwargs))
            yield
        for descriptor in self.open.values():
            os.close(descriptor)

    def remains(self, draw, moment, place):
        """Write to `place` what a loss of power may leave: each change that was not synced is there or not, files in part."""
        content, entries, synced_content, synced_entries, _ = moment
        kept = draw.choice([0.0, 0.5, 0.5, 1.0])

        def write_folder(inode, path):
            path.mkdir()
            now, before = entries.get(inode, {}), synced_entries.get(inode, {})
            changed = sorted({*now.values(), *before.values()})
            lasting = {each for each in changed if draw.random() < kept}  # a rename is there as a whole, or not at all
            gone = {each for each in lasting if each in now.values()} | {
                before[name] for name in before.keys() - now.keys()
            } & lasting
            names = {name: each for name, each in before.items() if each not in gone}
            names |= {name: each for name, each in now.items() if each in lasting}
            for name, each in sorted(names.items()):
                if each in entries or each in synced_entries:
                    write_folder(each, path / name)
                else:
                    write_file(each, path / name)

        def write_file(inode, path):
            before = synced_content.get(inode, b"")
            now = content.get(inode, before)
            path.write_bytes(draw.choice([before, now, now[: max(len(before), draw.randrange(len(now) + 1))]]))

        write_folder(self.top, place)


def live(disk, path):
    """A run from its start to its end as far as its files go, with a checkpoint that is replaced, and a second start."""
    config = find_preset("quickstart.thin")
    run = RunDirectory(make_run_directory(path, ""))
    run.begin("quickstart.thin", config, torch.device("cpu"))
    for step in (1, 2, 3, 3, 4):
        if step > 1:
            run.log(step=step)
        run.sync_metrics()
        save_checkpoint(path / "checkpoints", step, {"model": {"x": torch.full((5,), step)}}, {"step": step})
        disk.promised["step"] = step
    run.begin("quickstart.thin", config, torch.device("cpu"), 4)
    model = MIMOConvConfig(capacity=1, depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8)
    LIBRARY.save(MIMOConv(model), path / "model")
    run.write("result.json", {"seed": 0})
    disk.promised["end"] = True


def check(path, promised):
    """What was promised is there, whatever is there is whole, and a run with a checkpoint can be resumed."""
    found = load_checkpoint(path / "checkpoints")
    step = found.step if found else 0
    assert step >= promised.get("step", 0)
    if found:
        assert not found.skipped
        assert torch.equal(found.tensors["model"]["x"], torch.full((5,), step))
        assert found.state == {"step": step}
        assert {line["step"] for line in read_metrics(path)} >= {*range(2, step + 1)}
    for name, kind in (("config.json", dict), ("environment.json", list), ("result.json", dict)):
        if (path / name).exists() or ("end" in promised if name == "result.json" else found):
            read_json(path / name, kind)
    if (path / "config.json").exists():
        assert read_settings(path)[0] == "quickstart.thin"
        require_unchanged(path)
    if "end" in promised:
        LIBRARY.load(path / "model")


@pytest.mark.parametrize("tries", [2, pytest.param(300, marks=pytest.mark.torture)])
def test_what_was_promised_survives_a_loss_of_power(tries, tmp_path, monkeypatch):
    """At each rename, removal and sync of a run's files, with each change before it that was not synced lost or not."""
    root = tmp_path / "root"
    root.mkdir()
    disk = Disk(root)
    with disk.watching(monkeypatch):
        live(disk, root / "runs" / "run")
    wrong = {}
    for number, moment in enumerate(disk.moments):
        for attempt in range(tries):
            place = tmp_path / f"{number}-{attempt}"
            disk.remains(random.Random(number * 1000 + attempt), moment, place)
            try:
                check(place / "runs" / "run", moment[-1])
            except Exception as error:
                wrong[number, attempt] = repr(error)[:200]
    assert not wrong
