"""The definitions, written as loops over every axis, so plainly that they cannot be wrong."""

from collections.abc import Callable

import torch
from torch import Tensor


def favor_s(q, k, v, keys, phi: Callable[[Tensor], Tensor], mask, *, causal: bool, shared: bool = False) -> Tensor:
    """Eq. 19 token by token; sums and denominators go over real tokens only."""
    b, m, n, h, length, d = q.shape
    out = q.new_zeros(b, n, h, length, d) if shared else torch.zeros_like(q)

    def bundle(x, group, head, token, slots):
        real = [slot for slot in slots if mask[group, *slot, token]]
        return sum(x[group, *slot, head, token] * keys[slot] for slot in real) if real else None

    for group in range(b):
        for head in range(h):
            for token in range(length):
                for column in range(n):
                    query = bundle(q, group, head, token, [(row, column) for row in range(m)])
                    if query is None:
                        continue
                    numerator, denominators = q.new_zeros(d), q.new_zeros(m)
                    for other in range(token + 1 if causal else length):
                        for row in range(m):
                            slots = [(row, c) for c in range(n)]
                            key = bundle(k, group, head, other, slots)
                            if key is None:
                                continue
                            weight = phi(key) @ phi(query)
                            numerator = numerator + weight * bundle(v, group, head, other, slots)
                            if mask[group, row, column, other]:
                                denominators = denominators + weight * torch.eye(m, dtype=q.dtype)[row]
                    if shared:
                        total = denominators.sum()
                        out[group, column, head, token] = numerator / total if total > 0 else 0 * numerator
                        continue
                    for row in range(m):
                        if mask[group, row, column, token] and denominators[row] > 0:
                            out[group, row, column, head, token] = numerator / denominators[row] * keys[row, column]
    return out


def blurry(q, k, v, keys, weight: Callable[[Tensor, Tensor], Tensor], mask, *, causal: bool) -> Tensor:
    """One attention over the sum of all slots, token by token; a slot is divided by the weights of its own real tokens."""
    b, m, n, h, length, _ = q.shape
    slots = [(row, column) for row in range(m) for column in range(n)]
    out = torch.zeros_like(q)

    def bundle(x, group, head, token):
        return sum(x[group, *slot, head, token] * keys[slot] for slot in slots if mask[group, *slot, token])

    for group, head, token in [(g, i, j) for g in range(b) for i in range(h) for j in range(length)]:
        for slot in [slot for slot in slots if mask[group, *slot, token]]:
            numerator, denominator = torch.zeros_like(out[0, 0, 0, 0, 0]), 0.0
            for other in [j for j in range(token + 1 if causal else length) if mask[group, ..., j].any()]:
                score = weight(bundle(q, group, head, token), bundle(k, group, head, other))
                numerator = numerator + score * bundle(v, group, head, other)
                denominator = denominator + score * mask[group, *slot, other]
            if denominator > 0:
                out[group, *slot, head, token] = numerator / denominator * keys[slot]
    return out


def softmax(q, k, v, mask, *, causal: bool) -> Tensor:
    """Exact attention (b h l d) of every real token over the real ones that it sees."""
    out = torch.zeros_like(q)
    b, h, length, d = q.shape
    for group in range(b):
        for head in range(h):
            for token in range(length):
                seen = [j for j in range(token + 1 if causal else length) if mask[group, j]]
                if not mask[group, token] or not seen:
                    continue
                scores = torch.stack([q[group, head, token] @ k[group, head, j] / d**0.5 for j in seen])
                weights = scores.exp() / scores.exp().sum()
                out[group, head, token] = sum(w * v[group, head, j] for w, j in zip(weights, seen, strict=True))
    return out


def dpfp(x: Tensor, nu: int, eps: float) -> Tensor:
    """Schlag et al., 2021, one vector at a time."""
    x = [value / len(x) ** 0.25 for value in x.tolist()]
    r = [max(value, 0.0) for value in [*x, *(-value for value in x)]]
    return torch.tensor([r[i] * r[(i - s) % len(r)] + eps for s in range(1, nu + 1) for i in range(len(r))], dtype=torch.float64)
