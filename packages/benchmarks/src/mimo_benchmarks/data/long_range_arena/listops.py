"""ListOps as in Long Range Arena (Tay et al., 2021; google-research/long-range-arena, lra_benchmarks/data/listops.py).

An expression such as [MAX 2 9 [MIN 4 7 ] 0 ] nests operators on digits; its value, a digit, is the label. The published generator
takes no seed and its draws cannot be had again: a set made here is another sample by the same rule.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from random import Random
from reprlib import repr as shortened

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, Value

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.storage.generated import Columns, cache, generated
from mimo_benchmarks.errors import ConfigError, DatasetError


def median(digits: Sequence[int]) -> int:
    """Of an even number of digits, the mean of the middle two, rounded down."""
    ordered, middle = sorted(digits), len(digits) // 2
    return (ordered[middle] + ordered[-middle - 1]) // 2


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": median,
    "[SM": lambda digits: sum(digits) % 10,
}
CLOSE = "]"
DIGITS = {str(digit): digit for digit in range(10)}
SYMBOLS = (*OPERATORS, CLOSE, *DIGITS)
"""The 15 symbols; a symbol's place here is its value in `Sequences`, and one more its token id."""
SPLITS = ("train", "dev", "test")
COUNTS = (96_000, 2_000, 2_000)
PUBLISHED = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10}
"""The published task: with a seed, the arguments under which `generated` caches it."""
FEATURES = Features({"tokens": Value("binary"), "label": Value("uint8")})
"""Of a generated set: a byte a symbol, its place in SYMBOLS."""
VERSION = 1
"""Of the generator: to be raised when the same arguments would give other expressions."""
DRAWS = 2000
"""Expressions of a chunk, of which 8.3 % are kept: about 0.1 s of work."""


def listops(
    folder: Path,
    *,
    seed: int = 0,
    counts: tuple[int, int, int] = COUNTS,
    min_length: int = PUBLISHED["min_length"],
    max_length: int = PUBLISHED["max_length"],
    max_depth: int = PUBLISHED["max_depth"],
    max_args: int = PUBLISHED["max_args"],
    workers: int | None = None,
) -> dict[str, Sequences]:
    """Expressions with their values, no two of them equal, as "train", "dev" and "test": generated once, then from the cache.

    By default the task as published: 8.3 % of the trees drawn are of these lengths; their mean length is 1035 symbols, and of the
    values 0 and 9 have 17 % each, the others 7 to 9 %.

    Args:
        folder: the data folder; see `generated`.
        seed: another one gives other expressions.
        counts: expressions of each split.
        min_length: every expression has more symbols than this,
        max_length: and fewer than this.
        max_depth: of a tree; a single digit has depth 1.
        max_args: most arguments of an operator; the fewest are 2.
        workers: processes that generate; see `generated`.

    Raises:
        ConfigError: an argument that cannot work.
        DatasetError: see `generated`.
    """
    arguments = {"seed": seed, "min_length": min_length, "max_length": max_length, "max_depth": max_depth, "max_args": max_args}
    for name, least in {"seed": 0, "min_length": 0, "max_length": min_length + 2, "max_depth": 1, "max_args": 2}.items():
        if arguments[name] < least:
            raise ConfigError(f"{name} is {arguments[name]}; it must be at least {least}")
    if len(counts) != len(SPLITS) or min(counts) < 1:
        raise ConfigError(f"counts are {counts}; {', '.join(SPLITS)} need at least 1 expression each")
    dataset = generated(
        folder,
        "listops",
        version=VERSION,
        arguments=arguments,
        produce=partial(expressions, **arguments),
        features=FEATURES,
        count=sum(counts),
        workers=workers,
    )
    tokens, labels = (dataset.data.column(name).combine_chunks() for name in FEATURES)
    bounds = np.cumsum([0, *counts])
    return {
        split: sequences(tokens[start:end], labels[start:end])
        for split, start, end in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)
    }


def cached(folder: Path) -> Path:
    """Where `listops` keeps the task as published, whether it is there or not."""
    return cache(folder, "listops", version=VERSION, arguments={"seed": 0, **PUBLISHED}, count=sum(COUNTS))


def sequences(tokens: pa.BinaryArray, labels: pa.UInt8Array) -> Sequences:
    """Columns of Arrow as tensors."""
    _, offsets, values = tokens.buffers()
    bounds = np.frombuffer(offsets, np.int32)[tokens.offset : tokens.offset + len(tokens) + 1].astype(np.int64)
    return Sequences(
        values=torch.from_numpy(np.frombuffer(values, np.uint8)[bounds[0] : bounds[-1]].copy()),
        offsets=torch.from_numpy(bounds - bounds[0]),
        labels=torch.from_numpy(labels.to_numpy().astype(np.int64)),
    )


