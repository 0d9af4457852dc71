"""Networks by name: the published table, row by row."""

import pytest
import torch

from mimoformer import MIMOFormer, create_model, list_models
from mimoformer.blocks import AttentionBlock, TransformerBlock
from mimoformer.zoo import image, listops, pathfinder, retrieval, text

TABLE = {  # embed_dim, mlp_dim, head_dim, deep layers x heads, wide heads, positions, vocabulary, classes
    "listops": (listops, 512, 2048, 64, (6, 8), 48, 2048, 32, 10),
    "text": (text, 512, 2048, 64, (6, 8), 48, 4096, 512, 2),
    "retrieval": (retrieval, 128, 512, 32, (4, 4), 16, 4096, 512, 2),
    "image": (image, 64, 128, 64, (3, 4), 12, 1024, 512, 10),
    "pathfinder": (pathfinder, 128, 128, 128, (4, 8), 32, 1024, 512, 2),
}


@pytest.mark.parametrize("task", TABLE)
@pytest.mark.parametrize("size", ["deep", "wide"])
def test_published_configurations(task, size):
    make, embed_dim, mlp_dim, head_dim, deep, wide, positions, vocabulary, classes = TABLE[task]
    config = make(size)
    assert (config.embed_dim, config.mlp_dim, config.head_dim) == (embed_dim, mlp_dim, head_dim)
    assert (config.layers, config.heads) == (deep if size == "deep" else (1, wide))
    assert (config.max_length, config.vocab_size, config.num_classes) == (positions, vocabulary, classes)
    assert (config.features, config.attention, config.activation, config.dropout) == (256, "relu", "relu", 0.1)
    assert (config.pool, config.variant, config.tied, config.trainable_keys) == ("real", "att", False, False)
    assert config.head == ("pair" if task == "retrieval" else "classes")
    assert make(size, m=4, n=4, pool="all").pool == "all"
    assert config.attention_dropout == 0
    assert make(size, m=1, n=1, attention="softmax").attention_dropout == (0 if task == "text" else 0.1)


@pytest.mark.parametrize("name", list_models())
def test_every_listed_network_can_be_created(name):
    family, task, size = name.split("_")
    with torch.device("meta"):
        model = create_model(name)
    assert isinstance(model, MIMOFormer)
    grid = (2, 2) if family == "mimoformer" else (1, 1)
    assert (model.config.m, model.config.n) == grid
    assert type(model.blocks[0]) is (TransformerBlock if family == "transformer" else AttentionBlock)
    assert model.config.layers == (TABLE[task][4][0] if size == "deep" else 1)
    pair = (2,) if task == "retrieval" else ()
    assert model(torch.zeros(3, *grid, *pair, 20, dtype=torch.long, device="meta")).shape == (3, *grid, TABLE[task][-1])


def test_wildcards():
    assert len(list_models()) == 30
    assert list_models("performer_*_wide") == [f"performer_{task}_wide" for task in TABLE]
    assert list_models("none") == []


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "options", "error", "named"),
    [
        ("mimoformer_listop_deep", {}, ValueError, "no network 'mimoformer_listop_deep'; did you mean mimoformer_listops_deep"),
        ("zzz", {}, ValueError, "names are mimoformer or performer or transformer, then _TASK_SIZE"),
        ("mimoformer_text_deep", {"m": 0}, ValueError, "m must be at least 1, got 0"),
        ("mimoformer_text_deep", {"width": 2}, TypeError, "width"),
        ("performer_text_deep", {"m": 2}, TypeError, "m cannot be given for performer_text_deep, a baseline with"),
        (
            "transformer_text_deep",
            {"attention": "relu", "n": 2},
            TypeError,
            "attention, n cannot be given for transformer_text_deep",
        ),
        ("mimoformer_text_deep", {"attention": "softmax"}, ValueError, "softmax attention .* needs m = n = 1"),
    ],
)
def test_what_cannot_be_created(name, options, error, named):
    with pytest.raises(error, match=named):
        create_model(name, **options)


@pytest.mark.unchecked
def test_sizes_are_deep_or_wide():
    with pytest.raises(ValueError, match="size is 'huge'; expected deep or wide"):
        listops("huge")
