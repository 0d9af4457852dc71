"""Checks of published state dicts; those of importers are in the tests of their packages."""

import re

import pytest
import torch

from vsa_core.hub.entries import check_entry_names, check_entry_values, entry_shape, published_entries

ENTRIES = {"a.weight": torch.zeros(2, 3), "a.count": torch.tensor(1)}
SHAPES = {"a.weight": (2, 3), "a.count": ()}


def check(state_dict):
    """Take a state dict through all checks."""
    entries = published_entries(state_dict)
    shape = entry_shape(entries, "a.weight", "rows columns")
    check_entry_names(entries, SHAPES)
    check_entry_values(entries, SHAPES, like="a.weight", counts=["a.count"])
    return entries, shape


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_fits(prefix):
    """The prefix of DataParallel is left out where every name has it."""
    entries, shape = check({f"{prefix}{name}": value for name, value in ENTRIES.items()})
    assert entries.keys() == SHAPES.keys()
    assert shape == (2, 3)
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert published_entries(mixed) == mixed


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({1: torch.zeros(1)}, TypeError, "an entry is named 1; expected a string"),
        ({"a.weight": [0.0]}, TypeError, "a.weight is a list; expected a tensor: is this a checkpoint around a state dict?"),
        ({"a.weight": torch.zeros(2)}, ValueError, "a.weight has shape (2,); expected (rows columns), none of them 0"),
        ({"a.weight": torch.zeros(2, 0)}, ValueError, "a.weight has shape (2, 0); expected (rows columns), none of them 0"),
        ({"a.weight": torch.zeros(3, 2)}, ValueError, "a.weight has shape (3, 2); expected (2, 3)"),
        (
            {"a.weight": torch.zeros(2, 3).int()},
            ValueError,
            "a.weight is torch.int32; expected one floating-point type throughout",
        ),
        ({"a.weight": torch.full((2, 3), torch.inf)}, ValueError, "a.weight holds NaN or infinite values; expected finite ones"),
        ({"b": torch.zeros(4)}, ValueError, "expected the 2 entries of a published network of these sizes; surplus: b (4,)"),
    ],
)
def test_what_does_not_fit(changes, error, named):
    with pytest.raises(error, match=re.escape(named)):
        check(ENTRIES | changes)


@pytest.mark.unchecked
def test_missing_entries_are_named_and_counted():
    with pytest.raises(
        ValueError, match=r"missing: 0 \(\), 1 \(\), .* 7 \(\), and 3 more; surplus: a\.weight \(2, 3\), a\.count \(\)$"
    ):
        check_entry_names(ENTRIES, {str(number): () for number in range(11)})
    with pytest.raises(ValueError, match=r"b is missing; expected a tensor \(n\)"):
        entry_shape(ENTRIES, "b", "n")
    with pytest.raises(TypeError, match="state_dict is a str; expected a mapping of names to tensors"):
        published_entries("model.pt")
