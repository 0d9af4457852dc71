"""Carry out runs in processes of their own, several at a time on every GPU, until all are done or the time is up."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimo_benchmarks.progress import SHORTEST
from mimo_benchmarks.reproduce.jobs import Job
from mimo_benchmarks.training.signals import StopRequest

POLL, TELL = 0.2, 30.0
"""Seconds between looks at the processes, and between lines that say how far they are."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_")
"""How environment variables of a launcher begin; a run is a process of its own, in the precision of its preset."""
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Let Linux send this process SIGTERM when the one that started it ends, however it ends."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process that carries out a run."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    first: int
    """Step from which it went on."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where runs are carried out."""

    gpus: int
    """Number of GPUs; 0 trains on the CPU."""
    at_once: int
    """Runs at the same time on each GPU, or on the CPU."""
    out: Path
    """Folder of the run directories and their logs."""

    def slots(self) -> list[str | None]:
        """Return a place for each run at a time: its GPU as CUDA numbers it, or None for the CPU."""
        known = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names: list[str | None] = [known[number] if known else str(number) for number in range(self.gpus)]
        return (names or [None]) * self.at_once

    def start(self, job: Job, gpu: str | None) -> Worker:
        """Start a run, or go on with it; what it prints goes to a log beside its directory."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER)}
        alone = len(self.slots()) == 1
        flags = [*([] if alone else ["--no-rates"]), "--device", "cpu" if gpu is None else "cuda", "--log-every", "200"]
        if not alone:
            env.setdefault("OMP_NUM_THREADS", "1")
        if gpu is not None:
            env["CUDA_VISIBLE_DEVICES"] = gpu
        log, first = self.out / f"{job.folder}.log", job.step(self.out)
        with log.open("ab") as output:
            # in a session of its own, so that Ctrl-C reaches it once, from here
            process = subprocess.Popen(
                job.start(self.out, flags),
                env=env,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it makes one system call
            )
        return Worker(job=job, process=process, log=log, began=time.perf_counter(), first=first)


def carry_out(
    jobs: Sequence[Job],
    machine: Machine,
    request: StopRequest,
    seconds: float | None = None,
    note: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Carry out runs in their order, and return those that failed.

    Args:
        jobs: runs that are not finished.
        machine: where they run.
        request: a signal that asks to stop; running ones then save themselves, as they do when the time is up.
        seconds: time after which no more is done; unless given, it ends when all runs have.
        note: called with each run as soon as it is finished.
    """
    waiting, failed = list(jobs), []
    begin, told = time.perf_counter(), time.perf_counter()
    total = sum(job.left(machine.out) for job in jobs)
    running: dict[int, Worker] = {}
    slots = machine.slots()

    def is_over() -> bool:
        return bool(request.signal) or (seconds is not None and time.perf_counter() - begin > seconds)

    try:
        while (waiting or running) and not is_over():
            for place, gpu in enumerate(slots):
                if place not in running and waiting:
                    running[place] = machine.start(waiting.pop(0), gpu)
            time.sleep(POLL)
            for place, worker in list(running.items()):
                if worker.process.poll() is not None:
                    del running[place]
                    if is_well(worker, machine):
                        note(worker.job)
                    else:
                        failed.append(worker.job)
            if time.perf_counter() - told > TELL:
                told = time.perf_counter()
                tell(list(running.values()), waiting, machine, total, told - begin)
    finally:
        stop(list(running.values()))
    return failed


def is_well(worker: Worker, machine: Machine) -> bool:
    """Say on one line how a run has ended, and return whether it is finished."""
    lasted, job = time.perf_counter() - worker.began, worker.job
    if job.is_finished(machine.out):
        print(f"{job.folder}: finished after {lasted:,.0f} s", flush=True)
        return True
    last = [line for line in worker.log.read_text(errors="replace").splitlines() if line.strip()][-1:] or ["it said nothing"]
    print(f"{job.folder}: ended with exit code {worker.process.returncode} after {lasted:,.0f} s: {last[0]}", flush=True)
    return False


def tell(running: Sequence[Worker], waiting: Sequence[Job], machine: Machine, total: float, passed: float) -> None:
    """Print a line for each run that is under way, and how long all of them will take."""
    left = sum(job.left(machine.out) for job in (*waiting, *(worker.job for worker in running)))
    for worker in running:
        step, steps, lasted = worker.job.step(machine.out), worker.job.config.optim.steps, time.perf_counter() - worker.began
        rest = lasted / max(1, step - worker.first) * (steps - step)
        known = f", {rest / 60:,.1f} min left" if step > worker.first else ""
        print(f"{worker.job.folder}: step {step:,} of {steps:,}{known}", flush=True)
    done = total - left
    hours = f", about {left * passed / max(done, SHORTEST) / 3600:,.2f} h left for all" if done > 0.001 * total else ""
    print(f"{len(running)} runs under way, {len(waiting)} to come{hours}", flush=True)


def stop(workers: Sequence[Worker]) -> None:
    """Let runs save themselves and end."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.wait()
        print(f"{worker.job.folder}: stopped after {time.perf_counter() - worker.began:,.0f} s", flush=True)
