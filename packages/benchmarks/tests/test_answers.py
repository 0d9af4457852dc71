"""What sharing a pass does to the answers, for networks whose answers are known."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.synthetic.token_splits import TokenSplit
from mimo_benchmarks.data.vision.augment import NONE
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.evaluation.answers import batch_statistics, changed_by_regrouping, classify
from mimo_benchmarks.networks.datamux_transformer import DataMUXConfig
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks import token_task
from mimo_benchmarks.tasks.image_task import ImageTask, numbered
from mimo_benchmarks.tasks.registry import load
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.tasks.token_task import TokenTask
from mimo_benchmarks.training.feed import Feed
from mimoconv import MIMOConvConfig
from mimoformer import MIMOFormerConfig

MODULE = nn.Identity()
"""The networks below answer without a module."""


class Known(Network):
    """Answers with `says(items, n, mask)`, up to a capacity; `grid` has two axes of n inputs per pass."""

    def __init__(self, says, capacity=4, grid=False):
        self.says, self.known_capacity, self.grid = says, capacity, grid

    @property
    def capacity(self):
        return self.known_capacity

    def axes(self, n):
        return (n, n) if self.grid else (n,)

    def predict(self, module, inputs, n, mask=None):
        return self.says(inputs, n, mask)


def confused(confusion, last_is_wrong=False):
    """A network that says for every image the class in its pixel, plus `confusion` times its neighbours' sum."""

    def says(items, n, mask):
        own = items[:, 0, 0, 0]
        found = torch.cat([group + confusion * (group.sum() - group) for group in own.split(n)])
        if last_is_wrong:
            found[n - 1 :: n] += 1
        return nn.functional.one_hot(found.long() % 10, 10).float()

    return Known(says)


@pytest.fixture
def task():
    labels = torch.arange(30) % 10
    split = Split(images=labels.to(torch.uint8)[:, None, None, None], labels=labels)
    return ImageTask(name="known", train=split, test=split, class_names=numbered(10), scale=1)


def test_accuracies_and_regrouping_of_known_networks(task):
    def answers(network, n):
        return classify(network, MODULE, task, task.test, n)

    assert torch.equal(answers(confused(0), 2).classes, task.test.labels)
    assert answers(confused(0), 2).accuracy == 1
    wrong = answers(confused(0, last_is_wrong=True), 3)
    assert wrong.accuracy == pytest.approx(2 / 3)
    assert wrong.per_slot() == [1, 1, 0]
    for confusion, n, low, high in ((0, 2, 0, 0), (1, 2, 0.5, 1), (1, 1, 0, 0)):
        network = confused(confusion)
        share = changed_by_regrouping(network, MODULE, task, n, answers(network, n), seed=0)
        assert low <= share <= high


TOKENS = {"vocab_size": 20, "max_length": 31, "layers": 1, "embed_dim": 16, "heads": 1, "mlp_dim": 16, "head": "tokens"}


@pytest.mark.parametrize(
    ("name", "model", "n"),
    [
        ("digits", MIMOConvConfig(capacity=4, depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8), 4),
        ("digits", MIMOConvConfig(capacity=4, depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8), 3),
        ("induction", MIMOFormerConfig(m=2, n=3, **TOKENS), 2),
        ("induction", DataMUXConfig(capacity=3, **TOKENS), 3),
    ],
    ids=["mimoconv", "mimoconv, not full", "mimoformer", "datamux"],
)
def test_inputs_take_slots_in_the_same_order_in_training_and_in_evaluation(name, model, n, tmp_path):
    """The items of a training step, evaluated in their order: the network sees the same passes, slot by slot."""
    task, network, module = load(name, tmp_path), describe(model), build(model)
    shared = network.inputs_per_pass(n)
    settings = RunConfig(task=name, model=model, n=(n,), n_odds=(1,), augment=NONE, optim=OptimConfig(groups=5))
    feed = Feed(task, settings)
    trained, _, targets = feed.batch(feed.draw(1))
    index, kind = feed.batches.at(1), type(task.train)
    items = kind(**{field: values[index] for field, values in vars(task.train).items()})
    seen = []
    module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    answers = classify(network, module, task, items, n)
    assert trained.shape[: 1 + len(network.axes(n))] == (5, *network.axes(n))
    assert torch.equal(torch.cat(seen), trained)
    assert not torch.equal(trained[:, 0], trained[:, 1])
    assert torch.equal(answers.slot, torch.arange(5 * shared) % shared)
    right = targets.argmax(-1) if targets.is_floating_point() else targets
    assert torch.equal(answers.right, answers.classes == right.flatten(0, len(network.axes(n))))


