"""`mimonets predict` on images and texts that the tests make, with untrained networks that save_pretrained wrote."""

import csv
import os
import random
import re
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from zlib import compress, crc32

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

import mimoconv
import mimoformer
from mimo_benchmarks.cli.inputs import FORMATS, image_batches, read_image
from mimo_benchmarks.cli.main import execute_command
from mimo_benchmarks.cli.predict import execute_predict
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.datamux import DataMUX, DataMUXConfig, DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.tasks.registry import load
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig

SMALL = {"depth": 10, "width": 0.25, "image_size": 8}
GREY = MIMOConvConfig(capacity=3, stem_channels=8, in_channels=1, mean=(0.5,), std=(1.0,), **SMALL)
COLOUR = MIMOConvConfig(capacity=3, stem_channels=8, in_channels=3, mean=(0.5,) * 3, std=(1.0,) * 3, **SMALL)
PLAIN = WideResNetConfig(in_channels=1, mean=(0.5,), std=(1.0,), **SMALL)
TOKENS = {"max_length": 8, "layers": 1, "embed_dim": 8, "heads": 2, "mlp_dim": 12, "features": 6, "num_classes": 2}
BYTES = MIMOFormerConfig(vocab_size=257, tokenizer="bytes", class_names=("bad", "good"), **TOKENS)
EVALUATED = {1: 0.9, 2: 0.8}


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


def saved(config, name="run", accuracy=EVALUATED):
    """An untrained network, which is also written to a folder."""
    network = build(config).eval()
    network.save_pretrained(name, accuracy=accuracy)
    return network


def save(name, *shape):
    """A random image in a file, and its pixels (c h w)."""
    levels = torch.randint(256, shape, dtype=torch.uint8)
    Image.fromarray(levels.numpy()).save(name)
    return levels.reshape(*shape[:2], -1).permute(2, 0, 1)


def predicted(capsys, *arguments, network="run", answers="class"):
    """Rows of the table, and what else is said."""
    execute_predict([str(network), *map(str, arguments)])
    out, err = capsys.readouterr()
    head, *rows = csv.reader(StringIO(out))
    assert head == ["input", answers, "probability"]
    return rows, err


@torch.no_grad()
def expected(network, names, groups):
    """The same by definition: each group of images is a pass, and 0.5 is taken off grey levels from 0 to 1."""
    rows = []
    for images in groups:
        logits = network((torch.stack(images) / 255 - 0.5)[None])[0]
        for line in logits.tolist():
            shares = np.exp(line) / np.exp(line).sum()
            rows.append((int(shares.argmax()), float(shares.max())))
    return [(name, *row) for name, row in zip(names, rows, strict=False)]


def agree(rows, wanted):
    assert [(name, label) for name, label, _ in rows] == [(name, str(label)) for name, label, _ in wanted]
    assert [float(share) for *_, share in rows] == pytest.approx([share for *_, share in wanted], abs=1e-4)


@pytest.mark.parametrize(("model", "shape"), [(GREY, (8, 8)), (COLOUR, (8, 8, 3))])
@pytest.mark.parametrize("passes", [1, 64])
def test_images_share_passes_in_their_order(model, shape, passes, capsys):
    network = saved(model)
    names = ["c.png", "b.bmp", "a.tiff", "d,e.png"]
    c, b, a, d = (save(name, *shape) for name in names)
    wanted = expected(network, names, [(c, b), (a, d)])
    assert len({share for *_, share in wanted}) == 4
    for arguments in ([], ["--n", 2]):  # 2 is the largest n that was evaluated, and the network has room for 3
        rows, said = predicted(capsys, *names, *arguments, "--passes", passes)
        agree(rows, wanted)
        assert said == ""
    agree(predicted(capsys, *names, "--n", 1)[0], expected(network, names, [(c,), (b,), (a,), (d,)]))


def test_images_are_read_in_parts(capsys):
    saved(GREY)
    names = [f"{place}.png" for place in range(7)]
    for name in names:
        save(name, 8, 8)
    files = [(name, False) for name in names]
    assert [len(images) for _, images, _ in image_batches(describe(GREY), files, 4)] == [4, 3]
    in_parts, at_once = predicted(capsys, *names, "--passes", 2), predicted(capsys, *names)
    assert [name for name, *_ in in_parts[0]] == names
    assert in_parts[0][:6] == at_once[0][:6]  # the last fills its pass with another image of its part


