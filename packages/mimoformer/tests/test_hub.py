"""save_pretrained, from_pretrained, push_to_hub: what comes back is bit for bit what went in, or nothing does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

import mimoconv
import mimoformer
from mimoformer import MIMOFormer, MIMOFormerConfig, predict
from mimoformer.hub.card import model_card
from vsa_core.hub.library import DTYPES, digest

FILES = ["README.md", "config.json", "model.safetensors"]
SIZES = {
    "vocab_size": 11,
    "max_length": 8,
    "layers": 2,
    "embed_dim": 8,
    "heads": 2,
    "mlp_dim": 12,
    "features": 6,
    "num_classes": 3,
}
HEADS = ("classes", "pair", "tokens", "last")
unchecked = pytest.mark.unchecked  # of our own errors


def small(**options) -> MIMOFormer:
    return MIMOFormer(MIMOFormerConfig(**SIZES | options))


@pytest.fixture
def saved(tmp_path):
    """A folder to damage."""
    small().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def signed(folder, settings=None, weights=None):
    """Change entries of config.json, or the weights, and sign what comes out, as a program other than ours might."""
    entries = json.loads((folder / "config.json").read_text()) | (settings or {})
    if weights is not None:
        (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights))
    entries.pop("sha256")
    entries["sha256"] = digest(entries, (folder / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, dtype) for dtype in DTYPES.values()]
    + [({"head": head, "variant": variant}, torch.float32) for head in HEADS for variant in ("att", "att+mlp", "blurry")]
    + [({"attention": attention}, torch.float32) for attention in ("relu", "positive", "dpfp")]
    + [({"attention": attention, "head": "tokens"}, torch.float32) for attention in ("positive", "dpfp")]
    + [({"attention": "softmax", "head": head, "m": 1, "n": 1}, torch.float64) for head in HEADS]
    + [({"tied": True, "head": head}, torch.float32) for head in ("tokens", "last")]
    + [({"tokenizer": "words", "words": ("no", "yes"), "class_names": ("a", "b", "c")}, torch.float32)]
    + [({"m": 3, "n": 1, "trainable_keys": True, "pool": "all", "head_dim": 6, "activation": "gelu"}, torch.float32)],
    ids=str,
)
def test_round_trip_is_exact(options, dtype, tmp_path):
    model = small(**options).to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():  # also those that start as zeros or ones
            parameter.add_(torch.randn(parameter.shape) / 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "new" / "folder")
    seed = torch.get_rng_state()
    loaded = MIMOFormer.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(torch.get_rng_state(), seed)  # nothing was drawn
    assert type(loaded) is MIMOFormer
    assert loaded.config == model.config
    assert not any(module.training for module in loaded.modules())
    assert all(module.training for module in model.modules())
    assert loaded.state_dict().keys() == before.keys()
    for name, value in loaded.state_dict().items():
        for other in (before[name], model.state_dict()[name]):
            assert value.dtype == other.dtype
            assert torch.equal(value, other), name
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]  # tied ones once
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    tokens = torch.randint(model.config.vocab_size, (5, 2, 7) if model.config.head == "pair" else (5, 7))
    for m in range(1, model.config.m + 1):
        for n in range(1, model.config.n + 1):
            logits = predict(loaded, tokens, (m, n))
            assert logits.isfinite().all()
            assert_close(logits, predict(model, tokens, (m, n)))  # bits may differ by where weights lie in memory


def test_files(saved):
    assert sorted(os.listdir(saved)) == FILES
    entries = json.loads((saved / "config.json").read_text())
    assert list(entries) == ["class", "mimoformer_version", "dtype", "config", "accuracy", "sha256"]
    assert (entries["class"], entries["dtype"]) == ("MIMOFormer", "float32")
    assert entries["mimoformer_version"] == mimoformer.__version__
    assert MIMOFormerConfig(**entries["config"]) == small().config


@unchecked
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files_are_refused(saved, name):
    whole = (saved / name).read_bytes()
    for damaged in (b"", whole[:-9], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], whole[:-9] + b"?" + whole[-8:]):
        (saved / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(saved))):
            MIMOFormer.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        MIMOFormer.from_pretrained(saved)


@unchecked
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"class": "MIMOConv"}, "class must be one of MIMOFormer, got 'MIMOConv'"),
        ({"m": 3}, r"has shape \(2, 2, \d+\) .*expected \(3, 2, "),
        ({"slots": 4}, r"config\.slots is unknown; expected m, n, "),
        ({"layers": 10**9}, r"describes a network of far more than the \d+ tensors in model\.safetensors"),
        ({"tied": "no"}, r'config\.tied is "no"; expected true or false'),
        ({"variant": "mlp"}, r'config\.variant is "mlp"; expected one of att, att\+mlp, blurry'),
        ({"dropout": False}, r"config\.dropout is false; expected a number"),
        ({"words": "ab"}, r'config\.words is "ab"; expected a list \(each entry text\) or null'),
        ({"attention": "softmax"}, "softmax attention .* needs m = n = 1"),
        ({"attention": "dpfp"}, r"missing \[\], unknown \[.*projection"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(saved, settings, named):
    config = json.loads((saved / "config.json").read_text())["config"]
    signed(saved, settings if "class" in settings else {"config": config | settings})
    with pytest.raises(ValueError, match=named):
        MIMOFormer.from_pretrained(saved)


@unchecked
def test_weights_that_do_not_fit_are_refused(saved):
    weights = safetensors.torch.load((saved / "model.safetensors").read_bytes())
    name, value = next((name, value) for name, value in weights.items() if value.is_floating_point())
    for changed, named in (
        ({key: other for key, other in weights.items() if key != name}, rf"missing \['{re.escape(name)}'\]"),
        (weights | {name: value[:1].clone()}, rf"{re.escape(name)} has shape"),
        (weights | {name: value.double()}, rf"{re.escape(name)} has .*torch\.float64, expected .*torch\.float32"),
        (weights | {name: value * torch.nan}, rf"{re.escape(name)} holds NaN or infinite values"),
    ):
        signed(saved, weights=changed)
        with pytest.raises(ValueError, match=named):
            MIMOFormer.from_pretrained(saved)


@unchecked
def test_networks_of_other_classes_are_refused(saved, tmp_path):
    mimoconv.create_model("mimoconv_10_1").save_pretrained(tmp_path / "conv")
    named = rf"written by mimoconv {mimoconv.__version__}, read by mimoformer .*must be one of MIMOFormer, got 'MIMOConv'"
    with pytest.raises(ValueError, match=named):
        MIMOFormer.from_pretrained(tmp_path / "conv")
    named = rf"written by mimoformer {mimoformer.__version__}, read by mimoconv .*of MIMOConv, WideResNet, Superposed, got"
    with pytest.raises(ValueError, match=named):
        mimoconv.MIMOConv.from_pretrained(saved)

    class Child(MIMOFormer):
        """A network that from_pretrained does not know."""

    with pytest.raises(TypeError, match="model is a Child; only a MIMOFormer has a configuration to save"):
        Child(small().config).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="net holds a MIMOFormer, expected a Child"):
        Child.from_pretrained(saved)
    assert not (tmp_path / "none").exists()


def test_card(tmp_path):
    model = small(n=4)
    accuracy = {(2, 4): 0.9123, (1, 1): 1, (1, 4): 0.0}
    model.save_pretrained(tmp_path / "lists", accuracy=accuracy, command="train --m 2 \\\n  --seed 0\n")
    text = (tmp_path / "lists" / "README.md").read_text(encoding="utf-8")
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.license) == ("mimoformer", "apache-2.0")
    assert data.tags == ["linear-attention", "mimonets", "transformer"]
    assert "# lists\n\nA Transformer that classifies up to 8 sequences in one forward pass, in superposition, as in" in text
    assert "\n|2x4|2|8|relu|att|11|3|\n" in text.replace(" ", "")
    rows = [("sequences per pass", "test accuracy"), ("1 x 1", "100.00 %"), ("1 x 4", "0.00 %"), ("2 x 4", "91.23 %")]
    table = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in text.splitlines() if line.count("|") == 3]
    assert [row for row in table if "-" not in row[0]] == rows
    assert "`pip install 'mimoformer[hub]'`" in text
    assert "```bash\ntrain --m 2 \\\n  --seed 0\n```\n" in text
    assert "predict(model, tokens)  # integers below 11: (count, length), length to 8\n" in text


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"head": "pair"}, "A Transformer that classifies up to 4 pairs in one forward pass, in superposition, as in"),
        (
            {"head": "tokens"},
            "A Transformer that predicts the next token at every position of up to 4 sequences in one forward pass,",
        ),
        ({"head": "last"}, "A Transformer that predicts the token that follows up to 4 sequences in one forward pass,"),
        ({"variant": "blurry"}, "Its sequences share one set of attention weights (blurry attention)"),
        ({"m": 1, "n": 1}, "A plain Performer that classifies one sequence in one forward pass: a baseline of MIMOFormer, as in"),
        (
            {"m": 1, "n": 1, "head": "pair"},
            "A plain Performer that classifies one pair of sequences in one forward pass: a baseline of MIMOFormer",
        ),
    ],
)
def test_cards_of_other_networks(options, about):
    text = model_card(small(**options), "ada/net", None, None)
    assert about in text
    assert "No accuracy was given." in text
    assert "No command was given." in text
    assert ("| classes |" in text) == (options.get("head") not in ("tokens", "last"))


@pytest.mark.parametrize("tokenizer", [None, "ids"])
@pytest.mark.parametrize("head", HEADS)
def test_the_code_of_a_card_runs(head, tokenizer, tmp_path, monkeypatch):
    """With tokens, or with texts where the network has a tokenizer for them."""
    monkeypatch.chdir(tmp_path)
    model = small(head=head, tokenizer=tokenizer)
    model.save_pretrained("net")
    code = re.search(r"```python\n(.*?)\n```", Path("net", "README.md").read_text(), re.DOTALL)[1]
    tokens = torch.randint(1, 11, (3, 2, 5) if head == "pair" else (3, 5))
    texts = [
        [" ".join(map(str, ids)) for ids in pair] if head == "pair" else " ".join(map(str, pair)) for pair in tokens.tolist()
    ]
    found = {"tokens": tokens} if tokenizer is None else {"texts": texts}
    exec(code, found)
    assert_close(found["logits"], predict(model, tokens))


@unchecked
@pytest.mark.parametrize(
    ("accuracy", "named"),
    [
        ({(0, 1): 0.5}, r"given for \(0, 1\); expected a grid \(m, n\) from \(1, 1\) to \(2, 4\)"),
        ({(1, 1): 0.5, (4, 2): 0.5}, r"given for \(4, 2\); expected"),
        ({(1, 5): 0.5}, r"given for \(1, 5\); expected"),
        ({(1.5, 1): 0.5}, r"m must be a whole number, got 1\.5"),
        ({(1, 2.0): 0.5}, r"n must be a whole number, got 2\.0"),
        ({("1", 1): 0.5}, "m must be a whole number, got '1'"),
        ({(1, 1, 1): 0.5}, r"given for \(1, 1, 1\)"),
        ({4: 0.5}, "given for 4; expected a grid"),
        ({"2x2": 0.5}, "given for '2x2'; expected a grid"),
        ({(2, 2): 91.23}, r"for 2 x 2 sequences per pass is 91\.23, expected a share from 0 to 1"),
        ({(2, 2): float("nan")}, "is nan, expected"),
    ],
)
def test_accuracies_that_cannot_be(accuracy, named, tmp_path):
    with pytest.raises(TypeError if "whole number, got" in named else ValueError, match=named):
        small(n=4).save_pretrained(tmp_path / "none", accuracy=accuracy)
    assert not (tmp_path / "none").exists()


class FakeApi:
    """HfApi without a network: the files that it was handed, and the message of the commit."""

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, **_):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/ada/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        FakeApi.commit = repo_id, commit_message
        FakeApi.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}


def test_push_then_load(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    model = small()
    assert model.push_to_hub("net", accuracy={(2, 2): 0.5}) == "https://huggingface.co/ada/net"
    assert FakeApi.commit == ("ada/net", f"MIMOFormer, mimoformer {mimoformer.__version__}")
    assert sorted(FakeApi.files) == FILES
    assert 'MIMOFormer.from_pretrained("ada/net")' in FakeApi.files["README.md"].decode()

    def download(repo_id, *, revision, allow_patterns):
        assert (repo_id, revision) == ("ada/net", "v1")
        for file in allow_patterns:
            (tmp_path / file).write_bytes(FakeApi.files[file])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = MIMOFormer.from_pretrained("ada/net", revision="v1")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@unchecked
def test_packages_that_are_missing(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert MIMOFormer.from_pretrained(saved).config.m == 2  # needs only safetensors
    for call in (lambda: small().push_to_hub("ada/net"), lambda: MIMOFormer.from_pretrained("ada/net")):
        with pytest.raises(
            ImportError, match=r"huggingface_hub is not installed: `pip install 'vsa-core\[hub\]'`, or in a checkout `scripts/uv"
        ):
            call()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: small().save_pretrained(tmp_path / "none"), lambda: MIMOFormer.from_pretrained(saved)):
        with pytest.raises(
            ImportError, match=r"safetensors is not installed: `pip install 'vsa-core\[hub\]'`, or in a checkout `scripts/uv"
        ):
            call()
    assert not (tmp_path / "none").exists()


def test_import_needs_no_package_of_the_hub():
    script = "import sys, mimoformer; assert not {'huggingface_hub', 'safetensors', 'mimoformer.hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
