"""Images a second, measured for all networks in turn so that a drift of the machine hits all alike."""

import statistics
import time

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

    Every network is given all `images` at once, in groups of its n: a pass to warm up, then one that is timed.
    """
    groups = [group(images, n) for _, n in networks]
    times: dict[tuple[int, torch.memory_format], list[float]] = {
        (place, layout): [] for place in range(len(networks)) for layout in LAYOUTS
    }
    for _ in range(rounds):
        for (place, layout), record in times.items():
            network, x = networks[place][0].to(memory_format=layout), groups[place]
            for _ in range(2):
                start = time.perf_counter()
                network(x)
                if x.is_cuda:
                    torch.cuda.synchronize()
            record.append(time.perf_counter() - start)
    medians = {setting: statistics.median(record) for setting, record in times.items()}
    return [len(images) / min(medians[place, layout] for layout in LAYOUTS) for place in range(len(networks))]
