"""What sharing a pass does, on networks whose answers are known."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.synthetic.tokens import TokenSplit
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.evaluation import answers as evaluate
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.tasks.kinds import ImageTask, SequenceTask, TokenTask
from mimoconv import MIMOConv, MIMOConvConfig
from mimoformer import MIMOFormerConfig


class Known(nn.Module):
    """Says for every image the class that it carries in its pixel, plus `confusion` times its neighbours' sum."""

    def __init__(self, confusion: float, last_is_wrong: bool = False) -> None:
        super().__init__()
        self.confusion, self.last_is_wrong = confusion, last_is_wrong
        self.anything = nn.Parameter(torch.zeros(()))

    def says(self, items, n):
        """As `models.answer` does, n images a pass."""
        own = items[:, 0, 0, 0]
        says = torch.cat([group + self.confusion * (group.sum() - group) for group in own.split(n)])
        if self.last_is_wrong:
            says[n - 1 :: n] += 1
        return nn.functional.one_hot(says.long() % 10, 10).float()


@pytest.fixture
def task():
    labels = torch.arange(30) % 10
    split = Split(images=labels.to(torch.uint8)[:, None, None, None], labels=labels)
    return ImageTask(name="known", train=split, test=split, classes=10, scale=1)


CONV = MIMOConvConfig(capacity=4)


@pytest.mark.unchecked
def test_accuracies_and_regrouping_of_known_networks(task, monkeypatch):
    monkeypatch.setattr(models, "answer", lambda network, items, mask, n: network.says(items, n))

    def answers(network, n):
        return evaluate.classify(network, CONV, task, task.test, n)

    assert torch.equal(answers(Known(0), 2).classes, task.test.labels)
    assert answers(Known(0), 2).accuracy == 1
    wrong = answers(Known(0, last_is_wrong=True), 3)
    assert wrong.accuracy == pytest.approx(2 / 3)
    assert wrong.per_slot() == [1, 1, 0]
    for confusion, n, low, high in ((0, 2, 0, 0), (1, 2, 0.5, 1), (1, 1, 0, 0)):
        network = Known(confusion)
        share = evaluate.changed_by_regrouping(network, CONV, task, n, answers(network, n), seed=0)
        assert low <= share <= high


@pytest.mark.unchecked
def test_sequences_are_answered_by_length_and_come_back_in_order(monkeypatch):
    """The answer is what the tokens say, whatever batch they are in; only what is asked counts."""
    labels = torch.randint(10, (50,), generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(1))
    texts = Sequences.of([bytes([label] * length) for label, length in zip(labels, lengths, strict=True)], labels.tolist())
    task = SequenceTask(name="known", train=texts, dev=texts, test=texts, classes=10, vocab_size=16, max_length=20)
    config = MIMOFormerConfig(m=2, n=2, vocab_size=16, max_length=20)
    seen = []

    def answer(network, items, mask, n):
        seen.append(mask.sum(1))
        return nn.functional.one_hot(items[:, 0] - 1, 10).float()

    monkeypatch.setattr(models, "answer", answer)
    found = evaluate.classify(Known(0), config, task, texts, 2, passes=3)
    assert torch.equal(found.classes, labels)
    assert found.accuracy == 1
    assert [len(part) for part in seen] == [12, 12, 12, 12, 2]
    assert torch.equal(torch.cat(seen), lengths.sort().values)
    assert len(found.per_slot()) == 4


@pytest.mark.unchecked
def test_tokens_that_are_not_asked_for_do_not_count(monkeypatch):
    targets = torch.tensor([[-100, 3], [1, -100], [-100, 2]])
    split = TokenSplit(inputs=torch.tensor([[0, 3], [1, 0], [0, 0]]), targets=targets)
    task = TokenTask(name="known", train=split, test=split, vocab_size=5, guesses={})
    monkeypatch.setattr(models, "answer", lambda network, items, mask, n: nn.functional.one_hot(items, 5).float())
    found = evaluate.classify(Known(0), MIMOFormerConfig(m=1, n=1), task, split, 1)
    assert found.accuracy == pytest.approx(2 / 3)


@pytest.mark.unchecked
def test_answers_of_large_vocabularies_come_in_parts(monkeypatch):
    """Three passes of four sequences of two tokens make 120 numbers, where each token has one of five."""
    inputs = torch.randint(5, (26, 2), generator=torch.Generator().manual_seed(0))
    split, seen = TokenSplit(inputs=inputs, targets=inputs), []
    task = TokenTask(name="known", train=split, test=split, vocab_size=5, guesses={})
    monkeypatch.setattr(evaluate, "LOGITS", 120)

    def answer(network, items, mask, n):
        seen.append(len(items))
        return nn.functional.one_hot(items, 5).float()

    monkeypatch.setattr(models, "answer", answer)
    assert evaluate.classify(Known(0), MIMOFormerConfig(m=2, n=2), task, split, 2).accuracy == 1
    assert seen == [12, 12, 2]


@pytest.mark.unchecked
def test_answers_that_are_not_finite_are_refused(task, monkeypatch):
    monkeypatch.setattr(models, "answer", lambda network, items, mask, n: torch.full((len(items), 10), float("nan")))
    with pytest.raises(FloatingPointError, match="n = 2 are not finite"):
        evaluate.classify(Known(0), CONV, task, task.test, 2)


def test_batch_statistics_are_those_of_the_batch_in_hand():
    """As the network answers in training mode, with running statistics left alone; eval mode is another."""
    model = network()
    images = torch.randn(12, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad(), evaluate.batch_statistics(model.eval()) as some:
        found = models.answer(model, images, None, 2)
    assert some
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_close(found, copy.deepcopy(model).train()(images.unflatten(0, (6, 2))).flatten(0, 1))
    assert (found - models.answer(model.eval(), images, None, 2)).abs().max() > 0.01
    with evaluate.batch_statistics(models.build(MIMOFormerConfig(m=1, n=1, layers=1, embed_dim=8, mlp_dim=8))) as some:
        assert not some


def network(**options):
    options = {"capacity": 4, "depth": 10, "width": 0.5, "stem_channels": 32, "in_channels": 1, "image_size": 8} | options
    return MIMOConv(MIMOConvConfig(**options))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_crosstalk_along_the_network(n):
    """A bundle of alike images owes (n - 1) / n of its variance to the others; nothing unbinds them before training."""
    shares = evaluate.crosstalk_by_depth(network(capacity=n), torch.randn(800, 1, 8, 8), n, torch.Generator().manual_seed(0))
    assert list(shares) == ["superposed", "stage 1", "stage 2", "stage 3", "unbound", "logits"]
    assert shares["superposed"] == pytest.approx((n - 1) / n, abs=0.05)
    for share in shares.values():
        assert (n - 1) / n - 0.1 < share < (1.1 if n > 1 else 1e-9)


def test_crosstalk_is_that_of_the_slot_alone():
    """A network that ignores all slots but the first has none, and one that ignores the first has nothing else."""
    alone, others = network(), network()
    with torch.no_grad():
        alone.binding.keys[1:] = 0
        others.binding.keys[0] = 0
    images = torch.randn(200, 1, 8, 8)
    for model, share in ((alone, 0.0), (others, 1.0)):
        measured = evaluate.crosstalk_by_depth(model, images, 4, torch.Generator().manual_seed(0))
        assert_close(torch.tensor(list(measured.values())), torch.full((6,), share), rtol=0, atol=0.06 if share else 1e-9)
        assert not model.body._forward_pre_hooks
