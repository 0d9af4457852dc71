"""Memory that runs out ends in one message that names what to lower, with exit code 2; what cannot fit is refused before."""

import gc
import os
import re
import subprocess
import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
from PIL import Image
from torch.autograd.graph import saved_tensors_hooks

from mimo_benchmarks.__main__ import main
from mimo_benchmarks.cli import estimate, throughput
from mimo_benchmarks.cli import main as command
from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.experiment import experiment
from mimo_benchmarks.experiment.memory_need import training_bytes
from mimo_benchmarks.memory import free_memory, memory_for, ran_out_of_memory
from mimo_benchmarks.networks.convolutional import MIMOConvNetwork, WideResNetNetwork
from mimo_benchmarks.networks.network import Network
from mimo_benchmarks.networks.registry import build, describe
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks import registry as tasks
from mimo_benchmarks.training import checkpoint
from mimo_benchmarks.training.checkpoint import load_checkpoint
from mimoconv import MIMOConv, MIMOConvConfig, WideResNetConfig

CPU = torch.device("cpu")
SHORT = ["--optim.steps", "3", "--optim.groups", "8", "--model.width", "1", "--model.stem-channels", "16", "--threads", "1"]
RUN = [*SHORT, "--n", "1", "--n-odds", "1", "--no-controls"]
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 3.00 GiB is free."


def cuda(*_, **__):
    raise torch.OutOfMemoryError(CUDA)


def cpu(*_, **__):
    torch.empty(2**60, dtype=torch.uint8, device="cpu")


def numpy(*_, **__):
    np.empty(2**60, dtype=np.uint8)


FULL = pytest.mark.parametrize("full", [cuda, cpu, numpy], ids=lambda full: full.__name__)


@FULL
def test_errors_of_torch_and_numpy_are_known_and_say_how_much_was_asked_for(full):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        full()
    assert ran_out_of_memory(caught.value)
    told = r"^there is not enough memory for a test, which asked for [\d.,]+ \w+ more: rest$"
    with pytest.raises(NotEnoughMemory, match=told), memory_for("a test", "rest"):
        full()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory"), True),
        (ImportError("\n\nImporting the numpy C-extensions failed.\n\na.so: failed to map segment from shared object\n"), True),
        (OSError("libtorch_global_deps.so: failed to map segment from shared object"), True),
        (ImportError("a.so: failed to map segment from shared object: Operation not permitted"), False),
        (ImportError("a.so: cannot allocate memory in static TLS block"), False),
        (ModuleNotFoundError("No module named 'scipy'"), False),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("n is out of range"), False),
    ],
    ids=repr,
)
def test_other_errors_are_left_alone(error, full):
    assert ran_out_of_memory(error) == full


