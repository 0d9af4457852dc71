"""Texts: tables written by other libraries and read back, IMDb against pyarrow, and files damaged in many ways."""

import csv
import gzip
import json
import os
import random
import socket
import tempfile
from collections import Counter
from itertools import pairwise

import datasets
import pandas
import pyarrow
import pytest
import torch
from pyarrow import parquet

from mimo_benchmarks.data.long_range_arena import text as module
from mimo_benchmarks.data.long_range_arena.text import digest, hold_out, text, user_text
from mimo_benchmarks.data.long_range_arena.text_tables import read_table
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.errors import ConfigError, DatasetError

ROWS = [
    ("plain", 0),
    ('say "no", twice ""', 1),
    ("two\nlines\r\nand a\ttab\rend", 2),
    ("", 0),
    ("Zürich, 東京, 🙂, \u2028 and \x00", 1),
    (" 007 ", 2),
    ("2020-01-01", 0),
    ("null", 1),
    ("NA", 2),
    ("b'x'", 0),
    ("x" * 200_000, 1),
]
"""What formats quote, and what their readers like to take for something else than a text."""

FORMATS = ["parquet", "csv", "tsv", "jsonl", "json"]
each_format = pytest.mark.parametrize("suffix", FORMATS)


def write(path, rows, names=("text", "label")):
    """A table by the usual libraries, in the format of the suffix."""
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    frame = pandas.DataFrame(columns)
    match path.suffix:
        case ".parquet":
            parquet.write_table(pyarrow.table(columns), path)
        case ".csv":
            frame.to_csv(path, index=False, lineterminator="\r\n")
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t", quoting=csv.QUOTE_NONNUMERIC)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".json":
            path.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, ensure_ascii=False))
    return path


def table(rows):
    return [content.encode() for content, _ in rows], [label for _, label in rows]


def documents(split):
    """Its texts, as bytes, and labels."""
    values = split.values.numpy().tobytes()
    return [values[start:end] for start, end in pairwise(split.offsets.tolist())], split.labels.tolist()


@each_format
def test_texts_come_back_from_every_format_as_they_were(suffix, tmp_path):
    assert read_table(write(tmp_path / f"t.{suffix}", ROWS)) == table(ROWS)
    (tmp_path / "T[1]*{a,b} ü").mkdir()
    odd = tmp_path / "T[1]*{a,b} ü" / f".x.{suffix}"
    assert read_table(write(odd, ROWS)) == table(ROWS)
    assert read_table(odd.rename(odd.with_suffix(f".{suffix.upper()}"))) == table(ROWS)


@each_format
def test_dates_numbers_and_words_for_nothing_stay_texts(suffix, tmp_path):
    for content in ("2020-01-01", "1", "1.5", "null", "NaN", "true", "{}", "[]"):
        rows = [(content, 0), (content, 1)]
        assert read_table(write(tmp_path / f"t.{suffix}", rows)) == table(rows)


@each_format
def test_other_columns_and_their_order_do_not_matter(suffix, tmp_path):
    rows = [(7, 1, "a", "x"), (8, 0, "b", "y")]
    path = write(tmp_path / f"t.{suffix}", rows, names=("id", "label", "more", "text"))
    assert read_table(path) == ([b"x", b"y"], [1, 0])


def test_several_row_groups_and_any_kind_of_strings(tmp_path):
    rows = [(f"text {row}", row % 3) for row in range(2500)]
    columns = {"text": [content for content, _ in rows], "label": [label for _, label in rows]}
    kinds = [
        (pyarrow.string(), pyarrow.int64()),
        (pyarrow.large_string(), pyarrow.uint8()),
        (pyarrow.binary(), pyarrow.int32()),
        (pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.int16()),
    ]
    for kind in kinds:
        made = pyarrow.table(columns).cast(pyarrow.schema(zip(columns, kind, strict=True)))
        parquet.write_table(made, tmp_path / "t.parquet", row_group_size=700, compression="zstd")
        assert read_table(tmp_path / "t.parquet") == table(rows)


