"""What the tests of every package share: seeds, so that any run repeats, and the option that checks shapes."""

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch counts cores: a worker for each core, and one thread for each worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

collect_ignore_glob = [
    "packages/*/benchmarks/*",  # programs with dependencies of their own
    "packages/*/src/*/*_kernels.py",  # kernels, which need Triton
    "packages/mimoconv/src/mimoconv/fast_isometry.py",  # imports them
    "packages/mimoconv/tests/interpreted_*.py",  # run by a test, in Triton's interpreter
]

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("full", derandomize=True, deadline=None, max_examples=5000)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --shape-checks."""
    text = "hold every call against its shape annotations, and leave out the tests marked unchecked"
    parser.addoption("--shape-checks", action="store_true", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Install the import hook before any of our packages is imported, and let laws be tried on more examples if asked for."""
    if "torture" in config.getoption("markexpr"):
        hypothesis.settings.load_profile("full")
    if config.getoption("--shape-checks"):
        install_import_hook(["vsa_core", "mimoconv", "mimoformer", "mimo_benchmarks"], "shape_checks.check")
        sys.meta_path.insert(0, Kernels())


class Kernels(PathFinder):
    """Imports modules of kernels as they are: Triton reads their source, and cannot call functions that check."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module whose name ends in _kernels; leave all others to the next finder."""
        return super().find_spec(name, path, target) if name.endswith("_kernels") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless asked for; and, where every call is checked, what tests our own errors or compiles."""
    left_out = set() if "torture" in config.getoption("markexpr") else {"torture"}
    for item in items:
        if not left_out and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.torture)  # all laws have a full form
    if config.getoption("--shape-checks"):
        left_out.add("unchecked")
    if dropped := [item for item in items if left_out & {mark.name for mark in item.iter_markers()}]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def cifar10() -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's training images (count 3 32 32), uint8, and labels, from the data folder; skips where they are not there."""
    from torchvision.datasets import CIFAR10

    from mimo_benchmarks.data.storage.folder import data_folder

    try:
        train = CIFAR10(data_folder())
    except RuntimeError as error:
        pytest.skip(f"CIFAR-10 is not in {data_folder()}: {error}")
    return torch.from_numpy(train.data).permute(0, 3, 1, 2), torch.tensor(train.targets)


@pytest.fixture(scope="session")
def imdb() -> tuple[list[bytes], torch.Tensor]:
    """IMDb's training reviews in UTF-8, and labels, 1 of good ones, from the data folder; skips where they are not there."""
    from pyarrow import parquet

    from mimo_benchmarks.data.storage.folder import data_folder

    path = data_folder() / "imdb" / "train.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    reviews = parquet.read_table(path)
    return [text.encode() for text in reviews["text"].to_pylist()], torch.tensor(reviews["label"].to_numpy())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is computed then does not depend on the number of cores, nor its speed on what else runs on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test and doctest starts from the same global seed."""
    torch.manual_seed(0)
