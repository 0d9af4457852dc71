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
