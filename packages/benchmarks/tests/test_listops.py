"""ListOps: values against rewriting from the inside out, the generator against its rule and published figures, and files."""

import os
import random
import re
import statistics
from collections import Counter
from hashlib import sha256
from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_benchmarks.data.long_range_arena.listops import PUBLISHED, SPLITS, VERSION, listops_recipe, listops_splits
from mimo_benchmarks.data.long_range_arena.listops_expressions import (
    SYMBOLS,
    draw_expression,
    evaluate,
    generate_expressions,
    parse_expression,
    with_parentheses,
)
from mimo_benchmarks.data.long_range_arena.listops_files import read_listops_file
from mimo_benchmarks.data.storage.generated import Recipe
from mimo_benchmarks.errors import ConfigError, DatasetError

SMALL = {"counts": (60, 20, 10), "min_length": 3, "max_length": 40, "max_depth": 4, "max_args": 5, "workers": 1}
RULES = {
    "MIN": lambda digits: sorted(digits)[0],
    "MAX": lambda digits: sorted(digits)[-1],
    "MED": lambda digits: int(statistics.median(digits)),
    "SM": lambda digits: sum(digits) % 10,
}
INNERMOST = re.compile(r"\[(\w+)((?: \d)+) \]")


def value_by_rewriting(source):
    """Return the value, by replacing innermost brackets with their values as long as there are any."""
    found = True
    while found:
        source, found = INNERMOST.subn(lambda match: str(RULES[match[1]]([*map(int, match[2].split())])), source)
    return int(source)


def published_form(tree):
    """Return the published form by its definition: an operator is applied to its arguments one by one, and then to "]"."""
    if isinstance(tree, str):
        return tree
    operator, arguments = tree
    text = operator
    for argument in [*map(published_form, arguments), "]"]:
        text = f"( {text} {argument} )"
    return text


trees = st.recursive(
    st.sampled_from("0123456789"),
    lambda inner: st.tuples(st.sampled_from(SYMBOLS[:4]), st.lists(inner, min_size=1, max_size=10)),
    max_leaves=60,
)


@given(tree=trees)
def test_values_and_symbols_equal_their_definitions(tree):
    published = published_form(tree)
    plain = published.replace("( ", "").replace(" )", "")
    tokens, value = parse_expression(published)
    assert parse_expression(plain) == (tokens, value) == (plain.split(), value_by_rewriting(plain))
    assert evaluate(tokens) == value
    assert with_parentheses(tokens) == published


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("7", 7),
        ("[MED 1 2 ]", 1),  # 1.5
        ("[MED 9 0 4 ]", 4),
        ("[MED 9 1 8 2 ]", 5),
        ("[SM 9 9 9 ]", 7),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("( ( ( ( [SM 6 ) ( ( ( [MIN 9 ) 8 ) ] ) ) 1 ) ] )", 5),
    ],
)
def test_values_worked_out_by_hand(source, value):
    assert parse_expression(source)[1] == value


def test_deep_and_long_expressions_have_values(size=100_000):
    deep = ["[MAX"] * size + ["3"] + ["]"] * size
    assert parse_expression(with_parentheses(deep)) == (deep, 3)
    assert evaluate(["[SM", *"7" * size, "]"]) == 7 * size % 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "there are no symbols"),
        (" \t", "there are no symbols"),
        ("( )", "there are no symbols"),
        ("[MAX 1 [AVG 2 ] ]", r"symbol 3 is '\[AVG', but must be one of \[MIN \[MAX \[MED \[SM \] 0 1 .* 9"),
        ("[MAX 1 12 ]", "symbol 3 is '12', but must be one of"),
        ("[MAX 1 \u0663 ]", "symbol 3 is '\u0663', but must be one of"),  # a digit, but not one of ours
        ("[max 1 2 ]", r"symbol 1 is '\[max', but must be one of"),
        ("[MAX 1 2", r"after the last symbol, 3, 1 '\]' are missing"),
        ("[MAX 1 [MIN 2", r"after the last symbol, 4, 2 '\]' are missing"),
        ("[MAX", r"after the last symbol, 1, 1 '\]' are missing"),
        ("]", r"symbol 1, '\]', closes nothing"),
        ("[MAX 1 [MIN ] 2 ]", r"symbol 4, '\]', closes an operator without arguments"),
        ("[MAX 1 2 ] ]", r"symbol 5, '\]', comes after the end"),
        ("[MAX 1 2 ] 3", "symbol 5, '3', comes after the end"),
        ("1 [MAX 1 2 ]", r"symbol 2, '\[MAX', comes after the end"),
        ("1 xyz", "symbol 2, 'xyz', comes after the end"),
        ("( ( [MIN 4 ) 7 ) ] )", r"word 3 is \[MIN, but the published form has \( there"),
        ("( ( ( [MIN 4 ) 7 ] ) )", r"word 8 is \], but the published form has \) there"),
        ("( ( ( [MIN 4 ) 7 ) ]", r"word 10 is the end, but the published form has \) there"),
        ("( ( ( [MIN 4 ) 7 ) ] ) )", r"word 11 is \), but the published form has the end there"),
        ("( 7 )", r"word 1 is \(, but the published form has 7 there"),
    ],
)
def test_malformed_expressions_are_refused_with_the_place(source, message):
    with pytest.raises(DatasetError, match=message):
        parse_expression(source)


