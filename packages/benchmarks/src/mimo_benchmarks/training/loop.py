"""Train step by step; each step is a function of (seed, step), so a resumed run equals one that never stopped."""

import math
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor

from mimo_benchmarks.progress import SHORTEST, seconds_since
from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training import optimizers
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.gradients import Gradients, average_over_processes
from mimo_benchmarks.training.state import Training

PATIENCE = 20
"""Training ends after this many updates in a row that are not finite: see `take_step`."""


def train(
    training: Training,
    feed: Feed,
    accelerator: Accelerator,
    *,
    name: str,
    log: Callable[..., None],
    after_step: Callable[[int], None],
) -> None:
    """Train from the step at which the run stands to the last one.

    Args:
        training: state of the run, changed in place.
        feed: gives the batches.
        accelerator: the accelerator that prepared the state.
        name: name of the network in errors.
        log: called every `log_every` steps, with measurements as keywords.
        after_step: called with the number of each finished step, to save, to evaluate, or to stop by an exception.

    Raises:
        FloatingPointError: `PATIENCE` updates in a row, or the last loss, were not finite.
    """
    config, optim, progress = training.config, training.config.optim, training.progress
    gradients = Gradients(training, feed, accelerator)
    first = progress.step + 1
    inputs, seconds = feed.inputs(first - 1), progress.seconds
    for step in range(first, optim.steps + 1):
        start = time.perf_counter()
        lr = training.optimizer.param_groups[0]["lr"]
        measured, norm = take_step(training, gradients, step)
        if step % config.log_every == 0 or step == optim.steps:
            counts = [progress.counts[name] for name in ("skipped", "skipped_in_a_row")]
            values = torch.cat([measured, torch.stack([norm.float(), *counts])])
            value, right, grad_norm, skipped, in_a_row = accelerator.reduce(values, "mean").tolist()
            so_far = progress.seconds + seconds_since(start)
            rate = (feed.inputs(step) - inputs) / max(SHORTEST, so_far - seconds)
            inputs, seconds = feed.inputs(step), so_far
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
            if in_a_row >= PATIENCE or (step == optim.steps and not math.isfinite(value)):
                found = f"the loss is {value}, the gradient norm {grad_norm}, {int(in_a_row)} updates in a row were skipped"
                raise FloatingPointError(f"{name}, step {step}: {found}; training diverged: a lower --optim.lr may help")
        progress.seconds += seconds_since(start)
        after_step(step)


def take_step(training: Training, gradients: Gradients, step: int) -> tuple[Float[Tensor, "2"], Float[Tensor, ""]]:
    """Take a training step, without waiting for a GPU; return loss and accuracy, and the norm of the gradient.

    The update is refused unless the gradient and, in every process, the loss and each number of a buffer that the step has
    changed are finite.
    """
    optim, optimizer = training.config.optim, training.optimizer
    before = [buffer.clone() for buffer in training.buffers]
    measured = gradients(step)
    norm = gradients.accelerator.clip_grad_norm_(gradients.parameters, optim.max_grad_norm)
    changes = zip(training.buffers, before, strict=True)
    infinite = [sum_of_infinite(new, old) for new, old in changes if new.is_floating_point() or new.is_complex()]
    accepted = norm.where(are_finite([measured[0], *infinite], gradients.accelerator), torch.inf)
    ok = accept_update(accepted, training.progress.counts, optim, new_epoch=step % gradients.feed.epoch == 0)
    optimizers.step_if(ok, optimizer, training.buffers, before)
    training.schedule.step()
    optimizer.zero_grad()
    if training.average:
        training.average.update_parameters(training.network)
    training.progress.step = step
    return measured, norm


def sum_of_infinite(new: Tensor, old: Tensor) -> Tensor:
    """Return NaN if a number has changed and is not finite, otherwise 0; a mask may hold infinity from the start."""
    return (0 * torch.where(new == old, 0, new)).sum()


def are_finite(values: list[Tensor], accelerator: Accelerator) -> Bool[Tensor, ""]:
    """Tell, on the device, whether numbers are finite in every process."""
    finite = torch.stack(values).isfinite().all().float()
    average_over_processes([finite], accelerator)
    return finite == 1


def accept_update(norm: Float[Tensor, ""], counts: dict[str, Tensor], optim: OptimConfig, *, new_epoch: bool) -> Bool[Tensor, ""]:
    """Decide by the gradient's norm, on the device, whether an update is made, and update the counters.

    As published, a norm of at least `optim.reject` times a mean rejects the update; so does a norm that is not finite. The norm
    is that before clipping, and the mean is over the updates made in the last epoch in which there were any.
    """
    finite = norm.isfinite()
    mean = counts["mean"]
    ok = finite & ((mean == 0) | (norm < optim.reject * mean)) if optim.reject else finite
    counts["skipped"] += ~ok
    counts["skipped_in_a_row"].copy_((counts["skipped_in_a_row"] + 1) * ~finite)
    counts["norms"] += torch.where(ok, norm, 0)
    counts["epoch_steps"] += ok
    if new_epoch:
        made = counts["epoch_steps"]
        mean.copy_(torch.where(made > 0, counts["norms"] / made.clamp(min=1), mean))
        counts["norms"].zero_()
        counts["epoch_steps"].zero_()
    return ok
