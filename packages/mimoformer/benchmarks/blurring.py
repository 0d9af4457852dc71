"""Attention weights of superposed sequences: what is left of them under one softmax for all slots, and under FAVOR+S.

usage: python packages/mimoformer/benchmarks/blurring.py [--seeds 20] [--out docs/blurring.png]

Prints the errors as a table and draws them, with the weights of two slots. Every slot has the same attention keys, rows of a
Hadamard matrix, and its own rule by which a token looks for another, so that the exact weights are the same at every dim. The
weights of a slot are read off exactly: they are the map from its values to its output while the values of the others are 0.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from einops import rearrange
from torch import Tensor

from mimoformer.attention import favor_s, favor_s_blurry, linear_attention, softmax_attention
from mimoformer.blurring import superposed_softmax
from mimoformer.bundles import bind_real_tokens
from mimoformer.features import ReLUFeatures
from vsa_core import hadamard

TOKENS, SCORE = 16, 5.0
"""Tokens of a sequence; <q, k> / sqrt(dim) of a query and the key that it looks for."""
FEATURES, MANY_FEATURES, MANY_DIM = 256, 16_384, 512
"""Random features of the ReLU map; and how many, at which dim, show what is left of its error when neither is small."""
DIMS = (32, 64, 128, 256, 512, 1024, 2048)
SHOWN = 256
"""The dim of the maps in the picture."""
TOKEN = torch.arange(TOKENS)
RULES = [[(TOKEN - 1) % TOKENS, TOKEN - TOKEN % 4], [(TOKEN + 5) % TOKENS, TOKENS - 1 - TOKEN]]
"""The token that each looks for, for every slot of a 2 x 2 grid: the one before, the first of its four, five on, the mirrored."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def sequences(dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (1 m n 1 l d), and binding keys (m n d)."""
    rows = torch.ones(1, 1, dtype=torch.float64)
    while len(rows) < dim:
        rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
    k = math.sqrt(SCORE) * dim**-0.25 * rows[torch.randperm(dim, generator=generator)[:TOKENS]]
    q = torch.stack([torch.stack([k[sought] for sought in row]) for row in RULES])[None, :, :, None]
    keys = hadamard.random_keys(4, dim, generator=generator, dtype=torch.float64)
    return q, k.expand_as(q), rearrange(keys, "(m n) d -> m n d", m=2)


def weights(attend: Attend, q: Tensor, k: Tensor) -> Tensor:
    """The map from a slot's values, unit vectors, to its output, for every slot (m n i j); the values of the others are 0."""
    found = []
    for slot in range(4):
        v = torch.zeros_like(q)
        v.flatten(1, 2)[0, slot, 0] = torch.eye(TOKENS, q.shape[-1])
        found.append(attend(q, k, v).flatten(1, 2)[0, slot, 0, :, :TOKENS])
    return rearrange(found, "(m n) i j -> m n i j", m=2)


def alone(phi: Callable[[Tensor], Tensor]) -> Attend:
    """Linear attention of each sequence by itself."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = linear_attention(*(rearrange(x, "1 m n 1 l d -> (m n) 1 l d") for x in (q, k, v)), phi)
        return rearrange(out, "(m n) 1 l d -> 1 m n 1 l d", m=2)

    return attend


def exact_features(landmarks: Tensor) -> Callable[[Tensor], Tensor]:
    """phi with phi(x) . phi(z) = exp(<x, z> / sqrt(d)) for each landmark z and any x: softmax, without error of the kernel."""
    scale = landmarks.shape[-1] ** -0.5
    inverse_root = torch.linalg.inv(torch.linalg.cholesky((landmarks @ landmarks.T * scale).exp()))
    return lambda x: (x @ landmarks.T * scale).exp() @ inverse_root.T


def distance(one: Tensor, other: Tensor) -> float:
    """Mean total variation between rows: the share of the weight that lies on other tokens."""
    return (one - other).abs().sum(-1).mean().item() / 2


def relu_errors(dim: int, features: int, seed: int) -> tuple[float, float, float]:
    """Distances of the ReLU map: FAVOR+S and blurry attention from each sequence alone, and that from softmax."""
    generator = torch.Generator().manual_seed(seed)
    q, k, keys = sequences(dim, generator)
    relu = ReLUFeatures(dim, features, generator=generator).double()
    by_itself, shared = weights(alone(relu), q, k), weights(lambda q, k, v: favor_s(q, k, v, keys, relu), q, k)
    blurry = weights(lambda q, k, v: favor_s_blurry(q, k, v, keys, relu), q, k)
    return distance(shared, by_itself), distance(blurry, by_itself), distance(by_itself, weights(softmax_attention, q, k))


def measure(dim: int, seed: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Maps of all slots, and their mean distances."""
    generator = torch.Generator().manual_seed(seed)
    q, k, keys = sequences(dim, generator)
    phi = exact_features(torch.cat([bind_real_tokens(q, k, k, keys, None)[1].sum(2).flatten(0, -2), k[0, 0, 0, 0]]))
    maps = {
        "exact": weights(softmax_attention, q, k),
        "FAVOR+S": weights(lambda q, k, v: favor_s(q, k, v, keys, phi), q, k),
        "superposed softmax": weights(lambda q, k, v: superposed_softmax(q, k, v, keys), q, k),
    }
    torch.testing.assert_close(weights(alone(phi), q, k), maps["exact"])
    shared, blurry, by_itself = relu_errors(dim, FEATURES, seed)
    return maps, {
        "superposed softmax": distance(maps["superposed softmax"], maps["exact"]),
        "FAVOR+S": distance(maps["FAVOR+S"], maps["exact"]),
        "FAVOR+S, ReLU": shared,
        "blurry, ReLU": blurry,
        "ReLU alone": by_itself,
    }


