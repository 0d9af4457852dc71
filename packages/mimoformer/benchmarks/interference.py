"""Noise between the slots of FAVOR+S: of its scores and of its outputs, beside theory.

usage: python packages/mimoformer/benchmarks/interference.py [--draws 2000] [--seeds 20] [--out docs/favor_s_noise.png]

Prints three tables and draws their figures.

Scores: bundled keys times bundled queries less the slot's own <k, q>, relative to |k||q|, over draws of the binding keys. Either
all slots share one pair of vectors, the worst case without binding, whose coordinates are of one size ("even") or of sizes from
a log-normal distribution of sigma 1, the same for k and q ("uneven"); or every slot and draw has random directions ("random").

Outputs: favor_s with the values of all slots less favor_s with the values of one, in energy over that of the latter, pooled over
seeds and tokens. Tokens look each other up as in blurring.py: sixteen keys that all slots share, scores of 4; values are white.

Lengths: the same at dim 64 with random queries and keys, where a slot has 16 tokens and the others have 16 or 160.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional as F

from mimoformer.attention import favor_s
from mimoformer.bundles import bind_real_tokens
from mimoformer.features import PositiveFeatures, ReLUFeatures, as_feature_map
from vsa_core import hadamard
from vsa_core.interference import attention_score_bounds, retrieval_noise, retrieval_snr

GRIDS = [(2, 1), (2, 2), (4, 4)]
DIMS = (32, 64, 128, 256, 512, 1024)
ALPHA, COSINE = 0.5, 0.5
"""A score fails that is off by this share of <k, q>; and the cosine between k and q."""
TOKENS, SCORE, FEATURES = 16, 4.0, 256


def pair(dim: int, generator: torch.Generator, *, uneven: bool) -> tuple[Tensor, Tensor]:
    """k and q (d); of even size they are at COSINE."""
    size = torch.randn(dim, generator=generator).exp() if uneven else torch.ones(dim)
    k = size * hadamard.random_keys(1, dim, generator=generator)[0]
    return k, torch.where(torch.arange(dim) < dim * (1 + COSINE) / 2, k, -k)


def random_pairs(m: int, n: int, dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """k and q of norm 1 (m n d), those of a slot at COSINE, in random directions."""
    k, other = (F.normalize(torch.randn(m, n, dim, generator=generator), dim=-1) for _ in range(2))
    across = F.normalize(other - (other * k).sum(-1, keepdim=True) * k, dim=-1)
    return k, COSINE * k + math.sqrt(1 - COSINE**2) * across


def score_noise(m: int, n: int, dim: int, draws: int, kind: str) -> tuple[Tensor, float]:
    """Noise of slot (0, 0) over |k||q| for every draw of the keys, and its s.d. by theory, for a shared pair from that pair."""
    generator = torch.Generator().manual_seed(dim)
    k, q = pair(dim, generator, uneven=kind == "uneven")
    theory = math.sqrt((m * n - 1) * (k * q).square().sum().item()) / (k.norm() * q.norm()).item()
    k, q = k.expand(m, n, dim), q.expand(m, n, dim)
    noise = torch.empty(draws)
    for draw in range(draws):
        if kind == "random":
            k, q = random_pairs(m, n, dim, generator)
        keys = hadamard.random_keys(m * n, dim, generator=generator).unflatten(0, (m, n))
        query, key = q[None, :, :, None, None], k[None, :, :, None, None]
        bound_q, bound_k, _ = bind_real_tokens(query, key, key, keys, None)
        score = bound_k.sum(2)[0, 0, 0, 0] @ bound_q.sum(1)[0, 0, 0, 0]
        noise[draw] = (score - k[0, 0] @ q[0, 0]) / (k[0, 0].norm() * q[0, 0].norm())
    return noise, theory


def sequences(m: int, n: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values (1 m n 1 l d), and binding keys (m n d)."""
    generator = torch.Generator().manual_seed(seed)
    k = math.sqrt(SCORE) * dim**-0.25 * hadamard.random_keys(TOKENS, dim, generator=generator, dtype=torch.float64)
    q = torch.stack([k.roll(-slot - 1, 0) for slot in range(m * n)]).unflatten(0, (m, n))[None, :, :, None]
    keys = hadamard.random_keys(m * n, dim, generator=generator, dtype=torch.float64).unflatten(0, (m, n))
    return q, k.expand_as(q), torch.randn(q.shape, generator=generator, dtype=torch.float64), keys