def test_a_folder_gives_its_images_in_the_order_of_their_names(capsys, tmp_path):
    network = saved(GREY)
    (tmp_path / "folder").mkdir()
    names = ["folder/1.PNG", "folder/10.png", "folder/2.png", "single.png"]
    images = {name: save(name, 8, 8) for name in reversed(names)}
    (tmp_path / "folder" / "notes.txt").touch()
    one, ten, two, single = (images[name] for name in names)
    rows, said = predicted(capsys, "folder", "single.png")
    agree(rows, expected(network, names, [(one, ten), (two, single)]))
    assert said == ""


def test_too_few_images_are_repeated_and_that_is_told(capsys):
    network = saved(GREY)
    image = save("a.png", 8, 8)
    rows, said = predicted(capsys, "a.png")
    agree(rows, expected(network, ["a.png"], [(image, image)]))
    assert said == "inputs: 1, fewer than a pass with n = 2 takes, so they were repeated to fill it\n"
    assert predicted(capsys, "a.png", "--n", 1)[1] == ""


def test_a_plain_network_takes_images_one_by_one(capsys):
    network = saved(PLAIN, accuracy={1: 0.9})
    image = save("a.png", 8, 8)
    rows, said = predicted(capsys, "a.png")
    agree(rows, expected(network, ["a.png"], [(image,)]))
    assert said == ""
    with pytest.raises(ConfigError, match="n = 2, but run was evaluated with n = 1: choose"):
        predicted(capsys, "a.png", "--n", 2)


def test_a_network_without_accuracies_can_be_used_with_any_n_that_it_has_room_for(capsys):
    network = saved(GREY, accuracy=None)
    image = save("a.png", 8, 8)
    agree(predicted(capsys, "a.png")[0], expected(network, ["a.png"], [(image,) * 3]))
    agree(predicted(capsys, "a.png", "--n", 1)[0], expected(network, ["a.png"], [(image,)]))
    with pytest.raises(ConfigError, match="n = 4, but run can be used with n = 1, 2, 3: choose"):
        predicted(capsys, "a.png", "--n", 4)


def test_a_run_s_network_sees_files_as_the_task_shows_its_images(capsys):
    """Digits have 17 grey levels and files 256; white is 1 in both."""
    task = load("digits", Path())
    network = saved(replace(GREY, **task.saved), "started/model")
    Image.fromarray((task.test.images[0, 0] * (255 / 16)).round().to(torch.uint8).numpy()).save("a.png")
    wanted = mimoconv.predict(network, task.items(task.test, torch.tensor([0]))[0], 1).softmax(-1)[0]
    for source in ("started", "started/model"):
        ((_, label, share),), _ = predicted(capsys, "a.png", "--n", 1, network=source)
        assert label == str(int(wanted.argmax()))
        assert float(share) == pytest.approx(float(wanted.max()), abs=1e-3)


def test_classes_are_called_by_their_names(capsys):
    names = tuple(f"class\x1b[31m {i}" for i in range(10))
    network = saved(replace(GREY, class_names=names))
    image = save("a.png", 8, 8)
    ((_, label, _),), _ = predicted(capsys, "a.png", "--n", 1)
    assert label == f"class [31m {expected(network, ['a.png'], [(image,)])[0][1]}"


def test_other_sizes_are_resized_and_that_is_told(capsys):
    saved(COLOUR)
    large, _ = save("large.png", 20, 30, 3), save("right.png", 8, 8, 3)
    _, said = predicted(capsys, "large.png", "right.png")
    assert said == "resized to 8 x 8 pixels: 1 of 2 images\n"
    found, changes = read_image(Path("large.png"), 3, 8)
    wanted = F.interpolate(large[None].double(), (8, 8), mode="bilinear", antialias=True)[0]
    assert changes == ["resized to 8 x 8 pixels"]
    assert (found - wanted).abs().max() < 1.01  # Pillow rounds after each axis
    assert wanted.std() > 10