def test_labels_of_the_hub_with_names_are_their_numbers(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    made.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet") == ([b"a", b"b"], [1, 0])


def test_byte_order_marks_and_empty_lines_are_no_rows(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftext,label\r\n\r\na,0\r\n\r\nb,1\r\n\r\n")
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a", "label": 0}\r\n\r\n{"text": "b", "label": 1}')
    for name in ("t.csv", "t.jsonl"):
        assert read_table(tmp_path / name) == ([b"a", b"b"], [0, 1])


def test_only_line_feeds_end_a_line_of_json(tmp_path):
    """Strings of JSON may hold all the characters that Python's splitlines splits at, but for control characters."""
    rows = [("a\u2028b\u2029c\x85d", 0), ("e", 1)]
    lines = [json.dumps({"text": content, "label": label}, ensure_ascii=False) for content, label in rows]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_table(tmp_path / "t.jsonl") == table(rows)


@each_format
def test_nothing_is_fetched_cached_or_left(suffix, tmp_path, monkeypatch):
    asked = []
    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *args, **kwargs: asked.append(args))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write(tmp_path / f"t.{suffix}", ROWS)
    assert read_table(path) == table(ROWS)
    write(path, ROWS[:3])  # no memory of what was there before
    assert read_table(path) == table(ROWS[:3])
    assert asked == []
    assert sorted(tmp_path.rglob("*")) == sorted([path, tmp_path / "temporary"])


@each_format
@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("a", 0), ("b", -1)], r"(line 3|line 2|row 2|item 2): the label is ('-1'|-1), no integer from 0"),
        ([("a", 0.0), ("b", 1.5)], r"(line 2|line 1|row 1|item 1): the label is ('0.0'|0.0), no integer from 0"),
        ([("a", "x"), ("b", "y")], r"(line 2|line 1|row 1|item 1): the label is 'x', no integer from 0"),
        ([("a", True), ("b", False)], r"(line 2|line 1|row 1|item 1): the label is '?True'?, no integer from 0"),
        ([("a", 0), ("b", 2)], r"there is a label 2, but no label 1"),
        ([("a", 1), ("b", 1)], r"there is a label 1, but no label 0"),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_named(suffix, rows, named, tmp_path):
    path = write(tmp_path / f"t.{suffix}", rows)
    with pytest.raises(DatasetError, match=rf"t\.{suffix} cannot be read \({named}\): a table needs a column"):
        read_table(path)


@each_format
def test_labels_above_the_last_class_are_named(suffix, tmp_path):
    path = write(tmp_path / f"t.{suffix}", [("a", 1), ("b", 0), ("c", 2)])
    assert read_table(path, classes=3) == ([b"a", b"b", b"c"], [1, 0, 2])
    with pytest.raises(DatasetError, match=r"(line 4|line 3|row 3|item 3): the label is 2, but the last one is 1\): do this"):
        read_table(path, classes=2, remedy="do this")


@each_format
@pytest.mark.parametrize("name", ["text", "label"])
def test_a_missing_column_is_named(suffix, name, tmp_path):
    other = {"text": "label", "label": "text"}[name]
    path = write(tmp_path / f"t.{suffix}", [("0", 0)], names=(other, "more") if other == "text" else ("more", other))
    with pytest.raises(DatasetError, match=rf"no columns '{name}' among \[|(line|item) 1: the {name} is missing"):
        read_table(path)