def refused(capsys, *arguments):
    """The one line on stderr, besides those on progress, with which the program refuses these arguments with exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, arguments)))
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    return said[said.index("error: ") :]


@pytest.mark.parametrize("name", ["torch", "mimo_benchmarks.cli.list"])
def test_a_library_that_does_not_fit(name, capsys, monkeypatch):
    """Be it torch itself, or what a command imports later: one line, with what the system's loader says, and what to do."""
    line = "libtorch_python.so: failed to map segment from shared object"

    def import_module(wanted):
        if wanted == name:
            raise ImportError(line)

    if name == "torch":
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(command, "import_module", import_module)
    said = refused(capsys, "list")
    assert (
        said
        == f"error: there is not enough memory to load a library ({line}): free some, or raise the limit that `ulimit -v` shows\n"
    )
    assert gc.isenabled()


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("full", "place", "name", "remedy"),
    [
        (cpu, Network, "build", "give smaller --model sizes"),
        (numpy, tasks, "data", "choose another task"),
        (cuda, experiment, "crosstalk_of", "give smaller --model sizes"),
        (cpu, experiment, "Training", "give smaller --model sizes"),
        (cuda, experiment, "train", "raise --optim.accumulate, .* or lower --optim.groups or the --model sizes"),
        (cpu, experiment, "save_checkpoint", "give smaller --model sizes"),
        (cuda, experiment, "recalibrate", "give smaller --model sizes"),
        (cpu, WideResNetNetwork, "predict", "give smaller --model sizes"),
        (numpy, experiment, "save_network", "give smaller --model sizes"),
        (cuda, experiment, "measure_throughput", "give a smaller --optim.groups or smaller --model sizes"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_each_phase_of_training_names_what_to_lower(full, place, name, remedy, capsys, monkeypatch, tmp_path):
    if name == "data":
        monkeypatch.setitem(tasks.TASKS, "digits", replace(tasks.TASKS["digits"], load=full))
    else:
        monkeypatch.setattr(place, name, full)
    said = refused(capsys, *RUN, "--out", tmp_path / "run")
    assert re.search(remedy, said)
    assert said.count("\n") == 1


@pytest.mark.once
@pytest.mark.unchecked
def test_what_is_saved_stays_usable(capsys, monkeypatch, tmp_path):
    """Where memory runs out in the middle of a run, and again while the checkpoint is read, which is not taken for damaged."""
    monkeypatch.setitem(rates.BUDGET, "cpu", 1)
    whole, run = tmp_path / "whole", tmp_path / "run"
    main([*RUN, "--save-every", "1", "--out", str(whole)])
    forward, calls = MIMOConv.forward, []

    def third_step_full(self, images):
        calls.append(self.training and not images.is_meta)
        return cpu() if sum(calls) == 3 else forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(MIMOConv, "forward", third_step_full)
        said = refused(capsys, *RUN, "--save-every", "1", "--out", run)
    assert "raise --optim.accumulate" in said
    assert f"mimonets --resume {run} goes on from what is saved" in said
    assert load_checkpoint(run / "checkpoints").step == 2
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.safetensors, "load", cpu)
        assert "not enough memory" in refused(capsys, "--resume", run)
    main(["--resume", str(run), "--threads", "1"])
    kept, wanted = (MIMOConv.from_pretrained(path).state_dict() for path in (run, whole))
    assert all(torch.equal(value, wanted[name]) for name, value in kept.items())


@pytest.mark.unchecked
@FULL
def test_predict_names_passes(full, capsys, monkeypatch, tmp_path):
    config = MIMOConvConfig(depth=10, width=0.5, stem_channels=8, in_channels=1, image_size=8, mean=(0.5,), std=(1.0,))
    build(config).save_pretrained(tmp_path / "network")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(WideResNetNetwork, "predict", full)
    said = refused(capsys, "predict", tmp_path / "network", tmp_path / "a.png", "--n", 2)
    assert "for 64 passes of 2 inputs" in said
    assert said.endswith("give a smaller --passes\n")


@pytest.mark.unchecked
@FULL
def test_throughput_names_passes(full, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "measure", full)
    monkeypatch.setattr(throughput, "device_peak", lambda *_: 1.0)
    said = refused(capsys, "throughput", "quickstart", "--out", tmp_path / "file.json")
    assert said.endswith("give fewer --passes or another preset\n")


@pytest.mark.unchecked
def test_list_estimates_what_fits_and_names_the_rest(capsys, monkeypatch):
    """What does not fit by far is not even built."""
    built = []
    monkeypatch.setattr(estimate, "STEPS", 1)
    monkeypatch.setattr(estimate, "build", lambda config: built.append(config) or build(config))
    need = training_bytes(find_preset("recall_n2_att"), CPU)
    monkeypatch.setattr(estimate, "free_memory", lambda device: estimate.ROOM * need)
    with pytest.raises(SystemExit) as exit_:
        main(["list", "recall_[np]*", "--estimate"])
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1].strip("| ") for line in printed.out.splitlines()[2:]}
    large = {name for name in rows if training_bytes(find_preset(name), CPU) > need}
    assert {name for name, hours in rows.items() if hours == "-"} == large
    assert "recall_n2_att" not in large
    assert built == [find_preset(name).model for name in rows if name not in large]
    assert all(f"\n{name}: it may take" in printed.err for name in large)


LIMITED = """
import resource, sys
import mimo_benchmarks.cli.estimate, mimo_benchmarks.cli.machine, mimo_benchmarks.cli.train, mimo_benchmarks.experiment.experiment
import torch.utils.flop_counter  # what is imported later takes memory too
from mimo_benchmarks.__main__ import main
from mimo_benchmarks.memory import read_table
from pathlib import Path
used = read_table(Path("/proc/self/status"))["VmSize"] * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 10**9,) * 2)
main(sys.argv[1:])
"""


@pytest.mark.once
@pytest.mark.unchecked
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space hold on Linux")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--optim.groups", "1000000"], "training MIMOConv-10-2 takes at least .* --optim.groups"),
        (["--model.width", "500"], "network is too large to be built .* smaller --model sizes"),
        (
            ["--optim.isometry", "0.1", "--optim.groups", "8", "--model.width", "10", "--no-controls"],
            "for a training step, .* --optim.groups",
        ),
        (["list", "cifar10_mimoconv_n1", "--estimate"], "cifar10_mimoconv_n1: it may take"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_process_with_a_gigabyte(arguments, named, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(named, " ".join(done.stderr.split()))
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize("network", [MIMOConvNetwork, WideResNetNetwork], ids=lambda network: network.__name__)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_training_takes_what_its_forward_pass_keeps(network, accumulate):
    """Counted on real tensors: every memory that is kept once, the weights, and their copy for evaluations."""
    settings = {"depth": 10, "width": 0.5, "stem_channels": 8, "in_channels": 1, "image_size": 8}
    model = (MIMOConvConfig if network is MIMOConvNetwork else WideResNetConfig)(**settings)
    config = RunConfig(model=model, n=(2,), n_odds=(1,), optim=OptimConfig(groups=64, accumulate=accumulate))
    known, module, kept = describe(model), build(model).train(), {}
    items = known.example(64 // accumulate * 2, CPU).unflatten(0, (-1, *known.axes(2)))
    with saved_tensors_hooks(lambda tensor: kept.setdefault(tensor.untyped_storage().data_ptr(), tensor), lambda tensor: tensor):
        logits = module(items)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    activations = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    weights = sum(prod(tensor.shape) * tensor.element_size() for tensor in module.state_dict().values())
    assert training_bytes(config, CPU) == pytest.approx(2 * weights + activations + 2 * 4 * prod(logits.shape), rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_free_memory_is_what_the_system_tells():
    with open("/proc/meminfo") as lines:
        total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < free_memory(CPU) <= 2 * total
