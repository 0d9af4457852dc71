"""save_pretrained, from_pretrained, push_to_hub: what comes back is bit for bit what went in, or nothing does."""

import inspect
import json
import os
import random
import re
import sys
import tracemalloc
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from test_mimoconv import small
from torch import nn

import mimoconv
from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig, hub, predict
from mimoconv.hub.card import model_card
from mimoconv.superposed import Superposed
from vsa_core.hub import class_name, resolve
from vsa_core.hub.card import fenced
from vsa_core.hub.library import DTYPES, digest

FILES = ["README.md", "config.json", "model.safetensors"]
unchecked = pytest.mark.unchecked  # of our own errors


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that is only read."""
    folder = tmp_path_factory.mktemp("saved") / "mimo"
    hub.save_pretrained(small(4), folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A folder to damage."""
    for name in FILES:
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def signed(folder, settings=None, weights=None):
    """Change entries of config.json, or the weights, and sign what comes out, as a program other than ours might."""
    entries = json.loads((folder / "config.json").read_text()) | (settings or {})
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights if isinstance(weights, bytes) else safetensors.torch.save(weights))
    entries.pop("sha256", None)
    entries["sha256"] = digest(entries, (folder / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(entries))


def weights_in(folder):
    return safetensors.torch.load((folder / "model.safetensors").read_bytes())


def config_in(folder):
    return json.loads((folder / "config.json").read_text())["config"]


WRN = {"depth": 10, "width": 0.75, "in_channels": 2, "num_classes": 3}
NORMALISED = {"mean": (0.1, 1 / 3), "std": (0.2, 0.7)}


def trained(model: nn.Module) -> nn.Module:
    """Other statistics for every layer, n and channel."""
    for name, buffer in model.named_buffers():
        assert "running" in name or "num_batches_tracked" in name
        buffer.copy_(torch.randint(1, 1000, buffer.shape) if buffer.dtype == torch.int64 else 0.5 + torch.rand(buffer.shape))
    return model


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(lambda: small(4, **NORMALISED), dtype) for dtype in DTYPES.values()]
    + [
        (lambda: small(2, width=0.8, stem="conv-norm-relu", trainable_keys=False, final_norm=True), torch.float32),
        (lambda: small(1, init="orthogonal", activation="relu", unbinding_relu=False), torch.float64),
        (lambda: WideResNet(WideResNetConfig(**WRN)), torch.float32),
        (lambda: WideResNet(WideResNetConfig(**WRN, **NORMALISED, init="delta", activation="prelu")), torch.float64),
    ],
)
def test_round_trip_is_exact(make, dtype, tmp_path):
    model, images = trained(make().to(dtype)).train(), torch.randn(5, 2, 8, 8).to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hub.save_pretrained(model, tmp_path / "new" / "folder")
    seed = torch.get_rng_state()
    loaded = hub.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(torch.get_rng_state(), seed)  # nothing was drawn
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not any(module.training for module in loaded.modules())
    assert all(module.training for module in model.modules())
    assert loaded.state_dict().keys() == before.keys()
    for name, value in loaded.state_dict().items():
        for other in (before[name], model.state_dict()[name]):
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    for n in range(1, model.capacity + 1):
        assert torch.equal(predict(loaded, images, n), predict(model, images, n))
    for value in loaded.state_dict().values():
        value.zero_()  # can be written


def test_weights_that_are_views(tmp_path):
    model = small(2)
    both = torch.randn(2, 3, model.head.in_features, dtype=torch.float64)
    model.head.weight = nn.Parameter(both[0])
    model.stem.conv.weight.data = model.stem.conv.weight.data.to(memory_format=torch.channels_last)
    hub.save_pretrained(model, tmp_path)
    assert torch.equal(hub.from_pretrained(tmp_path).head.weight, both[0])


@unchecked
def test_numbers_of_numpy(tmp_path):
    model = small(np.int64(2), mean=tuple(np.float32([0.1, 0.2])), std=tuple(torch.tensor([0.3, 0.4])), final_norm=np.bool_(True))
    hub.save_pretrained(model, tmp_path)
    assert hub.from_pretrained(tmp_path).config == model.config