MISSING = pyarrow.table({"text": ["a", None], "label": [0, 1]}), pyarrow.table({"text": ["a", "b"], "label": [0, None]})


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("t.csv", b"", "no columns 'text' among \\[\\]"),
        ("t.csv", b"text,label\n", "it has no rows"),
        ("t.csv", b"text,label\na,0\nb,\n", "line 3: the label is '', no integer from 0"),
        ("t.csv", b"text,label\na,0\nb\n", "line 3 has 1 fields, but there are 2 names"),
        ("t.csv", b"text,label\na,0,1\nb,1,0\n", "line 2 has 3 fields, but there are 2 names"),
        ("t.csv", b"text,text,label\na,b,0\n", "2 columns 'text' among"),
        ("t.csv", b'text,label\na,0\n"b,1\nc,0\n', "line 4: unexpected end of data"),
        ("t.csv", b'text,label\n"a"b,0\n', "line 2: ',' expected after '\"'"),
        ("t.csv", b"text,label\na,0\nb\xff,1\n", "line 3 is no UTF-8"),
        ("t.csv", "text,label\na,0\n".encode("utf-16"), "line 1 is no UTF-8"),
        ("t.csv", b"text,label\na," + b"1" * 5000 + b"\n", r"line 2: the label is '1+\.\.\.1+', no integer from 0"),
        ("t.csv", "text,label\na,\u0663\n".encode(), "line 2: the label is '\u0663', no integer from 0"),
        ("t.csv", gzip.compress(b"text,label\na,0\n"), "line 1 is no UTF-8"),
        ("t.tsv", b"text,label\na,0\n", "no columns 'text' among"),
        ("t.jsonl", b"", "it has no rows"),
        ("t.jsonl", b'{"text": "a", "label": 0}\n{"text": null, "label": 0}\n', "line 2: the text is missing"),
        ("t.jsonl", b'{"text": "a", "label": 0}\n{"text": "b"}\n', "line 2: the label is missing"),
        ("t.jsonl", b'{"text": "a", "label": 0}\n{"text": 5, "label": 0}\n', "line 2: the text is no string but 5"),
        ("t.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", "la', "line 2: Unterminated string"),
        ("t.jsonl", b'{"text": "\\ud800", "label": 0}\n', "line 1: the text is no UTF-8"),
        ("t.jsonl", b'{"text": "a", "text": "b", "label": 0}\n', "from line 1: an object has the same name twice"),
        ("t.jsonl", b'{"text": "a", "label": 0}\n"b"\n', "line 2 is no object but 'b'"),
        ("t.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n", "from line 1: Exceeds the limit"),
        ("t.jsonl", b'{"text": "a\xff", "label": 0}\n', "line 1 is no UTF-8"),
        ("t.json", b"[]", "it has no rows"),
        ("t.json", b'[{"text": "a",\n "label": 0},\n{', "line 3: Expecting property name"),
        ("t.json", b'["a"]', "item 1 is no object but 'a'"),
        ("t.json", b"[" * 100_000, "recursion"),
        ("t.json", b'{"text": {"0": "a"}, "label": {"0": 0}}', "line 1: the text is no string but {'0': 'a'}"),
        ("t.parquet", b"", "size"),
        ("t.parquet", b"text,label\na,0\n", ""),
        ("t.parquet", pyarrow.table({"text": ["a"], "label": [0]}).slice(1), "it has no rows"),
        ("t.parquet", MISSING[0], "row 2: the text is missing"),
        ("t.parquet", MISSING[1], "row 2: the label is missing"),
        ("t.parquet", pyarrow.table({"text": [1, 2], "label": [0, 1]}), "row 1: the text is no string but 1"),
        ("t.parquet", pyarrow.table({"text": [b"a", b"b\xff"], "label": [0, 1]}), "row 2: the text is no UTF-8"),
        ("t.txt", b"a\t0\n", r"it is none of \.parquet, \.csv, \.tsv, \.jsonl and \.json"),
    ],
    ids=str,
)
def test_what_is_no_table_is_named_with_its_place_and_the_remedy(name, content, named, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        parquet.write_table(content, tmp_path / name)
    with pytest.raises(DatasetError, match=rf"{name} cannot be read \(.*{named}(.|\n)*\): do this$"):
        read_table(tmp_path / name, remedy="do this")


def test_strings_of_parquet_that_are_no_utf8_are_named(tmp_path):
    """A string column whose writer did not check what it wrote."""
    lax = pyarrow.array([b"a", b"b\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": lax, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="row 2: the text is no UTF-8"):
        read_table(tmp_path / "t.parquet")


@pytest.fixture
def unreadable(tmp_path):
    """A folder without rights, and a reader without those of root, who may read everything."""
    (tmp_path / "folder").mkdir()
    root = os.geteuid() == 0

    def close():
        (tmp_path / "folder").chmod(0)
        if root:
            os.seteuid(65534)

    yield tmp_path / "folder", close
    if root:
        os.seteuid(0)
    (tmp_path / "folder").chmod(0o700)


@each_format
def test_files_that_cannot_be_read_are_named(suffix, unreadable):
    folder, close = unreadable
    path = folder / f"t.{suffix}"
    with pytest.raises(DatasetError, match=rf"t\.{suffix} cannot be read \(No such file or directory\): a table"):
        read_table(path)
    path.mkdir()
    with pytest.raises(DatasetError, match=rf"t\.{suffix} cannot be read \(it is no file\): a table"):
        read_table(path)
    path.rmdir()
    write(path, ROWS)
    with pytest.raises(DatasetError, match=rf"t\.{suffix}/x\.csv cannot be read \(Not a directory\): a table"):
        read_table(path / "x.csv")
    close()
    with pytest.raises(DatasetError, match=rf"t\.{suffix} cannot be read \(Permission denied\): a table"):
        read_table(path)


def outcome(call):
    """What it returns, or its error."""
    try:
        return call()
    except DatasetError as error:
        return error


def damaged(content, rng):
    """A file with one to four bytes changed, cut short, without a piece, or with a piece twice."""
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    match rng.randrange(4):
        case 0:
            changed = bytearray(content)
            for _ in range(rng.randrange(1, 5)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)
        case 1:
            return content[:start]
        case 2:
            return content[:start] + content[end:]
        case _:
            return content[:end] + content[start:]


@each_format
def test_a_damaged_table_is_refused_or_still_a_table(suffix, tmp_path, tries=500):
    content = write(tmp_path / f"t.{suffix}", [row for row in ROWS if len(row[0]) < 100]).read_bytes()
    rng, path, refused = random.Random(suffix), tmp_path / f"u.{suffix}", 0
    for _ in range(tries):
        path.write_bytes(damaged(content, rng))
        found = outcome(lambda: read_table(path))
        if isinstance(found, DatasetError):
            assert str(path) in str(found)
            refused += 1
            continue
        texts, labels = found
        assert len(texts) == len(labels) > 0
        assert set(labels) == set(range(max(labels) + 1))
        assert all(content.decode().encode() == content for content in texts)
    assert tries / 10 < refused < tries


@pytest.fixture
def small_imdb(tmp_path, monkeypatch):
    """A folder of forty reviews, whose digests are the expected ones."""
    (tmp_path / "imdb").mkdir()
    for split in ("train", "test"):
        rows = [(f"{split} review {row}", row % 2) for row in range(40)]
        write(tmp_path / "imdb" / f"{split}.parquet", rows)
        monkeypatch.setitem(module.IMDB, split, digest(*table(rows)))
    return tmp_path


def test_damage_to_the_checked_files_is_never_silent(small_imdb, tries=500):
    """What loads is what was there: then the damage was to something else than texts and labels, the writer's name say."""
    path = small_imdb / "imdb" / "train.parquet"
    content, whole = path.read_bytes(), {split: documents(part) for split, part in text(small_imdb).items()}
    rng, refused = random.Random(0), 0
    for _ in range(tries):
        path.write_bytes(damaged(content, rng))
        found = outcome(lambda: text(small_imdb))
        if isinstance(found, DatasetError):
            assert "train.parquet" in str(found)
            assert str(found).endswith("or name another folder with --data-dir")
            refused += 1
        else:
            assert {split: documents(part) for split, part in found.items()} == whole
    assert refused > tries / 2


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [("other", rows[0][1]), *rows[1:]],
        lambda rows: [(rows[0][0], 1 - rows[0][1]), *rows[1:]],
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[0]],
        lambda rows: [rows[1], *rows[1:]],
        lambda rows: [(rows[0][0], rows[1][1]), (rows[1][0], rows[0][1]), *rows[2:]],
        lambda rows: [(rows[0][0] + " ", rows[0][1]), *rows[1:]],
    ],
)
def test_a_changed_text_or_label_never_loads(small_imdb, split, change):
    rows = [(f"{split} review {row}", row % 2) for row in range(40)]
    write(small_imdb / "imdb" / f"{split}.parquet", change(rows))
    with pytest.raises(DatasetError, match=rf"{split}\.parquet: its \d+ texts and labels are not those published: put the two"):
        text(small_imdb)


