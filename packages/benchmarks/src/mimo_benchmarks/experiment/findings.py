"""Measure a trained network: its answers, its cost, and its throughput beside the other networks of the experiment."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mimo_benchmarks.evaluation.answers import batch_statistics, changed_by_regrouping, classify
from mimo_benchmarks.evaluation.crosstalk import measure_crosstalk
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.presets.find import PRESETS
from mimo_benchmarks.presets.paper import PAPER, Reported
from mimo_benchmarks.report.runs import Run, make_run
from mimo_benchmarks.result import Crosstalk, Result, Row, Spread
from mimo_benchmarks.run_directory import RESULT, RunDirectory, settings_as_json
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks.protocol import Task
from mimo_benchmarks.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network that was trained and evaluated."""

    config: RunConfig
    name: str
    """Name of the preset; for a control, followed by a dot and the control's name."""
    module: nn.Module
    """The network, in eval mode."""
    directory: RunDirectory
    progress: Progress
    inputs_seen: int
    peak_memory_bytes: int | None
    rows: tuple[Row, ...]
    """Accuracies and costs. Throughput is missing until all networks of the experiment are trained."""
    crosstalk: dict[str, Crosstalk] | None
    """Crosstalk "before" and "after" training; None where it is not measured."""

    @property
    def network(self) -> Network:
        """What the program knows of the network."""
        return describe(self.config.model)


def evaluate_network(network: Network, module: nn.Module, task: Task, config: RunConfig) -> tuple[Row, ...]:
    """Return accuracies and costs of a trained network for each n; throughput is left out."""
    rows = []
    for n in network.evaluated_n(config.n):
        answers = classify(network, module, task, task.test, n, name="testing")
        with batch_statistics(module) as has_batch_norm:
            how: dict[str, Any] = {"passes": config.optim.groups, "name": "testing with batch statistics"}
            by_batch = classify(network, module, task, task.test, n, **how) if has_batch_norm else None
        shared = network.inputs_per_pass(n)
        row = Row(
            n=n,
            inputs=shared,
            accuracy=answers.accuracy,
            accuracy_batch_statistics=by_batch.accuracy if by_batch else None,
            accuracy_per_slot=tuple(answers.per_slot()),
            changed_by_regrouping=changed_by_regrouping(network, module, task, n, answers, config.seed) if shared > 1 else None,
            macs=network.count_macs(module, n),
            inputs_per_second=None,
            inputs_per_second_quartiles=None,
        )
        rows.append(row)
    return tuple(rows)


def crosstalk_of(config: RunConfig, module: nn.Module, task: Task) -> Crosstalk | None:
    """Return the crosstalk of a network for each n; None where it is not measured."""
    return measure_crosstalk(describe(config.model), module, task, config.n, config.seed)


def write_result(one: Trained, root: Trained, task: Task, rates: dict[int, Spread | None], wall_seconds: float) -> Run:
    """Write result.json of a trained network, and return the run for the report.

    Args:
        one: the trained network.
        root: the network that the experiment is about; `one` is this network or a control of it.
        task: the task that it was trained on.
        rates: throughput for each n; None if it was not measured.
        wall_seconds: seconds of the experiment so far.
    """
    preset, *forms = one.name.split(".")
    control = forms.pop() if forms and forms[-1] != "short" else None
    first, last = one.directory.starts[0], one.directory.starts[-1]
    measured_in: dict[str, Any] = {name: last[name] for name in ("device", "processes", "versions", "git_revision")}

    def timed(row: Row) -> Row:
        rate = rates[row.n]
        quartiles = None if rate is None else (rate.low, rate.high)
        return replace(row, inputs_per_second=None if rate is None else rate.value, inputs_per_second_quartiles=quartiles)

    result = Result(
        preset=".".join([preset, *forms]),
        control=control,
        model=one.config.model.label,
        superposed=not one.network.plain,
        task=task.name,
        seed=one.config.seed,
        paper=reported_by_paper(one.config, one.name),
        rows=tuple(map(timed, one.rows)),
        guesses=task.guesses,
        crosstalk=one.crosstalk,
        steps=one.progress.step,
        inputs_seen=one.inputs_seen,
        skipped_updates=int(one.progress.counts["skipped"]),
        train_seconds=one.progress.seconds,
        wall_seconds=wall_seconds,
        peak_memory_bytes=one.peak_memory_bytes,
        command=first["command"],
        **measured_in,
    )
    one.directory.write_with_checksum(RESULT, result.to_json())
    settings, around = settings_as_json(one.config), settings_as_json(root.config)
    return make_run(one.directory.path, root.directory.path.resolve(), result, settings, around, one.directory.metrics)


def reported_by_paper(config: RunConfig, name: str) -> Reported:
    """Return the paper's figures for a preset if the settings match the paper's; otherwise none."""
    if name not in PAPER:
        return {}
    published = PRESETS[name]()
    alike = ("task", "model", "n", "n_odds", "curriculum", "curriculum_share", "augment", "dev_every", "best")
    same = all(getattr(config, setting) == getattr(published, setting) for setting in alike)
    return PAPER[name] if same and replace(config.optim, accumulate=published.optim.accumulate) == published.optim else {}