@pytest.mark.parametrize("orientation", range(9))
def test_images_are_turned_upright(orientation, tmp_path):
    """As Pillow itself turns them."""
    stored = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.tiff", exif=exif)
    found, _ = read_image(tmp_path / "a.tiff", 1, 8)
    with Image.open(tmp_path / "a.tiff") as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(found[0], wanted)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize(("channels", "kind"), [(1, "L"), (3, "RGB")])
def test_images_of_other_modes_are_converted(mode, channels, kind, tmp_path):
    levels = torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
    Image.fromarray(levels).convert(mode).save(path := tmp_path / "a.tiff")
    found, _ = read_image(path, channels, 8)
    with Image.open(path) as image:
        wanted = np.array(image.convert("RGB").convert(kind)).reshape(8, 8, channels)
    assert np.array_equal(found.permute(1, 2, 0), wanted)


def test_what_is_transparent_is_put_on_white_and_that_is_told(capsys, tmp_path):
    saved(COLOUR)
    levels = torch.randint(256, (8, 8, 4), dtype=torch.uint8).numpy()
    Image.fromarray(levels).save(tmp_path / "a.png")
    _, said = predicted(capsys, "a.png", "--n", 1)
    assert said == "put on white for their transparency: 1 of 1 images\n"
    found, _ = read_image(tmp_path / "a.png", 3, 8)
    share = levels[..., 3:] / 255
    assert np.abs(found.permute(1, 2, 0).numpy() - (share * levels[..., :3] + (1 - share) * 255)).max() < 1
    found, changes = read_image(save_palette(levels[..., :3], transparency=bytes(range(256))), 3, 8)
    assert (found.shape, len(changes)) == ((3, 8, 8), 1)
    assert read_image(save_palette(levels[..., :3], transparency=bytes([255] * 256)), 3, 8)[1] == []