def test_files(saved, tmp_path):
    assert sorted(os.listdir(saved)) == FILES
    assert {(saved / name).stat().st_mode & 0o777 for name in FILES} == {0o666 & ~umask()}
    entries = json.loads((saved / "config.json").read_text())
    assert list(entries) == ["class", "mimoconv_version", "dtype", "config", "accuracy", "sha256"]
    assert (entries["class"], entries["dtype"]) == ("MIMOConv", "float64")
    assert entries["mimoconv_version"] == mimoconv.__version__
    assert MIMOConvConfig(**entries["config"]) == small(4).config
    (tmp_path / "other.txt").write_text("kept")
    for capacity in (2, 4):  # the second replaces the first
        torch.manual_seed(0)
        hub.save_pretrained(small(capacity), tmp_path)
    assert sorted(os.listdir(tmp_path)) == [*FILES, "other.txt"]
    assert hub.from_pretrained(str(tmp_path)).capacity == 4


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@unchecked
@pytest.mark.parametrize("call", ["write_bytes", "replace"])
@pytest.mark.parametrize("last", [0, 1, 2])
def test_an_interrupted_save_loads_as_one_of_both_or_not_at_all(copy, monkeypatch, call, last):
    kept, calls = hub.from_pretrained(copy), iter(range(9))
    owner = os if call == "replace" else Path
    original = getattr(owner, call)

    def dies(*args):
        if next(calls) == last:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(owner, call, dies)
    with pytest.raises(KeyboardInterrupt):
        hub.save_pretrained(small(4, unbinding_relu=True), copy)
    monkeypatch.undo()
    assert sorted(os.listdir(copy)) == FILES
    if call == "replace" and last > 0:
        with pytest.raises(ValueError, match="not from the same save"):
            hub.from_pretrained(copy)
    else:
        assert torch.equal(hub.from_pretrained(copy).head.weight, kept.head.weight)


@unchecked
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_damaged_file_loads_silently(copy, name):
    draw = random.Random(0)
    whole, kept = (copy / name).read_bytes(), hub.from_pretrained(copy)
    refusals = []
    for number in range(100):
        damaged, place = bytearray(whole), draw.randrange(len(whole) if number % 2 else min(len(whole), 2000))
        if number % 5:
            damaged[place] ^= 1 << draw.randrange(8)
        else:
            del damaged[place:]
        (copy / name).write_bytes(damaged)
        try:
            loaded = hub.from_pretrained(copy)
        except ValueError as error:
            refusals.append(str(error))
        else:  # only a blank of the JSON can change without harm
            assert name == "config.json"
            assert json.loads(damaged) == json.loads(whole)
            assert loaded.config == kept.config
    assert len(refusals) > 80
    assert all(str(copy) in refusal for refusal in refusals)


@unchecked
@pytest.mark.parametrize(
    ("field", "value"),
    [("capacity", 2), ("stem", "conv-norm-relu"), ("image_size", 64), ("mean", [0.5, 0.5]), ("extra", 1)],
)
def test_an_edited_configuration_is_refused(copy, field, value):
    entries = json.loads((copy / "config.json").read_text())
    entries["config"][field] = value
    (copy / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"SHA-256 of config\.json and model\.safetensors .* expected .*: a file was changed"):
        hub.from_pretrained(copy)


