"""Describe the data sets: what they are, on whose terms, where they come from, and how to get them."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mimo_benchmarks.data.storage.files import ByContent, File, Source, exists
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.data.vision import images

CIFAR10_ARCHIVE = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR100_ARCHIVE = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
IMDB_REVISION = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"
IMDB_FILES = {
    "train": (20_979_968, "db47d16b5c297cc0dd625e519c81319c24c9149e70e8496de5475f6fa928342c"),
    "test": (20_470_363, "b52e26e2f872d282ffac460bf9770b25ac6f102cda0e6ca7158df98c94e8b3da"),
}
"""Size and SHA-256 of the files that the hub serves at this revision."""
UNSTATED = "no licence stated; cite the source"


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What `mimonets data list` shows of a data set."""

    about: str
    """What the set holds, in one line."""
    tasks: tuple[str, ...]
    """Names of the tasks that need it."""
    terms: str
    """Licence or terms of use."""
    origin: str
    """Where its authors publish it."""
    megabytes: int
    """Approximate size of its files in the data folder, in units of 10^6 bytes."""
    sources: tuple[Source, ...] = ()
    """Where its files can be downloaded."""
    by_hand: str = ""
    """How the user gets it, where the program cannot download it."""
    expected: tuple[str, ...] = ()
    """Files that the user puts there, relative to the data folder."""
    cache: Callable[[Path], Path] | None = None
    """Function from the data folder to the folder that caches the set, if it is generated."""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the paths of all its files, relative to the data folder."""
        return self.expected + tuple(file.path for source in self.sources for file in source.files)

    def missing(self, folder: Path) -> list[str]:
        """Return the files that are missing or have another size than published, without reading any file.

        Raises:
            DatasetError: the file system does not tell.
        """
        sizes = {file.path: file.size for source in self.sources for file in source.files if isinstance(file, File)}
        paths = {file: folder / file for file in self.files}
        return [
            file
            for file, path in paths.items()
            if not exists(path) or (file in sizes and (not path.is_file() or path.stat().st_size != sizes[file]))
        ]


def mnist_source(file: File, size: int, sha256: str) -> Source:
    """Return the source of one of MNIST's files, with the mirrors that torchvision uses."""
    archive = File(path=f"{file.path}.gz", size=size, digest=f"sha256:{sha256}")
    name = Path(archive.path).name
    mirrors = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
    return Source(urls=tuple(mirror + name for mirror in mirrors), archive=archive, files=(file,))


def cifar_source(name: str, size: int, sha256: str, files: tuple[File, ...]) -> Source:
    """Return the source of a CIFAR archive, which holds Python pickles."""
    archive = File(path=name, size=size, digest=f"sha256:{sha256}")
    return Source(urls=(f"https://www.cs.toronto.edu/~kriz/{name}",), archive=archive, files=files)


def imdb_source(split: str) -> Source:
    """Return the source of one split.

    A download must be the very file of the hub. A file that lies there already is checked by its reviews, since different writers
    of Parquet give different bytes.
    """

    def check(content: bytes) -> None:
        from mimo_benchmarks.data.long_range_arena.text import check_imdb  # here, because the import takes a second

        check_imdb(content, split)

    file, (size, sha256) = ByContent(path=f"imdb/{split}.parquet", limit=40_000_000, check=check), IMDB_FILES[split]
    place = f"stanfordnlp/imdb/resolve/{IMDB_REVISION}/plain_text/{split}-00000-of-00001.parquet"
    served = File(path=file.path, size=size, digest=f"sha256:{sha256}")
    return Source(urls=(f"https://huggingface.co/datasets/{place}",), files=(file,), served=served)


def listops_cache(folder: Path) -> Path:
    """Return the folder that caches the expressions of ListOps."""
    from mimo_benchmarks.data.long_range_arena.listops import listops_recipe  # here, because the import takes a second

    return listops_recipe().cache_folder(folder)


def pathfinder_cache(folder: Path) -> Path:
    """Return the folder that caches the pictures of Pathfinder."""
    from mimo_benchmarks.data.long_range_arena.pathfinder import pathfinder_recipe  # here, because the import takes a second

    return pathfinder_recipe().cache_folder(folder)


RELEASE = "lra_release/lra_release"
"""Folder of the Long Range Arena's own files, relative to the data folder, as its archive unpacks."""
UNPACK = (
    "download https://storage.googleapis.com/long-range-arena/lra_release.gz (7.7 GB) and unpack it into the data folder with "
    "`tar -xzf lra_release.gz -C FOLDER`"
)