def softmax_features(landmarks: Tensor) -> Callable[[Tensor], Tensor]:
    """phi with phi(x) . phi(z) = exp(<x, z> / sqrt(d)) for each landmark z and any x: the kernel without error of its own."""
    scale = landmarks.shape[-1] ** -0.5
    size, basis = torch.linalg.eigh((landmarks @ landmarks.T * scale).exp())
    kept = size > size[-1] * 1e-13  # two landmarks may coincide
    root = basis[:, kept] / size[kept].sqrt()
    return lambda x: (x @ landmarks.T * scale).exp() @ root


MAPS: dict[str, Callable[[int, int, Tensor], Callable[..., Tensor]]] = {
    "softmax kernel": lambda dim, seed, bundled_keys: softmax_features(bundled_keys),
    f"{FEATURES} ReLU": lambda dim, seed, _: ReLUFeatures(dim, FEATURES, generator=torch.Generator().manual_seed(seed)),
    f"{FEATURES} positive": lambda dim, seed, _: PositiveFeatures(dim, FEATURES, generator=torch.Generator().manual_seed(seed)),
}
"""Feature maps by name: exact ones of the bundled keys, and those of the package."""


def output_noise(m: int, n: int, dim: int, seeds: int, name: str) -> tuple[float, float, float]:
    """Noise energy over signal energy at slot (0, 0): measured, from the weights of all slots, and the latter's median token."""
    totals, references, others, own = [], [], [], []
    for seed in range(seeds):
        q, k, v, keys = sequences(m, n, dim, seed)
        bound_q, bound_k, _ = bind_real_tokens(q, k, v, keys, None)
        bundled_q, bundled_k = bound_q.sum(1), bound_k.sum(2)
        phi = MAPS[name](dim, seed, bundled_k.flatten(0, -2))
        alone = torch.zeros_like(v)
        alone[:, 0, 0] = v[:, 0, 0]
        totals.append(favor_s(q, k, v, keys, phi)[:, 0, 0])
        references.append(favor_s(q, k, alone, keys, phi)[:, 0, 0])
        phi_q, phi_k = as_feature_map(phi).query(bundled_q), as_feature_map(phi).key(bundled_k)
        weights = einsum(phi_q[0, 0, 0], phi_k[0, :, 0], "i r, m j r -> m i j")
        energies = (weights / weights[0].sum(-1, keepdim=True)).square().sum(-1)  # of each row of the grid and token, at (0, 0)
        others.append(n * energies.sum(0) - energies[0])
        own.append(energies[0])
    noise, signal = torch.cat(others), torch.cat(own)
    measured = 1 / retrieval_snr(torch.stack(totals), torch.stack(references)).item()
    return measured, (noise.sum() / signal.sum()).item(), (noise / signal).median().item()


def length_noise(m: int, n: int, length: int, seeds: int, dim: int = 64) -> float:
    """Noise energy over signal energy at slot (0, 0) of TOKENS tokens, where all other slots have `length`; ReLU features."""
    totals, references = [], []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = torch.randn(3, 1, m, n, 1, length, dim, generator=generator)
        keys = hadamard.random_keys(m * n, dim, generator=generator).unflatten(0, (m, n))
        phi = ReLUFeatures(dim, FEATURES, generator=generator)
        mask = torch.ones(1, m, n, length, dtype=torch.bool)
        mask[:, 0, 0, TOKENS:] = False
        alone = torch.zeros_like(v)
        alone[:, 0, 0] = v[:, 0, 0]
        totals.append(favor_s(q, k, v, keys, phi, mask)[:, 0, 0])
        references.append(favor_s(q, k, alone, keys, phi, mask)[:, 0, 0])
    return 1 / retrieval_snr(torch.stack(totals), torch.stack(references)).item()


