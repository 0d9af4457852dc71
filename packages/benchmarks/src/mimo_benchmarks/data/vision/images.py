"""Read image data sets as uint8 tensors from their published files, in torchvision's layout; each file is checked first."""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mimo_benchmarks.data.storage.files import File, read_published_file
from mimo_benchmarks.progress import progress_bar

MNIST = {
    (split, kind): File(path=f"MNIST/raw/{prefix}-{kind}-idx{axes}-ubyte", size=size, digest=f"sha256:{digest}")
    for split, prefix, kind, axes, size, digest in (
        ("train", "train", "images", 3, 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train", "train", "labels", 1, 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        ("test", "t10k", "images", 3, 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("test", "t10k", "labels", 1, 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    )
}
"""The four unpacked files of MNIST, by split and kind."""

CIFAR10 = tuple(
    File(path=f"cifar-10-batches-py/{name}", size=size, digest=f"sha256:{digest}")
    for name, size, digest in (
        ("data_batch_1", 31_035_704, "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
        ("data_batch_2", 31_035_320, "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
        ("data_batch_3", 31_035_999, "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
        ("data_batch_4", 31_035_696, "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
        ("data_batch_5", 31_035_623, "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
        ("test_batch", 31_035_526, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
        ("batches.meta", 158, "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
    )
)
"""Five batches of training images, one of test images, and the names of the classes, which torchvision needs."""

CIFAR100 = tuple(
    File(path=f"cifar-100-python/{name}", size=size, digest=f"sha256:{digest}")
    for name, size, digest in (
        ("train", 155_249_918, "735e79b04f092ca3d2e6d07f368c0a7d70d48c48d28865950cc24454cf45129b"),
        ("test", 31_049_707, "4b67687d9933c4db8f0831104447f15b93774f4f464bd0516f0f0f2ac83b7864"),
        ("meta", 1_473, "a5d4786345c961390f865e93b434dbd5c6904ce880667e0cb888c97d449f28b9"),
    )
)
"""Training images, test images, and the names of the classes, which torchvision needs."""

SVHN = tuple(
    File(path=f"svhn/{name}", size=size, digest=f"sha256:{digest}")
    for name, size, digest in (
        ("train_32x32.mat", 182_040_794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        ("test_32x32.mat", 64_275_384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
    )
)
"""Training and test images in SVHN's "format 2" (cropped digits), below the root folder that torchvision expects."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of the classes, by label."""
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach",
    "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster",
    "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree",
    "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea",
    "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
"""Names of the classes, by label."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with their labels."""

    images: UInt8[Tensor, "count c h w"]
    labels: Int[Tensor, " count"]

    @property
    def targets(self) -> Int[Tensor, " count"]:
        """The labels."""
        return self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """The same on another device."""
        return Split(images=self.images.to(device), labels=self.labels.to(device))


def digit_splits() -> tuple[Split, Split]:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels, grey levels 0 to 16, as 1,437 training and 360 test images.

    The split is stratified and fixed: it does not depend on the seed of a run.
    """
    from sklearn.datasets import load_digits  # here, because the import takes seconds
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 1, 8, 8), labels, test_size=360, stratify=labels, random_state=0)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    train = Split(images=train_x.to(torch.uint8), labels=train_y.long())
    return train, Split(images=test_x.to(torch.uint8), labels=test_y.long())


def mnist_splits(folder: Path, remedy: str, files: Mapping[tuple[str, str], File] = MNIST) -> tuple[Split, Split]:
    """Return MNIST's 60,000 training and 10,000 test digits of 28 x 28 pixels (LeCun et al., 1998).

    Raises:
        DatasetError: a file is missing, or is not the published one.
    """

    def part(split: str) -> Split:
        images, labels = (read_published_file(files[split, kind], folder, remedy) for kind in ("images", "labels"))
        # the headers are four and two 32-bit integers
        pixels = torch.frombuffer(bytearray(images[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
        return Split(images=pixels, labels=torch.frombuffer(bytearray(labels[8:]), dtype=torch.uint8).long())

    return part("train"), part("test")


def cifar10_splits(folder: Path, remedy: str, files: Sequence[File] = CIFAR10) -> tuple[Split, Split]:
    """Return CIFAR-10's 50,000 training and 10,000 test photographs, 32 x 32 pixels in colour (Krizhevsky, 2009).

    Raises:
        DatasetError: a file is missing, or is not the published one.
    """
    *train, test, _ = (read_published_file(file, folder, remedy) for file in files)
    return unpickle_cifar(train, "labels"), unpickle_cifar([test], "labels")


def cifar100_splits(folder: Path, remedy: str, files: Sequence[File] = CIFAR100) -> tuple[Split, Split]:
    """Return CIFAR-100's 50,000 training and 10,000 test photographs with their 100 fine classes (Krizhevsky, 2009).

    Raises:
        DatasetError: a file is missing, or is not the published one.
    """
    train, test, _ = (read_published_file(file, folder, remedy) for file in files)
    return unpickle_cifar([train], "fine_labels"), unpickle_cifar([test], "fine_labels")


def unpickle_cifar(batches: list[bytes], labels: str) -> Split:
    """Return the images of CIFAR's pickles.

    A pickle can run any code, so the batches must come from `read_published_file`, which has checked them.
    """
    parts = [pickle.loads(batch, encoding="latin1") for batch in batches]
    images = torch.from_numpy(np.concatenate([part["data"] for part in parts])).view(-1, 3, 32, 32)
    return Split(images=images, labels=torch.tensor([label for part in parts for label in part[labels]]))


def svhn_splits(folder: Path, remedy: str, files: Sequence[File] = SVHN) -> tuple[Split, Split]:
    """Return the 73,257 training and 26,032 test digits of Street View House Numbers, in colour (Netzer et al., 2011).

    Raises:
        DatasetError: a file is missing, or is not the published one.
    """
    train, test = (read_svhn_matrix(read_published_file(file, folder, remedy)) for file in files)
    return train, test


def read_svhn_matrix(content: bytes) -> Split:
    """Return the images of one of SVHN's .mat files: X (32 32 3 count) and y (count 1), in which the digit 0 has label 10."""
    from scipy.io import loadmat

    arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    images = torch.from_numpy(np.ascontiguousarray(arrays["X"].transpose(3, 2, 0, 1)))
    return Split(images=images, labels=torch.from_numpy(arrays["y"][:, 0].astype(np.int64)) % 10)


def centre_crop(split: Split, size: int) -> Split:
    """Cut every image to its inner `size` x `size` pixels, rounding as torchvision's CenterCrop does."""
    top, left = (round((have - size) / 2) for have in split.images.shape[2:])
    return Split(images=split.images[:, :, top : top + size, left : left + size].contiguous(), labels=split.labels)


def to_grey(split: Split) -> Split:
    """Convert colour images to grey levels as the Long Range Arena does: TensorFlow's `rgb_to_grayscale`, in exact integers.

    A grey level is 0.2989 R + 0.5870 G + 0.1140 B, divided by 255, times 255.5, rounded down.
    """
    weights = torch.tensor([2989, 5870, 1140])
    levels = torch.empty_like(split.images[:, :1])
    with progress_bar("converting colours to grey levels", len(split)) as bar:
        for grey, images in zip(levels.split(1000), split.images.split(1000), strict=True):
            grey[:, 0] = torch.einsum("nchw,c->nhw", images.long(), weights) * 511 // 5_100_000
            bar.update(len(images))
    return Split(images=levels, labels=split.labels)