def test_sequences_are_answered_by_length_and_come_back_in_order():
    """The answer is what the tokens say, whatever batch they are in; only what is asked counts."""
    labels = torch.randint(10, (50,), generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(1))
    texts = Sequences.of([bytes([label] * length) for label, length in zip(labels, lengths, strict=True)], labels.tolist())
    names = numbered(10)
    task = SequenceTask(name="known", train=texts, dev=texts, test=texts, class_names=names, vocab_size=16, max_length=20)
    seen = []

    def says(items, n, mask):
        seen.append(mask.sum(1))
        return nn.functional.one_hot(items[:, 0] - 1, 10).float()

    found = classify(Known(says, grid=True), MODULE, task, texts, 2, passes=3)
    assert torch.equal(found.classes, labels)
    assert found.accuracy == 1
    assert [len(part) for part in seen] == [12, 12, 12, 12, 2]
    assert torch.equal(torch.cat(seen), lengths.sort().values)
    assert len(found.per_slot()) == 4


def token_network(seen):
    """A network that repeats its tokens, in a vocabulary of five, and notes how many sequences it was given."""

    def says(items, n, mask):
        seen.append(len(items))
        return nn.functional.one_hot(items, 5).float()

    return Known(says, grid=True)


def test_tokens_that_are_not_asked_for_do_not_count():
    targets = torch.tensor([[-100, 3], [1, -100], [-100, 2]])
    split = TokenSplit(inputs=torch.tensor([[0, 3], [1, 0], [0, 0]]), targets=targets)
    task = TokenTask(name="known", train=split, test=split, vocab_size=5)
    assert classify(token_network([]), MODULE, task, split, 1).accuracy == pytest.approx(2 / 3)


def test_answers_of_large_vocabularies_come_in_parts(monkeypatch):
    """Three passes of four sequences of two tokens make 120 logits, where each token has one of five."""
    inputs = torch.randint(5, (26, 2), generator=torch.Generator().manual_seed(0))
    split, seen = TokenSplit(inputs=inputs, targets=inputs), []
    task = TokenTask(name="known", train=split, test=split, vocab_size=5)
    monkeypatch.setattr(token_task, "LOGITS_AT_ONCE", 120)
    assert classify(token_network(seen), MODULE, task, split, 2).accuracy == 1
    assert seen == [12, 12, 2]


def test_answers_that_are_not_finite_are_refused(task):
    network = Known(lambda items, n, mask: torch.full((len(items), 10), float("nan")))
    with pytest.raises(FloatingPointError, match="n = 2 are not finite"):
        classify(network, MODULE, task, task.test, 2)


def test_batch_statistics_are_those_of_the_batch_in_hand():
    """As the network answers in training mode, with running statistics left alone; eval mode is another."""
    config = MIMOConvConfig(capacity=4, depth=10, width=0.5, stem_channels=32, in_channels=1, image_size=8)
    model, network, images = build(config), describe(config), torch.randn(12, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), batch_statistics(model.eval()) as has_batch_norm:
        found = network.predict(model, images, 2)
    assert has_batch_norm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_close(found, copy.deepcopy(model).train()(images.unflatten(0, (6, 2))).flatten(0, 1))
    assert (found - network.predict(model.eval(), images, 2)).abs().max() > 0.01
    with batch_statistics(build(MIMOFormerConfig(m=1, n=1, layers=1, embed_dim=8, mlp_dim=8))) as has_batch_norm:
        assert not has_batch_norm
