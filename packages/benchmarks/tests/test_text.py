"""Texts: tables written by other libraries and read back, IMDb against pyarrow, and files damaged in many ways."""

import os
import random
import socket
import tempfile
from collections import Counter
from itertools import pairwise

import datasets
import pyarrow
import pytest
import torch
from pyarrow import parquet

from mimo_benchmarks.data.long_range_arena.text import hold_out, table_digest, text_splits
from mimo_benchmarks.data.long_range_arena.text_tables import read_parquet_table
from mimo_benchmarks.data.storage.folder import data_folder
from mimo_benchmarks.errors import DatasetError

ROWS = [
    ("plain", 0),
    ('say "no", twice ""', 1),
    ("two\nlines\r\nand a\ttab\rend", 1),
    ("", 0),
    ("Zürich, 東京, 🙂, \u2028 and \x00", 1),
    (" 007 ", 0),
    ("2020-01-01", 0),
    ("null", 1),
    ("NA", 1),
    ("b'x'", 0),
    ("x" * 200_000, 1),
]
"""Texts that readers like to take for something else."""


def write_table(path, rows, names=("text", "label"), **options):
    """Write rows as Parquet."""
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def table(rows):
    return [content.encode() for content, _ in rows], [label for _, label in rows]


def documents(split):
    """Return the texts of a split, as bytes, and its labels."""
    values = split.values.numpy().tobytes()
    return [values[start:end] for start, end in pairwise(split.offsets.tolist())], split.labels.tolist()


def read_table(path):
    return read_parquet_table(path, "do this")


def test_texts_come_back_as_they_were(tmp_path):
    assert read_table(write_table(tmp_path / "t.parquet", ROWS)) == table(ROWS)
    (tmp_path / "T[1]*{a,b} ü").mkdir()
    assert read_table(write_table(tmp_path / "T[1]*{a,b} ü" / ".x.parquet", ROWS)) == table(ROWS)


def test_dates_numbers_and_words_for_nothing_stay_texts(tmp_path):
    rows = [(content, 0) for content in ("2020-01-01", "1", "1.5", "null", "NaN", "true", "{}", "[]")]
    assert read_table(write_table(tmp_path / "t.parquet", rows)) == table(rows)


def test_other_columns_and_their_order_do_not_matter(tmp_path):
    rows = [(7, 1, "a", "x"), (8, 0, "b", "y")]
    path = write_table(tmp_path / "t.parquet", rows, names=("id", "label", "more", "text"))
    assert read_table(path) == ([b"x", b"y"], [1, 0])


def test_several_row_groups_and_any_kind_of_strings(tmp_path):
    rows = [(f"text {row}", row % 2) for row in range(2500)]
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


def test_nothing_is_fetched_cached_or_left(tmp_path, monkeypatch):
    asked = []
    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *args, **kwargs: asked.append(args))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = write_table(tmp_path / "t.parquet", ROWS)
    assert read_table(path) == table(ROWS)
    write_table(path, ROWS[:3])  # what was there before is not remembered
    assert read_table(path) == table(ROWS[:3])
    assert asked == []
    assert sorted(tmp_path.rglob("*")) == sorted([path, tmp_path / "temporary"])


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("a", 0), ("b", -1)], "row 2: the label is -1, not 0 or 1"),
        ([("a", 0.0), ("b", 1.5)], "row 1: the label is 0.0, not 0 or 1"),
        ([("a", "x"), ("b", "y")], "row 1: the label is 'x', not 0 or 1"),
        ([("a", True), ("b", False)], "row 1: the label is True, not 0 or 1"),
        ([("a", 1), ("b", 0), ("c", 2)], "row 3: the label is 2, not 0 or 1"),
    ],
    ids=str,
)
def test_other_labels_are_named(rows, named, tmp_path):
    path = write_table(tmp_path / "t.parquet", rows)
    with pytest.raises(DatasetError, match=rf"t\.parquet cannot be read \({named}\): do this$"):
        read_table(path)


@pytest.mark.parametrize("name", ["text", "label"])
def test_a_missing_column_is_named(name, tmp_path):
    other = {"text": "label", "label": "text"}[name]
    path = write_table(tmp_path / "t.parquet", [("0", 0)], names=(other, "more") if other == "text" else ("more", other))
    with pytest.raises(DatasetError, match=rf"no columns '{name}' among \["):
        read_table(path)


