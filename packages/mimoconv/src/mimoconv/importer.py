"""Weights from the authors' own code (IBM/multiple-input-multiple-output-nets) in the networks of this package.

Every entry of ours has one entry of theirs: `published_name` and `published_shape` say which, `converted` makes ours of it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mimoconv import zoo
from mimoconv.model import MIMOConv, WideResNet

RENAMES = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "binding.keys": "channelConv.weight",
    "body.module.stage": "layer",
    ".norm1": ".bn1",
    ".norm2": ".bn2",
    ".act": ".relu",
    "shortcut.conv": "downsample.0",
    "shortcut.norm": "downsample.1",
    "unbinding": "unbind.0",
    "head": "fc",
}
"""Our parts of names, and theirs."""
COUNT = "num_batches_tracked"


def import_published(state_dict: Mapping[str, Tensor]) -> MIMOConv | WideResNet:
    """The network that a state dict of the published `SuperWideISONet` describes, with the same logits in eval mode.

    It takes networks of three stages whose blocks have one slope per channel, of any capacity, depth, width, number of input
    channels and of classes: MIMOConv, bound by HRR, and the baseline without binding, which becomes a `WideResNet`. The
    published training writes checkpoints that hold the state dict as `model_state_dict`. Their keys correlate, ours convolve:
    see `convolution_keys`. The network has the type and device of the entries, shares no memory with them and is in eval mode.
    What a state dict does not hold, `image_size`, `mean` and `std`, is left at its default.

    The published network has one set of BatchNorm statistics for all n, so every n gets a copy, and `predict` takes them all.
    They are averages over every n of training, and over test images too, because the published evaluation runs in training
    mode: `recalibrate` estimates them afresh for one n. Batch counts are copied as they are, so that a network that counted no
    batch stays one that was never trained; absent ones, as in files older than the counts, become 1.

    Args:
        state_dict: names to tensors; the prefix `module.` of DistributedDataParallel may stand before all names.

    Raises:
        TypeError: `state_dict` is no mapping, or an entry is not a tensor.
        ValueError: an entry is missing, surplus, of another shape or type than the others imply, or not finite; the keys have
            an odd length, which the published binding cannot have; or the network was trained with skip-init.

    Source: Menet et al., 2023, and its published code, `superwideisonet.py`.
    """
    entries = published_entries(state_dict)
    with torch.device("meta"):
        model = skeleton(entries)
    ours = model.state_dict()
    shapes = {published_name(name): published_shape(name, value.shape) for name, value in ours.items()}
    shapes |= {f"layer{stage}.{block}.alpha": () for stage in (1, 2, 3) for block in range(model.config.blocks)}
    count = entries["conv1.weight"].new_ones((), dtype=torch.long)
    entries = {name: count for name in shapes if name.endswith(COUNT)} | entries
    check_names(entries, shapes)
    check_values(entries, shapes)
    weights = {name: converted(name, entries[published_name(name)], value) for name, value in ours.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def published_entries(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries under their plain names."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict is a {type(state_dict).__name__}; expected a mapping of names to tensors")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor: is this a checkpoint around a state dict?")
        if not isinstance(name, str):
            raise TypeError(f"the name of an entry is {name!r}; expected a string")
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def skeleton(entries: Mapping[str, Tensor]) -> MIMOConv | WideResNet:
    """A network of the sizes that the shapes of a few entries tell."""
    stem_channels, in_channels, *_ = sizes(entries, "conv1.weight", "D c 3 3")
    stage1 = sizes(entries, "layer1.0.conv2.weight", "channels channels 3 3")[0]
    blocks = len({match[1] for match in map(re.compile(r"layer[123]\.(\d+)\.").match, entries) if match})
    options: dict[str, Any] = {
        "num_classes": sizes(entries, "fc.weight", "classes features")[0],
        "depth": 6 * blocks + 4,
        "width": stage1 / 16,
        "in_channels": in_channels,
        "stem_channels": stem_channels,
    }
    if not any(name.startswith(("channelConv.", "unbind.")) for name in entries):
        return zoo.wide_isonet(**options)
    capacity, _, dim = sizes(entries, "channelConv.weight", "N 1 D")
    if dim % 2:
        raise ValueError(f"channelConv.weight has shape ({capacity}, 1, {dim}); expected an even D, got {dim}")
    return zoo.mimoconv(capacity=capacity, stem="conv-norm-relu", **options)


def sizes(entries: Mapping[str, Tensor], name: str, axes: str) -> tuple[int, ...]:
    """The shape of an entry that has as many axes as named, none of them empty."""
    if name not in entries:
        raise ValueError(f"{name} is missing; expected a tensor ({axes})")
    shape = tuple(entries[name].shape)
    if len(shape) != len(axes.split()) or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; expected ({axes}), none of them 0")
    return shape


def published_name(name: str) -> str:
    """What the published network calls an entry of ours."""
    for ours, theirs in RENAMES.items():
        name = name.replace(ours, theirs)
    return name


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the published entry that an entry of ours comes from."""
    if name == "binding.keys":
        return shape[0], 1, shape[1]
    if name == "unbinding.weight":
        return shape[0] * shape[1], shape[2], 1, 1
    if name == "unbinding.bias":
        return (shape[0] * shape[1],)
    if name.startswith("body.") and name.endswith(("running_mean", "running_var", COUNT)):
        return tuple(shape[1:])
    return tuple(shape)


