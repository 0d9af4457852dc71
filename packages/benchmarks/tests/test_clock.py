"""A clock that jumps back and forth, or stands still, as those of virtual machines do: a run ends as it would have."""

import random
import sys
import time

import pytest
import tqdm.std

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.run_directory import read_metrics, read_result

pytestmark = pytest.mark.once
JUMPS = [0.0, 0.0, 0.0, 1e-3, 0.2, 1e9, -1e-3, -3600.0, -1e9]


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # rates of such clocks have many digits
@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 31), marks=pytest.mark.torture)], ids=len)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_ends_whatever_the_clock_says(seeds, terminal, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rates.BUDGET, "cpu", 1)
    for seed in seeds:
        draw, said, run = random.Random(seed), [1e9], tmp_path / str(seed)

        def clock(draw=draw, said=said):
            said[0] += draw.choice(JUMPS)
            return said[0]

        with monkeypatch.context() as patch:
            patch.setattr(sys.stderr, "isatty", lambda: terminal)
            for name in ("time", "monotonic", "perf_counter"):
                patch.setattr(time, name, clock)
            patch.setattr(tqdm.std, "time", clock)
            few = ["--optim.steps", "6", "--optim.groups", "4", "--log-every", "1", "--save-every", "3", "--threads", "1"]
            main(["recall_n2_att", *few, "--model.layers", "1", "--model.features", "8", "--out", str(run)])
        found = read_result(run)
        assert min(found.train_seconds, found.wall_seconds) >= 0
        assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
        assert all((line["inputs_per_second"] or 1) > 0 for line in read_metrics(run))
        main(["report", str(run), "--out", str(tmp_path / f"report-{seed}")])
    capsys.readouterr()
