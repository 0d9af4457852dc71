"""Generate ListOps as in Long Range Arena (Tay et al., 2021; google-research/long-range-arena, lra_benchmarks/data/listops.py).

A network reads an expression such as [MAX 2 9 [MIN 4 7 ] 0 ]; its value, a digit, is the label. The published generator takes no
seed, so its draws cannot be repeated: a set made here is another sample by the same rule.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, Value

from mimo_benchmarks.data.long_range_arena.listops_expressions import evaluate, generate_expressions
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.generated import Recipe, load_or_generate
from mimo_benchmarks.errors import ConfigError

__all__ = ["evaluate", "listops_recipe", "listops_splits"]

SPLITS = ("train", "dev", "test")
COUNTS = (96_000, 2_000, 2_000)
PUBLISHED = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10}
"""Arguments of the published task."""
FEATURES = Features({"tokens": Value("binary"), "label": Value("uint8")})
"""Columns of a generated set; tokens has one byte per symbol, its index in SYMBOLS."""
VERSION = 1
"""Version of the generator. Raise it when the same arguments would give other expressions."""


def listops_recipe(
    *,
    seed: int = 0,
    counts: tuple[int, int, int] = COUNTS,
    min_length: int = PUBLISHED["min_length"],
    max_length: int = PUBLISHED["max_length"],
    max_depth: int = PUBLISHED["max_depth"],
    max_args: int = PUBLISHED["max_args"],
) -> Recipe:
    """Return the recipe of a set of expressions; by default, that of the published task.

    Args:
        seed: seed of the draws.
        counts: number of expressions of each split.
        min_length: every expression has more symbols than this.
        max_length: every expression has fewer symbols than this.
        max_depth: largest depth of an expression; a single digit has depth 1.
        max_args: most arguments of an operator; the fewest are 2.

    Raises:
        ConfigError: an argument is out of range.
    """
    arguments = {"seed": seed, "min_length": min_length, "max_length": max_length, "max_depth": max_depth, "max_args": max_args}
    for name, least in {"seed": 0, "min_length": 0, "max_length": min_length + 2, "max_depth": 1, "max_args": 2}.items():
        if arguments[name] < least:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least {least}")
    if len(counts) != len(SPLITS) or min(counts) < 1:
        raise ConfigError(f"counts are {counts}; {', '.join(SPLITS)} need at least 1 expression each")
    return Recipe(name="listops", version=VERSION, arguments=arguments, count=sum(counts))


def listops_splits(
    folder: Path, *, counts: tuple[int, int, int] = COUNTS, workers: int | None = None, **arguments: int
) -> dict[str, Sequences]:
    """Return different expressions with their values as "train", "dev" and "test": generated once, then read from the cache.

    By default this is the published task: 8.3 % of the trees drawn have its lengths; their mean length is 1035 symbols; the
    values 0 and 9 have a share of 17 % each, the others of 7 to 9 %.

    Args:
        folder: data folder.
        counts: number of expressions of each split.
        workers: number of processes that generate; see `load_or_generate`.
        arguments: further arguments of `listops_recipe`.

    Raises:
        ConfigError: an argument is out of range.
        DatasetError: the set cannot be generated or cached, or its cache was altered; see `load_or_generate`.
    """
    recipe = listops_recipe(counts=counts, **arguments)
    produce = partial(generate_expressions, **recipe.arguments)
    dataset = load_or_generate(folder, recipe, produce=produce, features=FEATURES, workers=workers)
    tokens, labels = (dataset.data.column(name).combine_chunks() for name in FEATURES)
    bounds = np.cumsum([0, *counts])
    return {
        split: sequences_from_arrow(tokens[start:end], labels[start:end])
        for split, start, end in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
    }


def sequences_from_arrow(tokens: pa.BinaryArray, labels: pa.UInt8Array) -> Sequences:
    """Convert columns of Arrow to tensors."""
    _, offsets, values = tokens.buffers()
    bounds = np.frombuffer(offsets, np.int32)[tokens.offset : tokens.offset + len(tokens) + 1].astype(np.int64)
    return Sequences(
        values=torch.from_numpy(np.frombuffer(values, np.uint8)[bounds[0] : bounds[-1]].copy()),
        offsets=torch.from_numpy(bounds - bounds[0]),
        labels=torch.from_numpy(labels.to_numpy().astype(np.int64)),
    )