@unchecked
@pytest.mark.parametrize(
    ("entry", "value", "named"),
    [
        ("class", "Sequential", "class must be one of MIMOConv, WideResNet, Superposed, got 'Sequential'"),
        ("class", ["MIMOConv"], r"class must be one of MIMOConv, WideResNet, Superposed, got \['MIMOConv'\]"),
        ("class", "WideResNet", "config.capacity is unknown; expected num_classes, depth, "),
        ("dtype", "int8", "dtype must be one of float16, bfloat16, float32, float64, got 'int8'"),
        ("dtype", "float32", r"stem\.conv\.weight has shape .* dtype torch\.float64, expected .* torch\.float32"),
        ("slots", 4, r"mimoconv 9\.9, read by .*config\.slots is unknown; expected num_classes, "),
        ("depth", 12, r"depth must be 6k \+ 4 .* got 12"),
        ("depth", "10", r'config\.depth is "10"; expected a whole number'),
        ("depth", True, r"config\.depth is true; expected a whole number"),
        ("depth", 6 * 10**8 + 4, r"describes a network of far more than the \d+ tensors in model\.safetensors"),
        ("width", "1", r'config\.width is "1"; expected a number'),
        ("width", 10**400, r"config\.width is 10+\.\.\.; expected a number"),
        ("stem", "none", r'config\.stem is "none"; expected one of conv, conv-norm, conv-norm-relu'),
        ("init", 3, r"config\.init is 3; expected one of kaiming, orthogonal, delta"),
        ("class_names", ["a", 2], r"config\.class_names\[1\] is 2; expected text"),
        ("unbinding_relu", "a", r'config\.unbinding_relu is "a"; expected true or false'),
        ("width", 1e300, r"does not hold a network that fits"),
        ("mean", 0.5, r"config\.mean is 0\.5; expected a list \(each entry a number\) or null"),
        ("mean", [0.5, 0.5], r"mean is \(0\.5, 0\.5\) and std is None"),
        ("config", [], r"config is \[\]; expected fields of MIMOConvConfig"),
        ("accuracy", {"4": 0.5}, r'accuracy is \{"4": 0\.5\}; expected a list'),
        ("accuracy", [[4, "high"]], r'accuracy\[0\]\[1\] is "high"; expected a number'),
        ("accuracy", [[4, 1.5]], r"accuracy is 1\.5; expected shares from 0 to 1"),
        ("capacity", 2, r"binding\.keys has shape \(4, 8\) .*, expected \(2, 8\)"),
        ("unbinding_relu", False, r"missing \[\], unknown \['unbinding\.bias'\]"),
    ],
)
def test_configurations_of_other_programs(copy, entry, value, named):
    settings = {"mimoconv_version": "9.9"}
    settings |= (
        {entry: value} if entry in ("class", "dtype", "config", "accuracy") else {"config": config_in(copy) | {entry: value}}
    )
    signed(copy, settings)
    with pytest.raises(ValueError, match=named) as refusal:
        hub.from_pretrained(copy)
    assert str(copy) in str(refusal.value)


