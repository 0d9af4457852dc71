"""Code that the token tasks share, against lists and sets; and that all tasks are drawn on the device of their generator."""

from itertools import chain, repeat

import pytest
import torch
from torch.nn import functional as F

from mimo_benchmarks.data.synthetic import induction, mqar, recall
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED, TokenSplit, draw_different, expected_accuracy, next_token_splits


def seeded_generator(device="cpu", seed=0):
    return torch.Generator(device).manual_seed(seed)


TASKS = {
    "recall": lambda generator: recall.recall_splits(train=300, test=50, generator=generator),
    "induction": lambda generator: induction.induction_splits(train=300, test=50, generator=generator),
    "mqar": lambda generator: mqar.mqar_splits(
        mqar.MQARSetting(length=20, pairs=3, batch_size=8, train=300, test=50), generator=generator
    ),
}
GUESSES = {"recall": recall.recall_guesses, "induction": induction.induction_guesses, "mqar": mqar.mqar_guesses}
each_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    return request.param


@each_task
def test_splits_are_on_the_device_of_the_generator(task, device):
    for split, count in zip(TASKS[task](seeded_generator(device)), (300, 50), strict=True):
        for tensor in (split.inputs, split.targets):
            assert (tensor.device.type, tensor.dtype, len(tensor)) == (device, torch.long, count)
        assert split.inputs.shape == split.targets.shape
        on_cpu = split.to(torch.device("cpu"))
        vocab_size = 8192 if task == "mqar" else 20
        assert GUESSES[task](split, vocab_size=vocab_size) == pytest.approx(
            GUESSES[task](on_cpu, vocab_size=vocab_size), abs=1e-6
        )


@each_task
def test_splits_repeat_with_the_state_of_the_generator_and_leave_the_global_one_alone(task):
    before = torch.get_rng_state()
    generator = seeded_generator()
    first, again, other = TASKS[task](generator), TASKS[task](seeded_generator()), TASKS[task](seeded_generator(seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    for split, same, changed in zip(first, again, other, strict=True):
        assert torch.equal(split.inputs, same.inputs)
        assert torch.equal(split.targets, same.targets)
        assert not torch.equal(split.inputs, changed.inputs)
    assert not torch.equal(
        first[0].inputs[:50], first[1].inputs
    )  # the test split continues the random numbers of the training split
    assert not torch.equal(TASKS[task](generator)[0].inputs, first[0].inputs)


def test_a_split_moves_as_a_whole():
    split = TokenSplit(inputs=torch.zeros(3, 4, dtype=torch.long), targets=torch.ones(3, 4, dtype=torch.long))
    moved = split.to(torch.device("meta"))
    assert (moved.inputs.device.type, moved.targets.device.type) == ("meta", "meta")
    assert len(moved) == 3


def test_training_scores_all_next_tokens_and_testing_the_last_one():
    train, test = next_token_splits(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[3, 1, 2, 9]]))
    assert train.inputs.tolist() == [[1, 2, 3], [5, 6, 7]]
    assert train.targets.tolist() == [[2, 3, 4], [6, 7, 8]]
    assert test.inputs.tolist() == [[3, 1, 2]]
    assert test.targets.tolist() == [[UNSCORED, UNSCORED, 9]]
    logits = torch.randn(1, 3, 10)
    assert F.cross_entropy(logits.flatten(0, 1), test.targets.flatten()) == F.cross_entropy(logits[0, -1:], torch.tensor([9]))


def test_repeated_rows_are_replaced_by_later_ones():
    """Draws of three rows each, against a dictionary, which keeps the first occurrence of each row in order."""
    draws = [[[2, 1], [1, 1], [2, 1]], [[1, 1], [1, 1], [2, 1]], [[3, 0], [1, 1], [0, 0]], [[7, 7], [8, 8], [9, 9]]]
    left, asked = iter(draws), []

    def draw(count):
        asked.append(count)
        return torch.tensor(next(left))

    rows = draw_different(3, draw)
    assert rows.tolist() == list(map(list, dict.fromkeys(map(tuple, chain(*draws)))))[:3] == [[2, 1], [1, 1], [3, 0]]
    assert asked == list(repeat(3, 3))  # no draw is made in vain


def test_a_guess_among_tied_values_scores_a_share():
    """One vote for 0, two each for 1 and 2: the guess is right half of the time for 1 and 2, and never for 0 and 3."""
    votes = torch.tensor([[1.0, 2, 2, 0]] * 4)
    assert [expected_accuracy(votes[:1], torch.tensor([answer])) for answer in range(4)] == [0, 0.5, 0.5, 0]
    assert expected_accuracy(votes, torch.arange(4)) == 0.25
