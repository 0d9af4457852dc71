from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from mimo_benchmarks.data.folder import data_folder
from mimo_benchmarks.errors import ConfigError, DatasetError
from mimo_benchmarks.tasks import MNIST_FILES, load


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    task, (images, labels) = load("digits", Path()), load_digits(return_X_y=True)
    assert (len(task.train.labels), len(task.test.labels)) == (1437, 360)
    both = [torch.cat([getattr(split, name) for split in (task.train, task.test)]) for name in ("images", "labels")]
    ours = {(*image.flatten().tolist(), label.item()) for image, label in zip(*both, strict=True)}
    theirs = {(*map(int, image), int(label)) for image, label in zip(images, labels, strict=True)}
    assert ours == theirs
    shares = torch.bincount(task.test.labels) / torch.from_numpy(np.bincount(labels))
    assert (shares - 360 / 1797).abs().max() < 0.005
    torch.manual_seed(1)
    assert torch.equal(load("digits", Path()).test.images, task.test.images)
    pixels = task.pixels(task.train.images)
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_unknown_task():
    with pytest.raises(ConfigError, match="no task 'cifar'; choose one of digits, mnist"):
        load("cifar", Path())


def test_data_folder_is_the_flag_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMO_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path) == tmp_path
    assert data_folder() == tmp_path / "named"
    monkeypatch.delenv("MIMO_DATA")
    assert data_folder().name == "mimo-benchmarks"


def mnist_folder():
    folder = data_folder()
    if not all((folder / "MNIST" / "raw" / name).is_file() for name in MNIST_FILES):
        pytest.skip(f"MNIST is not in {folder}")
    return folder


def test_mnist_is_the_published_set():
    task = load("mnist", mnist_folder())
    assert task.train.images.shape == (60_000, 1, 28, 28)
    assert task.test.images.shape == (10_000, 1, 28, 28)
    assert torch.bincount(task.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert task.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert task.pixels(task.train.images).mean() == pytest.approx(0.1307, abs=1e-4)  # the published mean


def test_a_missing_file_names_itself_and_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte is missing.*--data-dir"):
        load("mnist", tmp_path)


def test_an_altered_file_never_loads(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in MNIST_FILES:
        (raw / name).write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x01\x07")
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte is not the published file"):
        load("mnist", tmp_path)