@unchecked
def test_a_configuration_of_great_depth_takes_no_memory(copy):
    signed(copy, {"config": config_in(copy) | {"depth": 6 * 10**6 + 4}})
    tracemalloc.start()
    with pytest.raises(ValueError, match="far more than"):
        hub.from_pretrained(copy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


NOT_OURS = [b"", b"{", b"[]", b"3", b"\xff", b"{}", b'{"sha256": "x", "config": ', b"[" * 100_000]


@unchecked
@pytest.mark.parametrize("text", NOT_OURS, ids=range(len(NOT_OURS)))
def test_configurations_that_are_not_ours(copy, text):
    (copy / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json is not JSON as save_pretrained writes it"):
        hub.from_pretrained(copy)


def spoilt(weights, index, number):
    value = weights["head.weight"].clone()
    value.view(-1)[index] = number
    return weights | {"head.weight": value}


@unchecked
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "head.bias"}, r"MIMOConv: missing \['head\.bias'\], unknown \[\]"),
        (lambda w: w | {"head.extra": torch.zeros(1)}, r"missing \[\], unknown \['head\.extra'\]"),
        (lambda w: {k.replace("head", "foot"): v for k, v in w.items()}, r"missing \['head\.b.*unknown \['foot\.b"),
        (lambda w: w | {"head.bias": torch.zeros(1, 3).double()}, r"head\.bias has shape \(1, 3\) .*expected \(3,\)"),
        (lambda w: w | {"head.bias": torch.zeros(3)}, r"dtype torch\.float32, expected \(3,\) and torch\.float64"),
        (lambda w: w | {"head.bias": torch.zeros(3).long()}, r"dtype torch\.int64, expected \(3,\) and torch\.float64"),
        (lambda w: spoilt(w, 0, torch.nan), r"head\.weight holds NaN or infinite values"),
        (lambda w: spoilt(w, -1, torch.inf), r"head\.weight holds NaN or infinite values"),
        (lambda w: spoilt(w, 7, -torch.inf), r"head\.weight holds NaN or infinite values"),
        (lambda _: b"", "does not hold a network that fits"),
        (lambda _: b"PK\x03\x04 a torch zip", "does not hold a network that fits"),
        (lambda w: safetensors.torch.save(w)[:-1], "does not hold a network that fits"),
    ],
)
def test_weights_of_other_programs(copy, change, named):
    before = weights_in(copy)
    signed(copy, weights=change(before))
    with pytest.raises(ValueError, match=named):
        hub.from_pretrained(copy)
    if not isinstance(change(before), bytes):  # into a network that exists, too, and without a trace
        model = small(4)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=named):
            hub.load_strict(model, change(before))
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_load_strict_keeps_the_parameters(saved):
    model = small(4)
    parameters, weights = list(model.parameters()), weights_in(saved)
    hub.load_strict(model, weights)
    assert all(ours is theirs for ours, theirs in zip(parameters, model.parameters(), strict=True))  # an optimizer holds them
    assert torch.equal(model.head.weight, weights["head.weight"])
    weights["head.weight"].zero_()
    assert model.head.weight.any()


class Child(WideResNet):
    """A network that from_pretrained does not know."""


