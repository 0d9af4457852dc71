"""FAVOR+S beside exact softmax attention on one GPU: results checked first, then medians of interleaved timings.

python packages/mimoformer/benchmarks/speed.py
"""

import statistics

import torch
from torch.nn import functional as F

from mimoformer.attention import favor_s
from mimoformer.features import ReLUFeatures
from vsa_core import hadamard

SEQUENCES, HEADS, DIM, FEATURES, ROUNDS = 32, 8, 64, 256, 20


def softmax(q, k, v):
    """PyTorch's fused attention of every sequence by itself."""
    return F.scaled_dot_product_attention(q, k, v)


def timed(function, arguments, backward):
    """Milliseconds of one call on the device."""
    for x in arguments:
        x.grad = None
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    out = function(*arguments)
    if backward:
        out.backward(torch.ones_like(out))
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def settings(length):
    """Name, function, its arguments, and how many multiply-adds it makes."""
    shape = (SEQUENCES, HEADS, length, DIM)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    yield "softmax", softmax, (q, k, v), SEQUENCES * HEADS * 2 * length**2 * DIM
    phi = ReLUFeatures(DIM, FEATURES).cuda()
    for n in (1, 2, 4):
        keys = hadamard.random_keys(n * n, DIM, device="cuda").unflatten(0, (n, n))
        grid = [x.detach().unflatten(0, (-1, n, n)).requires_grad_() for x in (q, k, v)]

        def attend(q, k, v, keys=keys):
            return favor_s(q, k, v, keys, phi)

        exact = favor_s(*(x.double() for x in grid), keys.double(), phi)
        compiled = torch.compile(attend, fullgraph=True)

        def with_tf32(q, k, v, compiled=compiled):
            torch.set_float32_matmul_precision("high")
            out = compiled(q, k, v)
            torch.set_float32_matmul_precision("highest")
            return out

        for name, function in (("eager", attend), ("compiled", compiled), ("compiled, TF32", with_tf32)):
            error = ((function(*grid).double() - exact).norm() / exact.norm()).item()
            assert error < 1e-2, (name, n, error)
            yield f"FAVOR+S {n} x {n}, {name}", function, grid, SEQUENCES * HEADS * length * 4 * DIM * FEATURES / n


def main():
    """Print one row for each length, function and direction."""
    print(torch.cuda.get_device_name(), torch.__version__)
    print(f"{SEQUENCES} sequences, {HEADS} heads, d = {DIM}, R = {FEATURES}, bfloat16 in and out, float32 inside FAVOR+S")
    print("| length | | attention | ms | of softmax | TFLOP/s | TB/s |\n| ---: | :--- | :--- | ---: | ---: | ---: | ---: |")
    for length in (1024, 4096, 16384):
        torch.compiler.reset()
        rows = list(settings(length))
        for backward in (False, True):
            for _, function, arguments, _ in rows:
                for _ in range(3):
                    timed(function, arguments, backward)
            times = {name: [] for name, *_ in rows}
            for _ in range(ROUNDS):
                for name, function, arguments, _ in rows:
                    times[name].append(timed(function, arguments, backward))
            baseline = statistics.median(times["softmax"])
            for name, _, arguments, macs in rows:
                ms = statistics.median(times[name])
                tera = 2 * macs * (3 if backward else 1) / ms / 1e9
                moved = arguments[0].numel() * 2 * (4 if not backward else 12) / ms / 1e9
                direction = "forward and backward" if backward else "forward"
                print(f"| {length} | {direction} | {name} | {ms:.3f} | {ms / baseline:.2f} | {tera:.1f} | {moved:.2f} |")


if __name__ == "__main__":
    main()
