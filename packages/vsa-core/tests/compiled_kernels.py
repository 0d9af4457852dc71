"""Triton kernels compiled for a GPU that is not there."""

from collections import defaultdict
from contextlib import nullcontext

import torch


class Gpu:
    """What Triton asks of a GPU in order to compile for it."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compile_only(kernels, gpu, monkeypatch, texts=None):
    """Let kernels be compiled for a GPU instead of started; returns the most shared memory of each, as it is filled in.

    The kernels' texts in Triton's language for GPUs are appended to `texts`.
    """
    from triton.runtime import driver

    used = {}

    def compiled(kernel, run):
        name = f"{kernel.fn.__module__}.{kernel.__name__}"

        def call(*arguments, grid, warmup, **options):
            found = run(*arguments, grid=grid, warmup=True, **options)
            used[name] = max(used.get(name, 0), found.metadata.shared)
            if texts is not None:
                texts.append(found.asm["ttgir"])

        return call

    for kernel in kernels:
        monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))  # they keep the GPU of before
        monkeypatch.setattr(kernel, "run", compiled(kernel, kernel.run))
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: nullcontext())
    monkeypatch.setattr(driver, "_active", gpu)
    return used
