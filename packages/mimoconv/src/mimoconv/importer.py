"""Imports weights of the authors' own code (IBM/multiple-input-multiple-output-nets) into the networks of this package.

Every entry of our state dict comes from one published entry, which `published_name` and `published_shape` describe and
`convert_entry` converts.
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
from vsa_core.hub.entries import check_entry_names, check_entry_values, entry_shape, published_entries

__all__ = ["convolution_keys", "import_published"]

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
"""Parts of our names, and of the published ones."""
COUNT = "num_batches_tracked"


def import_published(state_dict: Mapping[str, Tensor]) -> MIMOConv | WideResNet:
    """Make a network from a state dict of the authors' code, with the same logits in eval mode.

    The published classes are `SuperWideISONet` and `SuperWideResnet`. MIMOConv with HRR binding can be imported, and so can both
    baselines without binding, WideResNet and WideIsoNet, which become a `WideResNet`: any capacity, depth, width and number of
    input channels and classes, and blocks with ReLU or with one PReLU slope per channel. Checkpoints of the published training
    hold the state dict as `model_state_dict`. The network has the type and device of the entries, shares no memory with them and
    is in eval mode. `image_size`, `mean` and `std`, which a state dict does not hold, keep their defaults.

    The published network has one set of BatchNorm statistics for all n, so every n gets a copy. They are averages over every n
    of training, and over test images too, because the published evaluation runs in training mode: `recalibrate` estimates them
    again for one n. Batch counts are copied, so a network that counted no batches still counts as untrained; absent ones, as in
    older files, become 1.

    Args:
        state_dict: tensors by name; all names may have the prefix `module.` of DistributedDataParallel.

    Raises:
        TypeError: `state_dict` is not a mapping, or an entry is not a tensor.
        ValueError: an entry is missing, surplus, of another shape or type than the others imply, or not finite; the keys have
            an odd length, which the published binding cannot have; or the network was trained with skip-init.

    Source: Menet et al., 2023, and its published code, `superwideisonet.py` and `superwideresnet.py`.
    """
    entries = published_entries(state_dict)
    with torch.device("meta"):
        model = empty_network(entries)
    ours = model.state_dict()
    shapes = {published_name(name): published_shape(name, value.shape) for name, value in ours.items()}
    shapes |= {f"layer{stage}.{block}.alpha": () for stage in (1, 2, 3) for block in range(model.config.blocks)}
    count = entries["conv1.weight"].new_ones((), dtype=torch.long)
    entries = {name: count for name in shapes if name.endswith(COUNT)} | entries
    check_entry_names(entries, shapes)
    check_entry_values(entries, shapes, like="conv1.weight", counts=[name for name in shapes if name.endswith(COUNT)])
    check_numbers(entries)
    weights = {name: convert_entry(name, entries[published_name(name)], value) for name, value in ours.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def empty_network(entries: Mapping[str, Tensor]) -> MIMOConv | WideResNet:
    """Make a network of the sizes that the shapes of a few entries imply."""
    stem_channels, in_channels, *_ = entry_shape(entries, "conv1.weight", "D c 3 3")
    stage1 = entry_shape(entries, "layer1.0.conv2.weight", "channels channels 3 3")[0]
    blocks = len({match[1] for match in map(re.compile(r"layer[123]\.(\d+)\.").match, entries) if match})
    options: dict[str, Any] = {
        "num_classes": entry_shape(entries, "fc.weight", "classes features")[0],
        "depth": 6 * blocks + 4,
        "width": stage1 / 16,
        "in_channels": in_channels,
        "stem_channels": stem_channels,
        "activation": "prelu" if any(".relu" in name for name in entries) else "relu",
    }
    if not any(name.startswith(("channelConv.", "unbind.")) for name in entries):
        return zoo.wide_isonet(**options)
    capacity, _, dim = entry_shape(entries, "channelConv.weight", "N 1 D")
    if dim % 2:
        raise ValueError(f"channelConv.weight has shape ({capacity}, 1, {dim}); expected an even D, got {dim}")
    return zoo.mimoconv(capacity=capacity, stem="conv-norm-relu", **options)


def published_name(name: str) -> str:
    """Return the published name of an entry of ours."""
    for ours, theirs in RENAMES.items():
        name = name.replace(ours, theirs)
    return name


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the published entry that an entry of ours comes from."""
    if name == "binding.keys":
        return shape[0], 1, shape[1]
    if name == "unbinding.weight":
        return shape[0] * shape[1], shape[2], 1, 1
    if name == "unbinding.bias":
        return (shape[0] * shape[1],)
    if name.startswith("body.") and name.endswith(("running_mean", "running_var", COUNT)):
        return tuple(shape[1:])
    return tuple(shape)


def convert_entry(name: str, value: Tensor, like: Tensor) -> Tensor:
    """Convert a published entry to ours, which is shaped `like`."""
    if name == "binding.keys":
        value = convolution_keys(value)
    elif name.startswith("unbinding."):
        value = value.reshape(like.shape)
    elif name.endswith(COUNT):
        value = value.to(like.dtype)
    return value.detach().expand(like.shape).clone()  # statistics: the same for every n


def convolution_keys(weight: Float[Tensor, "n 1 dim"]) -> Float[Tensor, "n dim"]:
    """Convert published keys, which correlate, to keys for circular convolution: `a[d] = w[(dim / 2 - 1 - d) mod dim]`.

    The published binding is torch's `conv1d` over channels padded circularly by dim / 2, without its first output. It computes
    `out[i] = sum_j w[j] x[(i + 1 + j - dim / 2) mod dim]`, which is the convolution of x with a.
    """
    return rearrange(weight, "n 1 dim -> n dim").flip(-1).roll(weight.shape[-1] // 2, -1)


def check_numbers(entries: Mapping[str, Tensor]) -> None:
    """Raise ValueError for negative variances, and for networks trained with skip-init."""
    for name, value in entries.items():
        if name.endswith("running_var") and value.min() < 0:
            raise ValueError(f"{name} holds {value.min().item()}; a variance cannot be negative")
        if name.endswith(".alpha") and value != 0:
            raise ValueError(
                f"{name} is {value.item()}; expected 0: this network was trained with skip-init, which has no equivalent here"
            )