def sets() -> dict[str, DataSet]:
    """Return all data sets by name."""
    return {
        "digits": DataSet(
            about="1,797 handwritten digits, 8 x 8 grey levels",
            tasks=("digits",),
            terms="CC BY 4.0",
            origin="https://archive.ics.uci.edu/dataset/80, bundled with scikit-learn",
            megabytes=0,
        ),
        "mnist": DataSet(
            about="70,000 handwritten digits, 28 x 28 grey levels (LeCun et al., 1998)",
            tasks=("mnist", "mnist20"),
            terms=UNSTATED,
            origin="http://yann.lecun.com/exdb/mnist/",
            megabytes=55,
            sources=tuple(
                mnist_source(images.MNIST[part], size, sha256)
                for part, size, sha256 in (
                    (("train", "images"), 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                    (("train", "labels"), 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                    (("test", "images"), 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                    (("test", "labels"), 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
                )
            ),
        ),
        "cifar10": DataSet(
            about="60,000 photographs in 10 classes, 32 x 32 in colour (Krizhevsky, 2009)",
            tasks=("cifar10", "image", "image_published"),
            terms=UNSTATED,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            megabytes=186,
            sources=(cifar_source("cifar-10-python.tar.gz", 170_498_071, CIFAR10_ARCHIVE, images.CIFAR10),),
        ),
        "cifar100": DataSet(
            about="60,000 photographs in 100 classes, 32 x 32 in colour (Krizhevsky, 2009)",
            tasks=("cifar100",),
            terms=UNSTATED,
            origin="https://www.cs.toronto.edu/~kriz/cifar.html",
            megabytes=186,
            sources=(cifar_source("cifar-100-python.tar.gz", 169_001_437, CIFAR100_ARCHIVE, images.CIFAR100),),
        ),
        "svhn": DataSet(
            about="99,289 digits of house numbers, 32 x 32 in colour (Netzer et al., 2011)",
            tasks=("svhn",),
            terms="for non-commercial use only",
            origin="http://ufldl.stanford.edu/housenumbers/",
            megabytes=246,
            sources=tuple(
                Source(urls=(f"http://ufldl.stanford.edu/housenumbers/{Path(file.path).name}",), files=(file,))
                for file in images.SVHN
            ),
        ),
        "imdb": DataSet(
            about="50,000 reviews of films, good or bad (Maas et al., 2011)",
            tasks=("text", "text_published"),
            terms=UNSTATED,
            origin="https://ai.stanford.edu/~amaas/data/sentiment/",
            megabytes=42,
            sources=(imdb_source("train"), imdb_source("test")),
        ),
        "aan": DataSet(
            about="182,613 pairs of papers, one citing the other or not (Radev et al., 2013), as the Long Range Arena has them",
            tasks=("retrieval",),
            terms="those of the ACL Anthology Network; " + UNSTATED,
            origin="https://github.com/google-research/long-range-arena",
            megabytes=11_000,
            by_hand=UNPACK,
            expected=tuple(f"{RELEASE}/tsv_data/new_aan_pairs.{split}.tsv" for split in ("train", "eval", "test")),
        ),
        "listops": DataSet(
            about="100,000 nested expressions of 500 to 2,000 symbols, generated by the rule of the Long Range Arena",
            tasks=("listops",),
            terms="none: made on this machine",
            origin="https://github.com/google-research/long-range-arena (the rule)",
            megabytes=104,
            cache=listops_cache,
        ),
        "listops_lra": DataSet(
            about="the Long Range Arena's own 100,000 expressions",
            tasks=("listops_lra",),
            terms="Apache-2.0",
            origin="https://github.com/google-research/long-range-arena",
            megabytes=660,
            by_hand=UNPACK,
            expected=tuple(f"{RELEASE}/listops-1000/basic_{split}.tsv" for split in ("train", "val", "test")),
        ),
        "pathfinder": DataSet(
            about="200,000 pictures of dashed lines, 32 x 32 grey levels, generated by the published rule (Linsley et al., 2018)",
            tasks=("pathfinder", "pathfinder_published"),
            terms="none: made on this machine",
            origin="https://github.com/drewlinsley/pathfinder (the rule)",
            megabytes=206,
            cache=pathfinder_cache,
        ),
        "pathfinder_lra": DataSet(
            about="the Long Range Arena's own 200,000 pictures",
            tasks=("pathfinder_lra",),
            terms="Apache-2.0",
            origin="https://github.com/google-research/long-range-arena",
            megabytes=140,
            by_hand=UNPACK,
            expected=tuple(f"{RELEASE}/pathfinder32/curv_contour_length_14/{part}" for part in ("imgs", "metadata")),
        ),
    }


def remedy(name: str, folder: Path) -> str:
    """Return what the user should do about a data set that is missing from this folder, or wrong there."""
    wanted = sets()[name]
    if wanted.by_hand:
        return f"{wanted.by_hand}, or name another folder with --data-dir"
    return f"get it with `{command('prepare', name, folder)} --download`, or name another folder with --data-dir"


def command(verb: str, name: str, folder: Path) -> str:
    """Return the command line that runs a verb of `mimonets data` on a data set."""
    place = "" if folder == data_folder() else f" --data-dir {shlex.quote(str(folder))}"
    return f"mimonets data {verb} {name}{place}"
