"""Image sets are byte for byte as torchvision reads them, and altered files are refused."""

import io
import os
import pickle
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import loadmat, savemat
from torchvision.transforms import CenterCrop

from mimo_benchmarks.data.storage import files
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.data.vision import images
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.errors import DatasetError

LOADERS = {
    "mnist": images.mnist_splits,
    "cifar10": images.cifar10_splits,
    "cifar100": images.cifar100_splits,
    "svhn": images.svhn_splits,
}
FILES = {"mnist": images.MNIST, "cifar10": images.CIFAR10, "cifar100": images.CIFAR100, "svhn": images.SVHN}


def published_splits(name):
    """Return the real set; skip the test where it is missing."""
    try:
        return LOADERS[name](data_folder(), "fetch it")
    except DatasetError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_real_files_are_what_torchvision_reads(name):
    ours = published_splits(name)
    theirs = {
        "mnist": torchvision.datasets.MNIST,
        "cifar10": torchvision.datasets.CIFAR10,
        "cifar100": torchvision.datasets.CIFAR100,
    }[name]
    for split, train in zip(ours, (True, False), strict=True):
        reference = theirs(data_folder(), train=train)
        pixels = reference.data[:, None] if name == "mnist" else torch.from_numpy(reference.data).permute(0, 3, 1, 2)
        assert torch.equal(split.images, pixels)
        assert split.images.is_contiguous()
        assert split.labels.tolist() == list(map(int, reference.targets))
        assert split.labels.dtype == torch.long


def test_a_real_part_of_svhn():
    path = data_folder() / "svhn" / "train_32x32_first1083.mat"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    split = images.read_svhn_matrix(path.read_bytes())
    raw = loadmat(path)
    for place in (0, 1, 500, 1082):
        assert np.array_equal(split.images[place].permute(1, 2, 0).numpy(), raw["X"][..., place])
    assert split.labels.tolist() == [int(label) % 10 for (label,) in raw["y"]]
    assert split.labels[:10].tolist() == [1, 9, 2, 3, 2, 5, 9, 3, 3, 1]  # the published order