def draw(scores: dict, outputs: dict, failures: dict, path: Path) -> None:
    """Measured points, theory as lines."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 4.3), layout="constrained")
    colours = dict(zip(GRIDS, ("#15803d", "#c2410c", "#1d4ed8"), strict=True))
    for (m, n), colour in colours.items():
        theory = [attention_score_bounds(n, m, dim, alpha=ALPHA, cosine=COSINE) for dim in DIMS]
        label = f"{m} x {n}"
        left.plot(DIMS, [scores[m, n, dim] for dim in DIMS], "o", color=colour, label=label)
        left.plot(DIMS, [bounds.noise_std for bounds in theory], "-", color=colour)
        middle.plot(DIMS, [outputs[m, n, dim, f"{FEATURES} ReLU"][0] for dim in DIMS], "o", color=colour)
        middle.plot(DIMS, [outputs[m, n, dim, "softmax kernel"][0] for dim in DIMS], "x", color=colour, markersize=8)
        middle.axhline(retrieval_noise(m * n, 1), color=colour)
        shown = [dim for dim in DIMS if failures[m, n, dim] > 0]
        right.plot(shown, [failures[m, n, dim] for dim in shown], "o", color=colour)
        right.plot(DIMS, [bounds.chebyshev for bounds in theory], "--", color=colour)
        right.plot(DIMS, [bounds.exponential for bounds in theory], ":", color=colour)
    for axes, title in [(left, "scores: s.d. of the noise / |k||q|"), (middle, "outputs: noise energy / signal energy"),
                        (right, f"scores off by {ALPHA:.0%} or more, at cosine {COSINE}")]:  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="dim of a head", title=title)
        axes.set_xticks(DIMS, [str(dim) for dim in DIMS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10.5)
    left.set_yticks([0.03, 0.1, 0.3, 1], ["0.03", "0.1", "0.3", "1"])
    middle.set_ylim(0.5, 1e6)
    middle.set_yticks([1, 3, 15, 100, 1e3, 1e4, 1e5], ["1", "3", "15", "100", "$10^3$", "$10^4$", "$10^5$"])
    right.set_ylim(1e-4, 100)
    right.axhspan(1, 100, color="gray", alpha=0.15, linewidth=0, label="no statement")
    for axes, style, label in [(left, "-", "sqrt((m n - 1) / dim)"), (middle, "o", f"{FEATURES} ReLU features"),
                               (middle, "x", "exact softmax kernel"), (middle, "-", "m n - 1"), (right, "o", "measured"),
                               (right, "--", "Chebyshev"), (right, ":", "union and Hoeffding")]:  # fmt: skip
        axes.plot([], [], style, color="gray", label=label)
    for axes in (left, middle, right):
        axes.legend(fontsize=8.5, loc="upper right" if axes is middle else "lower left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Print the tables and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="draws of the binding keys for the noise of the scores")
    parser.add_argument("--seeds", type=int, default=20, help="draws of sequences, binding keys and features for the outputs")
    parser.add_argument("--out", type=Path, default=Path("docs/favor_s_noise.png"))
    args = parser.parse_args()
    scores: dict[tuple[int, int, int], float] = {}
    failures: dict[tuple[int, int, int], float] = {}
    outputs: dict[tuple[int, int, int, str], tuple[float, float, float]] = {}
    print("| grid | dim | theory | even | random | uneven | its theory | fails (random) | Chebyshev | exponential |")
    print("| --- |", "---: |" * 9)
    for m, n in GRIDS:
        for dim in DIMS:
            found = {kind: score_noise(m, n, dim, args.draws, kind) for kind in ("even", "random", "uneven")}
            even, random, uneven = (noise.square().mean().sqrt().item() for noise, _ in found.values())
            bounds = attention_score_bounds(n, m, dim, alpha=ALPHA, cosine=COSINE)
            scores[m, n, dim] = even
            failures[m, n, dim] = (found["random"][0].abs() >= ALPHA * COSINE).double().mean().item()
            deviations = f"{bounds.noise_std:.3f} | {even:.3f} | {random:.3f} | {uneven:.3f} | {found['uneven'][1]:.3f}"
            probabilities = f"{failures[m, n, dim]:.2%} | {bounds.chebyshev:.2g} | {bounds.exponential:.2g}"
            print(f"| {m} x {n} | {dim} | {deviations} | {probabilities} |")
    print("\n| grid | m n - 1 | dim |", " | ".join(f"{name} | from weights | median token" for name in MAPS), "|")
    print("| --- |", "---: |" * (2 + 3 * len(MAPS)))
    for m, n in [*GRIDS, (1, 2)]:
        for dim in DIMS:
            for name in MAPS:
                outputs[m, n, dim, name] = output_noise(m, n, dim, args.seeds, name)
            cells = " | ".join(f"{ratio:.3g}" for name in MAPS for ratio in outputs[m, n, dim, name])
            print(f"| {m} x {n} | {retrieval_noise(m * n, dim):.0f} | {dim} | {cells} |")
    print("\n| grid | m n - 1 | others of 16 tokens | of 160 |")
    print("| --- | ---: | ---: | ---: |")
    for m, n in [(2, 1), (1, 2), (2, 2)]:
        cells = " | ".join(f"{length_noise(m, n, length, args.seeds):.3g}" for length in (16, 160))
        print(f"| {m} x {n} | {m * n - 1} | {cells} |")
    draw(scores, outputs, failures, args.out)


if __name__ == "__main__":
    main()
