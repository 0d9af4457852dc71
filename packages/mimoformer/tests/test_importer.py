"""State dicts of the published code: the same logits as its rules, transcribed in `published`; and the refusals."""

import re

import published
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mimoformer import MIMOFormer, MIMOFormerConfig, import_published, predict

pytestmark = pytest.mark.usefixtures("one_thread")  # sharing out the work of networks this small takes longer
DIM = 4

networks = pytest.mark.parametrize(
    "options",
    [
        {"kind": "performer"},
        {"kind": "performer", "pair": True, "classes": 2, "layers": 1, "heads": 5},
        {"kind": "att"},
        {"kind": "att", "grid": (1, 3), "layers": 3, "features": 6},
        {"kind": "att", "grid": (2, 2), "pair": True, "classes": 2},
        {"kind": "att", "grid": (1, 1)},
        {"kind": "att+mlp", "grid": (2, 2), "layers": 1, "heads": 6},
        {"kind": "att+mlp", "grid": (3, 2), "embed": 8, "hidden": 8, "classes": 10},
        {"kind": "att+mlp", "pair": True},
        {"kind": "softmax"},
        {"kind": "softmax", "pair": True, "heads": 1, "layers": 1},
    ],
    ids=str,
)


def state_dict(
    kind="att", *, grid=(2, 3), layers=2, heads=2, embed=6, hidden=10, features=7, vocab=11, length=9, classes=3, pair=False
) -> dict[str, Tensor]:
    """A state dict as the published code writes it, of random numbers."""
    entries: dict[str, Tensor] = {}

    def linear(name: str, out: int, into: int) -> None:
        entries[f"{name}.weight"] = torch.randn(out, into) * into**-0.5
        entries[f"{name}.bias"] = torch.randn(out)

    def norm(name: str) -> None:
        entries[f"{name}.weight"], entries[f"{name}.bias"] = torch.rand(embed) + 0.5, torch.randn(embed)

    def bipolar(*shape: int) -> Tensor:
        return torch.randint(2, shape) * 2.0 - 1

    entries["model.embeddings.word_embeddings.weight"] = torch.randn(vocab, embed)
    entries["model.embeddings.position_embeddings.weight"] = torch.randn(length, embed)
    for layer in range(layers):
        name = f"model.transformer_{layer}"
        norm(f"{name}.norm1")
        for part in "qkv":
            linear(f"{name}.mha.W_{part}", heads * DIM, embed)
        if kind == "performer":
            entries[f"{name}.mha.attn.attn_fn.projection_matrix"] = torch.randn(features, DIM)
        elif kind != "softmax":
            entries[f"{name}.mha.attn.projection_matrix"] = torch.randn(features, DIM)
            entries[f"{name}.mha.attn.bindings"] = bipolar(1, *grid, 1, 1, DIM)
        if kind == "att+mlp":
            entries[f"{name}.mha.attn.bindings_embedding"] = bipolar(1, *grid, 1, embed)
        linear(f"{name}.mha.ff", embed, heads * DIM)
        norm(f"{name}.norm2")
        linear(f"{name}.mlpblock.0", hidden, embed)
        linear(f"{name}.mlpblock.3", embed, hidden)
    norm("model.norm")
    linear("seq_classifer.mlpblock.0", hidden, embed * (4 if pair else 1))
    linear("seq_classifer.mlpblock.2", classes, hidden)
    return entries


def imported(entries: dict[str, Tensor], options: dict) -> MIMOFormer:
    return import_published(entries, head_dim=DIM if options["kind"] == "softmax" else None)


def as_type(entries: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in entries.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["float64", "float32"])
@networks
def test_logits_are_the_published_ones(options, dtype, tolerance):
    entries = as_type(state_dict(**options), dtype)
    model = imported(entries, options)
    assert not model.training
    tokens = torch.randint(11, (3 * model.capacity, *([2] if options.get("pair") else []), 8))
    expected = published.logits(entries, tokens, DIM)
    assert expected.std(0).max() > 0.01  # sequences differ
    logits = predict(model, tokens)
    assert logits.dtype == dtype
    assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert_close(predict(model, tokens, mask=torch.ones_like(tokens, dtype=torch.bool)), expected, rtol=tolerance, atol=tolerance)


