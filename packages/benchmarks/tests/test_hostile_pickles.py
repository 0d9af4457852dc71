"""Pickles that would run code, in the place of every file that the program reads: none is opened, and all are refused."""

import pickle
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Features, Value

from mimo_benchmarks.cli.inputs import FORMATS, read_image
from mimo_benchmarks.cli.throughput import read_earlier
from mimo_benchmarks.data.long_range_arena.listops_files import read_listops_file
from mimo_benchmarks.data.long_range_arena.pathfinder_files import LEVEL, read_pathfinder_release
from mimo_benchmarks.data.long_range_arena.retrieval import FILES, retrieval_splits
from mimo_benchmarks.data.long_range_arena.text_tables import read_parquet_table
from mimo_benchmarks.data.storage.generated import Recipe, load_or_generate
from mimo_benchmarks.data.vision import images
from mimo_benchmarks.errors import CheckpointError, ConfigError, DatasetError
from mimo_benchmarks.networks.registry import build, load_finished
from mimo_benchmarks.run_directory import RunDirectory, read_result, read_settings
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.training.checkpoint import load_checkpoint, newest_state, save_checkpoint
from mimoconv import MIMOConv, MIMOConvConfig

SMALL = MIMOConvConfig(depth=10, width=0.25, stem_channels=8, in_channels=1, image_size=8)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, sign, call=Path.touch):
        self.sign, self.call = sign, call

    def __reduce__(self):
        argument = self.sign if self.call is Path.touch else f"__import__('pathlib').Path({str(self.sign)!r}).touch()"
        return self.call, (argument,)


def pickles(sign):
    """Return ten files by name, each with what opens it carelessly."""
    hostile, found = Hostile(sign), {}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found[f"protocol {protocol}"] = pickle.dumps(hostile, protocol), pickle.load
    found["exec"] = pickle.dumps({"model": [Hostile(sign, exec)]}), pickle.load
    for name, zipped in (("torch", True), ("old torch", False)):
        file = BytesIO()
        torch.save(hostile, file, _use_new_zipfile_serialization=zipped)
        found[name] = file.getvalue(), partial(torch.load, weights_only=False)
    file = BytesIO()
    np.save(file, np.array([hostile], dtype=object))
    found["numpy"] = file.getvalue(), partial(np.load, allow_pickle=True)
    return found


def cache(folder):
    recipe, features = Recipe(name="few", version=1, arguments={}, count=3), Features({"row": Value("int64")})
    load_or_generate(folder, recipe, produce=lambda chunk: {"row": [chunk]}, features=features, workers=1)
    return recipe.cache_folder(folder)


def begin(folder):
    """Start a run; a damaged environment.json is moved aside, which a note says, here as an error."""
    if notes := RunDirectory(folder).begin("quickstart", RunConfig(), torch.device("cpu")):
        raise ConfigError(notes[0])


def loaders(folder):
    """Return, by name, files that are there or can be, a function that reads them, and the error that it is to raise."""
    save_checkpoint(folder / "saves", 1, {"model": {"x": torch.ones(2)}}, {})
    build(SMALL).save_pretrained(folder / "network")
    begin(folder)
    published = {"MNIST": images.MNIST.values(), "CIFAR-10": images.CIFAR10, "CIFAR-100": images.CIFAR100, "SVHN": images.SVHN}
    readers = (images.mnist_splits, images.cifar10_splits, images.cifar100_splits, images.svhn_splits)
    level = folder / LEVEL
    (level / "imgs" / "0").mkdir(parents=True)
    (level / "metadata").mkdir()
    (level / "metadata" / "0.npy").write_text("imgs/0 sample_0.png 0 1 1.0 14 4 2 0.5 1 1\n")
    (level / "imgs" / "0" / "sample_0.png").touch()
    whole_cache = cache(folder)
    return {
        **{
            f"{name}, {Path(file.path).name}": (folder / file.path, partial(read, folder, "fetch it"), DatasetError)
            for (name, files), read in zip(published.items(), readers, strict=True)
            for file in files
        },
        **{
            f"checkpoint, {path.name}": (path, partial(load_checkpoint, folder / "saves"), CheckpointError)
            for path in (folder / "saves" / "step-00000001").iterdir()
        },
        **{
            f"{name}, {path.name}": (path, partial(load, folder / "network"), error)
            for path in (folder / "network").iterdir()
            if path.suffix != ".md"
            for name, load, error in (
                ("network", partial(load_finished, device=torch.device("cpu")), ConfigError),
                ("from_pretrained", MIMOConv.from_pretrained, ValueError),
            )
        },
        **{f"cache, {path.name}": (path, lambda: cache(folder), DatasetError) for path in whole_cache.iterdir()},
        **{f"Pathfinder, {path.name}": (path, partial(read_pathfinder_release, folder, count=None), DatasetError)
           for path in (level / "metadata" / "0.npy", level / "imgs" / "0" / "sample_0.png")},
        "Retrieval": (folder / FILES["train"], partial(retrieval_splits, folder, counts=None), DatasetError),
        "ListOps": (folder / "a.tsv", partial(read_listops_file, folder / "a.tsv"), DatasetError),
        "Parquet": (folder / "a.parquet", partial(read_parquet_table, folder / "a.parquet", "fetch it"), DatasetError),
        **{
            f"image, {kind}": (folder / f"a{suffix}", partial(read_image, folder / f"a{suffix}", 1, 8), ConfigError)
            for kind, (suffix, *_) in FORMATS.items()
        },
        "settings": (folder / "config.json", partial(read_settings, folder), ConfigError),
        "result": (folder / "result.json", partial(read_result, folder), ConfigError),
        "environment": (folder / "environment.json", partial(begin, folder), ConfigError),
        "timings": (folder / "a.json", lambda: read_earlier(folder / "a.json", {}, [1]), ConfigError),
    }  # fmt: skip


def test_no_file_is_unpickled(tmp_path):
    """Ten pickles in the place of each file, one after the other."""
    sign, folder = tmp_path / "executed", tmp_path / "files"
    hostile = pickles(sign)
    for content, careless in hostile.values():
        careless(BytesIO(content))
        sign.unlink()  # that is, it was there
    for name, (path, load, error) in loaders(folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        for kind, (content, _) in hostile.items():
            path.write_bytes(content)
            with pytest.raises(error):
                load()
            newest_state(folder / "saves")
            assert not sign.exists(), (name, kind)
        path.write_bytes(before)
