"""Images a second, measured for all networks in turn so that a drift of the machine hits all alike."""

import statistics
import time
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from mimo_benchmarks.train import Network
from vsa_core.slots import group

LAYOUTS = (torch.contiguous_format, torch.channels_last)
"""Which layout is faster depends on the network and the machine, so each network is measured in both."""


@torch.inference_mode()
def images_per_second(networks: list[tuple[Network, int]], images: Float[Tensor, "count c h w"], rounds: int = 15) -> list[float]:
    """Throughput of each (network, n) in eval mode, in the layout that suits it: the median over the rounds.

    Every network is given all `images` at once, in groups of its n; two rounds of warm-up come first.
    """
    times: list[list[float]] = [[] for _ in networks for _ in LAYOUTS]
    groups = [group(images, n) for _, n in networks]
    for round_ in range(rounds + 2):
        settings = product(zip(networks, groups, strict=True), LAYOUTS)
        for (((network, _), x), layout), record in zip(settings, times, strict=True):
            network.to(memory_format=layout)
            start = time.perf_counter()
            network(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if round_ >= 2:
                record.append(time.perf_counter() - start)
    medians = [statistics.median(record) for record in times]
    return [len(images) / min(medians[i : i + len(LAYOUTS)]) for i in range(0, len(medians), len(LAYOUTS))]
