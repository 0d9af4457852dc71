"""Train step by step; each step is a function of (seed, step), so a resumed run equals one that never stopped."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from mimo_benchmarks.data.batching import seed_sequence
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training import optimizers
from mimo_benchmarks.training.feed import Feed
from mimo_benchmarks.training.state import Training

PATIENCE = 20
"""Training ends after this many updates in a row whose gradient is not finite."""


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
        FloatingPointError: the gradients of `PATIENCE` steps in a row, or the last loss, were not finite.
    """
    config, optim, progress = training.config, training.config.optim, training.progress
    model, optimizer = training.model, training.optimizer
    shared = feed.network.inputs(max(config.n))
    epoch = shared * max(1, len(feed.task.train) // (optim.groups * shared))  # as published, `shared` passes over the set
    first = progress.step + 1
    inputs, seconds = feed.inputs(first - 1), progress.seconds
    weighted = ((getattr(optim, name), measure) for name, measure in feed.network.penalties.items())
    penalties = [(factor, measure) for factor, measure in weighted if factor]
    for step in range(first, optim.steps + 1):
        start = time.perf_counter()
        torch.manual_seed(int(seed_sequence(config.seed, step, "dropout", feed.rank).generate_state(1)[0]))
        before, total = optimizers.snapshot_buffers(training.network), torch.zeros(2, device=accelerator.device)
        log_now = step % config.log_every == 0 or step == optim.steps
        for part in range(optim.accumulate):
            x, mask, y = feed.batch(step, part)
            with accelerator.no_sync(model) if part + 1 < optim.accumulate else nullcontext():
                logits = model(x) if mask is None else model(x, mask)
                loss = objective(logits, y, optim)
                penalty = sum((factor * measure(training.network) for factor, measure in penalties), 0.0)
                accelerator.backward((loss + penalty) / optim.accumulate)
                if log_now:
                    total += torch.stack([loss.detach(), batch_accuracy(logits, y)]) / optim.accumulate
        norm = accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        ok = accept_update(norm, progress.counts, optim, new_epoch=step % epoch == 0)
        optimizers.step_if(ok, optimizer, training.network, before)
        lr = optimizer.param_groups[0]["lr"]
        training.schedule.step()
        optimizer.zero_grad()
        if training.average:
            training.average.update_parameters(training.network)
        progress.step = step
        if log_now:
            counts = [progress.counts[name].to(total) for name in ("skipped", "skipped_in_a_row")]
            values = torch.cat([total, torch.stack([norm.to(total), *counts])])
            value, right, grad_norm, skipped, in_a_row = accelerator.reduce(values, "mean").tolist()
            so_far = progress.seconds + time.perf_counter() - start
            rate = (feed.inputs(step) - inputs) / (so_far - seconds)
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
        progress.seconds += time.perf_counter() - start
        after_step(step)


def objective(logits: Float[Tensor, "*b classes"], targets: Tensor, optim: OptimConfig) -> Float[Tensor, ""]:
    """Return the mean loss over all scored answers; targets are classes (*b) or shares of classes (*b classes)."""
    logits = logits.float().flatten(0, -2)
    if targets.is_floating_point():
        targets = targets.flatten(0, -2)
        if optim.loss == "squared":
            return F.mse_loss(logits, 2 * targets - 1)
    else:
        targets = targets.flatten()
    return F.cross_entropy(logits, targets, label_smoothing=optim.label_smoothing, ignore_index=UNSCORED)


def batch_accuracy(logits: Float[Tensor, "*b classes"], targets: Tensor) -> Float[Tensor, ""]:
    """Return the share of right answers among the scored ones; targets are those of `objective`."""
    classes = targets.argmax(-1) if targets.is_floating_point() else targets
    right, scored = logits.argmax(-1) == classes, classes != UNSCORED
    return (right & scored).sum() / scored.sum()


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
