"""What the tests of every package share: seeds for everything, so that any run repeats."""

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test and doctest starts from the same global seed."""
    torch.manual_seed(0)
