"""Draw, evaluate and parse the expressions of ListOps. Nothing heavy is imported here, so that workers start fast.

An expression such as [MAX 2 9 [MIN 4 7 ] 0 ] nests operators on digits; its value is a digit.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from random import Random
from reprlib import repr as shortened

from mimo_benchmarks.data.storage.workers import Columns
from mimo_benchmarks.errors import DatasetError


def median(digits: Sequence[int]) -> int:
    """Return the median of some digits; of an even number of them, the mean of the middle two, rounded down."""
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
"""The 15 symbols. A symbol's index is its value in `Sequences`; its token id is one more."""
DRAWS = 2000
"""Expressions that are drawn per chunk, about 0.1 s of work; 8.3 % of them have the published lengths."""


def generate_expressions(chunk: int, *, seed: int, min_length: int, max_length: int, max_depth: int, max_args: int) -> Columns:
    """Draw a fixed number of expressions and return those of the given lengths. The result is a function of the arguments."""
    # A string seed is hashed; different integers can give the same seed. All versions of Python keep the numbers of random().
    random = Random(f"{seed} {chunk}").random
    drawn = (draw_expression(random, max_length, max_depth, max_args) for _ in range(DRAWS))
    tokens = [expression for expression in drawn if min_length < len(expression) < max_length]
    return {"tokens": tokens, "label": [evaluate([SYMBOLS[value] for value in expression]) for expression in tokens]}


def draw_expression(random: Callable[[], float], max_length: int, max_depth: int, max_args: int) -> bytes:
    """Draw one expression, one byte per symbol, cut off at `max_length`.

    A node is an operator with probability 1/4, but never at the largest depth; else it is a digit. Operators, digits and the
    number of arguments, from 2 to `max_args`, are uniform.
    """
    symbols = bytearray()
    due = [1]  # arguments still to come, of the whole and of each open operator; its length is the depth of the next node
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
    """Return the value of an expression, given as a sequence of SYMBOLS.

    Raises:
        DatasetError: it is not an expression; names the first wrong symbol, counting from 1.

    >>> evaluate("[MAX 2 9 [SM 4 7 ] 0 ]".split())
    9
    """
    operators: list[str] = []
    values: list[list[int]] = [[]]  # of the whole, then the arguments of each open operator
    for place, token in enumerate(tokens, 1):
        if not operators and values[0]:
            raise DatasetError(f"symbol {place}, {shortened(token)}, comes after the end of the expression")
        if token in DIGITS:
            values[-1].append(DIGITS[token])
        elif token in OPERATORS:
            operators.append(token)
            values.append([])
        elif token != CLOSE:
            raise DatasetError(f"symbol {place} is {shortened(token)}, but must be one of {' '.join(SYMBOLS)}")
        elif not values[-1]:
            raise DatasetError(f"symbol {place}, {CLOSE!r}, closes {'an operator without arguments' if operators else 'nothing'}")
        else:
            arguments = values.pop()
            values[-1].append(OPERATORS[operators.pop()](arguments))
    if operators:
        raise DatasetError(f"after the last symbol, {len(tokens)}, {len(operators)} {CLOSE!r} are missing")
    if not values[0]:
        raise DatasetError("there are no symbols")
    return values[0][0]


def parse_expression(source: str) -> tuple[list[str], int]:
    """Return the symbols and the value of an expression, in the published form or in the form without parentheses.

    Raises:
        DatasetError: it is not an expression; names the first wrong word, or the first wrong symbol, not counting parentheses.

    >>> parse_expression("( ( ( [MIN 4 ) 7 ) ] )") == parse_expression("[MIN 4 7 ]") == (["[MIN", "4", "7", "]"], 4)
    True
    """
    words = source.split()
    tokens = [word for word in words if word not in ("(", ")")]
    value = evaluate(tokens)
    if len(words) > len(tokens) and words != (published := with_parentheses(tokens).split()):
        pairs = enumerate(zip_longest(words, published, fillvalue="the end"), 1)
        place, (found, wanted) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
        raise DatasetError(f"word {place} is {found}, but the published form has {wanted} there")
    return tokens, value


def with_parentheses(tokens: Sequence[str]) -> str:
    """Return an expression in the published form: parentheses apply each argument and each "]" to what precedes it."""
    words: list[str] = []
    applied: dict[int, int] = {}  # number of words applied to the operator at this index
    operators: list[int] = []  # indices of the open operators
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