class LeavesATrace:
    """An object whose pickle makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path), 0o777, True)


def small_set(name, folder):
    """Write a small set in the published format. Return its description and its paths; opening a pickle makes `opened`."""
    generator = np.random.default_rng(0)

    def content(path):
        if name == "mnist" and "images" in path:
            return struct.pack(">4i", 2051, 3, 28, 28) + generator.bytes(3 * 28 * 28)
        if name == "mnist":
            return struct.pack(">2i", 2049, 3) + bytes(generator.integers(0, 10, 3, dtype=np.uint8))
        if name.startswith("cifar"):
            key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
            data = generator.integers(0, 256, (3, 3072), dtype=np.uint8)
            return pickle.dumps({"data": data, key: [3, 0, 9], "trace": LeavesATrace(folder / "opened")})
        buffer = io.BytesIO()
        savemat(buffer, {"X": generator.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8), "y": np.array([[10], [1], [9], [5]])})
        return buffer.getvalue()

    def write(file):
        path, data = folder / file.path, content(file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return replace(file, size=len(data), digest=files.checksum(data, "sha256"))

    real = FILES[name]
    small = {key: write(file) for key, file in real.items()} if name == "mnist" else tuple(map(write, real))
    return small, [folder / file.path for file in (small.values() if name == "mnist" else small)]


def test_svhn_as_torchvision_reads_it(tmp_path, monkeypatch):
    small, paths = small_set("svhn", tmp_path)
    ours = images.svhn_splits(tmp_path, "fetch it", small)
    for split, name, path in zip(ours, ("train", "test"), paths, strict=True):
        md5 = files.checksum(path.read_bytes(), "md5").removeprefix("md5:")
        monkeypatch.setitem(torchvision.datasets.SVHN.split_list, name, ["", path.name, md5])
        reference = torchvision.datasets.SVHN(tmp_path / "svhn", split=name)
        assert torch.equal(split.images, torch.from_numpy(reference.data))
        assert split.labels.tolist() == reference.labels.tolist() == [0, 1, 9, 5]


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
@pytest.mark.parametrize("name", LOADERS)
def test_no_mutation_of_a_file_ever_loads(name, tries, tmp_path):
    """Bit flips, cuts and insertions are refused, and no pickle is opened, not even of an intact file."""
    small, paths = small_set(name, tmp_path)
    LOADERS[name](tmp_path, "fetch it", small)
    if name.startswith("cifar"):
        (tmp_path / "opened").rmdir()
    chance = random.Random(name)
    for _ in range(tries):
        path = chance.choice(paths)
        whole = path.read_bytes()
        place = chance.randrange(len(whole))
        altered = {
            "flip": whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :],
            "cut": whole[:place],
            "insert": whole[:place] + b"\0" + whole[place:],
            "append": whole + b"\n",
        }[chance.choice(["flip", "cut", "insert", "append"])]
        path.write_bytes(altered)
        with pytest.raises(DatasetError, match="fetch it") as error:
            LOADERS[name](tmp_path, "fetch it", small)
        assert str(path) in str(error.value)
        path.write_bytes(whole)
    assert not (tmp_path / "opened").exists()


def test_a_hostile_pickle_is_not_opened(tmp_path):
    small, paths = small_set("cifar10", tmp_path)
    paths[2].write_bytes(pickle.dumps(LeavesATrace(tmp_path / "owned")))
    with pytest.raises(DatasetError, match="data_batch_3"):
        images.cifar10_splits(tmp_path, "fetch it", small)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_names_itself_and_the_remedy(name, tmp_path):
    with pytest.raises(DatasetError, match=r"is missing: fetch it") as error:
        LOADERS[name](tmp_path, "fetch it")
    assert str(tmp_path) in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_rights(tmp_path):
    small, paths = small_set("mnist", tmp_path)
    paths[0].chmod(0)
    with pytest.raises(DatasetError, match=r"cannot be read \(Permission denied\): fix what is there"):
        images.mnist_splits(tmp_path, "fetch it", small)


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / images.SVHN[0].path).mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"train_32x32.mat cannot be read \(Is a directory\): fix what is there"):
        images.svhn_splits(tmp_path, "fetch it")


@pytest.mark.parametrize(("have", "want"), [(28, 20), (28, 27), (5, 4), (5, 5), (9, 2)])
def test_centre_is_torchvisions(have, want):
    split = Split(images=torch.randint(256, (2, 1, have, have), dtype=torch.uint8), labels=torch.tensor([1, 2]))
    assert torch.equal(images.centre_crop(split, want).images, CenterCrop(want)(split.images))


def test_grey_is_tensorflows_rule():
    """The levels equal TensorFlow's formula in floating point, for random colours and the corners of the cube."""
    colours = torch.randint(256, (64, 3, 4, 4), dtype=torch.uint8)
    colours[:8] = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3)[:, :, None, None]
    grey = images.to_grey(Split(images=colours, labels=torch.zeros(64, dtype=torch.long))).images
    for colour, level in zip(colours.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), grey.flatten().tolist(), strict=True):
        unit = sum(weight * value / 255 for weight, value in zip((0.2989, 0.5870, 0.1140), colour, strict=True))
        assert level == int(unit * 255.5)


def test_digits_are_scikit_learns_in_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    (train, test), (pixels, labels) = images.digit_splits(), load_digits(return_X_y=True)
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    both = [torch.cat([getattr(split, name) for split in (train, test)]) for name in ("images", "labels")]
    ours = {(*image.flatten().tolist(), label.item()) for image, label in zip(*both, strict=True)}
    theirs = {(*map(int, image), int(label)) for image, label in zip(pixels, labels, strict=True)}
    assert ours == theirs
    assert (torch.bincount(test.labels) / torch.from_numpy(np.bincount(labels)) - 360 / 1797).abs().max() < 0.005
    torch.manual_seed(1)
    assert torch.equal(images.digit_splits()[1].images, test.images)


def test_the_files_are_those_of_torchvision():
    """The real files, where they are present, have torchvision's MD5."""
    known = dict(torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list)
    known |= dict(torchvision.datasets.CIFAR100.train_list + torchvision.datasets.CIFAR100.test_list)
    present = [file for file in (*images.CIFAR10, *images.CIFAR100) if (data_folder() / file.path).is_file()]
    if not present:
        pytest.skip(f"no CIFAR in {data_folder()}")
    for file in present:
        content = files.read_published_file(file, data_folder(), "fetch it")
        assert known.get(Path(file.path).name) in (None, files.checksum(content, "md5").removeprefix("md5:"))