@networks
def test_configuration_is_read_from_the_shapes(options):
    sizes = {"grid": (2, 3), "layers": 2, "heads": 2, "embed": 6, "hidden": 10, "features": 7, "classes": 3} | options
    linear = options["kind"] != "softmax"
    m, n = sizes["grid"] if options["kind"].startswith("att") else (1, 1)
    assert imported(state_dict(**options), options).config == MIMOFormerConfig(
        m=m,
        n=n,
        vocab_size=11,
        max_length=9,
        layers=sizes["layers"],
        embed_dim=sizes["embed"],
        heads=sizes["heads"],
        head_dim=DIM,
        mlp_dim=sizes["hidden"],
        variant="att+mlp" if options["kind"] == "att+mlp" else "att",
        attention="relu" if linear else "softmax",
        features=sizes["features"] if linear else 256,
        head="pair" if options.get("pair") else "classes",
        num_classes=sizes["classes"],
        pool="all",
    )


def test_padding_counts_as_a_place_and_for_nothing_else():
    """Positions and means are over all places, as published; the published attention would also see 0.001 of each padding."""
    entries = as_type(state_dict("softmax"), torch.float64)
    tokens, mask = torch.randint(11, (4, 9)), torch.arange(9) < 7
    short = published.logits(entries, tokens[:, :7], DIM)
    model = import_published(entries, head_dim=DIM)
    features = model.encode(tokens[:, None, None, :7], None).sum(-2) / 9
    assert_close(predict(model, tokens, mask=mask.expand(4, 9)), model.head(features)[:, 0, 0])
    assert (predict(model, tokens, mask=mask.expand(4, 9)) - short).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["performer", "att", "att+mlp", "softmax"])
