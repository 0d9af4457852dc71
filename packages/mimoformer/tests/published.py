"""The rules of the authors' code (IBM/multiple-input-multiple-output-nets), transcribed token by token."""

import torch
from torch import Tensor
from torch.nn import functional as F


def features(x: Tensor, projection: Tensor) -> Tensor:
    """Random features of one vector."""
    return F.relu(projection @ (x * len(x) ** -0.25)) + 0.001


def attention(q: Tensor, k: Tensor, v: Tensor, bindings: Tensor, projection: Tensor, *, shared: bool) -> Tensor:
    """FAVOR+S of q, k, v (b m n h l d) without padding; (b n h l d), still in superposition, where one denominator is shared."""
    b, m, n, h, length, d = q.shape
    q, k = q / (d**0.5 * m * n) ** 0.5, k / (d**0.5 * m * n) ** 0.5
    out = q.new_zeros(b, n, h, length, d) if shared else torch.zeros_like(q)
    for group in range(b):
        for head in range(h):
            matrix, weights = 0, [0] * m
            for row in range(m):
                for token in range(length):
                    key = sum(k[group, row, column, head, token] * bindings[row, column] for column in range(n))
                    value = sum(v[group, row, column, head, token] * bindings[row, column] for column in range(n))
                    phi = features(key, projection)
                    matrix = matrix + torch.outer(value, phi)
                    weights[row] = weights[row] + phi
            for column in range(n):
                for token in range(length):
                    query = sum(q[group, row, column, head, token] * bindings[row, column] for row in range(m))
                    phi = features(query, projection)
                    if shared:
                        out[group, column, head, token] = matrix @ phi / (sum(weights) @ phi)
                        continue
                    for row in range(m):
                        out[group, row, column, head, token] = matrix @ phi / (weights[row] @ phi) * bindings[row, column]
    return out


def linear(entries: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A linear layer of the state dict."""
    return x @ entries[f"{name}.weight"].mT + entries[f"{name}.bias"]


def norm(entries: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A LayerNorm of the state dict."""
    return F.layer_norm(x, x.shape[-1:], entries[f"{name}.weight"], entries[f"{name}.bias"])


def transformer(entries: dict[str, Tensor], name: str, x: Tensor, dim: int) -> Tensor:
    """One layer of sequences (count l e) that fill grids in order."""
    y = norm(entries, f"{name}.norm1", x)
    q, k, v = (linear(entries, f"{name}.mha.W_{part}", y).unflatten(-1, (-1, dim)).transpose(1, 2) for part in "qkv")
    inner = f"{name}.mha.attn."
    keys = entries.get(f"{inner}bindings_embedding")
    if f"{inner}attn_fn.projection_matrix" in entries:  # a grid of 1 x 1, and no keys
        q, k, v = (part[:, None, None] for part in (q, k, v))
        ones = torch.ones(1, 1, dim, dtype=x.dtype)
        out = attention(q, k, v, ones, entries[f"{inner}attn_fn.projection_matrix"], shared=True)[:, 0]
    elif f"{inner}bindings" in entries:
        bindings = entries[f"{inner}bindings"][0, :, :, 0, 0]
        q, k, v = (part.unflatten(0, (-1, *bindings.shape[:2])) for part in (q, k, v))
        projection = entries[f"{inner}projection_matrix"]
        out = attention(q, k, v, bindings, projection, shared=keys is not None).flatten(0, -4)
    else:
        out = (q @ k.mT / dim**0.5).softmax(-1) @ v
    if keys is not None:
        x = (x.unflatten(0, (-1, *keys.shape[1:3])) * keys).sum(1).flatten(0, 1)
    x = x + linear(entries, f"{name}.mha.ff", out.transpose(1, 2).flatten(-2))
    hidden = F.relu(linear(entries, f"{name}.mlpblock.0", norm(entries, f"{name}.norm2", x)))
    x = x + linear(entries, f"{name}.mlpblock.3", hidden)
    return x if keys is None else (x.unflatten(0, (-1, 1, keys.shape[2])) * keys).flatten(0, 2)


def logits(entries: dict[str, Tensor], tokens: Tensor, dim: int) -> Tensor:
    """Logits (count classes) of sequences (count l) without padding, or of pairs of them (count 2 l)."""

    def mean(tokens: Tensor) -> Tensor:
        positions = entries["model.embeddings.position_embeddings.weight"][: tokens.shape[1]]
        x, layer = entries["model.embeddings.word_embeddings.weight"][tokens] + positions, 0
        while f"model.transformer_{layer}.norm1.weight" in entries:
            x, layer = transformer(entries, f"model.transformer_{layer}", x, dim), layer + 1
        return norm(entries, "model.norm", x).mean(1)

    features = mean(tokens) if tokens.dim() == 2 else [mean(tokens[:, 0]), mean(tokens[:, 1])]
    if isinstance(features, list):
        one, two = features
        features = torch.cat([one, two, one * two, one - two], -1)
    return linear(entries, "seq_classifer.mlpblock.2", F.relu(linear(entries, "seq_classifer.mlpblock.0", features)))
