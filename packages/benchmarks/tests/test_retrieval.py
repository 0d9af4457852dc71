"""Pairs of papers: files in the published form, compared with Python's csv, and files in another form."""

import csv
import random
import tracemalloc
from itertools import pairwise

import pytest
import torch

from mimo_benchmarks.data.long_range_arena.retrieval import COUNTS, FILES, LENGTH, retrieval_splits
from mimo_benchmarks.errors import DatasetError

TEXTS = ["", "Abstract\nWe show that", 'he said "so"', "it's", "both \" and '", "a\ttab", "Zürich, 東京", "x" * 5000]
"""Papers, before Python's notation of bytes turns them into a line of printable ASCII."""
FEW = {"train": 40, "dev": 4, "test": 3}
"""Number of pairs of each split in the tests."""


def pair_line(label, first, second, names=("P00-1001", "P00-1002")):
    """Return a line of the release: a text is written as `repr` writes its bytes."""
    return "\t".join([label, *names, repr(first.encode()), repr(second.encode())])


def different_lines(count, seed):
    """Return the lines of `count` different pairs."""
    rng = random.Random(seed)
    return [pair_line(rng.choice(["0.0", "1.0"]), f"{row} {rng.choice(TEXTS)}", rng.choice(TEXTS)) for row in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with FEW pairs."""
    for number, (split, count) in enumerate(FEW.items()):
        (tmp_path / FILES[split]).write_text("\n".join(different_lines(count, number)) + "\n")
    return tmp_path


def read_by_csv(path):
    """Return label and texts of each line, by another reader."""
    with path.open(newline="", encoding="ascii") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(int(float(label)), first.encode()[:LENGTH], second.encode()[:LENGTH]) for label, _, _, first, second in rows]


def pairs_of(part):
    """Return label and texts of each pair."""
    values, bounds = part.values.numpy().tobytes(), part.offsets.tolist()
    texts = [values[start:end] for start, end in pairwise(bounds)]
    return list(zip(part.labels.tolist(), texts[::2], texts[1::2], strict=True))


def test_pairs_are_those_of_the_files_cut_to_the_length(folder):
    splits = retrieval_splits(folder, counts=FEW)
    assert list(splits) == ["train", "dev", "test"]
    for split, part in splits.items():
        assert pairs_of(part) == read_by_csv(folder / FILES[split])
        assert (len(part), part.parts) == (FEW[split], 2)
    assert splits["train"].lengths.max() == LENGTH == 4000


def test_the_published_counts():
    assert COUNTS == {"train": 147_086, "dev": 18_090, "test": 17_437}
    assert FILES["dev"] == "new_aan_pairs.eval.tsv"


def test_tokens_of_a_pair_are_its_bytes_and_one(folder):
    (folder / FILES["test"]).write_bytes(b"0.0\tA\tB\tb'a'\tb''\r\n1\tA\tB\t\"x\tyz\n1.0\tA\tB\t\"\tb'abc'")
    part = retrieval_splits(folder, counts=FEW)["test"]
    tokens, mask = part.tokens(torch.tensor([2, 0, 1]), 5)
    expected = [[b'"', b"b'abc"], [b"b'a'", b"b''"], [b'"x', b"yz"]]
    assert tokens.tolist() == [[[byte + 1 for byte in text] + [0] * (5 - len(text)) for text in pair] for pair in expected]
    assert mask.sum(-1).tolist() == [[1, 5], [4, 3], [2, 2]]
    assert part.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("split", FILES)
def test_another_number_of_pairs_is_refused_unless_allowed(folder, split):
    path = folder / FILES[split]
    count = FEW[split]
    for other in (count - 1, count + 1):
        path.write_text("\n".join(different_lines(other, 0)) + "\n")
        with pytest.raises(
            DatasetError, match=rf"{path.name} cannot be read \(it has {other} pairs, not the {count} published\): put"
        ):
            retrieval_splits(folder, counts=FEW)
        assert len(retrieval_splits(folder, counts=None)[split]) == other


@pytest.mark.parametrize(
    ("second", "named"),
    [
        (b"0.0\tA\tB\tb'a'", "line 2: 4 fields, but there must be five"),
        (b"0.0\tA\tB\tb'a'\tb'b'\t", "line 2: 6 fields, but there must be five"),
        (b"", "line 2: 1 fields, but there must be five"),
        (b"label\tid1\tid2\ttext1\ttext2", "line 2: the label is b'label', not 0.0 or 1.0"),
        (b"2.0\tA\tB\tb'a'\tb'b'", "line 2: the label is b'2.0', not 0.0"),
        (b"nan\tA\tB\tb'a'\tb'b'", "line 2: the label is b'nan', not 0.0"),
        (b"\tA\tB\tb'a'\tb'b'", "line 2: the label is b'', not 0.0"),
        (b"9" * 50_000 + b"\tA\tB\tb'a'\tb'b'", "line 2: the label is b'9{20}', not 0.0"),
        (b"0.0\tA\tB\tb'a'\t", "line 2: a text is empty"),
        (b"0.0\tA\tB\tb'a'\t\xff", "line 2: 'utf-8' codec can't decode"),
    ],
    ids=str,
)
def test_lines_of_another_form_are_named_with_the_remedy(folder, second, named):
    path = folder / FILES["dev"]
    path.write_bytes(pair_line("1.0", "a", "b").encode() + b"\n" + second + b"\n" + pair_line("1.0", "c", "d").encode() + b"\n")
    for counts in (None, FEW):
        with pytest.raises(
            DatasetError, match=rf"new_aan_pairs\.eval\.tsv cannot be read \({named}.*\): put the three.*--data-dir"
        ):
            retrieval_splits(folder, counts=counts)


def test_missing_and_empty_files_and_folders_are_named(folder):
    path = folder / FILES["dev"]
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(it is empty\): put"):
        retrieval_splits(folder, counts=None)
    path.unlink()
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(No such file or directory\): put"):
        retrieval_splits(folder, counts=FEW)
    path.mkdir()
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(it is not a file\): put"):
        retrieval_splits(folder, counts=FEW)


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_damaged_files_are_refused_or_still_hold_pairs(folder, tries):
    """Some bytes are changed, and sometimes the end is cut off. No checksum would tell, but no line is lost silently."""
    path, rng, refused = folder / FILES["train"], random.Random(0), 0
    content = ("\n".join(pair_line("1.0", f"{row}", text) for row, text in enumerate(TEXTS[:5])) + "\n").encode()
    for _ in range(tries):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.5:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            part = retrieval_splits(folder, counts=FEW | {"train": 5})["train"]
        except DatasetError:
            refused += 1
        else:
            assert len(part) == 5
            assert set(part.labels.tolist()) <= {0, 1}
            assert all(first.decode() and second.decode() for _, first, second in pairs_of(part))
    assert tries / 2 < refused < tries


def test_what_is_cut_off_is_never_all_in_memory(folder, count=10, size=1_000_000):
    """Of 20 MB of texts, 80 KB are kept: the peak is the memory of a few lines."""
    row = ("1.0\tA\tB\t" + "x" * size + "\t" + "y" * size + "\n").encode()
    (folder / FILES["test"]).write_bytes(row * count)
    tracemalloc.start()
    part = retrieval_splits(folder, counts=None)["test"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(part.values) == 2 * count * LENGTH
    assert peak < 10 * size
