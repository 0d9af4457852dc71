"""Build optimizers and schedules, and take steps that a number on the device can refuse."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training.muon import Muon
from mimoconv.binding import Unbinding

HIDDEN = {"body", "blocks", "lenet"}
"""Parts of a network in which Muon updates the weights of convolutions and linear layers."""


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer of a network that is already on its device.

    Its groups are hidden weights (for Muon only), other parameters that decay, and those that do not; empty ones are left out.
    """
    layers = [(path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear | Unbinding)]
    weights = {layer.weight for _, layer in layers}
    hidden = {layer.weight for path, layer in layers if config.optimizer == "muon" and HIDDEN & set(path.split("."))}
    slopes = {layer.weight for layer in network.modules() if isinstance(layer, nn.PReLU)}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decaying = weights if config.decay == "usual" else set(trained) - slopes
    rest_lr = config.rest_lr if config.optimizer == "muon" else config.lr
    groups = [
        {"params": [p for p in trained if p in hidden], "lr": config.lr, "hidden": True},
        {"params": [p for p in trained if p not in hidden and p in decaying], "lr": rest_lr},
        {"params": [p for p in trained if p not in hidden and p not in decaying], "lr": rest_lr, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr, decay, momentum = config.lr, config.weight_decay, config.momentum[0]
    if config.optimizer == "muon":
        return Muon(groups, lr, momentum=momentum, weight_decay=decay)
    if config.optimizer == "adamw":
        return AdamW(groups, lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True)
    optimizer = SGD(groups, lr, momentum=momentum, weight_decay=decay, fused=True)
    for parameter in trained:  # torch would leave them uninitialised if the first step is refused
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(optimizer: Optimizer, config: OptimConfig) -> LRScheduler:
    """Return the schedule of every group's learning rate, and of momentum, or AdamW's first beta, if it has two values.

    Until this call, each group's rate is its peak. A cycle has `steps` + 1 points, of which step k has the k-th, so even the last
    step's rate is above the cycle's end.
    """
    if config.schedule == "annealing":
        return LambdaLR(optimizer, lambda step: annealed_share(step, config))
    points = config.steps + 1
    # with a peak at the very first point, torch would divide by a rise of zero steps
    warmup = config.warmup * (1 + 1e-9) if config.warmup * points == 1 else float(config.warmup)
    lowest, peak = config.momentum_cycle
    return OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=points,
        pct_start=warmup,
        anneal_strategy="cos" if config.schedule == "cosine" else "linear",
        div_factor=1 / config.start,
        final_div_factor=config.start / config.end,
        cycle_momentum=lowest != peak,
        base_momentum=peak,
        max_momentum=lowest,
    )


def annealed_share(step: int, config: OptimConfig) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak, for the schedule annealing.

    The half cosine counts from step 0, not from the end of the rise, so the rate drops a little where the rise ends. Without
    a rise and with a part per epoch, this is torch's CosineAnnealingLR stepped once per epoch; with a rise and no parts, timm's
    CosineLRScheduler.
    """
    rise = round(config.warmup * config.steps)
    if step < rise:
        return config.start + (1 - config.start) * step / rise
    parts = config.rate_parts or config.steps
    done = step * parts // config.steps / parts
    return config.end + (1 - config.end) * (1 + math.cos(math.pi * done)) / 2


def lay_end_to_end(network: nn.Module) -> list[Tensor]:
    """Lay a network's buffers, such as BatchNorm statistics, end to end: one tensor for each type, of which they become views."""
    places = [
        (module, name, buffer)
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    buffers = {id(buffer): buffer for *_, buffer in places}
    whole: list[Tensor] = []
    views: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers.values()):
        alike = [buffer for buffer in buffers.values() if buffer.dtype == dtype]
        whole.append(torch.cat([buffer.flatten() for buffer in alike]))
        parts = whole[-1].split([buffer.numel() for buffer in alike])
        views |= {id(buffer): part.view(buffer.shape) for buffer, part in zip(alike, parts, strict=True)}
    for module, name, buffer in places:
        module._buffers[name] = views[id(buffer)]
    return whole


@torch.no_grad()
def step_if(ok: Bool[Tensor, ""], optimizer: Optimizer, buffers: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Take the optimizer's step if `ok`; otherwise leave weights, buffers and optimizer state bit for bit as before the step.

    Nothing waits for the device, and only buffers are copied: an optimizer's own kernels write nothing where its `found_inf` is
    1, which torch uses for gradients that overflow in fp16.

    Args:
        ok: a boolean on the parameters' device.
        optimizer: an optimizer of `build_optimizer`, or accelerate's around it.
        buffers: the network's buffers, which the forward passes may have changed.
        before: what they were before those passes.
    """
    inner = getattr(optimizer, "optimizer", optimizer)

    def refuse(inner: Any, *_: Any) -> None:  # inside the step, because a GradScaler sets its finding right before it
        inner.found_inf = (~ok | (getattr(inner, "found_inf", 0.0) != 0)).float()

    hook = inner.register_step_pre_hook(refuse)
    optimizer.step()
    hook.remove()
    vars(inner).pop("found_inf", None)
    for buffer, old in zip(buffers, before, strict=True):
        torch.where(ok, buffer, old, out=buffer)