@unchecked
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(1, 1),
        lambda: Child(WideResNetConfig(**WRN)),
    ],
)
def test_other_classes_are_refused(make, tmp_path):
    model = make()
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}; only a MIMOConv or a WideResNet"):
        hub.save_pretrained(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@unchecked
def test_what_would_not_load_is_not_saved(tmp_path):
    broken, mixed, parametrized = small(2), small(2), small(2)
    with torch.no_grad():
        broken.unbinding.weight[0, 0, 0] = torch.nan
    mixed.head.float()
    nn.utils.parametrizations.weight_norm(parametrized.head)
    for model, named in (
        (broken, r"unbinding\.weight holds NaN"),
        (mixed, r"head\.weight has .*torch\.float32, expected .* torch\.float64"),
        (parametrized, r"missing \['head\.weight'\], unknown \['head\.parametrizations"),
        (small(2).to(torch.float8_e4m3fn), "dtype must be one of .* got 'float8_e4m3fn'"),
    ):
        with pytest.raises(ValueError, match=named):
            hub.save_pretrained(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_card(tmp_path):
    model = small(4, **NORMALISED)
    hub.save_pretrained(model, tmp_path / "cifar", accuracy={4: 0.9123, 1: 1, 2: 0.0}, command="train --n 4 \\\n  --seed 0\n")
    text = (tmp_path / "cifar" / "README.md").read_text(encoding="utf-8")
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("mimoconv", "apache-2.0", "image-classification")
    assert data.tags == ["image-classification", "mimonets", "wide-resnet"]
    assert "# cifar\n\nA wide ResNet that classifies up to 4 images in one pass, in superposition, as in" in text
    assert "https://arxiv.org/abs/2312.02829" in text
    assert (
        "\n| capacity | depth | width | classes |\n| -------: | ----: | ----: | ------: |\n"
        "|        4 |    10 |   0.5 |       3 |\n\n" in text
    )
    assert (
        "-: |\n|               1 |      100.00 % |\n|               2 |        0.00 % |\n|               4 |       91.23 % |\n\n"
        in text
    )
    assert "```bash\ntrain --n 4 \\\n  --seed 0\n```\n" in text
    assert 'model = MIMOConv.from_pretrained("cifar")\n' in text
    assert "predict(model, images, n=4)  # uint8 (count, 2, 8, 8)\n" in text


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 here")
def test_names_that_are_not_utf_8(tmp_path):
    """Those of a folder, which the card shows, and in the command that trained the network."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    small().save_pretrained(folder, command=f"run {folder}")
    assert "caf?" in (folder / "README.md").read_text(encoding="utf-8")
    assert isinstance(MIMOConv.from_pretrained(folder), MIMOConv)


def test_card_of_a_plain_network_without_accuracy_and_command():
    text = model_card(WideResNet(WideResNetConfig(**WRN)), "ada/net", None, None)
    assert "# ada/net\n\nA plain wide ResNet with one image per pass, the control beside MIMOConv in" in text
    assert 'model = WideResNet.from_pretrained("ada/net")\n' in text
    assert "predict(model, images, n=1)" in text
    assert "No accuracy was given." in text
    assert "No command was given." in text
    assert "floating-point images, normalised as in training" in text


@pytest.mark.parametrize(("command", "fence"), [("`date`", "```"), ("a\n```\nb", "````"), ("`````", "``````")])
def test_no_command_ends_its_block(command, fence):
    assert fenced(command) == f"{fence}bash\n{command}\n{fence}"


@unchecked
@pytest.mark.parametrize(
    ("accuracy", "named"),
    [
        ({0: 0.5}, "for 0 images per pass, expected a whole number from 1 to 4"),
        ({1: 0.5, 5: 0.5}, "for 5 images per pass, expected a whole number from 1 to 4"),
        ({1.5: 0.5}, r"n must be a whole number, got 1\.5"),
        ({2.0: 0.5}, r"n must be a whole number, got 2\.0"),
        ({"1": 0.5}, "n must be a whole number, got '1'"),
        ({2: 91.23}, r"for 2 images per pass is 91\.23, expected a share from 0 to 1"),
        ({2: -0.1}, r"is -0\.1, expected"),
        ({2: float("nan")}, "is nan, expected"),
        ({2: float("inf")}, "is inf, expected"),
    ],
)
def test_accuracies_that_cannot_be(accuracy, named, tmp_path):
    with pytest.raises(TypeError if "whole number, got" in named else ValueError, match=named):
        hub.save_pretrained(small(4), tmp_path / "none", accuracy=accuracy)
    assert not (tmp_path / "none").exists()


class FakeApi:
    """HfApi without a network: what it was called with, and the files that it was handed."""

    calls: list[tuple[str, dict]]

    def __init__(self, token=None):
        type(self).calls = [("HfApi", {"token": token})]
        type(self).files = {}

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/ada/{repo_id.split('/')[-1]}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload_folder", {"repo_id": repo_id, "commit_message": commit_message}))
        self.files |= {name: (Path(folder_path) / name).read_bytes() for name in os.listdir(folder_path)}


@pytest.mark.parametrize("name", ["net", "ada/net"])
def test_push_then_load(monkeypatch, tmp_path, name):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    model = small(4)
    address = hub.push_to_hub(model, name, accuracy={4: 0.5}, command="train", private=True, token="secret")
    assert address == "https://huggingface.co/ada/net"
    assert type(address) is str
    assert FakeApi.calls == [
        ("HfApi", {"token": "secret"}),
        ("create_repo", {"repo_id": name, "private": True, "exist_ok": True}),
        ("upload_folder", {"repo_id": "ada/net", "commit_message": f"MIMOConv, mimoconv {mimoconv.__version__}"}),
    ]
    assert sorted(FakeApi.files) == FILES
    card = FakeApi.files["README.md"].decode()
    assert 'MIMOConv.from_pretrained("ada/net")' in card
    assert "|       50.00 % |" in card
    assert "```bash\ntrain\n```" in card

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision))
        for file in allow_patterns:
            (tmp_path / file).write_bytes(FakeApi.files[file])
        return str(tmp_path)

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = hub.from_pretrained("ada/net", revision="v1")
    assert asked == [("ada/net", "v1")]
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@unchecked
def test_nothing_refused_makes_a_repository(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    with pytest.raises(TypeError, match="model is a Linear"):
        hub.push_to_hub(nn.Linear(1, 1), "ada/net")
    with pytest.raises(ValueError, match="from 1 to 4"):
        hub.push_to_hub(small(4), "ada/net", accuracy={5: 0.5})
    assert FakeApi.calls == [("HfApi", {"token": None})]


def test_the_calls_are_those_of_huggingface_hub():
    """The fakes above take what the installed release takes."""
    api = huggingface_hub.HfApi(token="none")
    for call, names in (
        (api.create_repo, {"private", "exist_ok"}),
        (api.upload_folder, {"folder_path", "commit_message"}),
        (huggingface_hub.snapshot_download, {"revision", "allow_patterns"}),
    ):
        assert names <= inspect.signature(call).parameters.keys()


@pytest.mark.parametrize(
    "accuracy", [None, {4: 0.9123, 1: 1.0}, pytest.param({np.int64(2): np.float32(0.5)}, marks=unchecked)], ids=str
)
def test_accuracy_comes_back(accuracy, tmp_path):
    model = small(4)
    hub.save_pretrained(model, tmp_path, accuracy=accuracy)
    loaded = hub.from_pretrained(tmp_path)
    assert loaded.accuracy == (accuracy or {})
    assert all(type(n) is int for n in loaded.accuracy)
    assert model.accuracy == {}  # saving does not change the network
    model.accuracy[3] = loaded.accuracy[3] = 0.1
    assert small(4).accuracy == {}  # each network has its own
    assert hub.from_pretrained(tmp_path).accuracy == (accuracy or {})


@unchecked
def test_accuracy_is_covered_by_the_checksum(copy):
    entries = json.loads((copy / "config.json").read_text()) | {"accuracy": [[4, 0.99]]}
    (copy / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"SHA-256 of config\.json"):
        hub.from_pretrained(copy)


def test_folders_written_before_accuracy_was_kept(copy):
    entries = json.loads((copy / "config.json").read_text())
    del entries["accuracy"]
    (copy / "config.json").write_text(json.dumps(entries))
    signed(copy)
    assert hub.from_pretrained(copy).accuracy == {}


def test_a_grid_comes_back_as_a_tuple(copy):
    signed(copy, {"accuracy": [[[2, 2], 0.75], [1, 0.5]]})
    assert hub.from_pretrained(copy).accuracy == {(2, 2): 0.75, 1: 0.5}


def test_a_run_directory_is_its_model_folder(tmp_path):
    model = small(2)
    hub.save_pretrained(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text('{"preset": "quickstart"}')  # a run has files of its own
    for source in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "model"):
        assert resolve(source) == tmp_path / "run" / "model"
        assert torch.equal(MIMOConv.from_pretrained(source).head.weight, model.head.weight)
    assert 'MIMOConv.from_pretrained("run")' in (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    hub.save_pretrained(small(3), tmp_path / "run")  # a network in the folder itself comes first
    assert hub.from_pretrained(tmp_path / "run").capacity == 3


@unchecked
def test_the_class_is_known_without_loading(saved, copy):
    (copy / "model.safetensors").write_bytes(b"")
    assert class_name(resolve(saved)) == class_name(copy) == class_name(str(copy)) == "MIMOConv"
    (copy / "config.json").write_text('{"preset": "quickstart"}')
    with pytest.raises(ValueError, match=r"config\.json is not JSON as save_pretrained writes it"):
        class_name(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        class_name(copy)


def parts(features: int = 5) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Stem, body and head of a small CNN."""
    body = nn.Sequential(nn.Conv2d(8, features, 3), nn.BatchNorm2d(features), nn.ReLU())
    return nn.Conv2d(2, 8, 3), body, nn.Linear(features, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"trainable_keys": False, "unbinding_relu": False}])
