import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vsa_core import slots


@given(capacity=st.integers(1, 40), data=st.data())
def test_assignment_is_as_even_as_can_be(capacity, data):
    n = data.draw(st.integers(1, capacity))
    assignment = slots.assignment(n, capacity)
    counts = torch.bincount(assignment, minlength=n)
    assert assignment.shape == (capacity,)
    assert assignment.dtype == torch.int64
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert counts.numel() == n


@pytest.mark.parametrize(("n", "expected"), [(1, [0, 0, 0, 0]), (2, [0, 1, 0, 1]), (4, [0, 1, 2, 3])])
def test_assignment_cycles(n, expected):
    assert slots.assignment(n, 4).tolist() == expected


@given(count=st.integers(0, 70), n=st.integers(1, 9), shape=st.sampled_from([(), (3,), (2, 0)]))
def test_ungroup_undoes_group_and_only_real_items_fill(count, n, shape):
    items = torch.arange(count * 6.0).reshape(count, 6)[:, : 3 if shape == (3,) else 6]
    items = items[:, 0] if shape == () else items.new_empty(count, 2, 0) if shape == (2, 0) else items
    groups = slots.group(items, n)
    assert groups.shape == (-(-count // n), n, *items.shape[1:])
    assert torch.equal(slots.ungroup(groups, count), items)
    if shape == (3,):
        assert {tuple(row.tolist()) for row in groups.flatten(0, 1)} == {tuple(row.tolist()) for row in items}


def test_one_item_fills_its_group():
    assert slots.group(torch.tensor([7]), 3).tolist() == [[7, 7, 7]]


def test_gradients_of_a_repeated_item_add_up():
    items = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    slots.group(items, 2).sum().backward()
    assert items.grad.tolist() == [2.0, 1.0, 1.0]