def expressions(chunk: int, *, seed: int, min_length: int, max_length: int, max_depth: int, max_args: int) -> Columns:
    """Those of a fixed number of draws that are of the lengths asked for: a function of the arguments."""
    # Strings are hashed; of integers, different ones can seed alike. The numbers of this method stay the same in all versions.
    random = Random(f"{seed} {chunk}").random
    drawn = (draw(random, max_length, max_depth, max_args) for _ in range(DRAWS))
    tokens = [expression for expression in drawn if min_length < len(expression) < max_length]
    return {"tokens": tokens, "label": [evaluate([SYMBOLS[value] for value in expression]) for expression in tokens]}


def draw(random: Callable[[], float], max_length: int, max_depth: int, max_args: int) -> bytes:
    """One expression, a byte a symbol, cut off at `max_length`.

    A node is an operator with probability 1/4, at the largest depth never, else a digit. Operators, digits and numbers of
    arguments from 2 to `max_args` are uniform.
    """
    symbols = bytearray()
    due = [1]  # arguments yet to come: of the whole, then of each open operator; so a node's depth is the length of this
    while due != [0] and len(symbols) < max_length:
        if due[-1] == 0:
            due.pop()
            symbols.append(len(OPERATORS))
            continue
        due[-1] -= 1
        if len(due) < max_depth and random() <= 0.25:
            symbols.append(int(len(OPERATORS) * random()))
            due.append(2 + int((max_args - 1) * random()))
        else:
            symbols.append(len(OPERATORS) + 1 + int(10 * random()))
    return bytes(symbols)


def evaluate(tokens: Sequence[str]) -> int:
    """The value of an expression in SYMBOLS.

    Raises:
        DatasetError: it is none; names the first place that is wrong, counting from 1.

    >>> evaluate("[MAX 2 9 [SM 4 7 ] 0 ]".split())
    9
    """
    operators: list[str] = []
    values: list[list[int]] = [[]]  # of the whole, then of each open operator's arguments
    for place, token in enumerate(tokens, 1):
        if not operators and values[0]:
            raise DatasetError(f"symbol {place}, {shortened(token)}, comes after the end of the expression")
        if token in DIGITS:
            values[-1].append(DIGITS[token])
        elif token in OPERATORS:
            operators.append(token)
            values.append([])
        elif token != CLOSE:
            raise DatasetError(f"symbol {place} is {shortened(token)}, none of {' '.join(SYMBOLS)}")
        elif not values[-1]:
            raise DatasetError(f"symbol {place}, {CLOSE!r}, closes {'an operator without arguments' if operators else 'nothing'}")
        else:
            arguments = values.pop()
            values[-1].append(OPERATORS[operators.pop()](arguments))
    if operators:
        raise DatasetError(f"after symbol {len(tokens)}, the last, {len(operators)} {CLOSE!r} are missing")
    if not values[0]:
        raise DatasetError("there are no symbols")
    return values[0][0]


def parse(source: str) -> tuple[list[str], int]:
    """The symbols of an expression and its value, from the published form or from that without its parentheses.

    Raises:
        DatasetError: it is no expression; names the first place that is wrong, counting from 1 (symbols: without parentheses).

    >>> parse("( ( ( [MIN 4 ) 7 ) ] )") == parse("[MIN 4 7 ]") == (["[MIN", "4", "7", "]"], 4)
    True
    """
    words = source.split()
    tokens = [word for word in words if word not in ("(", ")")]
    value = evaluate(tokens)
    if len(words) > len(tokens) and words != (published := parenthesized(tokens).split()):
        pairs = enumerate(zip_longest(words, published, fillvalue="the end"), 1)
        place, (found, wanted) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
        raise DatasetError(f"word {place} is {found}, where the published parentheses have {wanted}")
    return tokens, value


def parenthesized(tokens: Sequence[str]) -> str:
    """An expression in the published form: each argument and each "]" is applied to what precedes it by a pair of parentheses."""
    words: list[str] = []
    applied: dict[int, int] = {}  # how much is applied to the operator at this place
    operators: list[int] = []  # places of the open ones
    for place, token in enumerate(tokens):
        if operators:
            applied[operators[-1]] += 1
        if token in OPERATORS:
            operators.append(place)
            applied[place] = 0
            words.append(token)
        else:
            if token == CLOSE:
                operators.pop()
            words.append(token + " )" * ((token == CLOSE) + bool(operators)))
    return " ".join("( " * applied.get(place, 0) + word for place, word in enumerate(words))
