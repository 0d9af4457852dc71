"""However long a run takes, it needs no more memory, open files, threads, processes and files than at its start."""

import gc
from contextlib import nullcontext
from dataclasses import replace

import psutil
import pytest
import torch

from mimo_benchmarks.cli.machine import prepare_machine
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.experiment import experiment

TOY = ["recall_n2_att", "--optim.groups", "1", "--optim.optimizer", "sgd", "--threads", "1"]
TOY += ["--model.layers", "1", "--model.embed-dim", "4", "--model.mlp-dim", "4", "--model.features", "4"]


class Watched:
    """A request to stop that never comes; when it is looked at after certain steps, it notes what the process takes."""

    def __init__(self, run, steps):
        self.run, self.steps, self.step = run, steps, 0
        self.counts, self.megabytes = {}, {}

    @property
    def signal(self):
        self.step += 1
        if self.step in self.steps:
            gc.collect()
            process = psutil.Process()
            self.counts[self.step] = {
                "tensors": sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects()),
                "open files": process.num_fds(),
                "threads": process.num_threads(),
                "processes": len(process.children(recursive=True)),
                "files": sum(path.is_file() for path in self.run.rglob("*")),
            }
            self.megabytes[self.step] = process.memory_info().rss / 1e6
        return 0


@pytest.mark.once
@pytest.mark.parametrize("steps", [80, pytest.param(200_000, marks=pytest.mark.torture)])
def test_what_a_run_takes_does_not_grow_with_its_steps(steps, tmp_path, monkeypatch):
    """At a quarter of the steps, a half and three quarters. Metrics, a line per log, take a few megabytes in the full form."""
    run, every = tmp_path / "run", max(2, steps // 200)
    flags = [*TOY, "--optim.steps", str(steps), "--save-every", str(every), "--log-every", str(every // 2), "--out", str(run)]
    preset, config = parse_settings(flags)
    accelerator = prepare_machine(config)
    config, watched = replace(config, precision=accelerator.mixed_precision), Watched(run, range(steps // 4, steps, steps // 4))
    monkeypatch.setattr(experiment, "evaluate_and_save", lambda *_: pytest.exit("trained"))
    with pytest.raises(pytest.exit.Exception):
        experiment.run_experiment(config, preset, accelerator, listen=lambda: nullcontext(watched))
    print(watched.counts, watched.megabytes)
    first, *others = watched.counts.values()
    assert all(other == first for other in others)
    early, *later = watched.megabytes.values()
    assert max(later) - early < 10