MISSING = pyarrow.table({"text": ["a", None], "label": [0, 1]}), pyarrow.table({"text": ["a", "b"], "label": [0, None]})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "size"),
        (b"text,label\na,0\n", ""),
        (pyarrow.table({"text": ["a"], "label": [0]}).slice(1), "it has no rows"),
        (MISSING[0], "row 2: the text is missing"),
        (MISSING[1], "row 2: the label is missing"),
        (pyarrow.table({"text": [1, 2], "label": [0, 1]}), "row 1: the text is not a string but 1"),
        (pyarrow.table({"text": [b"a", b"b\xff"], "label": [0, 1]}), "row 2: the text is not UTF-8"),
        (pyarrow.table([["a"], ["b"], [0]], names=["text", "text", "label"]), "2 columns 'text' among"),
    ],
    ids=str,
)
def test_other_files_are_named_with_the_row_and_the_remedy(content, named, tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(content) if isinstance(content, bytes) else parquet.write_table(content, path)
    with pytest.raises(DatasetError, match=rf"t\.parquet cannot be read \(.*{named}(.|\n)*\): do this$"):
        read_table(path)


def test_strings_of_parquet_that_are_not_utf8_are_named(tmp_path):
    """The writer of this string column did not check what it wrote."""
    lax = pyarrow.array([b"a", b"b\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": lax, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="row 2: the text is not UTF-8"):
        read_table(tmp_path / "t.parquet")


@pytest.fixture
def unreadable(tmp_path):
    """Return a folder, and a function that takes its permissions away, and those of root, who may read everything."""
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


def test_files_that_cannot_be_read_are_named(unreadable):
    folder, close = unreadable
    path = folder / "t.parquet"
    with pytest.raises(DatasetError, match=r"t\.parquet cannot be read \(No such file or directory\): do this"):
        read_table(path)
    path.mkdir()
    with pytest.raises(DatasetError, match=r"t\.parquet cannot be read \(it is not a file\): do this"):
        read_table(path)
    path.rmdir()
    write_table(path, ROWS)
    with pytest.raises(DatasetError, match=r"t\.parquet/x\.parquet cannot be read \(Not a directory\): do this"):
        read_table(path / "x.parquet")
    close()
    with pytest.raises(DatasetError, match=r"t\.parquet cannot be read \(Permission denied\): do this"):
        read_table(path)


def outcome(call):
    """Return the result of a call, or its DatasetError."""
    try:
        return call()
    except DatasetError as error:
        return error


def damaged(content, rng):
    """Change one to four bytes of a file, cut it short, drop a piece, or repeat a piece."""
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


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_a_damaged_table_is_refused_or_still_a_table(tmp_path, tries):
    content = write_table(tmp_path / "t.parquet", [row for row in ROWS if len(row[0]) < 100]).read_bytes()
    rng, path, refused = random.Random("parquet"), tmp_path / "u.parquet", 0
    for _ in range(tries):
        path.write_bytes(damaged(content, rng))
        found = outcome(lambda: read_table(path))
        if isinstance(found, DatasetError):
            assert str(path) in str(found)
            refused += 1
            continue
        texts, labels = found
        assert len(texts) == len(labels) > 0
        assert set(labels) <= {0, 1}
        assert all(content.decode().encode() == content for content in texts)
    assert tries / 10 < refused < tries


@pytest.fixture
def small_imdb(tmp_path):
    """Return a folder with forty reviews per split, and their digests."""
    (tmp_path / "imdb").mkdir()
    digests = {}
    for split in ("train", "test"):
        rows = [(f"{split} review {row}", row % 2) for row in range(40)]
        write_table(tmp_path / "imdb" / f"{split}.parquet", rows)
        digests[split] = table_digest(*table(rows))
    return tmp_path, digests


@pytest.mark.parametrize("tries", [500, pytest.param(5_000, marks=pytest.mark.torture)])
def test_damage_to_the_checked_files_is_never_silent(small_imdb, tries):
    """What still loads equals what was there: then the damage was not to texts and labels, but to the writer's name, say."""
    folder, digests = small_imdb
    path = folder / "imdb" / "train.parquet"
    content, whole = path.read_bytes(), {split: documents(part) for split, part in text_splits(folder, digests=digests).items()}
    rng, refused = random.Random(0), 0
    for _ in range(tries):
        path.write_bytes(damaged(content, rng))
        found = outcome(lambda: text_splits(folder, digests=digests))
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
    folder, digests = small_imdb
    write_table(folder / "imdb" / f"{split}.parquet", change(rows))
    with pytest.raises(DatasetError, match=rf"{split}\.parquet holds \d+ reviews that are not the published ones: put the two"):
        text_splits(folder, digests=digests)


def test_neither_the_writer_nor_the_order_of_rows_decides_which_reviews_are_dev(small_imdb):
    """The splits are equal as sets; the order within a split is that of the file."""
    folder, digests = small_imdb
    before = {split: Counter(zip(*documents(part), strict=True)) for split, part in text_splits(folder, digests=digests).items()}
    rows = [(f"train review {row}", row % 2) for row in random.Random(0).sample(range(40), 40)]
    made = pyarrow.table({"label": [label for _, label in rows], "text": [content for content, _ in rows]})
    parquet.write_table(made, folder / "imdb" / "train.parquet", compression="gzip", row_group_size=7, version="1.0")
    after = text_splits(folder, digests=digests)
    assert {split: Counter(zip(*documents(part), strict=True)) for split, part in after.items()} == before
    assert documents(after["train"])[0] == [content.encode() for content, _ in rows if (content.encode(), _) in before["train"]]


def test_a_missing_review_file_names_itself_and_the_remedy(tmp_path):
    with pytest.raises(
        DatasetError, match=r"train\.parquet cannot be read \(No such file or directory\): put the two.*--data-dir"
    ):
        text_splits(tmp_path)


def test_held_out_rows_are_a_tenth_of_each_label_and_follow_the_seed():
    rows = [(f"text {row}", 0 if row < 100 else 1 if row < 195 else 2) for row in range(200)]
    splits = [hold_out(*table(rows), seed=seed) for seed in range(20)]
    for (texts, labels), (held, held_labels) in splits:
        assert Counter(held_labels) == {0: 10, 1: 10, 2: 1}
        assert Counter(labels) == {0: 90, 1: 85, 2: 4}
        assert sorted(zip(texts + held, labels + held_labels, strict=True)) == sorted(zip(*table(rows), strict=True))
        assert texts == [content for content in table(rows)[0] if content not in held]  # in the order of the table
        assert held == [content for content in table(rows)[0] if content in held]
    assert len({tuple(held) for _, (held, _) in splits}) == 20
    assert hold_out(*table(rows), seed=3) == splits[3]


def test_held_out_rows_are_uniform(count=100, seeds=2000):
    """Each row is held out by 1 of 10 seeds: 100 binomial counts are within 5 standard deviations."""
    rows = table([(f"text {row}", 0) for row in range(count)])
    held = Counter(content for seed in range(seeds) for content in hold_out(*rows, seed=seed)[1][0])
    assert held.total() == seeds * count // 10
    assert all(abs(held[content] - seeds / 10) < 5 * (seeds * 0.1 * 0.9) ** 0.5 for content in rows[0])


def test_equal_texts_are_held_out_together():
    """Of 100 texts with three copies each, the boundary of the tenth splits at most one."""
    rows = table([(f"text {row % 100}", 0) for row in range(300)])
    for seed in range(10):
        (kept, _), (held, _) = hold_out(*rows, seed=seed)
        assert len(set(kept) & set(held)) <= 1


def test_tokens_of_a_text_are_its_first_bytes_and_one(tmp_path):
    rows = {"train": [("aé", 0)] * 10 + [("b" * 4001, 1)] * 10, "test": [("aé", 0), ("", 1), ("c" * 4001, 1)]}
    (tmp_path / "imdb").mkdir()
    for split, some in rows.items():
        write_table(tmp_path / "imdb" / f"{split}.parquet", some)
    digests = {split: table_digest(*table(some)) for split, some in rows.items()}
    splits = text_splits(tmp_path, digests=digests)
    assert list(splits) == ["train", "dev", "test"]
    assert [part.labels.bincount().tolist() for part in splits.values()] == [[9, 9], [1, 1], [1, 2]]
    tokens, mask = splits["test"].tokens(torch.arange(3), 5000)
    assert tokens[0, :4].tolist() == [0x62, 0xC4, 0xAA, 0]
    assert set(tokens[2, :4000].tolist()) == {0x64}
    assert mask.sum(1).tolist() == [3, 0, 4000]


def imdb_by_pyarrow(split):
    """Return IMDb's texts, in bytes, and labels."""
    path = data_folder() / "imdb" / f"{split}.parquet"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    columns = parquet.read_table(path).to_pydict()
    return [content.encode() for content in columns["text"]], columns["label"]


def test_imdb_is_the_published_set_byte_for_byte():
    """Every review and label is compared. LRA's own splits differ only in dev and train."""
    train, test = imdb_by_pyarrow("train"), imdb_by_pyarrow("test")
    ours, published = text_splits(data_folder()), text_splits(data_folder(), published=True)
    assert documents(published["train"]) == ([content[:4000] for content in train[0]], train[1])
    for split in (published["dev"], published["test"], ours["test"]):
        assert documents(split) == ([content[:4000] for content in test[0]], test[1])
    parts = [documents(ours[split]) for split in ("train", "dev")]
    assert [Counter(labels) for _, labels in parts] == [{0: 11_250, 1: 11_250}, {0: 1_250, 1: 1_250}]
    both = Counter(zip(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], strict=True))
    assert both == Counter((content[:4000], label) for content, label in zip(*train, strict=True))
    assert len(set(parts[0][0]) & set(parts[1][0])) <= 2