def test_neither_the_writer_nor_the_order_of_rows_decides_which_reviews_are_dev(small_imdb):
    """As sets: the order within a split is that of the file."""
    before = {split: Counter(zip(*documents(part), strict=True)) for split, part in text(small_imdb).items()}
    rows = [(f"train review {row}", row % 2) for row in random.Random(0).sample(range(40), 40)]
    made = pyarrow.table({"label": [label for _, label in rows], "text": [content for content, _ in rows]})
    parquet.write_table(made, small_imdb / "imdb" / "train.parquet", compression="gzip", row_group_size=7, version="1.0")
    after = text(small_imdb)
    assert {split: Counter(zip(*documents(part), strict=True)) for split, part in after.items()} == before
    assert documents(after["train"])[0] == [content.encode() for content, _ in rows if (content.encode(), _) in before["train"]]


def test_a_missing_review_file_names_itself_and_the_remedy(tmp_path):
    with pytest.raises(
        DatasetError, match=r"train\.parquet cannot be read \(No such file or directory\): put the two.*--data-dir"
    ):
        text(tmp_path)


def test_held_out_rows_are_a_tenth_of_each_label_and_follow_the_seed():
    rows = [(f"text {row}", 0 if row < 100 else 1 if row < 195 else 2) for row in range(200)]
    splits = [hold_out(*table(rows), seed=seed) for seed in range(20)]
    for (texts, labels), (held, held_labels) in splits:
        assert Counter(held_labels) == {0: 10, 1: 10, 2: 1}
        assert Counter(labels) == {0: 90, 1: 85, 2: 4}
        assert sorted(zip(texts + held, labels + held_labels, strict=True)) == sorted(zip(*table(rows), strict=True))
        assert texts == [content for content in table(rows)[0] if content not in held]  # in order
        assert held == [content for content in table(rows)[0] if content in held]
    assert len({tuple(held) for _, (held, _) in splits}) == 20
    assert hold_out(*table(rows), seed=3) == splits[3]


