"""Images a second, measured for all networks in turn so that a drift of the machine hits all alike."""

import statistics
import time

import torch
from jaxtyping import Float
from torch import Tensor

from mimo_benchmarks.train import Network
from vsa_core.slots import group


@torch.inference_mode()
def images_per_second(networks: list[tuple[Network, int]], images: Float[Tensor, "count c h w"], rounds: int = 15) -> list[float]:
    """Median throughput of each (network, n) over the rounds, in eval mode, after two rounds of warm-up.

    Every network is given all `images` at once, in groups of its n.
    """
    times: list[list[float]] = [[] for _ in networks]
    groups = [group(images, n) for _, n in networks]
    for round_ in range(rounds + 2):
        for (network, _), x, record in zip(networks, groups, times, strict=True):
            start = time.perf_counter()
            network(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if round_ >= 2:
                record.append(time.perf_counter() - start)
    return [len(images) / statistics.median(record) for record in times]