def near(found, trials, chance):
    """Return whether a count is within 5 standard deviations of a binomial."""
    return abs(found - trials * chance) < 5 * sqrt(trials * chance * (1 - chance))


def test_trees_follow_the_rule(draws=8000):
    """Shares among all draws of seed 0, before any is rejected, are within 5 standard deviations.

    The number of nodes depends on earlier draws; the deviations are still those of as many independent draws.
    """
    generator = random.Random(0)
    nodes, operators, digits, arguments = Counter(), Counter(), Counter(), Counter()
    for _ in range(draws):
        open_arguments = [0]
        for symbol in (SYMBOLS[value] for value in draw_expression(generator.random, 10**9, 10, 10)):
            if symbol == "]":
                arguments[open_arguments.pop()] += 1
                continue
            nodes[len(open_arguments)] += 1
            open_arguments[-1] += 1
            if symbol.startswith("["):
                operators[symbol, len(open_arguments)] += 1
                open_arguments.append(0)
            else:
                digits[symbol] += 1
        assert open_arguments == [1]
    assert nodes.keys() == set(range(1, 11))
    for depth in range(1, 10):
        assert near(sum(operators[symbol, depth] for symbol in SYMBOLS[:4]), nodes[depth], 1 / 4)
    for symbol in SYMBOLS[:4]:
        assert operators[symbol, 10] == 0
        assert near(sum(operators[symbol, depth] for depth in range(1, 10)), operators.total(), 1 / 4)
    assert all(near(digits[str(digit)], digits.total(), 1 / 10) for digit in range(10))
    assert arguments.keys() == set(range(2, 11))
    assert all(near(arguments[number], operators.total(), 1 / 9) for number in range(2, 11))


def length_chances():
    """Return the probability of each length below 2000 by the rule: nodes of the largest depth first, then those above them."""
    digit = np.eye(1, 2000, 1)[0]
    node = digit
    for _ in range(9):
        several = [node]
        for _ in range(9):
            several.append(np.convolve(several[-1], node)[:2000])  # adds one argument
        node = 3 / 4 * digit + 1 / 4 * np.pad(np.mean(several[1:], 0), (2, 0))[:2000]
    return node


def test_the_rule_gives_the_published_figures():
    """They come from 60,000 kept expressions: standard errors of 0.03 %, 1.6 and, for the quartiles, up to 3 symbols."""
    kept = length_chances()[501:]
    cumulated = kept.cumsum() / kept.sum()
    assert abs(kept.sum() - 0.083) < 0.001
    assert abs(kept @ np.arange(501, 2000) / kept.sum() - 1034) < 5
    quartiles = np.array([501 + np.searchsorted(cumulated, share) for share in (0.25, 0.5, 0.75)])
    assert (abs(quartiles - [700, 951, 1309]) < 9).all()


def test_kept_expressions_are_distributed_by_the_rule(chunks=24):
    """48,000 draws with seed 0, of which about 4,000 are kept.

    The number kept is within 5 standard deviations. The distribution of lengths deviates from the rule's by less than in one of
    a million samples (Dvoretzky, Kiefer and Wolfowitz, 1956). The values 0 and 9 have shares of 17 %, the others of 7 to 9 %,
    up to rounding and 5 standard errors.
    """
    rows = [generate_expressions(chunk, seed=0, **PUBLISHED) for chunk in range(chunks)]
    lengths = np.array([len(tokens) for row in rows for tokens in row["tokens"]])
    labels = Counter(label for row in rows for label in row["label"])
    kept, chance = len(lengths), length_chances()[501:]
    assert near(kept, chunks * 2000, chance.sum())
    assert lengths.min() > 500
    assert lengths.max() < 2000
    shares = np.bincount(lengths, minlength=2000)[501:].cumsum() / kept
    assert abs(shares - chance.cumsum() / chance.sum()).max() < sqrt(log(2e6) / (2 * kept))
    for label in range(10):
        low, high = (0.165, 0.175) if label in (0, 9) else (0.065, 0.095)
        error = 5 * sqrt(high * (1 - high) / kept)
        assert low - error < labels[label] / kept < high + error


