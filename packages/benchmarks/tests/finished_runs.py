"""Finished runs as an experiment leaves them behind, made up for tests."""

import json
from pathlib import Path

ROW = {"n": 1, "inputs": 1, "accuracy": 0.9, "accuracy_batch_statistics": None, "accuracy_per_slot": [0.9]}
ROW |= {"changed_by_regrouping": None, "macs": 4e6}


def rate(median: float | None, low: float | None = None, high: float | None = None) -> dict[str, object]:
    """The part of a row that tells its throughput; quartiles are a tenth below and above the median unless given."""
    quartiles = None if median is None else [low or median - median / 10, high or median + median / 10]
    return {"inputs_per_second": median, "inputs_per_second_quartiles": quartiles}


ROW |= rate(1000.0)
OURS = (ROW, ROW | {"n": 4, "inputs": 4, "accuracy": 0.8, "changed_by_regrouping": 0.05, "macs": 1e6} | rate(3500.0))
METRICS = (
    {"step": 1, "n": 1, "loss": 2.3, "accuracy": 0.0, "skipped": 0},
    {"step": 2, "n": 4, "loss": None, "accuracy": None},
    {"step": 2, "dev_accuracy": {"1": 0.5, "4": None}},
    {"step": 3, "n": 4, "loss": 1.1, "accuracy": 0.5},
)


def make_run(path: Path, rows=OURS, *, settings=None, metrics=METRICS, **result) -> Path:
    """A finished run as an experiment leaves it behind, but for what a report does not read."""
    path.mkdir(parents=True)
    known = {"preset": "small", "control": None, "model": "MIMOConv-10-2", "superposed": result.get("control") is None}
    known |= {"task": "digits", "seed": 0, "paper": {}, "rows": rows, "guesses": {}, "crosstalk": None, "steps": 650}
    known |= {
        "inputs_seen": 20800,
        "skipped_updates": 0,
        "wall_seconds": 61.2,
        "train_seconds": 60.0,
        "device": "cpu",
        "processes": 1,
    }
    known |= {"peak_memory_bytes": None, "versions": {"torch": "2.6"}, "git_revision": "0123abc", "command": "run.py"} | result
    config = {
        "task": "digits",
        "seed": known["seed"],
        "n": [1, 4],
        "out": str(path),
        "model": {"kind": "X"},
        "optim": {"steps": 650},
    }
    (path / "config.json").write_text(json.dumps({"preset": known["preset"], "config": config | (settings or {})}))
    (path / "result.json").write_text(json.dumps(known))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return path


def make_control(path: Path, accuracy=0.7, macs=1e6, **result) -> Path:
    result = {"control": "equal_cost_n4", "model": "WRN-10-1"} | result
    return make_run(path, (ROW | {"accuracy": accuracy, "macs": macs} | rate(2000.0),), **result)