def test_names_of_parallel_training(kind):
    entries = state_dict(kind)
    model = imported({f"module.{name}": value for name, value in entries.items()}, {"kind": kind})
    assert_close(model.state_dict(), imported(entries, {"kind": kind}).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_keep_their_type(dtype):
    for kind in ("performer", "att+mlp"):
        for name, value in import_published(as_type(state_dict(kind), dtype)).state_dict().items():
            assert value.dtype == dtype, name


@pytest.mark.parametrize("kind", ["performer", "att", "att+mlp", "softmax"])
def test_the_network_trains_and_leaves_the_state_dict_alone(kind):
    """Binding keys and projections stay fixed, as they were."""
    entries = state_dict(kind)
    for value in entries.values():
        value.requires_grad_()
    before = {name: value.detach().clone() for name, value in entries.items()}
    model = imported(entries, {"kind": kind}).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(torch.randint(11, (4, model.config.m, model.config.n, 9))).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.is_leaf, name
        assert parameter.requires_grad != name.endswith("keys"), name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name
    optimizer.step()
    for name, value in entries.items():
        assert torch.equal(value, before[name]), name
        assert value.grad is None, name


def test_the_network_is_a_normal_one():
    """Its configuration rebuilds it, and its state dict loads there; importing takes no random numbers."""
    entries = state_dict("att+mlp")
    state = torch.random.get_rng_state()
    model = import_published(entries)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = MIMOFormer(model.config).eval()
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(11, (7, 9))
    for grid in ((1, 1), (2, 1), (2, 3)):
        assert_close(predict(again, tokens, grid), predict(model, tokens, grid))


WORDS, PLACES = "model.embeddings.word_embeddings.weight", "model.embeddings.position_embeddings.weight"
FIRST = "model.transformer_0"
ATTENTION = f"{FIRST}.mha.attn"
NAN = torch.tensor(float("nan"))

refusals = [
    # missing
    ({}, {WORDS: None}, f"{WORDS} is missing; expected a tensor (vocab embedding)"),
    ({}, {PLACES: None}, f"{PLACES} is missing; expected a tensor (length embedding)"),
    ({}, {f"{FIRST}.mha.W_q.weight": None}, f"{FIRST}.mha.W_q.weight is missing; expected a tensor (heads*d embedding)"),
    ({}, {f"{FIRST}.mha.W_v.bias": None}, f"missing: {FIRST}.mha.W_v.bias (8,)"),
    ({}, {f"{ATTENTION}.bindings": None}, f"{ATTENTION}.bindings is missing; expected a tensor (1 M N 1 1 d)"),
    ({}, {f"{ATTENTION}.projection_matrix": None}, f"{ATTENTION}.projection_matrix is missing; expected a tensor (features d)"),
    ({}, {"model.transformer_1.mha.attn.bindings": None}, "missing: model.transformer_1.mha.attn.bindings (1, 2, 3, 1, 1, 4)"),
    (
        {"kind": "att+mlp"},
        {"model.transformer_1.mha.attn.bindings_embedding": None},
        "missing: model.transformer_1.mha.attn.bindings_embedding (1, 2, 3, 1, 6)",
    ),
    (
        {"kind": "performer"},
        {"model.transformer_1.mha.attn.attn_fn.projection_matrix": None},
        "missing: model.transformer_1.mha.attn.attn_fn.projection_matrix (7, 4)",
    ),
    ({}, {"model.norm.bias": None}, "missing: model.norm.bias (6,)"),
    ({}, {"seq_classifer.mlpblock.2.weight": None}, "seq_classifer.mlpblock.2.weight is missing"),
    # surplus
    ({}, {"model.transformer_0.norm3.weight": torch.zeros(6)}, "surplus: model.transformer_0.norm3.weight (6,)"),
    ({}, {"module.model.norm.weight": torch.zeros(6)}, "surplus: module.model.norm.weight (6,)"),
    ({"kind": "performer"}, {f"{ATTENTION}.bindings": torch.ones(1, 1, 1, 1, 1, 4)}, f"surplus: {ATTENTION}.bindings"),
    ({}, {"model.transformer_7.norm1.weight": torch.zeros(6)}, "surplus: model.transformer_7.norm1.weight (6,)"),
    # misshapen
    ({}, {WORDS: torch.zeros(11, 0)}, f"{WORDS} has shape (11, 0); expected (vocab embedding), none of them 0"),
    ({}, {PLACES: torch.zeros(9, 5)}, f"{PLACES} has shape (9, 5); expected (9, 6)"),
    ({}, {f"{ATTENTION}.bindings": torch.ones(2, 3, 4)}, f"{ATTENTION}.bindings has shape (2, 3, 4); expected (1 M N 1 1 d)"),
    (
        {},
        {f"{ATTENTION}.bindings": torch.ones(1, 2, 3, 1, 1, 3)},
        f"{FIRST}.mha.W_q.weight has 8 rows; expected a multiple of 3, the dimension of a head",
    ),
    ({}, {f"{FIRST}.mha.W_k.weight": torch.zeros(6, 8)}, f"{FIRST}.mha.W_k.weight has shape (6, 8); expected (8, 6)"),
    (
        {},
        {"model.transformer_1.mha.attn.bindings": torch.ones(1, 3, 2, 1, 1, 4)},
        "model.transformer_1.mha.attn.bindings has shape (1, 3, 2, 1, 1, 4); expected (1, 2, 3, 1, 1, 4)",
    ),
    (
        {},
        {"seq_classifer.mlpblock.0.weight": torch.zeros(10, 12)},
        "seq_classifer.mlpblock.0.weight has shape (10, 12); expected (10, 6)",
    ),
    # numbers
    ({}, {"model.norm.bias": NAN.repeat(6)}, "model.norm.bias holds NaN or infinite values"),
    ({}, {f"{ATTENTION}.projection_matrix": NAN.repeat(7, 4)}, f"{ATTENTION}.projection_matrix holds NaN"),
    ({}, {"model.norm.bias": torch.zeros(6).double()}, "model.norm.bias is torch.float64; expected one floating-point type"),
    ({}, {WORDS: torch.zeros(11, 6).int()}, f"{WORDS} is torch.int32; expected one floating-point type"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(("options", "changes", "named"), refusals, ids=[named.split(";")[0][:70] for _, _, named in refusals])
def test_entries_that_do_not_fit(options, changes, named):
    entries = state_dict(**options) | changes
    with pytest.raises(ValueError, match=re.escape(named)):
        import_published({name: value for name, value in entries.items() if value is not None})


@pytest.mark.unchecked
def test_the_dimension_of_a_head():
    with pytest.raises(ValueError, match="do not tell the dimension of a head; give head_dim"):
        import_published(state_dict("softmax"))
    with pytest.raises(ValueError, match=r"W_q\.weight has 8 rows; expected a multiple of 3"):
        import_published(state_dict("softmax"), head_dim=3)
    with pytest.raises(ValueError, match="head_dim must be at least 1, got 0"):
        import_published(state_dict("softmax"), head_dim=0)
    with pytest.raises(ValueError, match="head_dim is 2, and the entries have heads of dimension 4; leave it out"):
        import_published(state_dict("att"), head_dim=2)
    assert import_published(state_dict("att"), head_dim=4).config.heads == 2


@pytest.mark.unchecked
def test_what_is_no_state_dict():
    entries = state_dict()
    with pytest.raises(ValueError, match=r"word_embeddings\.weight is missing"):
        import_published({})
    with pytest.raises(TypeError, match=r"model\.norm\.bias is a list; expected a tensor"):
        import_published(entries | {"model.norm.bias": [0.0] * 6})
    with pytest.raises(TypeError, match=r"model_state_dict is a dict; expected a tensor: is this a checkpoint around"):
        import_published({"model_state_dict": entries})
    with pytest.raises(TypeError, match="state_dict is a str; expected a mapping"):
        import_published("model_best.pth.tar")
