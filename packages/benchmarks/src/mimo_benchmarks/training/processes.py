"""Let the processes of a run stop at the same step, and end it where one of them no longer runs.

They talk through the store by which their launcher brought them together, so no GPU is kept waiting, and no network is set up.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from threading import Event, Thread

import torch
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from mimo_benchmarks.training.signals import StopRequest

FEW_STEPS = 10
"""Steps between two times at which processes ask whether to stop, where steps are short."""
LONG = 0.1
"""Seconds from which on a step is long, so that processes ask after each."""
PATIENCE = timedelta(hours=1)
"""Longest time that a process waits for what the first one decides, which may be evaluating."""
BEATS = 10
"""Signs of life of a process in the time after which it counts as stopped."""
LEFT = b"left"
"""What a process says that has ended its part in an orderly way."""


def open_store() -> Store:
    """Connect to the launcher's store; a thread needs a connection of its own, because waiting blocks one."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # what an earlier one said does not count
    return PrefixStore(f"mimonets/{attempt}", TCPStore(address, port, is_master=False, timeout=PATIENCE))


class Agreement:
    """Decides in all processes at the same step whether a signal ends the run: the first process decides, the others follow.

    Args:
        request: tells whether a signal has come to this process.
        rank: number of this process.
        world: number of processes.
        store: what the processes talk through, where there are several.
    """

    def __init__(self, request: StopRequest, rank: int = 0, world: int = 1, store: Store | None = None) -> None:
        self.request, self.rank, self.world, self.store = request, rank, world, store
        self.asked, self.step, self.seconds, self.next = 0, 0, 0.0, 0
        self.queued: torch.cuda.Event | None = None

    def __call__(self, step: int, seconds: float, *, last: bool) -> int:
        """Return the signal that ends the run after this step, or 0.

        Args:
            step: number of the step that has ended.
            seconds: seconds of training so far.
            last: whether it is the network's last step.
        """
        number = self.request.signal
        if self.store is None:
            return number
        if number and self.rank:
            self.store.set("signal", str(number))
        if step < self.next and not last:
            return 0
        self.asked += 1
        if self.rank == 0:
            number = number or (int(self.store.get("signal")) if self.store.check(["signal"]) else 0)
            long = seconds - self.seconds >= LONG * (step - self.step)
            told = f"{number} {1 if long else FEW_STEPS}"
            for other in range(1, self.world):
                self.store.set(f"{other}/{self.asked}", told)
        else:
            told = self.store.get(f"{self.rank}/{self.asked}").decode()
            self.store.delete_key(f"{self.rank}/{self.asked}")
        number, steps = map(int, told.split())
        self.step, self.seconds, self.next = (0, 0.0, 0) if last else (step, seconds, step + steps)
        self.stay_near_gpu()
        return number

    def stay_near_gpu(self) -> None:
        """Wait until the GPU has done what was queued when this was last called: saving waits for the whole queue."""
        if torch.cuda.is_initialized():
            before, self.queued = self.queued, torch.cuda.Event()
            self.queued.record()
            if before is not None:
                before.synchronize()

    def wait_for_first(self) -> None:
        """Wait until the first process has called this too: a launcher ends all processes soon after the first of them ends."""
        if self.store is None:
            return
        if self.rank:
            with suppress(RuntimeError):  # the store has ended with the first process
                self.store.get(f"{self.rank}/saved")
                self.store.delete_key(f"{self.rank}/saved")  # the next save is waited for anew
        else:
            for other in range(1, self.world):
                self.store.set(f"{other}/saved", "1")


@contextmanager
def end_if_one_is_silent(rank: int, world: int, seconds: int) -> Iterator[None]:
    """End this process with exit code 2 and a message as soon as another one has been silent for so long.

    A thread gives signs of life, so that a process that computes is not silent, but one that was stopped is. The first process
    listens to all others, and the others to the first.
    """
    if world == 1:
        yield
        return
    store, ended, left = open_store(), Event(), Event()
    others = range(1, world) if rank == 0 else range(1)
    heard: dict[int, bytes] = {}
    talk = Thread(target=beat, args=(store, rank, others, seconds, heard, ended, left), daemon=True)
    talk.start()
    Thread(target=listen, args=(others, seconds, heard, ended), daemon=True).start()
    try:
        yield
        left.set()
    finally:
        ended.set()
        talk.join(seconds if left.is_set() else 10)  # Python aborts if a thread is within the store when it ends


def beat(store: Store, rank: int, others: range, seconds: int, heard: dict[int, bytes], ended: Event, left: Event) -> None:
    """Give signs of life, and note those of others, until `ended`; say so if this process has `left` in an orderly way."""
    with suppress(RuntimeError):  # the store has ended with the first process, or its machine
        for number in count(1):
            store.set(f"beat/{rank}", str(number))
            for other in others:
                if store.check([f"beat/{other}"]):
                    heard[other] = store.get(f"beat/{other}")
            if ended.wait(seconds / BEATS):
                break
        if left.is_set():
            store.set(f"beat/{rank}", LEFT.decode())


def listen(others: range, seconds: int, heard: dict[int, bytes], ended: Event) -> None:
    """End this process where nothing new is `heard` of another one for so many seconds, until `ended`.

    A thread of its own does so, because the store of a process or machine that was stopped lets others wait for ever.
    """
    last: dict[int, bytes | None] = {}
    quiet = dict.fromkeys(others, 0)
    while not ended.wait(seconds / BEATS):
        for other in others:
            now = heard.get(other)
            quiet[other] = quiet[other] + 1 if now == last.get(other) and now != LEFT else 0
            last[other] = now
            if quiet[other] >= BEATS:
                end_silent(other, seconds)


def end_silent(other: int, seconds: int) -> None:
    """Say which process is silent, and end this one, whatever it is waiting for."""
    silent = f"process {other} gave no sign of life for {seconds} seconds (--timeout): it was stopped, or its machine is gone"
    print(f"error: {silent}; see that it has ended, then resume with --resume", file=sys.stderr, flush=True)
    os._exit(2)
