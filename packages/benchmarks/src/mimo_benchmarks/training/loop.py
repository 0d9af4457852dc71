"""The training loop: every step is a function of (seed, step), so a run that was interrupted goes on as if it had not been."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from mimo_benchmarks.data.synthetic.tokens import UNSCORED
from mimo_benchmarks.networks.registry import Network
from mimo_benchmarks.settings import ImageConfig, OptimConfig, RunConfig
from mimo_benchmarks.training import optimizers
from mimo_benchmarks.training.checkpoint import Checkpoint, flatten_optimizer, restore_optimizer
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.sampling import entropy
from mimoconv import MIMOConv, WideResNet, isometry_penalty
from vsa_core.penalties import key_orthonormality

PATIENCE = 20
"""Updates in a row with a gradient that is not finite, after which training is given up."""


@dataclass
class Progress:
    """Where a run stands, apart from weights and the optimizer's state; all of it goes into a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """Of training so far, over all times that the run was resumed."""
    best: float = -1.0
    """Dev accuracy."""
    counts: dict[str, Tensor] = field(default_factory=dict)
    """On the device: updates left out, of those in a row now, and of gradient norms the sum and number in this epoch and the
    mean of the last one."""


class Training:
    """Network, optimizer, schedule, moving average and best weights of a run, and their state as tensors and JSON."""

    def __init__(self, network: Network, config: RunConfig, accelerator: Accelerator) -> None:
        if config.sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network, self.config = network.train(), config
        self.average = (
            AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.optim.average)) if config.optim.average else None
        )
        if accelerator.device.type == "cuda":  # the layout that tensor cores want of images
            network = network.to(memory_format=torch.channels_last)
        optimizer = optimizers.build(network.to(accelerator.device), config.optim)
        self.schedule = optimizers.schedule(optimizer, config.optim)
        one_shape = isinstance(config.model, ImageConfig) and len({*config.n, *config.curriculum}) == 1
        one_pass = config.optim.accumulate == 1 and accelerator.num_processes == 1
        # CUDA graphs, where each step is one pass of one shape, because launching its kernels takes longer than running them
        mode = "reduce-overhead" if one_shape and one_pass else None
        model: Any = torch.compile(network, mode=mode) if config.compile else network
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        if self.average:
            self.average.to(accelerator.device)
        self.scaler = accelerator.scaler
        if self.scaler:  # one for all networks of an experiment, and each begins alike
            self.scaler.load_state_dict(torch.amp.GradScaler().state_dict())
        self.best: dict[str, Tensor] = {}
        names = ("skipped", "row", "norms", "epoch_steps", "mean")
        self.progress = Progress(counts={name: torch.zeros((), device=accelerator.device) for name in names})

    def evaluated(self) -> Network:
        """The network that is evaluated: the moving average where there is one, with the buffers of the network itself."""
        if self.average is None:
            return self.network
        averaged: Network = self.average.module  # type: ignore[assignment]
        return averaged

    def keep(self, accuracy: float) -> None:
        """Remember the weights as those of the best dev accuracy."""
        self.progress.best = accuracy
        self.best = {name: value.clone() for name, value in self.evaluated().state_dict().items()}

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """What a checkpoint holds."""
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
        """Go on from a checkpoint."""
        self.network.load_state_dict(kept.tensors["model"])
        self.optimizer.load_state_dict(restore_optimizer(kept.tensors["optimizer"], kept.state["groups"]))
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:  # fused kernels want the parameter's layout
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