def test_held_out_rows_are_uniform(count=100, seeds=2000):
    """A row is held out in 1 of 10 seeds: 100 binomials, of which the largest deviation is below 5 standard deviations."""
    rows = table([(f"text {row}", 0) for row in range(count)])
    held = Counter(content for seed in range(seeds) for content in hold_out(*rows, seed=seed)[1][0])
    assert held.total() == seeds * count // 10
    assert all(abs(held[content] - seeds / 10) < 5 * (seeds * 0.1 * 0.9) ** 0.5 for content in rows[0])


def test_equal_texts_are_held_out_together():
    """Three copies of each of 100: without the cut at the tenth, no text would be in both parts; it splits at most one."""
    rows = table([(f"text {row % 100}", 0) for row in range(300)])
    for seed in range(10):
        (kept, _), (held, _) = hold_out(*rows, seed=seed)
        assert len(set(kept) & set(held)) <= 1


@each_format
def test_own_tables_become_three_splits(suffix, tmp_path):
    rows = [(f"text number {row}", row % 3) for row in range(60)]
    train, test = write(tmp_path / f"train.{suffix}", rows), write(tmp_path / f"test.{suffix}", ROWS)
    splits = user_text(train=train, test=test, length=8)
    assert list(splits) == ["train", "dev", "test"]
    assert documents(splits["test"]) == ([content[:8] for content in table(ROWS)[0]], table(ROWS)[1])
    assert [len(part) for part in splits.values()] == [54, 6, 11]
    assert splits["dev"].labels.bincount().tolist() == [2, 2, 2]
    other = user_text(train=train, test=test, length=8, seed=1)
    assert not torch.equal(other["dev"].values, user_text(train=train, test=test, length=20)["dev"].values)
    given = user_text(train=train, test=test, dev=test, length=20)
    assert documents(given["train"]) == ([content[:20] for content in table(rows)[0]], table(rows)[1])
    assert torch.equal(given["dev"].values, given["test"].values)


