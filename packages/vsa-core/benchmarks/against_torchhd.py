"""Binding beside torchhd's, in one run: results compared first, then interleaved medians.

usage: scripts/uv run --group bench python packages/vsa-core/benchmarks/against_torchhd.py [--device cuda] [--repeats 21]

Columns: milliseconds of both and their ratio, for one key shared by all vectors and for one key per vector. The rates of
vsa-core count the bytes of x, key and result once, and the arithmetic of the algorithm that it chooses for the shape.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
import torchhd

from vsa_core import hrr

SHAPES = [(131_072, 64), (16_384, 512), (2_048, 4_096)]
"""Numbers of vectors and their dims; each product is 8.4 million."""


def milliseconds(functions: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Measure the median time of each function; they are called in turn, so that drift of the machine affects all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 3):
        for function, record in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 3:  # the first rounds warm up
                record.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(record) for record in times]


def flops(n: int, dim: int, keys: int) -> float:
    """Count operations of vsa-core: 2 dim^2 per vector by circulant, else three real FFTs of 2.5 dim log2 dim and a product."""
    x, key = torch.empty(n, dim, device="meta"), torch.empty(keys, dim, device="meta")
    limit = hrr.CIRCULANT_MAX_DIM.get((ARGS.device, torch.float32), 0)
    if keys == 1 and dim <= limit and x.numel() >= key.numel() * dim:
        return 2.0 * n * dim**2
    return (2 * n + keys) * 2.5 * dim * math.log2(dim) + 3.0 * n * dim


def main() -> None:
    """Print one row per shape and kind of key."""
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, torchhd {torchhd.__version__}, {ARGS.device}, {torch.get_num_threads()} threads, fp32")
    print("|  vectors |  dim | keys | torchhd ms | vsa-core ms | ratio | GFLOP/s |  GB/s |")
    print("|---------:|-----:|:-----|-----------:|------------:|------:|--------:|------:|")
    for n, dim in SHAPES:
        x = torch.randn(n, dim, generator=generator).to(ARGS.device)
        for keys, name in ((1, "one"), (n, "each")):
            key = hrr.random_keys(keys, dim, generator=generator).to(ARGS.device)
            key = key[0] if keys == 1 else key
            x_hd, key_hd = x.as_subclass(torchhd.HRRTensor), key.as_subclass(torchhd.HRRTensor)
            ours, theirs = hrr.bind(x, key), torchhd.bind(x_hd, key_hd).as_subclass(torch.Tensor)
            exact = torch.fft.irfft(torch.fft.rfft(x.double()) * torch.fft.rfft(key.double()), n=dim)
            for result in (ours, theirs):
                torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-5)
            hd, vc = milliseconds(
                [lambda a=x_hd, b=key_hd: torchhd.bind(a, b), lambda a=x, b=key: hrr.bind(a, b)], ARGS.repeats, ARGS.device
            )
            gbytes = 4 * (2 * n + keys) * dim / 1e9
            rates = f"{flops(n, dim, keys) / vc / 1e6:7.1f} | {gbytes / vc * 1e3:5.1f}"
            print(f"| {n:8,} | {dim:4} | {name:4} | {hd:10.1f} | {vc:11.1f} | {hd / vc:5.1f} | {rates} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds; the median is printed")
    ARGS = parser.parse_args()
    main()