def test_a_network_put_together_by_hand_comes_back(options, dtype, tmp_path):
    model = trained(Superposed(*parts(), 3, 8, **options).to(dtype))
    model.save_pretrained(tmp_path / "net", accuracy={3: 0.5}, command="train")
    stem, body, head = parts()
    loaded = Superposed.from_pretrained(tmp_path / "net", stem, body, head)
    assert type(loaded) is Superposed
    with pytest.raises(ValueError, match="does not hold a network that fits"):
        Superposed.from_pretrained(tmp_path / "net", stem, body, nn.Linear(5, 9))
    assert torch.equal(Superposed.from_pretrained(tmp_path / "net", stem, body, head).head.weight, loaded.head.weight)
    assert loaded.config == model.config
    assert (loaded.config.capacity, loaded.config.dim, loaded.config.features) == (3, 8, 5)
    assert loaded.accuracy == {3: 0.5}
    assert not loaded.training
    assert loaded.binding.keys.requires_grad == options.get("trainable_keys", True)
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], value), name
    images = torch.randn(4, 2, 9, 9).to(dtype)
    assert torch.equal(predict(loaded, images), predict(model, images))
    text = (tmp_path / "net" / "README.md").read_text(encoding="utf-8")
    assert "A CNN that classifies up to 3 images in one pass, in superposition, as in [MIMONets" in text
    assert 'Superposed.from_pretrained("net", stem, body, head)\n' in text
    assert huggingface_hub.ModelCard(text).data.tags == ["image-classification", "mimonets"]


