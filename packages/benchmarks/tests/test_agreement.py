"""Processes that stop at the same step, wherever a signal comes, and do not wait for one that was stopped."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier, Event

import pytest
from torch.distributed import HashStore

from mimo_benchmarks.training import processes
from mimo_benchmarks.training.processes import FEW_STEPS, LONG, Agreement, beat, listen
from mimo_benchmarks.training.signals import StopRequest

STEPS = 50


def request_at(comes):
    """A request to stop that comes in this network and step."""
    request = StopRequest()
    request.comes = comes
    return request


def run(rank, world, store, request, seconds, meet):
    """Two networks' steps of a process, after each of which it asks; returns where it stopped, and by which signal."""
    agreement = Agreement(request, rank, world, store)
    for network in range(2):
        for step in range(1, STEPS + 1):
            meet()
            if (network, step) == request.comes:
                request.signal = 15
            if number := agreement(step, seconds * step, last=step == STEPS):
                agreement.wait_for_first()
                return network, step, number
    return None


def run_all(world, store, coming, seconds):
    """What all processes return, which are threads here and compute gradients together, one after each step.

    `coming` tells for ranks in which network and step a signal comes.
    """
    meet = Barrier(world, timeout=10).wait
    requests = [request_at(coming.get(rank)) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: run(rank, world, store, requests[rank], seconds, meet), range(world)))


def test_one_process_stops_after_the_step():
    assert run(0, 1, None, request_at((1, 37)), 0, lambda: None) == (1, 37, 15)


@pytest.mark.parametrize("seconds", [0, 2 * LONG])
@pytest.mark.parametrize("ranks", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize("comes", [1, 2, 11, 15, 37])
def test_all_processes_stop_at_the_same_step(ranks, seconds, comes):
    """At the first question after the signal, or the second if it did not come to the first process."""
    stopped = run_all(3, HashStore(), dict.fromkeys(ranks, (1, comes)), seconds)
    assert len(set(stopped)) == 1
    network, step, number = stopped[0]
    assert (network, number) == (1, 15)
    apart = 1 if seconds else FEW_STEPS
    assert comes <= step < comes + (apart if 0 in ranks else 2 * apart)


@pytest.mark.parametrize(("seconds", "questions"), [(0, STEPS // FEW_STEPS), (2 * LONG, STEPS)])
def test_processes_ask_seldom_where_steps_are_short_and_leave_nothing_behind(seconds, questions):
    asked = []

    class Counted(HashStore):
        def get(self, key):
            asked.append(key)
            return super().get(key)

    store = Counted()
    assert run_all(2, store, {}, seconds) == [None, None]
    assert 2 * questions <= len(asked) <= 2 * questions + 4
    assert store.num_keys() <= 1


def test_no_process_ends_before_the_first_has_saved():
    """Its launcher would end the first one too. A store that has ended with the first process tells as much."""
    asked = []

    class Ended(HashStore):
        def get(self, key):
            asked.append(key)
            raise RuntimeError("Connection reset by peer")

    store = HashStore()
    Agreement(StopRequest(), 0, 3, store).wait_for_first()
    assert store.check(["1/saved", "2/saved"])
    Agreement(StopRequest(), 2, 3, Ended()).wait_for_first()
    assert asked == ["2/saved"]


def test_every_save_is_waited_for_anew():
    store = HashStore()
    for _ in range(2):
        Agreement(StopRequest(), 0, 2, store).wait_for_first()
        Agreement(StopRequest(), 1, 2, store).wait_for_first()
        assert not store.check(["1/saved"])


class Silenced(Exception):
    """What ends a test in place of its process."""


@pytest.fixture
def silent(monkeypatch):
    def end(code):
        assert code == 2
        raise Silenced

    monkeypatch.setattr(os, "_exit", end)


class Clock(Event):
    """Waits for nothing, and ends after some beats; in the meantime others do something."""

    def __init__(self, meanwhile, beats):
        super().__init__()
        self.meanwhile, self.beats = meanwhile, beats

    def wait(self, timeout=None):
        self.beats -= 1
        self.meanwhile()
        return self.beats < 0


def test_signs_of_life_are_given_and_noted():
    """Until the process leaves; where its part does not end in an orderly way, it does not say that it has left."""
    for orderly in (False, True):
        store, heard, left, beats = HashStore(), {}, Event(), count()
        if orderly:
            left.set()
        beat(store, 0, range(1, 3), 10, heard, Clock(lambda: store.set("beat/1", f"{next(beats)}"), 20), left)  # noqa: B023
        assert heard == {1: b"19"}
        assert store.get("beat/0") == (b"left" if orderly else b"21")


@pytest.mark.parametrize("last", [None, b"7"])
def test_a_process_that_gives_no_sign_of_life_ends_the_others(last, silent, capsys):
    """It may have given none at all. One that does give signs, or that has left, is left alone."""
    beats = count()
    heard = {2: b"left"}
    listen(range(1, 3), 10, heard, Clock(lambda: heard.update({1: str(next(beats)).encode()}), 100))
    heard = {2: b"left"} if last is None else {1: last, 2: b"left"}
    clock = Clock(lambda: None, 100)
    with pytest.raises(Silenced):
        listen(range(1, 3), 10, heard, clock)
    assert 100 - clock.beats == processes.BEATS + (last is not None)
    assert capsys.readouterr().err == (
        "error: process 1 gave no sign of life for 10 seconds (--timeout): it was stopped, or its machine is gone; "
        "see that it has ended, then resume with --resume\n"
    )


def test_a_store_that_has_ended_ends_the_signs_alone():
    """Whoever listens then hears nothing more."""

    class Gone(HashStore):
        def check(self, keys):
            raise RuntimeError("connection reset")

    beat(Gone(), 1, range(1), 10, {}, Event(), Event())
