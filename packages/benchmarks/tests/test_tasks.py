"""Every task by its name: what its networks are to see."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.data.synthetic.mqar import MQAR
from mimo_benchmarks.data.vision import images
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.errors import ConfigError, DatasetError
from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUXConfig
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.tasks.catalogue import sets
from mimo_benchmarks.tasks.protocol import Task
from mimo_benchmarks.tasks.registry import TASKS, load
from mimoconv import MIMOConvConfig
from mimoformer import MIMOFormerConfig


def present(name) -> Task:
    """The task; skips where its files are not there."""
    try:
        return load(name, data_folder())
    except DatasetError as error:
        pytest.skip(str(error))


def test_unknown_task():
    with pytest.raises(ConfigError, match="no task 'cifar': did you mean cifar10"):
        load("cifar", Path())


def test_every_task_bears_its_name_and_every_set_serves_tasks():
    assert {task for wanted in sets().values() for task in wanted.tasks} <= TASKS.keys()
    assert TASKS.keys() - {task for wanted in sets().values() for task in wanted.tasks} == {
        *("recall", "recall_vs10", "induction", "mqar_64", "mqar_128", "mqar_256", "mqar_512")
    }


def test_data_folder_is_the_flag_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMO_DATA", str(tmp_path / "named"))
    assert data_folder(tmp_path) == tmp_path
    assert data_folder() == tmp_path / "named"
    monkeypatch.setenv("MIMO_DATA", "~/named")
    assert data_folder() == Path.home() / "named"
    monkeypatch.setenv("MIMO_DATA", "~nobody-of-this-name/data")
    assert data_folder() == Path("~nobody-of-this-name/data")
    monkeypatch.delenv("MIMO_DATA")
    assert data_folder().name == "mimo-benchmarks"


def test_without_a_home_folder_data_are_in_the_current_one(monkeypatch):
    """A container may give its program a number for a user, and no HOME."""
    for name in ("MIMO_DATA", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert data_folder() == Path("mimo-benchmarks")


@pytest.mark.parametrize("name", ["digits", "mnist", "mnist20", "cifar10", "cifar100"])
def test_image_tasks_are_normalised_by_the_published_figures(name):
    task = present(name)
    assert task.name == name
    assert (len(task.train.labels), len(task.test.labels)) == ((1437, 360) if name == "digits" else
        (60_000, 10_000) if "mnist" in name else (50_000, 10_000))  # fmt: skip
    assert torch.bincount(task.train.labels).shape == (len(task.class_names),)
    if name in ("digits", "mnist20"):  # not normalised; a part of what the figures are of
        return
    pixels = task.pixels(task.train.images[::5])
    assert pixels.mean((0, 2, 3)).abs().max() < 0.01
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 0.01


def test_digits_are_left_from_0_to_1():
    task = load("digits", Path())
    pixels = task.pixels(task.train.images)
    assert (pixels.min(), pixels.max()) == (0, 1)


def test_mnist20_is_the_middle_of_mnist():
    task, whole = present("mnist20"), present("mnist")
    assert torch.equal(task.test.images, whole.test.images[:, :, 4:24, 4:24])
    assert (task.mean, task.std) == (whole.mean, whole.std) == ((0.1307,), (0.3081,))


def test_svhn_is_normalised_by_the_published_figures(monkeypatch):
    split = Split(images=torch.full((1, 3, 32, 32), 110, dtype=torch.uint8), labels=torch.tensor([1]))
    monkeypatch.setattr(images, "svhn_splits", lambda folder, remedy: (split, split))
    pixels = load("svhn", Path()).pixels(split.images)[0, :, 0, 0]
    assert pixels.tolist() == pytest.approx([0.1 / 50.1, 0.3 / 50.6, -3.8 / 50.8], abs=1e-5)


def test_image_is_cifar_in_grey_levels_pixel_by_pixel(monkeypatch):
    colour = present("cifar10")
    monkeypatch.setattr(images, "cifar10_splits", lambda *_: (colour.train, colour.test))  # read once
    task, published = load("image", Path()), load("image_published", Path())
    assert (task.padding_stays, published.padding_stays) == (False, True)
    assert [len(split) for split in (task.train, task.dev, task.test)] == [45_000, 5_000, 10_000]
    index = torch.tensor([0, 4999])
    grey = images.to_grey(Split(images=colour.train.images[45_000 + index], labels=index)).images.flatten(1).long()
    tokens, mask = task.dev.tokens(index, task.max_length)
    assert torch.equal(tokens, grey + 1)
    assert mask.all()
    tokens, mask = published.dev.tokens(index, task.max_length)
    assert torch.equal(tokens, grey)
    assert torch.equal(mask, grey > 0)
    assert torch.equal(task.dev.labels, colour.train.labels[45_000:])
    assert torch.equal(task.test.labels, colour.test.labels)


def test_text_tasks_are_imdbs_reviews(imdb):
    reviews, labels = imdb
    task, published = present("text"), present("text_published")
    assert [len(split) for split in (task.train, task.dev, task.test)] == [22_500, 2_500, 25_000]
    assert [len(split) for split in (published.train, published.dev, published.test)] == [25_000] * 3
    assert torch.equal(published.train.labels, labels)
    tokens, mask = published.train.tokens(torch.tensor([7]), task.max_length)
    assert bytes((tokens[mask] - 1).tolist()) == reviews[7][:4000]
    for split in (task.train, task.dev):
        assert torch.bincount(split.labels).tolist() == [len(split) // 2] * 2


@pytest.mark.parametrize("name", ["recall", "recall_vs10", "induction", "mqar_64"])
def test_token_tasks_are_the_same_every_time(name, monkeypatch):
    """Multi-query recall with a fiftieth of its sequences, which takes a fiftieth of the time."""
    setting = MQAR[64]
    assert (setting.train, setting.test) == (100_000, 3_000)
    monkeypatch.setitem(MQAR, 64, replace(setting, train=2_000, test=60))
    task, again = load(name, Path()), load(name, Path())
    assert task.name == name
    assert torch.equal(task.train.inputs, again.train.inputs)
    assert torch.equal(task.test.targets, again.test.targets)
    assert (len(task.train), len(task.test)) == ((2_000, 60) if "mqar" in name else (5_000, 500))
    assert task.train.inputs.max() < task.vocab_size
    assert 0 < task.guesses["chance"] < 0.3
    assert max(task.guesses.values()) < 0.6


NETWORKS = {
    "images": [MIMOConvConfig(depth=10, width=0.25, stem_channels=8, image_size=8), DataMUXConvConfig(capacity=2)],
    "tokens": [
        MIMOFormerConfig(vocab_size=7, max_length=6, num_classes=3),
        MIMOFormerConfig(vocab_size=7, max_length=6, head="pair"),
        MIMOFormerConfig(vocab_size=7, max_length=6, head="tokens"),
        DataMUXConfig(vocab_size=7, max_length=6),
    ],
}


@pytest.mark.parametrize("name", ["digits", "listops", "retrieval", "recall"])
def test_random_items_are_of_the_shape_that_a_network_takes(name):
    """And their targets are among its classes or tokens."""
    kind = TASKS[name].kind
    heads = {"digits": (None,), "recall": ("tokens",)}.get(name, ("classes", "pair"))
    for config in NETWORKS[kind.takes]:
        if getattr(config, "head", None) not in heads:
            continue
        network = describe(config)
        task = kind.random(network, 5)
        assert (len(task.train), len(task.test)) == (5, 5)
        items, mask = task.items(task.train, torch.arange(3))
        assert items.shape == network.example(3, torch.device("cpu")).shape
        assert mask is None or mask.shape == items.shape
        classes = 7 if name == "recall" else config.num_classes
        assert 0 <= task.train.targets.min() <= task.train.targets.max() < classes


@pytest.mark.parametrize("name", ["digits", "induction"])
def test_a_finished_network_takes_what_is_saved_of_a_task(name):
    task = load(name, Path())
    config = MIMOConvConfig(in_channels=1) if name == "digits" else MIMOFormerConfig(head="tokens")
    assert {field: getattr(replace(config, **task.saved), field) for field in task.saved} == task.saved


def test_a_task_moves_whole():
    device = torch.device("meta")
    moved = load("digits", Path()).to(device)
    assert {split.images.device.type for split in (moved.train, moved.test)} == {"meta"}
    tokens = load("induction", Path()).to(device)
    assert {split.inputs.device.type for split in (tokens.train, tokens.test)} == {"meta"}


@pytest.mark.parametrize(
    "name", ["mnist", "cifar10", "cifar100", "svhn", "text", "retrieval", "image", "listops_lra", "pathfinder_lra"]
)
def test_what_is_missing_is_named_with_the_way_to_get_it(name, tmp_path):
    with pytest.raises(DatasetError, match="--data-dir") as error:
        load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    by_hand = name in ("retrieval", "listops_lra", "pathfinder_lra")
    assert ("lra_release.gz" if by_hand else "mimonets data prepare ") in str(error.value)