def floor(exact: Tensor) -> float:
    """What no weights that all slots share can go below: half the mean distance between the weights of two slots."""
    slots = exact.flatten(0, 1)
    return sum(distance(slots[s], slots[t]) for s in range(4) for t in range(s)) / 6 / 2


def relu_limit() -> float:
    """Distance of the ReLU map's weights in superposition from those alone, for many features and a large dim.

    The kernel of ReLU features is |x||y| (sin t + (pi - t) cos t) / (2 pi) with the angle t between x and y (Cho and Saul, 2009);
    bundling leaves <x, y> but makes the vectors longer, so it divides cos t by sqrt(m n) = 2.
    """

    def share(cosine: float) -> float:
        angle = math.acos(cosine)
        sought = math.sin(angle) + (math.pi - angle) * cosine
        return sought / (sought + TOKENS - 1)

    return share(1) - share(1 / 2)


def draw(maps: dict[str, Tensor], errors: dict[int, dict[str, float]], path: Path) -> None:
    """Two slots' weights on the left, the errors on the right."""
    figure = plt.figure(figsize=(10.5, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.3, 1))
    grid = left.subplots(2, 3, sharex=True, sharey=True)
    for row, (slot, name) in zip(grid, {(0, 0): "slot (1, 1)", (1, 1): "slot (2, 2)"}.items(), strict=True):
        for axes, found in zip(row, maps.values(), strict=True):
            image = axes.imshow(found[slot], vmin=0, vmax=1, cmap="Blues")
            axes.set(xticks=[0, 5, 10, 15], yticks=[0, 5, 10, 15])
        row[0].set_ylabel(f"{name}\nquery")
    for axes, method in zip(grid[0], maps, strict=True):
        axes.set_title(method, fontsize=10.5)
    grid[1, 1].set_xlabel(f"key; weights of two of the four slots at dim {SHOWN}")
    left.colorbar(image, ax=grid, shrink=0.8, pad=0.02)

    axes = right.subplots()
    lines = {
        "superposed softmax": ("s-", "#c2410c", "superposed softmax"),
        "FAVOR+S, ReLU": ("^-", "#6b7280", f"FAVOR+S, {FEATURES} ReLU features,\nagainst the same map alone"),
        "FAVOR+S": ("o-", "#1d4ed8", "FAVOR+S, exact kernel"),
    }
    for method, (style, colour, label) in lines.items():
        axes.loglog(DIMS, [errors[dim][method] for dim in DIMS], style, color=colour, label=label, markersize=5)
    axes.axhline(floor(maps["exact"]), color="#c2410c", linestyle=":", label="no shared weights get below")
    at = errors[DIMS[-1]]["FAVOR+S"]
    axes.loglog(DIMS, [at * math.sqrt(DIMS[-1] / dim) for dim in DIMS], ":", color="#1d4ed8", label="1/sqrt(dim)")
    axes.set(xlabel="dim of a head", ylabel="error of the weights (total variation)", ylim=(0.008, 1), xticks=DIMS)
    axes.set_xticks(DIMS, [str(dim) for dim in DIMS], rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    right.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="draws of the attention keys, binding keys and features")
    parser.add_argument("--out", type=Path, default=Path("docs/blurring.png"))
    args = parser.parse_args()
    errors = {}
    for dim in DIMS:
        found = [measure(dim, seed)[1] for seed in range(args.seeds)]
        errors[dim] = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    maps = measure(SHOWN, 0)[0]
    print("| dim |", " | ".join(errors[SHOWN]), "|")
    print("| ---: |", " | ".join("---:" for _ in errors[SHOWN]), "|")
    for dim, row in errors.items():
        print(f"| {dim} |", " | ".join(f"{error:.3f}" for error in row.values()), "|")
    many = [relu_errors(MANY_DIM, MANY_FEATURES, seed)[0] for seed in range(args.seeds)]
    print(f"ReLU with {MANY_FEATURES:,} features at dim {MANY_DIM}: {sum(many) / len(many):.3f}, theory {relu_limit():.3f}")
    print(f"floor of shared weights {floor(maps['exact']):.3f}")
    draw(maps, errors, args.out)


if __name__ == "__main__":
    main()