def plain_rows(split):
    """Return the expressions of a split as text, with their labels."""
    tokens, mask = split.tokens(torch.arange(len(split)), int(split.lengths.max()))
    assert torch.equal(mask, tokens > 0)
    sources = [" ".join(SYMBOLS[token - 1] for token in row if token) for row in tokens.tolist()]
    return [*zip(sources, split.labels.tolist(), strict=True)]


def test_splits_are_different_expressions_with_their_values(tmp_path):
    splits = listops_splits(tmp_path, **SMALL)
    rows = [plain_rows(splits[name]) for name in SPLITS]
    assert [*splits] == ["train", "dev", "test"]
    assert tuple(map(len, rows)) == SMALL["counts"]
    sources = [source for split in rows for source, _ in split]
    assert len(set(sources)) == len(sources)
    assert all(3 < len(source.split()) < 40 for source in sources)
    assert all(value_by_rewriting(source) == label for split in rows for source, label in split)
    whole = [pair for split in rows for pair in split]
    other = listops_splits(tmp_path, **SMALL | {"counts": (1, 88, 1)})
    assert whole == [
        pair for name in SPLITS for pair in plain_rows(other[name])
    ]  # the splits are cut from one sequence of expressions


def splits_digest(splits):
    digest = sha256()
    for split in splits.values():
        for part in (split.values, split.offsets, split.labels):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def test_a_seed_gives_the_same_set_on_any_machine(tmp_path):
    assert splits_digest(listops_splits(tmp_path, **SMALL)) == "6ac4b5f786a2d929c339920672634f48bf0a8e28450e4c021c74e15d7c01992d"
    assert splits_digest(listops_splits(tmp_path, **SMALL, seed=1)) != splits_digest(listops_splits(tmp_path, **SMALL))


def test_seeds_share_no_chunks():
    """No two of 8 chunks of 2 seeds share an expression of the published lengths."""
    tokens = [
        token for seed in (0, 1) for chunk in range(4) for token in generate_expressions(chunk, seed=seed, **PUBLISHED)["tokens"]
    ]
    assert len(set(tokens)) == len(tokens)


@pytest.mark.once
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.torture)])
def test_the_files_do_not_depend_on_the_workers(tmp_path, workers):
    """The set spans more chunks than are produced ahead."""
    for name, number in (("one", 1), ("several", workers)):
        listops_splits(tmp_path / name, **SMALL | {"counts": (3000, 50, 50), "workers": number})
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("one", "several"))
    assert one == two
    assert one.keys() > {"data-00000-of-00001.arrow", "state.json"}