def save_palette(levels, **options):
    Image.fromarray(levels).convert("P").save("p.png", **options)
    return Path("p.png")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_shape_in_transparency_alone_is_seen_or_refused(mode, tmp_path):
    """Black on nothing is black on white; white on nothing would be blank, or nearly so, and get a class all the same."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6, 3] = 255
    for level in (0, 240, 254, 255):  # lossy compression makes 254 of 255
        picture = Image.new(mode, (8, 8), (level,) * (len(mode) - 1) + (0,))
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / f"{level}.png")
    found, _ = read_image(tmp_path / "0.png", 1, 8)
    assert np.array_equal(found[0], 255 - alpha)
    assert read_image(tmp_path / "240.png", 1, 8)[0].unique().tolist() == [240, 255]
    for level in (254, 255):
        with pytest.raises(ConfigError, match=rf"{level}.png is blank on white: put it on another background"):
            read_image(tmp_path / f"{level}.png", 1, 8)


def chunk(kind, content):
    """A chunk of a PNG file."""
    return len(content).to_bytes(4) + kind + content + crc32(kind + content).to_bytes(4)


LARGE = compress(bytes(2**21))


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"zTXt", b"note\0\0" + LARGE),
        chunk(b"iTXt", b"note\0\1\0\0\0" + LARGE),
        chunk(b"iCCP", b"note\0\0" + LARGE),
        chunk(b"tEXt", b"note\0right")[:-1] + b"?",  # with a wrong checksum
        chunk(b"eXIf", b"II*\0damaged"),
        chunk(b"eXIf", b"no Exif at all"),
    ],
    ids=["text", "international text", "profile", "checksum", "Exif", "not Exif"],
)
def test_good_pictures_are_not_refused_for_their_notes(note, tmp_path):
    image = save("a.png", 8, 8)
    content = Path("a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:33] + note + content[33:])  # after the first chunk
    assert torch.equal(read_image(tmp_path / "b.png", 1, 8)[0], image)
    (tmp_path / "b.png").write_bytes(content[:33] + note + content[33:-30])
    with pytest.raises(ConfigError, match=r"b.png is not an image that can be read"):
        read_image(tmp_path / "b.png", 1, 8)


@pytest.mark.parametrize("tries", [200, pytest.param(5_000, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_refused_or_still_an_image(kind, tries, tmp_path):
    """Of a PNG file, what is read is what was there; the pixels of the other formats have no checksums."""
    rng, path, refused = random.Random(kind), tmp_path / f"a{FORMATS[kind][0]}", 0
    Image.fromarray(np.add.outer(4 * np.arange(32), 3 * np.arange(32)).astype(np.uint8)).save(path)
    whole, intact = path.read_bytes(), read_image(path, 1, 32)[0]
    for _ in range(tries):
        at, byte = rng.randrange(len(whole)), rng.randbytes(1)
        rest = rng.choice([b"", byte + whole[at + 1 :], byte + whole[at:], whole[at + 1 :]])
        path.write_bytes(whole[:at] + rest)
        try:
            found, _ = read_image(path, 1, 32)
        except ConfigError:
            refused += 1
        else:
            assert (found.dtype, found.shape) == (intact.dtype, intact.shape)
            assert kind != "PNG" or torch.equal(found, intact)
    assert tries / 10 < refused < tries


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with names")
def test_what_is_not_an_image_is_skipped_in_a_folder_and_named(capsys, tmp_path):
    network = saved(GREY)
    folder = tmp_path / "folder"
    (folder / "3 folder.png").mkdir(parents=True)
    one, two, three = (save(folder / name, 8, 8) for name in ("1.png", "5.png", "7.png"))
    os.mkfifo(folder / "2 pipe.png")
    (folder / "4 link.png").symlink_to("nowhere")
    (folder / "._1.png").write_bytes(b"\0\5\x16\7")
    (folder / "6 broken.png").write_bytes((folder / "1.png").read_bytes()[:-40])
    rows, said = predicted(capsys, "folder", "--passes", 1)
    agree(rows, expected(network, [f"folder/{name}.png" for name in (1, 5, 7)], [(one, two), (three, three)]))
    *skipped, broken = said.splitlines()
    assert skipped == [
        "skipped: folder/._1.png is a note of macOS",
        *(f"skipped: folder/{name}.png is not a file" for name in ("2 pipe", "3 folder", "4 link")),
    ]
    assert broken.startswith("skipped: folder/6 broken.png is not an image that can be read (")
    for name in ("2 pipe", "4 link", "6 broken"):
        with pytest.raises(ConfigError, match=rf"^folder/{name}.png is not "):
            predicted(capsys, f"folder/{name}.png")
    for name in ("1", "5", "7"):
        (folder / f"{name}.png").unlink()
    with pytest.raises(ConfigError, match=r"^none of the images can be read: name others"):
        predicted(capsys, "folder")


@pytest.mark.parametrize("content", [b"no picture", b"", b"P5 8 8 255\n" + bytes(64), b"\x89PNG\r\n\x1a\n", None])
def test_what_is_not_an_image_is_refused_by_name(content, capsys, tmp_path):
    saved(GREY)
    save("good.png", 8, 8)
    cut_off = (tmp_path / "good.png").read_bytes()[:-40]
    (tmp_path / "bad.png").write_bytes(cut_off if content is None else content)
    with pytest.raises(ConfigError, match=r"^bad.png is not an image that can be read \([^<>]+\)$"):
        predicted(capsys, "good.png", "bad.png")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("limit", [10, 50])
def test_images_of_too_many_pixels_are_refused(limit, capsys, monkeypatch):
    """Beyond twice the limit Pillow raises an error, beyond the limit it warns."""
    saved(GREY)
    save("a.png", 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ConfigError, match=r"a.png is not an image that can be read .*decompression bomb"):
        predicted(capsys, "a.png")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused(kind, capsys):
    saved(GREY)
    Image.fromarray(np.full((8, 8), 1000, kind)).save("deep.tiff")
    with pytest.raises(ConfigError, match=r"deep.tiff has more than 8 bits per channel: save it with 8"):
        predicted(capsys, "deep.tiff")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.png", "--n", "3"], "n = 3, but run was evaluated with n = 1, 2: choose one of these"),  # though there is room for 3
        (["a.png", "--n", "0"], "n = 0, but"),
        (["missing.png"], "missing.png is not there: name an image"),
        (["x" * 300], "xx cannot be read .*: name another folder, or its files"),
        (["empty"], r"the folder empty has no files with names that end in .bmp, .gif, .jpg"),
        (["a.png", "--text", "a"], "run takes images, and --text gives texts: name image files instead"),
        (["a.png", "--passes", "0"], r"passes must be from 1 to 2\^31 - 1, got 0"),
        ([], "there are no images: name files or folders after the network"),
    ],
)
def test_what_cannot_work_is_refused(arguments, told, capsys, tmp_path):
    saved(GREY)
    save("a.png", 8, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=told):
        predicted(capsys, *arguments)


def test_networks_whose_images_are_not_in_files_are_refused(capsys):
    save("a.png", 8, 8)
    saved(MIMOConvConfig(capacity=2, stem_channels=8, in_channels=2, mean=(0.5,) * 2, std=(1.0,) * 2, **SMALL))
    with pytest.raises(ConfigError, match="the network takes images of 2 channels, and files have 1 or 3"):
        predicted(capsys, "a.png")
    saved(replace(GREY, mean=None, std=None), "unnormalised")
    with pytest.raises(ConfigError, match="does not say how images are normalised: save it with mean and std"):
        predicted(capsys, "a.png", network="unnormalised")
    pixels = MIMOFormerConfig(vocab_size=257, tokenizer="pixels", **TOKENS)
    saved(pixels, "pixels", accuracy=None)
    with pytest.raises(ConfigError, match="the network takes 8 pixels, which are not those of a square"):
        predicted(capsys, "a.png", network="pixels")


def test_datamux_takes_images_and_texts_in_full_passes(capsys):
    network = DataMUXConv(DataMUXConvConfig(capacity=2, mean=(0.5,), std=(1.0,))).eval()
    network.save_pretrained("conv", accuracy={2: 0.7})
    images = [save(name, 20, 20) for name in ("a.png", "b.png")]
    agree(predicted(capsys, "a.png", "b.png", network="conv")[0], expected(network, ["a.png", "b.png"], [images]))
    with pytest.raises(ConfigError, match="n = 1, but conv was evaluated with n = 2: choose"):
        predicted(capsys, "a.png", "--n", 1, network="conv")
    sizes = {name: value for name, value in TOKENS.items() if name != "features"}
    mux = DataMUX(DataMUXConfig(capacity=2, vocab_size=257, tokenizer="bytes", **sizes)).eval()
    mux.save_pretrained("mux")
    tokens = torch.tensor([[98, 99, 0], [100, 101, 102]])
    wanted = mux(tokens[None], tokens[None] > 0)[0].softmax(-1).max(-1)
    rows, _ = predicted(capsys, "--text", "ab", "cde", network="mux")
    agree(rows, list(zip(["ab", "cde"], wanted.indices.tolist(), wanted.values.tolist(), strict=True)))
    with pytest.raises(ConfigError, match="n = 1, but mux can be used with n = 2: choose"):
        predicted(capsys, "--text", "ab", "--n", 1, network="mux")


def test_pixels_are_read_row_by_row(capsys):
    network = saved(MIMOFormerConfig(vocab_size=257, tokenizer="pixels", **TOKENS | {"max_length": 64}), accuracy=None)
    image = save("a.png", 8, 8)
    shares = mimoformer.predict(network, image.flatten(1).long() + 1, 1).softmax(-1).max(-1)
    agree(predicted(capsys, "a.png", "--n", 1)[0], [("a.png", int(shares.indices), float(shares.values))])
    with pytest.raises(ConfigError, match="run takes images, and --text gives texts"):
        predicted(capsys, "--text", "a")


def of_texts(network, texts, n=1):
    """Classes and probabilities by definition: bytes plus one, padded with 0."""
    tokens = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text.encode())) + 1
    shares = mimoformer.predict(network, tokens, n, tokens > 0).softmax(-1).max(-1)
    return [
        (text, network.config.class_names[i], p)
        for text, i, p in zip(texts, *map(torch.Tensor.tolist, shares[::-1]), strict=True)
    ]


def test_texts_come_from_flags_files_folders_and_standard_input(capsys, monkeypatch, tmp_path):
    network = saved(BYTES, accuracy={(1, 1): 0.9, (2, 2): 0.8})
    (tmp_path / "folder").mkdir()
    for name, content in (("b.txt", b"two\n"), ("a.txt", b"one\r\n"), ("c.md", b"x"), ("._b.txt", b"\0\5")):
        (tmp_path / "folder" / name).write_bytes(content)
    Path("single").write_bytes(b"three")
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"four\nfive\n")))
    texts = ["six", "one", "two", "three", "four", "five"]
    names = ["six", "folder/a.txt", "folder/b.txt", "single", "four", "five"]
    rows, said = predicted(capsys, "folder", "single", "-", "--text", "six", "--n", 1)
    agree(rows, [(name, *row[1:]) for name, row in zip(names, of_texts(network, texts), strict=True)])
    assert said == "skipped: folder/._b.txt is a note of macOS\n"
    in_passes = predicted(capsys, "--text", *texts)[0]  # four share a pass of 2 x 2
    agree(in_passes, of_texts(network, texts, 2))
    agree(predicted(capsys, "--text", *texts[:4], "--passes", 1)[0], of_texts(network, texts[:4], 2))
    rows, said = predicted(capsys, "--text", "six")
    agree(rows, of_texts(network, ["six"], 2))
    assert said == "inputs: 1, fewer than a pass with n = 2 takes, so they were repeated to fill it\n"


def test_long_texts_are_cut_and_that_is_told(capsys):
    network = saved(BYTES, accuracy=None)
    rows, said = predicted(capsys, "--text", "abcdefgh", "abcdefghi", "--n", 1)
    assert said == "cut to 8 tokens: 1 of 2 texts\n"
    assert rows[0][1:] == rows[1][1:]
    agree(rows[:1], of_texts(network, ["abcdefgh"]))


def test_the_next_token_follows_from_the_end_of_a_long_text(capsys):
    saved(replace(BYTES, head="tokens", class_names=None), accuracy=None)
    rows, said = predicted(capsys, "--text", "abcdefghi", "bcdefghi", "xyz", "--n", 1, answers="token")
    assert said == "cut to 8 tokens: 1 of 3 texts\n"
    assert rows[0][1:] == rows[1][1:] != rows[2][1:]


def test_pairs_take_two_texts_per_answer(capsys):
    network = saved(replace(BYTES, head="pair"), accuracy=None)
    rows, _ = predicted(capsys, "--text", "a", "bc", "d", "e", "--n", 1)
    tokens, mask = mimoformer.tokenize(network, [("a", "bc"), ("d", "e")])
    shares, found = mimoformer.predict(network, tokens, 1, mask).softmax(-1).max(-1)
    agree(rows, list(zip(["a, bc", "d, e"], [("bad", "good")[i] for i in found], shares.tolist(), strict=True)))
    with pytest.raises(ConfigError, match="run judges pairs of texts, and there are 3: give an even number"):
        predicted(capsys, "--text", "a", "b", "c")


@pytest.mark.parametrize("head", ["tokens", "last"])
def test_the_next_token_follows_the_last_one(head, capsys):
    """Id 0 is a token like any other where texts are ids, as in associative recall."""
    network = saved(MIMOFormerConfig(vocab_size=11, tokenizer="ids", head=head, **TOKENS), accuracy=None)
    texts, wanted = ["3 0 5 0", "0", "7 2"], []
    for text in texts:
        tokens = torch.tensor([[int(number) for number in text.split()]])
        logits = network(tokens[:, None, None])[0, 0, 0].detach()
        shares = (logits[-1] if head == "tokens" else logits).softmax(-1)
        wanted.append((text, int(shares.argmax()), float(shares.max())))
    agree(predicted(capsys, "--text", *texts, "--n", 1, answers="token")[0], wanted)


def test_tokens_are_called_by_their_words_or_bytes():
    sizes = {**TOKENS, "head": "tokens"}
    words = describe(MIMOFormerConfig(vocab_size=9, tokenizer="words", words=("a", "b"), **sizes))
    assert [words.answer_name(i) for i in range(4)] == ["0", "a", "b", "3"]
    of_bytes = describe(MIMOFormerConfig(vocab_size=257, tokenizer="bytes", **sizes))
    assert [of_bytes.answer_name(i) for i in (0, 66, 11, 256)] == ["0", "A", r"\n", r"\xff"]
    ids = describe(MIMOFormerConfig(vocab_size=9, tokenizer="ids", **sizes))
    assert [ids.answer_name(i) for i in (0, 8)] == ["0", "8"]


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [
        ({}, ["--text", "a", ""], r"text 2 \(''\) has no tokens: leave it out"),
        ({}, [], "there are no texts: name files after the network, or give --text"),
        ({}, ["missing.txt"], "missing.txt cannot be read .*: name a text file, or give a text with --text"),
        ({}, ["empty"], "the folder empty has no files with names that end in .txt"),
        ({"tokenizer": None}, ["--text", "a"], "does not say how texts become tokens: save it with a tokenizer"),
        ({"tokenizer": "words", "words": ("a", "b")}, ["--text", "a c"], "holds the word 'c'; this network knows a, b"),
        ({"tokenizer": "ids"}, ["--text", "1 257"], "holds '257'; expected ids from 0 to 256"),
        ({}, ["--text", "a", "--n", "3"], "n = 3, but run can be used with n = 1, 2: choose one of these"),
    ],
)
def test_texts_that_cannot_work_are_refused(options, arguments, told, capsys, tmp_path):
    saved(replace(BYTES, **options), accuracy=None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=told):
        predicted(capsys, *arguments)
    assert capsys.readouterr().out == ""


def test_a_network_that_refuses_its_inputs_is_told_in_one_line(capsys):
    network = saved(GREY, accuracy=None)
    mimoconv.recalibrate(network, [torch.randn(4, 1, 8, 8)], 1)
    network.save_pretrained("run")
    save("a.png", 8, 8)
    with pytest.raises(ConfigError, match=r"the network cannot be used like this: .* no statistics for n = 2"):
        predicted(capsys, "a.png", "--n", 2)


def test_a_network_comes_from_the_hub_where_no_folder_has_its_name(capsys, monkeypatch, tmp_path):
    network, asked = saved(GREY, "elsewhere"), []
    image = save("a.png", 8, 8)

    def download(repo_id, revision=None, allow_patterns=None):
        asked.append(repo_id)
        return str(tmp_path / "elsewhere")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    agree(predicted(capsys, "a.png", "--n", 1, network="ada/net")[0], expected(network, ["a.png"], [(image,)]))
    assert asked == ["ada/net"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "ada/net",
            r"no network can be read from ada/net, which is not a folder here .* \(401 Client Error\.\): name a finished run",
        ),
        ("begun", r"begun has no model\.safetensors, nor does its folder model: name a folder [^:]*, or a finished run$"),
        ("file", "file is not a folder: name a finished run"),
        ("begun/more", "begun/more is not a folder: name a finished run"),
        ("damaged", r"no network can be read from damaged \(.*JSON"),
        ("stranger", r"no network can be read from stranger \(it holds a Stranger; expected one of MIMOConv"),
        ("changed", r"no network can be read from changed \(the SHA-256"),
    ],
)
def test_what_is_not_a_network_ends_in_one_line(source, told, capsys, monkeypatch, tmp_path):
    def download(repo_id, revision=None, allow_patterns=None):
        raise OSError("401 Client Error.\n\nRepository Not Found for url")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name in ("damaged", "stranger", "changed"):
        saved(GREY, name)
    (tmp_path / "damaged" / "config.json").write_text("{")
    for name, old, new in (("stranger", "MIMOConv", "Stranger"), ("changed", "0.25", "0.5")):
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(SystemExit) as exit_:
        execute_command(["predict", source, "a.png"])
    out, err = capsys.readouterr()
    assert (exit_.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.match(f"error: {told}", err)


def test_help_tells_of_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        execute_predict(["--help"])
    assert exit_.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: mimonets predict" in told
    assert "as CSV" in told
    assert "a run directory, a folder that save_pretrained wrote, or the id of a repository on the Hugging Face Hub" in told
    assert "files (PNG, JPEG, BMP, WebP, TIFF, GIF, or text), or folders" in told
    assert (
        "inputs per pass, or the side of a MIMOFormer's grid; the largest that the network was evaluated with unless given"
        in told
    )
