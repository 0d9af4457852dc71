"""Estimate how long an experiment will still train, over all of its networks."""

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch

from mimo_benchmarks.training.feed import Feed


class TimeLeft:
    """Estimates the seconds of training that are left, from the multiply-adds done so far and those still to do.

    A multiply-add is taken to last as long in the networks to come as it did, on average, in those trained so far. Evaluation
    and saving are not counted.

    Args:
        feeds: what each network of the experiment is trained on, in their order.
    """

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = list(feeds)
        self.macs = [macs_after_steps(feed) for feed in feeds]
        self.done, self.seconds = [0.0] * len(feeds), [0.0] * len(feeds)

    def note(self, feed: Feed, step: int, seconds: float) -> None:
        """Note for how many steps and seconds the network of a feed has been trained."""
        place = self.feeds.index(feed)
        self.done[place], self.seconds[place] = float(self.macs[place][step]), seconds

    def place(self, feed: Feed) -> str:
        """Say which of the networks a feed's is, and how long all of them will still train; nothing if it is the only one."""
        if len(self.feeds) == 1:
            return ""
        return "".join(
            f"{part}, " for part in (f"network {self.feeds.index(feed) + 1} of {len(self.feeds)}", self.describe()) if part
        )

    def seconds_left(self) -> float | None:
        """Return the seconds of training that are left; None if nothing has been done yet."""
        done = sum(self.done)
        left = sum(float(macs[-1]) for macs in self.macs) - done
        return left * sum(self.seconds) / done if done else None

    def describe(self) -> str:
        """Say how long all networks will still train; nothing if there is only one, whose bar says so, or nothing is known."""
        seconds = self.seconds_left()
        if seconds is None or len(self.feeds) == 1:
            return ""
        return f"about {timedelta(seconds=round(seconds))} of training left for all {len(self.feeds)} networks"


def macs_after_steps(feed: Feed) -> np.ndarray:
    """Return the multiply-adds of the forward passes up to the end of each step, from step 0 on."""
    with torch.device("meta"):
        module = feed.network.build()
    macs = {n: feed.network.count_macs(module, n) for n in set(feed.n)}
    return np.cumsum([0.0, *(count * macs[n] for count, n in zip(np.diff(feed.batches.places), feed.n, strict=True))])
