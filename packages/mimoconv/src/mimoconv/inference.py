"""Using a network: predict, estimate its statistics again, count its multiply-adds."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mimoconv.config import NetworkConfig
from mimoconv.normalization import normalize
from mimoconv.statistics_per_n import StatisticsPerN
from mimoconv.superposed import check_images, network_of
from vsa_core import checks, graphs, slots
from vsa_core.modules import eval_copy

__all__ = ["count_macs", "predict", "recalibrate"]

COUNTED_PASSES = 1024
"""Passes that multiply-adds are counted over; what is computed once per batch is shared by all of them."""
REPLAYED_PASSES = 512
"""Most passes in a batch that is replayed as a CUDA graph, which keeps the memory of its batch."""


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Shaped[Tensor, "count c h w"],
    n: int | None = None,
    *,
    passes_at_once: int = 512,
) -> Float[Tensor, "count classes"]:
    """Compute the logits of a flat batch in eval mode, n images per pass in their order; no image is dropped.

    The last pass is filled by repeating images. The logits of an image depend a little on the images that share its pass, hence
    on the order (docs/crosstalk.md has how much). An image with NaN or infinite values makes all logits of its pass NaN, and of
    the last pass if it is repeated there, but of no other. The model does not change, so any number of threads may use it at
    once, each with an n of its own, as long as none changes its mode.

    Args:
        model: a MIMOConv, WideResNet or `Superposed`, compiled or not; for several threads, compiled whole (`fullgraph=True`). It
            may be inside torch's AveragedModel, DataParallel or DistributedDataParallel, and answers alone.
        images: floating-point images as the network was trained on, or uint8 ones, which the `mean` and `std` of the model's
            configuration normalise, part by part.
        n: images per pass, from 1 to capacity; the capacity unless given.
        passes_at_once: the most passes in one batch, which bounds memory. On a GPU the CUDA graph of a batch of up to 512 passes
            keeps what it took, until `vsa_core.graphs.forget(model)`.

    Raises:
        ValueError: n is not from 1 to capacity, passes_at_once is below 1, or the images do not fit the network.
        TypeError: the images are integers other than uint8, or uint8 for a model whose configuration has no mean and std, or of
            another dtype than the weights; a count is not a whole number; the model is none of this package, or is in training
            mode and cannot be copied: call its eval() first.
        RuntimeError: the model was trained, but its BatchNorm statistics for n were never estimated: see `recalibrate`.
    """
    network = network_of(model)
    n = network.capacity if n is None else n
    slots.check(n, network.capacity)
    checks.positive(passes_at_once=passes_at_once)
    prepare = preparation(network, images)
    parts = ((prepare(part),) for part in slots.group_in_parts(images, n, passes_at_once))
    logits: list[Tensor] = []
    for out, known in graphs.answer(network, parts, lambda part: len(part) <= REPLAYED_PASSES):
        if not logits and not has_statistics_for(network, n, known):
            raise RuntimeError(
                f"this model was trained, but never with {n} images per pass, so its BatchNorm has no statistics for "
                f"n = {n}: estimate them on training images with recalibrate(model, batches, n={n})"
            )
        logits.append(out)
    return slots.ungroup(logits[0] if len(logits) == 1 else torch.cat(logits), len(images))


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Shaped[Tensor, "_ c _ _"]], n: int) -> None:
    """Estimate the BatchNorm statistics for n images per pass again, from training images.

    They become averages over the batches, weighted by their sizes; a batch of a single pass, which may have one value per channel
    and hence no variance, is joined with a neighbour. Statistics for other n and those of the stem, all weights
    and all modes do not change; after an error nothing has changed.

    Args:
        model: the network, trained, as `predict` takes it.
        batches: flat batches of images without labels, as `predict` takes them; empty ones are skipped.
        n: images per pass, from 1 to capacity.

    Raises:
        ValueError: n is not from 1 to capacity, the images do not fit the network, or there are none, or too few for a variance.
        TypeError: a batch is not a tensor of images that `predict` would take.
        FloatingPointError: the new statistics are not finite.
    """
    network = network_of(model)
    slots.check(n, network.capacity)
    estimating = eval_copy(network)  # shares the statistics, not the modes
    norms = norms_per_n(estimating)
    buffers = [(name, buffer[n - 1]) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    before = [buffer.clone() for _, buffer in buffers]
    passes = 0
    for name, buffer in buffers:
        buffer.fill_(1 if name == "running_var" else 0)
    for norm in norms:
        norm.train()
    try:
        for groups in join_single_passes(batches_of_passes(network, batches, n)):
            passes += len(groups)
            for norm in norms:
                norm.momentum = len(groups) / passes
            try:
                estimating(groups)
            except ValueError as error:
                if "Expected more than 1" in str(error):
                    raise ValueError("a norm layer gets one value per channel: give more images, or larger ones") from error
                raise
        if not passes:
            raise ValueError("batches holds no images: statistics need training images")
        if not all(buffer.isfinite().all() for _, buffer in buffers):
            raise FloatingPointError(
                f"the statistics for n = {n} are not finite: images or weights hold NaN, infinite or huge values"
            )
    except BaseException:
        for (_, buffer), old in zip(buffers, before, strict=True):
            buffer.copy_(old)
        raise


def batches_of_passes(model: nn.Module, batches: Iterable[Shaped[Tensor, "_ c _ _"]], n: int) -> Iterator[Tensor]:
    """Yield batches that are not empty as groups of n images that the network takes."""
    for images in batches:
        if not isinstance(images, Tensor):
            raise TypeError(f"a batch is a {type(images).__name__}; it must be a tensor of images, without labels")
        prepare = preparation(model, images)
        if len(images):
            yield prepare(slots.group(images, n))


def join_single_passes(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield batches; those of a single pass join the next one, or at the end the one before, if images are of one size."""
    held: list[Tensor] = []
    for groups in batches:
        if held and len(held[-1]) == 1 and held[-1].shape[1:] == groups.shape[1:]:
            held[-1] = torch.cat([held[-1], groups])
        else:
            held.append(groups)
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and len(held[1]) == 1 and held[0].shape[1:] == held[1].shape[1:]:
        held = [torch.cat(held)]
    yield from held