def test_a_shared_weight_stays_shared(tmp_path):
    def tied():
        stem, body, head = nn.Conv2d(2, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), nn.Linear(8, 4)
        body[1].weight = body[0].weight
        return stem, body, head

    Superposed(*tied(), 2, 8).save_pretrained(tmp_path)
    body = Superposed.from_pretrained(tmp_path, *tied()).body.module
    assert body[0].weight is body[1].weight


@unchecked
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda stem, body, head: (stem, body[:1], head), r"missing \[\], unknown \['body\.module\.1\.bias"),
        (lambda stem, body, head: (stem, body.append(nn.Conv2d(5, 5, 1)), head), r"missing \['body\.module\.3\.bias"),
        (lambda stem, body, head: (stem, body, nn.Linear(5, 7)), r"head\.weight has shape \(4, 5\) .*expected \(7, 5\)"),
    ],
)
def test_modules_unlike_the_saved_ones_are_refused(change, named, tmp_path):
    Superposed(*parts(), 2, 8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=named):
        Superposed.from_pretrained(tmp_path, *change(*parts()))


@unchecked
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w | {"binding.keys": w["binding.keys"].fill_(torch.nan)}, r"binding\.keys holds NaN"),
        (lambda w: w | {"binding.keys": w["binding.keys"].double()}, r"dtype torch\.float64, expected \(2, 8\)"),
        (lambda w: {name: value for name, value in w.items() if name != "head.bias"}, r"missing \['head\.bias'\]"),
    ],
)
def test_weights_that_do_not_fit_a_network_put_together_by_hand(change, named, tmp_path):
    Superposed(*parts(), 2, 8).save_pretrained(tmp_path)
    signed(tmp_path, weights=change(weights_in(tmp_path)))
    with pytest.raises(ValueError, match=named):
        Superposed.from_pretrained(tmp_path, *parts())


@unchecked
@pytest.mark.parametrize(
    ("field", "size", "named"),
    [
        ("capacity", 10**9, r"binding\.keys has shape \(2, 8\), expected \(1000000000, 8\)"),
        ("dim", 10**9, r"binding\.keys has shape \(2, 8\), expected \(2, 1000000000\)"),
        ("features", 10**5, r"unbinding\.weight has shape \(2, 5, 5\), expected \(2, 100000, 100000\)"),
        ("features", 5.0, r"config\.features is 5\.0; expected a whole number"),
    ],
)
def test_sizes_are_compared_before_a_network_is_put_together(field, size, named, tmp_path, monkeypatch):
    Superposed(*parts(), 2, 8).save_pretrained(tmp_path)
    signed(tmp_path, {"config": config_in(tmp_path) | {field: size}})
    monkeypatch.setattr(Superposed, "__init__", lambda *_, **__: pytest.fail("it was put together"))
    with pytest.raises(ValueError, match=named):
        Superposed.from_pretrained(tmp_path, *parts())


