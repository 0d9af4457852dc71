"""`run.py predict` on images that the tests make, with an untrained network."""

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mimo_benchmarks.cli import predict as predict_program
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.networks.registry import build
from mimo_benchmarks.settings import ModelConfig, RunConfig
from mimoconv import MIMOConvConfig, WideResNetConfig

GREY = MIMOConvConfig(capacity=3, depth=10, width=0.25, stem_channels=8, in_channels=1, image_size=8)
COLOUR = MIMOConvConfig(capacity=3, depth=10, width=0.25, stem_channels=8, in_channels=3, image_size=8)
PLAIN = WideResNetConfig(depth=10, width=0.25, in_channels=1, image_size=8)
RUN = Path("run")


@dataclass
class Run:
    """Stands for a trained run, whose task takes 0.5 off grey levels from 0 to 1."""

    config: RunConfig
    network: Any
    scale: float

    def pixels(self, images):
        assert images.dtype == torch.uint8
        return images / self.scale - 0.5


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Makes an untrained network stand for a trained run."""

    def make(model: ModelConfig, scale: float = 255) -> Run:
        run = Run(RunConfig(model=model, n=(1, 2), n_odds=(1, 1)), build(model).eval(), scale)
        monkeypatch.setattr(
            predict_program, "trained", lambda path, device: run if path == RUN and device.type == "cpu" else None
        )
        return run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    return make


def save(name, *shape):
    """A random image in a file, and its pixels (c h w)."""
    levels = torch.randint(256, shape, dtype=torch.uint8)
    Image.fromarray(levels.numpy()).save(name)
    return levels.reshape(*shape[:2], -1).permute(2, 0, 1)


def predicted(capsys, *arguments):
    """Rows of the table, and what else is said."""
    predict_program.execute([str(RUN), *map(str, arguments)])
    out, err = capsys.readouterr()
    head, *rows = csv.reader(StringIO(out))
    assert head == ["file", "class", "probability"]
    return rows, err


@torch.no_grad()
def expected(run, names, groups):
    """The same by definition: each group of images is a pass."""
    rows = []
    for images in groups:
        logits = run.network(run.pixels(torch.stack(images))[None])[0]
        for line in logits.tolist():
            shares = np.exp(line) / np.exp(line).sum()
            rows.append((int(shares.argmax()), float(shares.max())))
    return [(name, *row) for name, row in zip(names, rows, strict=False)]


def agree(rows, wanted):
    assert [(name, int(label)) for name, label, _ in rows] == [(name, label) for name, label, _ in wanted]
    assert [float(share) for *_, share in rows] == pytest.approx([share for *_, share in wanted], abs=1e-4)


@pytest.mark.parametrize(("model", "shape"), [(GREY, (8, 8)), (COLOUR, (8, 8, 3))])
@pytest.mark.parametrize("passes", [1, 64])
def test_images_share_passes_in_their_order(model, shape, passes, capsys, monkeypatch, trained):
    run = trained(model)
    monkeypatch.setattr(predict_program, "PASSES", passes)
    names = ["c.png", "b.bmp", "a.tiff", "d,e.png"]
    c, b, a, d = (save(name, *shape) for name in names)
    wanted = expected(run, names, [(c, b), (a, d)])
    assert len({share for *_, share in wanted}) == 4
    for arguments in ([], ["--n", 2]):  # 2 is the largest n of the run, and the network has room for 3
        rows, said = predicted(capsys, *names, *arguments)
        agree(rows, wanted)
        assert said == ""
    agree(predicted(capsys, *names, "--n", 1)[0], expected(run, names, [(c,), (b,), (a,), (d,)]))


def test_images_are_read_in_parts(capsys, monkeypatch, trained):
    run = trained(GREY)
    monkeypatch.setattr(predict_program, "PASSES", 2)
    seen = []
    run.network.register_forward_hook(lambda _, arguments, __: seen.append(tuple(arguments[0].shape[:2])))
    names = [f"{place}.png" for place in range(7)]
    for name in names:
        save(name, 8, 8)
    assert [name for name, *_ in predicted(capsys, *names)[0]] == names
    assert seen == [(2, 2), (2, 2)]


def test_a_folder_gives_its_images_in_the_order_of_their_names(capsys, trained, tmp_path):
    run = trained(GREY)
    (tmp_path / "folder").mkdir()
    names = ["folder/1.PNG", "folder/10.png", "folder/2.png", "single.png"]
    images = {name: save(name, 8, 8) for name in reversed(names)}
    (tmp_path / "folder" / "notes.txt").touch()
    one, ten, two, single = (images[name] for name in names)
    rows, said = predicted(capsys, "folder", "single.png")
    agree(rows, expected(run, names, [(one, ten), (two, single)]))
    assert said == ""


def test_too_few_images_are_repeated_and_that_is_told(capsys, trained):
    run = trained(GREY)
    image = save("a.png", 8, 8)
    rows, said = predicted(capsys, "a.png")
    agree(rows, expected(run, ["a.png"], [(image, image)]))
    assert said == "images: 1, fewer than n = 2, so they were repeated to fill the pass\n"
    assert predicted(capsys, "a.png", "--n", 1)[1] == ""


def test_a_plain_network_takes_images_one_by_one(capsys, trained):
    run = trained(PLAIN)
    image = save("a.png", 8, 8)
    rows, said = predicted(capsys, "a.png")
    agree(rows, expected(run, ["a.png"], [(image,)]))
    assert said == ""
    with pytest.raises(ConfigError, match="n = 2, but run was trained for n = 1: choose"):
        predicted(capsys, "a.png", "--n", 2)


def test_grey_levels_are_those_of_the_task(capsys, trained):
    run = trained(GREY, scale=16)
    image = save("a.png", 8, 8)
    levels = (image.double() * 16 / 255).round().to(torch.uint8)
    agree(predicted(capsys, "a.png", "--n", 1)[0], expected(run, ["a.png"], [(levels,)]))


def test_other_sizes_are_resized_and_that_is_told(capsys, trained):
    trained(COLOUR)
    large, _ = save("large.png", 20, 30, 3), save("right.png", 8, 8, 3)
    _, said = predicted(capsys, "large.png", "right.png")
    assert said == "resized to 8 x 8 pixels: 1 of 2 images\n"
    found, resized = predict_program.read(Path("large.png"), 3, 8)
    wanted = F.interpolate(large[None].double(), (8, 8), mode="bilinear", antialias=True)[0]
    assert resized
    assert (found - wanted).abs().max() < 1.01  # Pillow rounds after each axis
    assert wanted.std() > 10


def test_images_are_turned_upright(tmp_path):
    stored = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left
    stored.save(tmp_path / "a.png", exif=exif)
    found, _ = predict_program.read(tmp_path / "a.png", 1, 8)
    assert torch.equal(found[0], torch.arange(64, dtype=torch.uint8).reshape(8, 8).rot90(-1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize(("channels", "kind"), [(1, "L"), (3, "RGB")])
def test_images_of_other_modes_are_converted(mode, channels, kind, tmp_path):
    levels = torch.randint(256, (8, 8, 3), dtype=torch.uint8).numpy()
    Image.fromarray(levels).convert(mode).save(path := tmp_path / "a.tiff")
    found, _ = predict_program.read(path, channels, 8)
    with Image.open(path) as image:
        wanted = np.array(image.convert("RGB").convert(kind)).reshape(8, 8, channels)
    assert np.array_equal(found.permute(1, 2, 0), wanted)


def test_transparency_is_left_out(tmp_path):
    """Also that of palettes, of which Pillow warns."""
    levels = torch.randint(256, (8, 8, 4), dtype=torch.uint8).numpy()
    Image.fromarray(levels).save(tmp_path / "a.png")
    found, _ = predict_program.read(tmp_path / "a.png", 3, 8)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), levels[..., :3])
    Image.fromarray(levels[..., :3]).convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    found, _ = predict_program.read(tmp_path / "p.png", 3, 8)
    assert found.shape == (3, 8, 8)


@pytest.mark.parametrize("content", [b"no picture", b"", b"P5 8 8 255\n" + bytes(64), None])
def test_what_is_no_image_is_refused_by_name(content, capsys, trained, tmp_path):
    trained(GREY)
    save("good.png", 8, 8)
    cut_off = (tmp_path / "good.png").read_bytes()[:-40]
    (tmp_path / "bad.png").write_bytes(cut_off if content is None else content)
    with pytest.raises(ConfigError, match=r"^bad.png is no image that can be read \("):
        predicted(capsys, "good.png", "bad.png")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("limit", [10, 50])
def test_images_of_too_many_pixels_are_refused(limit, capsys, monkeypatch, trained):
    """Beyond twice the limit Pillow raises an error, beyond the limit it warns."""
    trained(GREY)
    save("a.png", 8, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ConfigError, match=r"a.png is no image that can be read .*decompression bomb"):
        predicted(capsys, "a.png")


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_are_refused(kind, capsys, trained):
    trained(GREY)
    Image.fromarray(np.full((8, 8), 1000, kind)).save("deep.tiff")
    with pytest.raises(ConfigError, match=r"deep.tiff has more than 8 bits a channel: save it with 8"):
        predicted(capsys, "deep.tiff")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a.png", "--n", "3"], "n = 3, but run was trained for n = 1, 2: choose one of these"),  # though there is room for 3
        (["a.png", "--n", "0"], "n = 0, but"),
        (["missing.png"], "missing.png is no image that can be read"),
        (["empty"], r"the folder empty has no images in it, with names that end in .bmp, .gif, .jpg"),
        ([], "there are no images: name files or folders after the run"),
    ],
)
def test_what_cannot_work_is_refused(arguments, told, capsys, trained, tmp_path):
    trained(GREY)
    save("a.png", 8, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=told):
        predicted(capsys, *arguments)


def test_networks_of_other_channels_are_refused(capsys, trained):
    trained(MIMOConvConfig(capacity=2, depth=10, width=0.25, stem_channels=8, in_channels=2, image_size=8))
    with pytest.raises(ConfigError, match="run takes images of 2 channels, and files have 1 or 3"):
        predicted(capsys, "a.png")


def test_help_tells_of_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_:
        predict_program.execute(["--help"])
    assert exit_.value.code == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "usage: run.py predict" in told
    assert "prints CSV" in told
    assert "directory of a finished run on an image task" in told
    assert "files (PNG, JPEG, BMP, WebP, TIFF, GIF), or folders" in told
    assert "images that share a pass, one of the run's n; the largest unless given" in told