def count_macs(model: nn.Module, n: int | None = None, *, shape: tuple[int, int, int] | None = None) -> float:
    """Count the multiply-adds per image with n images per pass: convolutions and matrix products, by torch's flop counter.

    Args:
        model: the network, as `predict` takes it; it is not changed, because a copy without memory is run.
        n: images per pass, from 1 to capacity; the capacity unless given.
        shape: (c, h, w) of an image; unless given, what the model's configuration says.

    Raises:
        ValueError: n is not from 1 to capacity, or there is neither a `shape` nor a configuration that says it.
        TypeError: n is not a whole number.

    >>> from mimoconv import WideResNet, WideResNetConfig
    >>> count_macs(WideResNet(WideResNetConfig(depth=28, width=10)))
    5243328768.0
    """
    network = network_of(model)
    n = network.capacity if n is None else n
    slots.check(n, network.capacity)
    if shape is None:
        if (config := network_config(network)) is None:
            raise ValueError("this model has no configuration that says the size of its images: give shape=(c, h, w)")
        shape = config.in_channels, config.image_size, config.image_size
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton, which is slow

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe = copy.deepcopy(getattr(network, "_orig_mod", network)).to("meta", torch.float32).eval()
        probe(torch.zeros(COUNTED_PASSES, n, *shape, device="meta", dtype=torch.float32))
    return float(counter.get_total_flops() / 2 / (COUNTED_PASSES * n))


def preparation(model: nn.Module, images: Shaped[Tensor, "count c h w"]) -> Callable[[Tensor], Tensor]:
    """Check images; return what normalises uint8 ones by the model's configuration and leaves floating-point ones as they are."""
    config = network_config(model)
    raw = isinstance(images, Tensor) and images.dtype == torch.uint8
    check_images(images, "count c h w", config.in_channels if config else None, raw=raw)
    if not raw:
        return lambda part: part
    if config is None or config.mean is None or config.std is None:
        raise TypeError(
            "images have dtype torch.uint8, but the model's configuration has no mean and std: "
            "normalise the images with mimoconv.normalize, or set both in the configuration"
        )
    mean, std, dtype = config.mean, config.std, next(model.parameters()).dtype
    return lambda part: normalize(part, mean, std).to(dtype)


def network_config(model: torch.nn.Module) -> NetworkConfig | None:
    """Return the configuration of a MIMOConv or plain wide ResNet, compiled or not; a `Superposed` has no such one."""
    config = getattr(model, "config", None)
    return config if isinstance(config, NetworkConfig) else None


def has_statistics_for(model: torch.nn.Module, n: int, known: dict[int, tuple[list[Tensor], list[int]]]) -> bool:
    """Tell whether no BatchNorm layer was trained without n images per pass; a GPU is waited for once, not for each layer.

    An answer that lasts is kept in `known`: yes, while the layers' counters of batches keep their versions. Training steps that
    are replayed do not change these, but only raise counts; a counter that nothing was written to, in a capture either, is 0.
    """
    counters, versions = known.get(n, ([], None))
    if versions == [counts._version for counts in counters]:
        return True
    counters = [counts for norm in norms_per_n(model) if (counts := norm._buffers.get("num_batches_tracked")) is not None]
    versions = None if any(map(Tensor.is_inference, counters)) else [counts._version for counts in counters]
    rows = torch.stack(counters).tolist() if counters else []
    if versions is not None and all(row[n - 1] or not (version or any(row)) for row, version in zip(rows, versions, strict=True)):
        known[n] = counters, versions
    return not any(any(row) and not row[n - 1] for row in rows)


def norms_per_n(model: Any) -> list[Any]:
    """Return the BatchNorm layers whose statistics depend on n."""
    return model.body.norms() if isinstance(model.body, StatisticsPerN) else []