def train(
    training: Training,
    feed: Feed,
    accelerator: Accelerator,
    *,
    name: str,
    log: Callable[..., None],
    after: Callable[[int], None],
) -> None:
    """Train to the last step, from wherever the run stands.

    Args:
        name: what the progress bar calls the network.
        log: takes what is measured as keywords, every `log_every` steps.
        after: called with each step's number when it is done: to save, to evaluate, to stop by an exception.

    Raises:
        FloatingPointError: the gradients of many steps in a row, or the last loss, were not finite.
    """
    config, optim, progress = training.config, training.config.optim, training.progress
    model, optimizer = training.model, training.optimizer
    epoch = max(1, len(feed.task.train) // optim.groups)
    first = progress.step + 1
    bar = tqdm(
        range(first, optim.steps + 1),
        name,
        optim.steps,
        mininterval=0.5,
        initial=first - 1,
        disable=not accelerator.is_main_process,
    )
    inputs, seconds = feed.inputs(first - 1), progress.seconds
    for step in bar:
        start = time.perf_counter()
        torch.manual_seed(int(entropy(config.seed, step, "dropout", feed.rank).generate_state(1)[0]))
        before, total = optimizers.snapshot(training.network), torch.zeros(2, device=accelerator.device)
        told = step % config.log_every == 0 or step == optim.steps
        for part in range(optim.accumulate):
            x, mask, y = feed.at(step, part)
            with accelerator.no_sync(model) if part + 1 < optim.accumulate else nullcontext():
                logits = model(x) if mask is None else model(x, mask)
                loss = objective(logits, y, optim)
                accelerator.backward((loss + penalties(training.network, optim)) / optim.accumulate)
                if told:
                    total += torch.stack([loss.detach(), accuracy(logits, y)]) / optim.accumulate
        norm = accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizers.step_if(
            acceptable(norm, progress.counts, optim, new_epoch=step % epoch == 0), optimizer, training.network, before
        )
        lr = optimizer.param_groups[0]["lr"]
        training.schedule.step()
        optimizer.zero_grad()
        if training.average:
            training.average.update_parameters(training.network)
        progress.step = step
        if told:
            counts = [progress.counts[name].to(total) for name in ("skipped", "row")]
            values = torch.cat([total, torch.stack([norm.to(total), *counts])])
            value, right, grad_norm, skipped, row = accelerator.reduce(values, "mean").tolist()
            so_far = progress.seconds + time.perf_counter() - start
            rate = (feed.inputs(step) - inputs) / (so_far - seconds)
            inputs, seconds = feed.inputs(step), so_far
            bar.set_postfix_str(f"loss {value:.3f}, accuracy {right:.1%}, {rate:,.0f} inputs/s", refresh=False)
            log(
                step=step,
                n=feed.n[step - 1],
                loss=value,
                accuracy=right,
                lr=lr,
                grad_norm=grad_norm,
                skipped=int(skipped),
                inputs=inputs,
                inputs_per_second=rate,
            )
            if row >= PATIENCE or (step == optim.steps and not math.isfinite(value)):
                found = f"the loss is {value}, the gradient's norm {grad_norm}, {int(row)} updates in a row were left out"
                raise FloatingPointError(f"{name}, step {step}: {found}; training diverged: a lower --optim.lr may help")
        progress.seconds += time.perf_counter() - start
        after(step)


def objective(logits: Float[Tensor, "*b classes"], targets: Tensor, optim: OptimConfig) -> Float[Tensor, ""]:
    """The mean loss over all answers that are asked for; targets are classes (*b), or their shares (*b classes)."""
    logits = logits.float().flatten(0, -2)
    if targets.is_floating_point():
        targets = targets.flatten(0, -2)
        if optim.loss == "squared":
            return F.mse_loss(logits, 2 * targets - 1)
    else:
        targets = targets.flatten()
    return F.cross_entropy(logits, targets, label_smoothing=optim.label_smoothing, ignore_index=UNSCORED)


def accuracy(logits: Float[Tensor, "*b classes"], targets: Tensor) -> Float[Tensor, ""]:
    """Share of right answers among those that are asked for."""
    classes = targets.argmax(-1) if targets.is_floating_point() else targets
    right, scored = logits.argmax(-1) == classes, classes != UNSCORED
    return (right & scored).sum() / scored.sum()


def penalties(network: Network, optim: OptimConfig) -> Float[Tensor, ""] | float:
    """What is added to the loss for weights far from isometries and keys far from orthonormal."""
    total: Float[Tensor, ""] | float = 0.0
    if optim.isometry and isinstance(network, MIMOConv | WideResNet):
        total = total + optim.isometry * isometry_penalty(network)
    if optim.key_penalty and isinstance(network, MIMOConv):
        total = total + optim.key_penalty * key_orthonormality(network.binding.keys)
    return total


def acceptable(norm: Float[Tensor, ""], counts: dict[str, Tensor], optim: OptimConfig, *, new_epoch: bool) -> Bool[Tensor, ""]:
    """Whether a step is to be taken, told by its gradient's norm, on the device; what is counted is brought up to date.

    Step rejection is as published: a norm of `optim.reject` times the last epoch's mean or more is too much. A norm that is not
    finite always is.
    """
    finite = norm.isfinite()
    mean = counts["mean"]
    ok = finite & ((mean == 0) | (norm < optim.reject * mean)) if optim.reject else finite
    counts["skipped"] += ~ok
    counts["row"].copy_((counts["row"] + 1) * ~finite)
    counts["norms"] += torch.where(finite, norm, 0)
    counts["epoch_steps"] += finite
    if new_epoch:
        mean.copy_(counts["norms"] / counts["epoch_steps"].clamp(min=1))
        counts["norms"].zero_()
        counts["epoch_steps"].zero_()
    return ok
