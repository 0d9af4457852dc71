"""Pairs of papers: files made in the published form, read again by Python's csv, and files that are not of that form."""

import csv
import random
import tracemalloc
from itertools import pairwise

import pytest
import torch

from mimo_benchmarks.data.long_range_arena import retrieval as module
from mimo_benchmarks.data.long_range_arena.retrieval import FILES, retrieval
from mimo_benchmarks.errors import ConfigError, DatasetError

TEXTS = ["", "Abstract\nWe show that", 'he said "so"', "it's", "both \" and '", "a\ttab", "Zürich, 東京", "x" * 300]
"""Papers, before Python's notation of bytes turns them into a line of printable ASCII."""


def line(label, first, second, names=("P00-1001", "P00-1002")):
    """A pair as the release has it: the notation is what `repr` makes of bytes."""
    return "\t".join([label, *names, repr(first.encode()), repr(second.encode())])


def made(count, seed):
    """So many different pairs."""
    rng = random.Random(seed)
    return [line(rng.choice(["0.0", "1.0"]), f"{row} {rng.choice(TEXTS)}", rng.choice(TEXTS)) for row in range(count)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """5, 4 and 3 pairs, which are as many as expected."""
    for number, (split, count) in enumerate([("train", 5), ("dev", 4), ("test", 3)]):
        monkeypatch.setitem(module.COUNTS, split, count)
        (tmp_path / FILES[split]).write_text("\n".join(made(count, number)) + "\n")
    return tmp_path


def fields(path, length):
    """Label and texts of each line, by another reader."""
    with path.open(newline="", encoding="ascii") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(int(float(label)), first.encode()[:length], second.encode()[:length]) for label, _, _, first, second in rows]


def read(part):
    """Label and texts of each pair."""
    values, bounds = part.values.numpy().tobytes(), part.offsets.tolist()
    texts = [values[start:end] for start, end in pairwise(bounds)]
    return list(zip(part.labels.tolist(), texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("length", [1, 7, 4000])
def test_pairs_are_those_of_the_files(folder, length):
    splits = retrieval(folder, length=length)
    assert list(splits) == ["train", "dev", "test"]
    for split, part in splits.items():
        assert read(part) == fields(folder / FILES[split], length)
        assert (len(part), part.parts) == (module.COUNTS[split], 2)


def test_the_published_counts():
    assert module.COUNTS == {"train": 147_086, "dev": 18_090, "test": 17_437}
    assert FILES["dev"] == "new_aan_pairs.eval.tsv"


def test_tokens_of_a_pair_are_its_bytes_and_one(folder):
    (folder / FILES["test"]).write_bytes(b"0.0\tA\tB\tb'a'\tb''\r\n1\tA\tB\t\"x\tyz\n1.0\tA\tB\t\"\tb'abc'")
    part = retrieval(folder)["test"]
    tokens, mask = part.tokens(torch.tensor([2, 0, 1]), 5)
    expected = [[b'"', b"b'abc"], [b"b'a'", b"b''"], [b'"x', b"yz"]]
    assert tokens.tolist() == [[[byte + 1 for byte in text] + [0] * (5 - len(text)) for text in pair] for pair in expected]
    assert mask.sum(-1).tolist() == [[1, 5], [4, 3], [2, 2]]
    assert part.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("split", FILES)
def test_another_number_of_pairs_is_refused_unless_allowed(folder, split):
    path = folder / FILES[split]
    count = module.COUNTS[split]
    for other in (count - 1, count + 1):
        path.write_text("\n".join(made(other, 0)) + "\n")
        with pytest.raises(
            DatasetError, match=rf"{path.name} cannot be read \(it has {other} pairs, not the {count} published\): put"
        ):
            retrieval(folder)
        assert len(retrieval(folder, complete=False)[split]) == other


@pytest.mark.parametrize(
    ("second", "named"),
    [
        (b"0.0\tA\tB\tb'a'", "line 2: 4 fields, not the five"),
        (b"0.0\tA\tB\tb'a'\tb'b'\t", "line 2: 6 fields, not the five"),
        (b"", "line 2: 1 fields, not the five"),
        (b"label\tid1\tid2\ttext1\ttext2", "line 2: the label is b'label', neither 0.0 nor 1.0"),
        (b"2.0\tA\tB\tb'a'\tb'b'", "line 2: the label is b'2.0', neither"),
        (b"nan\tA\tB\tb'a'\tb'b'", "line 2: the label is b'nan', neither"),
        (b"\tA\tB\tb'a'\tb'b'", "line 2: the label is b'', neither"),
        (b"9" * 50_000 + b"\tA\tB\tb'a'\tb'b'", "line 2: the label is b'9{20}', neither"),
        (b"0.0\tA\tB\tb'a'\t", "line 2: a text is empty"),
        (b"0.0\tA\tB\tb'a'\t\xff", "line 2: 'utf-8' codec can't decode"),
    ],
    ids=str,
)
def test_lines_of_another_form_are_named_with_the_remedy(folder, second, named):
    path = folder / FILES["dev"]
    path.write_bytes(line("1.0", "a", "b").encode() + b"\n" + second + b"\n" + line("1.0", "c", "d").encode() + b"\n")
    for complete in (False, True):
        with pytest.raises(
            DatasetError, match=rf"new_aan_pairs\.eval\.tsv cannot be read \({named}.*\): put the three.*--data-dir"
        ):
            retrieval(folder, complete=complete)


def test_files_that_are_missing_or_empty_or_none_are_named(folder):
    path = folder / FILES["dev"]
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(it is empty\): put"):
        retrieval(folder, complete=False)
    path.unlink()
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(No such file or directory\): put"):
        retrieval(folder)
    path.mkdir()
    with pytest.raises(DatasetError, match=r"eval\.tsv cannot be read \(it is no file\): put"):
        retrieval(folder)


@pytest.mark.parametrize("length", [0, -3])
def test_lengths_that_cannot_be_are_refused(folder, length):
    with pytest.raises(ConfigError, match=f"length is {length}; it must be at least 1"):
        retrieval(folder, length=length)


def test_damaged_files_are_refused_or_still_pairs(folder, tries=500):
    """Some bytes changed, or an end cut off too. There is no checksum to notice all of it, but no line is lost silently."""
    path, rng, refused = folder / FILES["train"], random.Random(0), 0
    content = path.read_bytes()
    for _ in range(tries):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 5)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.5:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            part = retrieval(folder)["train"]
        except DatasetError:
            refused += 1
        else:
            assert len(part) == 5
            assert set(part.labels.tolist()) <= {0, 1}
            assert all(first.decode() and second.decode() for _, first, second in read(part))
    assert tries / 2 < refused < tries


def test_what_is_cut_off_is_never_all_in_memory(folder, count=300, size=100_000, length=100):
    """30 MB a text in the file, of which 60 KB are kept: the peak is a few lines."""
    row = ("1.0\tA\tB\t" + "x" * size + "\t" + "y" * size + "\n").encode()
    (folder / FILES["test"]).write_bytes(row * count)
    tracemalloc.start()
    part = retrieval(folder, length=length, complete=False)["test"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(part.values) == 2 * count * length
    assert peak < 20 * size