def test_tokens_of_a_text_are_its_bytes_and_one(tmp_path):
    path = write(tmp_path / "t.csv", [("aé", 0), ("", 1), ("abcdefg", 1)])
    tokens, mask = user_text(train=path, test=path, dev=path, length=5)["train"].tokens(torch.arange(3), 5)
    assert tokens.tolist() == [[0x62, 0xC4, 0xAA, 0, 0], [0] * 5, [0x62, 0x63, 0x64, 0x65, 0x66]]
    assert mask.sum(1).tolist() == [3, 0, 5]


def test_own_tables_that_do_not_fit_are_refused(tmp_path):
    two = write(tmp_path / "two.csv", [("a", 0), ("b", 1)])
    four = write(tmp_path / "four.csv", [("a", 0), ("b", 1), ("c", 0), ("d", 1)])
    three = write(tmp_path / "three.csv", [("a", 0), ("b", 1), ("c", 2)])
    with pytest.raises(DatasetError, match=r"two\.csv has a single text with label 0, so none to hold out: add some, or a table"):
        user_text(train=two, test=two, length=5)
    assert len(user_text(train=two, test=two, dev=two, length=5)["dev"]) == 2
    for splits in ({"test": three}, {"test": two, "dev": three}):
        with pytest.raises(DatasetError, match=r"three\.csv .*line 4: the label is 2, but the last one is 1"):
            user_text(train=four, length=5, **splits)


@pytest.mark.parametrize("length", [0, -1])
def test_lengths_that_cannot_be_are_refused(length, tmp_path):
    with pytest.raises(ConfigError, match=f"length is {length}; it must be at least 1"):
        text(tmp_path, length=length)
    with pytest.raises(ConfigError, match=f"length is {length}; it must be at least 1"):
        user_text(train=tmp_path, test=tmp_path, length=length)


def by_pyarrow(split):
    """IMDb's texts, in bytes, and labels."""
    path = data_folder() / "imdb" / f"{split}.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    columns = parquet.read_table(path).to_pydict()
    return [content.encode() for content in columns["text"]], columns["label"]


def test_imdb_is_the_published_set_byte_for_byte():
    """Each split's review and label, and where the splits come from; LRA's own splits differ in dev and train alone."""
    train, test = by_pyarrow("train"), by_pyarrow("test")
    ours, published = text(data_folder()), text(data_folder(), published=True)
    assert documents(published["train"]) == ([content[:4000] for content in train[0]], train[1])
    for split in (published["dev"], published["test"], ours["test"]):
        assert documents(split) == ([content[:4000] for content in test[0]], test[1])
    parts = [documents(ours[split]) for split in ("train", "dev")]
    assert [Counter(labels) for _, labels in parts] == [{0: 11_250, 1: 11_250}, {0: 1_250, 1: 1_250}]
    both = Counter(zip(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], strict=True))
    assert both == Counter((content[:4000], label) for content, label in zip(*train, strict=True))
    assert len(set(parts[0][0]) & set(parts[1][0])) <= 2
    assert text(data_folder(), length=100)["test"].lengths.max() == 100
