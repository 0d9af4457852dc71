"""The training loop."""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from einops import rearrange
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from mimo_benchmarks.config import RunConfig
from mimo_benchmarks.grouping import batch, inputs_per_step
from mimo_benchmarks.kinds import ImageTask
from mimo_benchmarks.sampling import Batches
from mimoconv import MIMOConv, WideResNet

Network = MIMOConv | WideResNet


def train(
    network: Network, task: ImageTask, config: RunConfig, accelerator: Accelerator, *, name: str, log: Callable[..., None]
) -> tuple[Network, int]:
    """Train on groups of n images, a plain network (capacity 1) on the very same images one by one.

    Each process takes every k-th group of a batch that does not depend on their number k.

    Args:
        network: a fresh network.
        name: what the progress bar and the log call it.
        log: takes step, loss, accuracy, lr and grad_norm as keywords, every `log_every` steps.

    Returns:
        The trained network, in eval mode, and the number of images that it saw.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    optim = config.optim
    optimizer = torch.optim.AdamW(network.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    schedule = OneCycleLR(optimizer, optim.lr, total_steps=optim.steps + 1, pct_start=optim.warmup, cycle_momentum=False)
    model, optimizer = accelerator.prepare(network.train(), optimizer)
    rank, world = accelerator.process_index, accelerator.num_processes
    inputs = inputs_per_step(config)
    batches = Batches(len(task.train.labels), [optim.groups * n for n in inputs], config.seed)
    progress = tqdm(range(1, optim.steps + 1), name, mininterval=0.5, disable=not accelerator.is_main_process)
    for step in progress:
        n = inputs[step - 1]
        x, y = batch(task, config, batches, step, n, accelerator.device, rank, world)
        y = rearrange(y, "b n classes -> (b n) classes")
        if network.capacity == 1:
            x = rearrange(x, "b n c h w -> (b n) 1 c h w")
        logits = rearrange(model(x), "b n classes -> (b n) classes")
        loss = F.cross_entropy(logits, y, label_smoothing=optim.label_smoothing)
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % config.log_every == 0 or step == optim.steps:
            value, accuracy = loss.item(), (logits.argmax(-1) == y.argmax(-1)).float().mean().item()
            if not math.isfinite(value):
                raise FloatingPointError(f"{name}: the loss is {value} at step {step}; a lower --optim.lr may help")
            progress.set_postfix(loss=f"{value:.3f}", accuracy=f"{accuracy:.1%}")
            log(
                model=name,
                step=step,
                n=n,
                loss=value,
                accuracy=accuracy,
                lr=schedule.get_last_lr()[0],
                grad_norm=float(grad_norm),
            )
    trained: Network = accelerator.unwrap_model(model, keep_fp32_wrapper=False).eval()
    return trained, sum(batches.sizes)
