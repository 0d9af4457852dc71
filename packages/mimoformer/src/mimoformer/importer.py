"""Imports weights of the authors' own code (IBM/multiple-input-multiple-output-nets) into the networks of this package.

Every entry of our state dict comes from the published entries, one or three, that `published_names` names and `published_shape`
describes.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mimoformer.config import MIMOFormerConfig
from mimoformer.model import MIMOFormer
from vsa_core import checks
from vsa_core.hub.entries import check_entry_names, check_entry_values, entry_shape, published_entries

__all__ = ["import_published"]

RENAMES = {
    "embedding.weight": "model.embeddings.word_embeddings.weight",
    "positions": "model.embeddings.position_embeddings.weight",
    "norm.": "model.norm.",
    "head.": "seq_classifer.mlpblock.",
    "blocks.": "model.transformer_",
    ".mlp.": ".mlpblock.",
    ".skip_keys": ".mha.attn.bindings_embedding",
    ".attention.keys": ".mha.attn.bindings",
    ".attention.feature_map.projection": ".mha.attn.projection_matrix",
    ".attention.out": ".mha.ff",
}
"""Parts of our names, and of the published ones."""
QKV = ".attention.qkv"
FIRST = "model.transformer_0.mha."
"""Beginning of the names of the first block's attention."""
PERFORMER = f"{FIRST}attn.attn_fn.projection_matrix"
EMBEDDING = "model.embeddings.word_embeddings.weight"


def import_published(state_dict: Mapping[str, Tensor], *, head_dim: int | None = None) -> MIMOFormer:
    """Make a network from a state dict of the published `ModelForSC` or `ModelForSCDual`, with the same logits in eval mode.

    MIMOFormer (att.) and (att.+MLP), called mimoformer and blockformer there, and their baselines, the Performer and the softmax
    Transformer, can be imported, with any grid and sizes, if every layer has weights of its own and positions are learned.
    Checkpoints of the published training, such as model_best.pth.tar, hold the state dict as `model_state_dict`. The network has
    the type and device of the entries, shares no memory with them and is in eval mode. Dropout rates, tokenizer and class names,
    which a state dict does not hold, keep their defaults; the feature map is taken to be relu, as in all published settings.

    Logits are equal where there is no padding. With padding, positions and means go over all places here too (`pool="all"`), but
    the published attention counts padding in its denominators and lets its queries into bundles; here it contributes nothing.

    Args:
        state_dict: tensors by name; all names may have the prefix `module.` of DataParallel.
        head_dim: d, the dimension of a head, of a softmax Transformer; the others' entries tell it.

    Raises:
        TypeError: `state_dict` is not a mapping, an entry is not a tensor, or `head_dim` is not a whole number.
        ValueError: an entry is missing, surplus, of another shape or type than the others imply, or not finite; or `head_dim` is
            missing, or does not fit.

    Source: Menet et al., 2023, and its published code, `model_wrapper.py`.
    """
    entries = published_entries(state_dict)
    config = published_config(entries, head_dim)
    with torch.device("meta"):
        model = MIMOFormer(config)
    ours = model.state_dict()
    sources = {name: published_names(name, performer=PERFORMER in entries) for name in ours}
    shapes = {source: published_shape(name, value.shape) for name, value in ours.items() for source in sources[name]}
    check_entry_names(entries, shapes)
    check_entry_values(entries, shapes, like=EMBEDDING)
    weights = {}
    for name, like in ours.items():
        parts = [entries[source].detach() for source in sources[name]]  # a Performer has no binding keys; ours are ones
        weights[name] = torch.cat(parts).reshape(like.shape) if parts else entries[EMBEDDING].new_ones(like.shape)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def published_config(entries: Mapping[str, Tensor], head_dim: int | None) -> MIMOFormerConfig:
    """Return the configuration that the shapes of a few entries imply."""
    vocab_size, embed_dim = entry_shape(entries, EMBEDDING, "vocab embedding")
    attention = attention_options(entries, head_dim)
    dim, inner = attention["head_dim"], entry_shape(entries, f"{FIRST}W_q.weight", "heads*d embedding")[0]
    if head_dim not in (None, dim):
        raise ValueError(f"head_dim is {head_dim}, and the entries have heads of dimension {dim}; leave it out")
    if inner % dim:
        raise ValueError(f"{FIRST}W_q.weight has {inner} rows; expected a multiple of {dim}, the dimension of a head")
    features_in = entry_shape(entries, "seq_classifer.mlpblock.0.weight", "hidden features")[1]
    return MIMOFormerConfig(
        vocab_size=vocab_size,
        max_length=entry_shape(entries, "model.embeddings.position_embeddings.weight", "length embedding")[0],
        layers=len({match[1] for match in map(re.compile(r"model\.transformer_(\d+)\.").match, entries) if match}),
        embed_dim=embed_dim,
        heads=inner // dim,
        mlp_dim=entry_shape(entries, "model.transformer_0.mlpblock.0.weight", "hidden embedding")[0],
        head="pair" if features_in == 4 * embed_dim else "classes",
        num_classes=entry_shape(entries, "seq_classifer.mlpblock.2.weight", "classes hidden")[0],
        pool="all",
        **attention,
    )


def attention_options(entries: Mapping[str, Tensor], head_dim: int | None) -> dict[str, Any]:
    """Return what the first block's attention says of the configuration: its kind, grid, features and dimension of a head."""
    if PERFORMER in entries:
        features, dim = entry_shape(entries, PERFORMER, "features d")
        return {"m": 1, "n": 1, "features": features, "head_dim": dim}
    if any(name.startswith(f"{FIRST}attn.") for name in entries):
        _, m, n, _, _, dim = entry_shape(entries, f"{FIRST}attn.bindings", "1 M N 1 1 d")
        features, _ = entry_shape(entries, f"{FIRST}attn.projection_matrix", "features d")
        variant = "att+mlp" if f"{FIRST}attn.bindings_embedding" in entries else "att"
        return {"m": m, "n": n, "variant": variant, "features": features, "head_dim": dim}
    if head_dim is None:
        raise ValueError("entries of a softmax Transformer do not tell the dimension of a head; give head_dim")
    checks.positive(head_dim=head_dim)
    return {"m": 1, "n": 1, "attention": "softmax", "head_dim": head_dim}


def published_names(name: str, *, performer: bool) -> tuple[str, ...]:
    """Return the published names of what an entry of ours is made of: none for the keys of a Performer, three for qkv."""
    for ours, theirs in RENAMES.items():
        name = name.replace(ours, theirs)
    if performer:
        if name.endswith(".bindings"):
            return ()
        name = name.replace(".projection_matrix", ".attn_fn.projection_matrix")
    return tuple(name.replace(QKV, f".mha.W_{part}") for part in "qkv") if QKV in name else (name,)


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the published entries that an entry of ours is made of."""
    if QKV in name:
        return shape[0] // 3, *shape[1:]
    if name.endswith(".attention.keys"):
        m, n, dim = shape
        return 1, m, n, 1, 1, dim
    if name.endswith(".skip_keys"):
        m, n, dim = shape
        return 1, m, n, 1, dim
    return tuple(shape)