def test_the_cache_is_used_and_checked(tmp_path):
    made = splits_digest(listops_splits(tmp_path, **SMALL))
    (path,) = (tmp_path / "generated").iterdir()
    file = path / "data-00000-of-00001.arrow"
    written = file.stat()
    assert splits_digest(listops_splits(tmp_path, **SMALL)) == made
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    file.write_bytes(file.read_bytes().replace(b"\x05\x06", b"\x06\x05", 1))
    with pytest.raises(DatasetError, match=f"delete {path}"):
        listops_splits(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        pytest.param({"counts": (5, 5)}, r"counts are \(5, 5\); train, dev, test need", marks=pytest.mark.unchecked),
        ({"counts": (5, 0, 5)}, r"counts are \(5, 0, 5\); train, dev, test need at least 1"),
        ({"min_length": -1}, "min_length is -1; it must be at least 0"),
        ({"max_length": 4}, "max_length is 4; it must be at least 5"),
        ({"max_depth": 0}, "max_depth is 0; it must be at least 1"),
        ({"max_args": 1}, "max_args is 1; it must be at least 2"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        listops_splits(tmp_path, **SMALL | changed)


def test_lengths_that_no_tree_has_end_the_search(tmp_path):
    with pytest.raises(
        DatasetError, match=r"listops: only 0 of 90 different rows were found.*ask for fewer, or change the arguments"
    ):
        listops_splits(tmp_path, **SMALL | {"max_depth": 1})


def write_tsv(path, rows, end="\r\n"):
    path.write_bytes(end.join(["Source\tTarget", *(f"{source}\t{label}" for source, label in rows), ""]).encode())
    return path


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("form", [str, lambda source: with_parentheses(source.split())], ids=["plain", "published"])
def test_files_in_the_published_form_are_read(tmp_path, form, end):
    split = listops_splits(tmp_path, **SMALL)["train"]
    path = write_tsv(tmp_path / "basic_train.tsv", [(form(source), label) for source, label in plain_rows(split)], end)
    found = read_listops_file(path)
    assert plain_rows(found) == plain_rows(split)
    assert found.values.dtype == torch.uint8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: the header is '', but must be 'Source', a tab, 'Target'"),
        (b"[MAX 1 2 ]\t2\n", r"line 1: the header is '\[MAX 1 2 \]\\t2', but must be 'Source'"),
        (b"Source\tTarget\n", "has no line below its header"),
        (b"Source\tTarget\n[MAX 1 2 ]\t2\n[MAX 1 2 ]\t1\n", "line 3: the label is '1', but the value of the expression is 2"),
        (b"Source\tTarget\n[MAX 1 2 ]\t\n", "line 2: the label is '', but the value of the expression is 2"),
        (b"Source\tTarget\n[MAX 1 2 ]", "line 2: the label is '', but the value of the expression is 2"),
        (b"Source\tTarget\n[MAX 1 2 ]\t2\t2\n", r"line 2: the label is '2\\t2', but the value of the expression is 2"),
        (b"Source\tTarget\n[MAX 1 2 ]\t2\n\n", "line 3: there are no symbols"),
        (b"Source\tTarget\n[MAX 1 \xff ]\t2\n", r"line 2: symbol 3 is '\\udcff', but must be one of"),
        (b"Source\tTarget\n[MAX 1 2 ]\x00\t2\n", r"line 2: symbol 4 is '\]\\x00', but must be one of"),
        (b"Source\tTarget\n( [MAX 1 ) 2 ]\t2\n", r"line 2: word 2 is \[MAX, but the published form has"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path, content, message):
    path = tmp_path / "basic_val.tsv"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{path}.*{message}"):
        read_listops_file(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for path, reason in ((tmp_path / "missing.tsv", "is missing"), (tmp_path, "cannot be read")):
        with pytest.raises(DatasetError, match=f"{path} {reason}"):
            read_listops_file(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DatasetError, match="is not a file"):
        read_listops_file(pipe)


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    path = write_tsv(tmp_path / "basic_val.tsv", [("5", "5"), ("[MAX 1 2 ]", "2")])
    assert len(read_listops_file(path, 2)) == 2
    with pytest.raises(DatasetError, match=r"has 2 expressions, not the 2,000 published"):
        read_listops_file(path, 2000)
    write_tsv(path, [(f"[MAX {'1 ' * 2000}]", "1")])
    with pytest.raises(DatasetError, match=r"line 2: 2,002 symbols, but published expressions have fewer than 2,000"):
        read_listops_file(path)


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_an_altered_file_is_refused_or_still_right(tmp_path, tries):
    """Each alteration gives a DatasetError, or expressions whose values are their labels."""
    rng, messages = random.Random(0), []
    path = tmp_path / "basic_test.tsv"
    rows = [(with_parentheses(source.split()), label) for source, label in plain_rows(listops_splits(tmp_path, **SMALL)["test"])]
    intact = write_tsv(path, rows).read_bytes()
    for _ in range(tries):
        at, byte = rng.randrange(len(intact)), bytes([rng.choice([rng.randrange(256), *b"0123456789[]() \t"])])
        path.write_bytes(intact[:at] + rng.choice([byte + intact[at + 1 :], byte + intact[at:], intact[at + 1 :], b""]))
        try:
            found = plain_rows(read_listops_file(path))
        except DatasetError as error:
            messages.append(str(error))
        else:
            assert all(value_by_rewriting(source) == label for source, label in found)
    assert len(messages) > 0.6 * tries
    assert all(re.match(rf"{path}(, line \d+:| has no line)", message) for message in messages)


def test_the_default_set_is_the_published_task(tmp_path):
    """The recipe has the published arguments, and loading without arguments looks for the cache of that recipe."""
    assert PUBLISHED == {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10}
    recipe = Recipe(name="listops", version=VERSION, arguments={"seed": 0, **PUBLISHED}, count=100_000)
    assert listops_recipe() == recipe
    recipe.cache_folder(tmp_path).mkdir(parents=True)
    with pytest.raises(DatasetError, match=f"{recipe.cache_folder(tmp_path)} lacks files"):
        listops_splits(tmp_path)
