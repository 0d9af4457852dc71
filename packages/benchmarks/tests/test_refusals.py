"""What cannot work is refused by the program in one message and with exit code 2, and leaves nothing behind."""

import inspect
import re
from dataclasses import fields

import pytest
import torch

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli.train import parse_settings
from mimo_benchmarks.settings import AugmentConfig, OptimConfig, RunConfig

pytestmark = pytest.mark.once


def refused(capsys, *arguments):
    """What the program says when it refuses these arguments with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return printed.err + printed.out


WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.unchecked
@WITHOUT_GPU
def test_a_gpu_where_there_is_none(capsys):
    assert "device = cuda, but there is no GPU that torch can use" in refused(capsys, "--device", "cuda")


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quikstart"], "no preset 'quikstart': did you mean quickstart?"),
        (["zzz"], "no preset 'zzz': `mimonets list` shows all"),
        (["quickstart.thn"], "no preset 'quickstart.thn': quickstart has the forms short, equal_cost_n4, equal_cost_n1, thin"),
        (["mnist_datamux_n4.thin"], "mnist_datamux_n4 has the forms short"),
        (["cifar10_mimoconv_n3"], "did you mean cifar10_mimoconv_n"),
        (["list", "zzz"], "no preset 'zzz'"),
        (["list", "zzz*"], "no preset has a name like 'zzz*'"),
        (["report"], "no folder was named"),
        (["report", "/nonexistent"], "/nonexistent"),
        (["predict", "/nonexistent", "image.png"], "/nonexistent"),
        (["report", "x" * 300], "no such folder: x"),
        (["predict", "x" * 300, "image.png"], "File name too long"),
        (["throughput", "quikstart"], "did you mean quickstart"),
        (["--optim.learning-rate", "1"], "--optim.learning-rate"),
        (["--optim.lr", "fast"], "fast"),
        (["--optim.lr", "-1"], "optim.lr must be above 0 and finite, got -1.0"),
        (["--optim.lr", "inf"], "optim.lr must be above 0 and finite, got inf"),
        (["--optim.weight-decay", "nan"], "optim.weight_decay must be finite and not negative, got nan"),
        (["--optim.steps", "0"], "optim.steps must be from 1 to 10,000,000, got 0"),
        (["--optim.steps", "10000001"], "optim.steps must be from 1 to 10,000,000, got 10000001"),
        (["--n", "1", "8", "--n-odds", "1", "1"], "n = 8, but the model has room for 4"),
        (["--model.capacity", "1", "--n", "2", "--n-odds", "1"], "n = 2, but the model has room for 1"),
        (["--model.capacity", "1"], "n = 2, but the model has room for 1"),
        (["cifar10_mimoconv_n1", "--n", "2"], "n = 2, but the model has room for 1"),
        (["--n-odds", "1"], "n_odds must hold one number for each"),
        (["--model.depth", "11"], "depth must be 6k + 4"),
        (["--augment.shift", "-1"], "augment.shift must be finite and not negative, got -1"),
        (["--augment.rotate", "nan"], "augment.rotate must be finite and not negative, got nan"),
        (["--n-odds", "1", "1", "inf"], "n_odds must be finite"),
        (["--n-odds", "0", "0", "0"], "n_odds must have a finite sum above 0"),
        (["--model.width", "inf"], "width must be finite"),
        (["--model.width", "1e308"], "width must be finite"),
        (["--model.depth", "6000000000000000000000004"], "the network is too large to be built"),
        (["--optim.steps", "100000000000000000000"], "optim.steps must be from 1 to 10,000,000"),
        (["--seed", "1", "mnist"], "A preset's name comes first"),
        (["--model.mean", "0.5", "--model.std", "0.2"], "--model.mean is set by the task: leave it out"),
        (["--model.stem-channels", "10000000000"], "the network is too large to be built"),
        (["--model.stem-channels", "100000000000000000000"], "the network is too large to be built"),
        (["--threads", "100000"], "threads = 100000, but this process may use"),
        (["--model.image-size", "32"], "task digits needs --model.image-size 8, got 32"),
        (["--task", "imagenet"], "no task 'imagenet': did you mean image"),
        (["--seed", "-3"], "seed must be from 0 to 2^32 - 1, got -3"),
        (["--seed", "4294967296"], "seed must be from 0 to 2^32 - 1, got 4294967296"),
        (["mnist", "--data-dir", "/nonexistent"], "train-images-idx3-ubyte is missing"),
        (["cifar10", "--data-dir", "/nonexistent"], "data_batch_1 is missing: get it with `"),
        (["cifar10", "--data-dir", "/nonexistent"], "data prepare cifar10 --data-dir /nonexistent --download`"),
        (["--task", "recall"], "task recall has tokens, and the network takes images"),
        (["recall_n2_att", "--n", "3"], "n = 3, but the model has room for 2"),
        (["--curriculum", "1"], "curriculum and curriculum_share come together"),
        (["--curriculum", "3", "--curriculum-share", "0.5"], "curriculum = 3 must divide the largest n, 4"),
        (["recall_datamux_n2", "--n", "1"], "DataMUX has no n but its capacity: give --n 2"),
        (["--curriculum", "9", "--curriculum-share", "0.5"], "curriculum = 9, but the model has room for 4"),
        (["--optim.groups", "6", "--optim.accumulate", "4"], "optim.groups = 6 cannot be split into optim.accumulate = 4"),
        (["--optim.momentum", "0.9", "0.8"], "optim.momentum has no effect, because optim.optimizer is adamw: leave it out"),
        (["mnist_mimoconv_n4", "--optim.betas", "0.9", "0.99"], "optim.betas has no effect, because optim.optimizer is sgd"),
        (["mnist_mimoconv_n4", "--optim.peak-beta1", "0.85"], "optim.peak_beta1 has no effect, because optim.optimizer is sgd"),
        (["--optim.peak-beta1", "1"], "optim.peak_beta1 must be from 0 to below 1, got 1"),
        (["--optim.rate-parts", "3"], "optim.rate_parts goes with optim.schedule annealing, not cosine: leave it out"),
        (["--optim.schedule", "annealing", "--optim.rate-parts", "-1"], "optim.rate_parts must not be negative, got -1"),
        (["--optim.end", "0"], "optim.end must be above 0 with optim.schedule cosine, got 0"),
        (
            ["listops_deep_n2_att", "--optim.schedule", "annealing"],
            "optim.peak_beta1 cycles, and optim.schedule annealing has no cycle: keep it constant",
        ),
        (
            ["mnist_mimoconv_n4", "--optim.schedule", "annealing"],
            "optim.momentum cycles, and optim.schedule annealing has no cycle: keep it constant",
        ),
        (["cifar10_muon_n4", "--optim.eps", "1e-7"], "optim.eps has no effect, because optim.optimizer is muon"),
        (["cifar10_fast_n4", "--optim.rest-lr", "0.1"], "optim.rest_lr has no effect, because optim.optimizer is sgd"),
        (["listops_deep_n2_att", "--optim.isometry", "1"], "optim.isometry has no effect, because the network has no"),
        (
            ["recall_n2_att", "--model.trainable-keys", "--optim.key-penalty", "1"],
            "optim.key_penalty has no effect, because the network",
        ),
        (["listops_deep_n2_att", "--augment.crop", "4"], "augment has no effect, because the network takes tokens"),
        (["--augment.border", "zero"], "augment.border has no effect, because augment.crop is 0"),
        (["--augment.no-mixup-each"], "augment.mixup_each has no effect, because augment.mixup is 0"),
        (["--optim.weight-decay", "0", "--optim.decay", "usual"], "optim.decay has no effect, because optim.weight_decay is 0"),
        (
            ["--model.no-trainable-keys", "--optim.key-penalty", "1"],
            "optim.key_penalty has no effect, because the network has no",
        ),
        (["cifar10_fast_n4.thin", "--controls"], "controls has no effect, because this network has none"),
        (["--optim.loss", "squared"], "optim.label_smoothing goes with cross_entropy only"),
        (["--optim.average", "1"], "optim.average must be from 0 to below 1, got 1"),
        (["--best"], "best needs dev accuracies to choose by: give dev_every"),
        (["--dev-every", "5"], "task digits has no dev split"),
        pytest.param(["--sync-batch-norm"], "sync_batch_norm is for several GPUs", marks=WITHOUT_GPU),
        pytest.param(["--precision", "fp16"], "precision = fp16 is for GPUs", marks=WITHOUT_GPU),
        (["--tracker", "tensorbord"], "there is no tracker 'tensorbord': did you mean tensorboard"),
        (["--resume", "/nonexistent"], "is /nonexistent a run directory?"),
        (["--resume=/nonexistent"], "is /nonexistent a run directory?"),
        (
            ["--augment.mixup", "1", "--optim.groups", "1"],
            "augment.mixup mixes images of different passes, and optim.groups is 1",
        ),
        (["--augment.crop", "8"], "augment.crop = 8, but the images of digits are 8 x 8 pixels"),
        (["--augment.border", "wrap"], "wrap"),
    ],
)
def test_what_cannot_work_is_refused_in_one_message(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in " ".join(refused(capsys, *arguments).replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_what_a_preset_sets_for_another_optimizer_is_left_alone():
    """Its cycled momentum does not stand in the way of AdamW."""
    _, config = parse_settings(["cifar10_fast_n4", "--optim.optimizer", "adamw", "--optim.betas", "0.9", "0.99"])
    assert (config.optim.momentum, config.optim.betas) == ((0.95, 0.85), (0.9, 0.99))


def test_an_existing_run_directory_is_never_overwritten(capsys, tmp_path):
    assert "exists already" in refused(capsys, "--optim.steps", "4", "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.unchecked
def test_a_folder_without_rights(capsys, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "cannot be made" in refused(capsys, "--optim.steps", "4", "--out", str(blocker / "run"))


@pytest.mark.unchecked
def test_a_file_where_the_runs_go(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    assert "the run directory cannot be made" in refused(capsys, "--optim.steps", "4")


def test_training_that_diverged_is_said(capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["--optim.steps", "4", "--no-controls", "--optim.lr", "1e30", "--optim.steps", "1", "--out", str(tmp_path / "run")])
    assert exit_.value.code == 1
    assert "training diverged" in capsys.readouterr().err


def test_help_explains_presets_and_flags(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "mimonets [train] [PRESET] [--flags]",
        "mimonets list | reproduce | report | throughput | predict | data",
        "quickstart:",
        "mnist:",
        "--optim.lr",
        "Peak learning rate",
        "--data-dir",
        "MIMO_DATA",
    ):
        assert words in text


@pytest.mark.parametrize("settings", [RunConfig, OptimConfig, AugmentConfig])
def test_pythons_help_explains_every_setting(settings):
    explained = re.findall(r"^    (\w+): \w.*", inspect.getdoc(settings).partition("Attributes:\n")[2], re.MULTILINE)
    assert explained == [setting.name for setting in fields(settings)]


def test_flags_change_the_preset():
    preset, config = parse_settings(["quickstart", "--optim.lr", "0.5", "--n", "1", "3", "--n-odds", "2", "1"])
    assert (preset, config.optim.lr, config.n, config.n_odds) == ("quickstart", 0.5, (1, 3), (2, 1))