@unchecked
def test_a_field_without_a_default_must_be_there(tmp_path):
    Superposed(*parts(), 2, 8).save_pretrained(tmp_path)
    config = config_in(tmp_path)
    del config["features"]
    signed(tmp_path, {"config": config})
    with pytest.raises(ValueError, match=r"config\.features is missing; expected a whole number"):
        Superposed.from_pretrained(tmp_path, *parts())


@unchecked
def test_a_network_put_together_by_hand_is_not_taken_for_another(saved, tmp_path):
    Superposed(*parts(), 2, 8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a Superposed, expected a MIMOConv: load it with Superposed\.from_pretrained"):
        MIMOConv.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a MIMOConv, expected a Superposed: load it with MIMOConv\.from_pretrained"):
        Superposed.from_pretrained(saved, *parts())
    with pytest.raises(ValueError, match=r"a Superposed is made of modules of yours: give them to Superposed\.from_pretrained"):
        hub.from_pretrained(tmp_path)
    mixed = Superposed(*parts(), 2, 8)
    mixed.head.double()
    with pytest.raises(ValueError, match=r"head\.weight has .*float64, expected .*float32"):
        mixed.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_push_of_a_network_put_together_by_hand(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert Superposed(*parts(), 2, 8).push_to_hub("net") == "https://huggingface.co/ada/net"
    assert sorted(FakeApi.files) == FILES
    assert 'Superposed.from_pretrained("ada/net", stem, body, head)' in FakeApi.files["README.md"].decode()


@unchecked
def test_only_one_class_is_accepted_on_request(saved):
    assert hub.from_pretrained(saved, kind=MIMOConv).capacity == 4
    with pytest.raises(ValueError, match="mimo holds a MIMOConv, expected a WideResNet"):
        hub.from_pretrained(saved, kind=WideResNet)


def test_device(saved):
    loaded = hub.from_pretrained(saved, device=torch.device("meta"))
    assert {value.device.type for value in loaded.state_dict().values()} == {"meta"}


@unchecked
@pytest.mark.parametrize("source", ["/no/such/folder", "./folder", "a/b/c", "net?", Path("ada/net")])
def test_folders_that_are_not_there(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(FileNotFoundError, match=re.escape(str(source))):
        hub.from_pretrained(source)


@unchecked
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_that_are_not_there(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        hub.from_pretrained(copy)


@unchecked
def test_repositories_that_are_not_there(monkeypatch):
    def download(*_, **__):
        raise OSError("404, repository not found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(OSError, match="404, repository not found") as refusal:
        hub.from_pretrained("ada/net")
    (note,) = refusal.value.__notes__
    assert note == "'ada/net' was taken for a repository on the Hugging Face hub, because no folder has that name"


@unchecked
def test_a_folder_has_no_revision(saved):
    with pytest.raises(ValueError, match="is a folder, which has no revision; got 'v1'"):
        hub.from_pretrained(saved, revision="v1")


@unchecked
def test_packages_that_are_missing(saved, tmp_path, monkeypatch):
    model = small(2)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert hub.from_pretrained(saved).capacity == 4  # needs only safetensors
    for call in (lambda: hub.push_to_hub(model, "ada/net"), lambda: hub.from_pretrained("ada/net")):
        with pytest.raises(
            ImportError, match=r"huggingface_hub is not installed: `pip install 'vsa-core\[hub\]'`, or in a checkout `scripts/uv"
        ):
            call()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: hub.save_pretrained(model, tmp_path / "none"), lambda: hub.from_pretrained(saved)):
        with pytest.raises(
            ImportError, match=r"safetensors is not installed: `pip install 'vsa-core\[hub\]'`, or in a checkout `scripts/uv"
        ):
            call()
    assert not (tmp_path / "none").exists()
