"""Keep the state of a training run: network, optimizer, schedule, moving average, and how far it is."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.training import optimizers
from mimo_benchmarks.training.checkpoint import Checkpoint, flatten_optimizer, restore_optimizer
from mimo_benchmarks.training.compilers import compiled
from vsa_core.gpu import runs_triton


@dataclass
class Progress:
    """How far a run is, apart from weights and optimizer; checkpoints hold all of it."""

    step: int = 0
    """Number of the last step."""
    seconds: float = 0.0
    """Seconds of training so far, over all starts of the run."""
    best: float = -1.0
    """Highest dev accuracy so far."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Counters on the device: updates skipped in all and in a row, sum of gradient norms and number of the updates made in this
    epoch, and the mean gradient norm of the last epoch with any."""


class Training:
    """A run in training: network, optimizer, schedule, moving average and best weights, saved as tensors and JSON."""

    def __init__(self, network: nn.Module, config: RunConfig, accelerator: Accelerator) -> None:
        network = network.to(accelerator.device)
        self._evaluated = copy.deepcopy(network)  # a copy without what training wraps around the network
        if config.sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network, self.config = network.train(), config
        self.average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.optim.average)) if config.optim.average else None
        )
        if accelerator.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # steps have few shapes, so trying all algorithms once pays
        self.buffers = optimizers.lay_end_to_end(network)
        """All of the network's buffers, in one tensor for each type."""
        named = network.named_buffers()
        self.statistics = [buffer for name, buffer in named if name.endswith(("running_mean", "running_var"))]
        optimizer = optimizers.build_optimizer(network, config.optim)
        self.schedule = optimizers.build_schedule(optimizer, config.optim)
        model: Any = compiled(network) if is_compiled(config, accelerator.device) else network
        # `evaluation_mode` adds precision only: `Gradients` averages over processes by itself, which CUDA graphs need
        self.model = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = accelerator.prepare(optimizer)
        if self.average:
            self.average.to(accelerator.device)
            self.average.n_averaged = self.average.n_averaged.cpu()  # which torch asks for at every step
        self.scaler = accelerator.scaler
        if self.scaler:  # all networks of an experiment share it, and each must begin with a new state
            self.scaler.load_state_dict(torch.amp.GradScaler().state_dict())
        self.best: dict[str, Tensor] = {}
        names = ("skipped", "skipped_in_a_row", "norms", "epoch_steps", "mean")
        self.progress = Progress(counts={name: torch.zeros((), device=accelerator.device) for name in names})

    def evaluated_weights(self) -> dict[str, Tensor]:
        """Return the weights that are evaluated: the moving average, with the network's own buffers, or its own."""
        module = self.network if self.average is None else self.average.module
        return module.state_dict()

    def evaluated_network(self, weights: dict[str, Tensor]) -> nn.Module:
        """Return the copy of the network that all evaluations share, in eval mode and with these weights."""
        self._evaluated.load_state_dict(weights)
        return self._evaluated.eval()

    def remember_best(self, accuracy: float) -> None:
        """Remember the weights as those with the best dev accuracy."""
        self.progress.best = accuracy
        self.best = {name: value.clone() for name, value in self.evaluated_weights().items()}

    def require_finite(self, name: str) -> None:
        """Raise FloatingPointError unless weights, their moving average and the optimizer's state are finite."""
        averages = self.average.parameters() if self.average else ()
        moments = flatten_optimizer(self.optimizer.state_dict())[0].values()
        if not all(tensor.isfinite().all() for tensor in (*self.network.parameters(), *averages, *moments)):
            found = f"{name}, step {self.progress.step}: weights or the optimizer's state are not finite"
            raise FloatingPointError(f"{found}; training diverged: a lower --optim.lr may help")

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return what a checkpoint holds: tensors, and a state for JSON."""
        moments, groups = flatten_optimizer(self.optimizer.state_dict())
        tensors = {"model": self.network.state_dict(), "optimizer": moments, "counts": self.progress.counts}
        if self.best:
            tensors["best"] = self.best
        if self.average:
            tensors["average"] = self.average.state_dict()
        state = {
            "groups": groups,
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "seconds": self.progress.seconds,
            "best": self.progress.best,
        }
        return tensors, state

    def restore(self, kept: Checkpoint) -> None:
        """Take over the state of a checkpoint."""
        self.network.load_state_dict(kept.tensors["model"])
        self.optimizer.load_state_dict(restore_optimizer(kept.tensors["optimizer"], kept.state["groups"]))
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # fused kernels need the parameter's layout
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        self.schedule.load_state_dict(kept.state["schedule"])
        if self.average:
            self.average.load_state_dict(kept.tensors["average"])
        if self.scaler and kept.state["scaler"]:
            self.scaler.load_state_dict(kept.state["scaler"])
        self.best = kept.tensors.get("best", {})
        for name, value in kept.tensors["counts"].items():
            self.progress.counts[name].copy_(value)
        self.progress.step, self.progress.seconds, self.progress.best = kept.step, kept.state["seconds"], kept.state["best"]


def is_compiled(config: RunConfig, device: torch.device) -> bool:
    """Tell whether a run compiles its network: on a GPU for which there is a compiler, if that makes training faster."""
    return config.compile and describe(config.model).compiled and device.type == "cuda" and runs_triton(device)
