"""The rows of a result are of the networks, the splits and the n that they name."""

import json

import pytest
import torch

from mimo_benchmarks import experiment
from mimo_benchmarks.__main__ import main
from mimo_benchmarks.tasks import load
from mimoconv import MIMOConv, WideResNet, count_macs

SHORT = ["--optim.steps", "2", "--optim.groups", "4", "--threads", "1"]


def test_rows_hold_what_was_measured_on_the_right_images(monkeypatch, tmp_path):
    task, networks, calibrated, asked = load("digits", tmp_path), [], [], []

    def recalibrate(network, batches, n):
        calibrated.append((network, n))
        assert torch.equal(torch.cat(list(batches)), task.pixels(task.train.images))

    def images_per_second(pairs, images):
        networks.extend(pairs)
        assert torch.equal(images, task.pixels(task.train.images[: len(images)]))
        return [10.0 * (place + 1) for place in range(len(pairs))]

    def classify(network, _, split, n):
        assert torch.equal(split.images, task.test.images)
        asked.append((network, n))
        classes = split.labels.clone()
        classes[: 36 * len(asked)] = -1  # wrong on the first 10 %, 20 %, ..
        return classes

    def regrouped_share(network, _, n, classes, generator):
        assert generator.initial_seed() == 0
        return float((classes == -1).sum())

    monkeypatch.setattr(experiment, "THROUGHPUT_IMAGES", 48)
    for fake in (recalibrate, images_per_second, classify, regrouped_share):
        monkeypatch.setattr(experiment, fake.__name__, fake)
    main([*SHORT, "--out", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = result["rows"]

    assert calibrated == networks
    assert asked == networks
    assert [type(network) for network, _ in networks] == [MIMOConv] * 3 + [WideResNet] * 2
    assert [row["n"] for row in rows] == [n for _, n in networks] == [1, 2, 4, 1, 1]
    assert [row["images_per_second"] for row in rows] == [10, 20, 30, 40, 50]
    assert [row["speedup"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["accuracy"] for row in rows] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert [row["macs"] for row in rows] == [count_macs(network, n) for network, n in networks]
    assert result["changed_by_regrouping"] == {"1": 36, "2": 72, "4": 108}
    assert result["accuracy_per_slot"]["2"] == [0.8, 0.8]
    assert all(not network.training for network, _ in networks)