def converted(name: str, value: Tensor, like: Tensor) -> Tensor:
    """An entry of ours, shaped `like`, from the published one."""
    if name == "binding.keys":
        value = convolution_keys(value)
    elif name.startswith("unbinding."):
        value = value.reshape(like.shape)
    elif name.endswith(COUNT):
        value = value.to(like.dtype)
    return value.detach().expand(like.shape).clone()  # statistics: the same for every n


def convolution_keys(weight: Float[Tensor, "n 1 dim"]) -> Float[Tensor, "n dim"]:
    """Keys for circular convolution, `a[d] = w[(dim / 2 - 1 - d) mod dim]`.

    The published binding is torch's `conv1d`, which correlates, over channels padded circularly by dim / 2, without its first
    output: `out[i] = sum_j w[j] x[(i + 1 + j - dim / 2) mod dim]`, and so the convolution of x with a.
    """
    return rearrange(weight, "n 1 dim -> n dim").flip(-1).roll(weight.shape[-1] // 2, -1)


def check_names(entries: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the entries are those expected."""
    missing = [f"{name} {shape}" for name, shape in shapes.items() if name not in entries]
    surplus = [f"{name} {tuple(value.shape)}" for name, value in entries.items() if name not in shapes]
    faults = [f"{kind}: {listed(names)}" for kind, names in (("missing", missing), ("surplus", surplus)) if names]
    if faults:
        raise ValueError(f"expected the {len(shapes)} entries of a SuperWideISONet of these sizes; {'; '.join(faults)}")


def listed(names: list[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more)


def check_values(entries: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every entry has the shape expected and finite numbers of one floating-point type; counts have their own."""
    dtype = entries["conv1.weight"].dtype
    for name, value in entries.items():
        if value.shape != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shapes[name]}")
        if not name.endswith(COUNT) and (value.dtype != dtype or not dtype.is_floating_point):
            raise ValueError(f"{name} is {value.dtype}; expected one floating-point type throughout, and conv1.weight is {dtype}")
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values; expected finite ones")
        if name.endswith("running_var") and value.min() < 0:
            raise ValueError(f"{name} holds {value.min().item()}; a variance is not negative")
        if name.endswith(".alpha") and value != 0:
            raise ValueError(
                f"{name} is {value.item()}; expected 0: this network was trained with skip-init, for which there is no equivalent"
            )
