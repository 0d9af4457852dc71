"""Any CNN in superposition: stem . bind and bundle . body . pool . unbind . head."""

import copy

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from mimoconv.binding import PositionwiseHRR, Unbinding
from mimoconv.config import positive
from vsa_core import slots
from vsa_core.hub import Pretrained


class StatisticsPerN(nn.Module):
    """A module whose BatchNorm layers keep a set of running statistics for every n from 1 to capacity under one affine map.

    Sums of one and of four bound images have other means and variances, so averages over both would fit neither. The
    statistics of the layers inside gain a first axis, n - 1: `running_mean` is (capacity channels), each n starting from those
    that the module came with. From here on the module is used through this one alone.

    Raises:
        ValueError: the module is part of another of these.
    """

    def __init__(self, module: nn.Module, capacity: int) -> None:
        super().__init__()
        self.module, self.capacity = module, capacity
        for norm in self.norms():
            if norm.running_mean is not None and norm.running_mean.dim() > 1:
                raise ValueError("this module keeps its statistics per n already: give each network a body of its own")
            for name, buffer in list(norm.named_buffers(recurse=False)):
                norm.register_buffer(name, buffer.expand(capacity, *buffer.shape).clone())
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.zero_()  # what it counted before were no superpositions

    def norms(self) -> list[_BatchNorm]:
        """The layers whose statistics depend on n."""
        return list(self.named_norms().values())

    def named_norms(self) -> dict[str, _BatchNorm]:
        """The same under their paths in the module."""
        return {path: layer for path, layer in self.module.named_modules() if isinstance(layer, _BatchNorm)}

    def forward(self, x: Tensor, n: int) -> Tensor:
        """The module on superpositions of n inputs: with the batch's statistics in training, with those of n otherwise."""
        own = {f"{path}.{name}" if path else name: buffer[n - 1]
               for path, norm in self.named_norms().items() for name, buffer in norm.named_buffers(recurse=False)}  # fmt: skip
        if self.training and x.shape[0] == 0:  # an empty batch has no statistics
            own = {name: buffer.clone() for name, buffer in own.items()}
        out: Tensor = functional_call(self.module, own, (x,))
        return out

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}"


class Superposed(Pretrained):
    """Any CNN on up to `capacity` images in one pass of its body (Menet et al., 2023, section 3).

    Each image goes through the stem alone; its maps are bound to the key of its slot, pixel by pixel, and added up; the body
    sees only the sum. Its pooled features are unbound, a matrix a slot, and the head classifies each. The parts become those of
    this network; the statistics of BatchNorm layers in the body are kept for each n (`StatisticsPerN`). A body that recomputes
    its layers in the backward pass (gradient checkpointing) does not work, as it would look for its statistics too late.

    Args:
        stem: images (b c h w) to maps (b dim h w).
        body: maps (b dim h w) to maps (b features h w), which are averaged over the image, or to features (b features).
        head: features (b features) to logits (b classes).
        capacity: N, the most images that can share one pass.
        dim: D, the channels that the stem hands to binding.
        features: channels that the body returns; found by a pass over an image that holds nothing unless given.
        trainable_keys: whether the binding keys are trained.
        unbinding_relu: whether bias and ReLU follow the unbinding matrices, as in the published runs.

    Raises:
        ValueError: capacity, dim or features is below 1, the body does not take (b dim h w) or is part of another network, or
            the head has BatchNorm layers, whose statistics would mix all n.

    >>> import torchvision
    >>> net = torchvision.models.resnet18(num_classes=10)
    >>> stem = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    >>> body = torch.nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
    >>> model = Superposed(stem, body, net.fc, capacity=2, dim=64)
    >>> model(torch.zeros(4, 2, 3, 64, 64)).shape  # 4 passes of 2 images each
    torch.Size([4, 2, 10])
    """

    hub_module = "mimoconv.hub"

    def __init__(
        self,
        stem: nn.Module,
        body: nn.Module,
        head: nn.Module,
        capacity: int,
        dim: int,
        *,
        features: int | None = None,
        trainable_keys: bool = True,
        unbinding_relu: bool = True,
    ) -> None:
        super().__init__()
        positive("capacity", capacity)
        positive("dim", dim)
        positive("features", features := count_features(body, dim) if features is None else features)
        if any(isinstance(layer, _BatchNorm) for layer in head.modules()):
            raise ValueError("the head has BatchNorm layers, whose statistics would mix all n: move them into the body")
        self.capacity = capacity
        self.stem = stem
        self.binding = PositionwiseHRR(capacity, dim, trainable=trainable_keys)
        self.unbinding = Unbinding(capacity, features, relu=unbinding_relu)
        self.body = StatisticsPerN(body, capacity)
        self.head = head

    def forward(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n classes"]:
        """Logits of n images a pass, for any n from 1 to capacity; with n < capacity some images fill several slots.

        Raises:
            ValueError: `x` is not (b, n, c, h, w) with 1 <= n <= capacity, or stem or body return other channels than expected.
            TypeError: `x` is not floating point.
        """
        check_images(x, "b n c h w")
        n = x.shape[1]
        slots.assignment(n, self.capacity)  # refuses an n that does not fit
        out = pooled(self.body(self.superpose(x), n))
        features = self.unbinding.weight.shape[-1]
        if out.shape[1] != features:
            raise ValueError(
                f"the body returns {out.shape[1]} features, but {features} are unbound: give features={out.shape[1]}"
            )
        logits: Tensor = self.head(rearrange(self.unbinding(out, n), "b n dim -> (b n) dim"))
        return rearrange(logits, "(b n) classes -> b n classes", n=n)

    def superpose(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b dim h2 w2"]:
        """Stem, binding and bundling."""
        maps = self.stem(rearrange(x, "b n c h w -> (b n) c h w"))
        dim = self.binding.keys.shape[1]
        if maps.dim() != 4 or maps.shape[1] != dim:
            raise ValueError(f"the stem returns maps of shape {tuple(maps.shape)}; expected (b {dim} h w), as dim = {dim}")
        bound: Tensor = self.binding(rearrange(maps, "(b n) dim h w -> b n dim h w", n=x.shape[1]))
        return bound


def pooled(x: Float[Tensor, "b dim ..."]) -> Float[Tensor, "b dim"]:
    """The mean over the image; features without one as they are."""
    return x.flatten(2).mean(2) if x.dim() > 2 else x


def count_features(body: nn.Module, dim: int) -> int:
    """How many channels the body returns, by a pass of a copy over images that hold nothing."""
    probe = copy.deepcopy(body).to("meta", torch.float32).eval()
    try:
        with torch.no_grad():
            return int(probe(torch.empty(2, dim, 64, 64, device="meta")).shape[1])
    except Exception as error:
        raise ValueError(f"the body does not turn maps (2 {dim} 64 64) into features: {error}; or give features=") from error


def check_images(x: Tensor, axes: str, channels: int | None = None) -> None:
    """Raise unless `x` holds floating-point images with the named axes, and as many channels as given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"images are a {type(x).__name__}; they must be a tensor")
    if not x.is_floating_point():
        raise TypeError(f"images have dtype {x.dtype}; scale and normalise them to floating point first")
    fits = x.dim() >= 4 if "..." in axes else x.dim() == len(axes.split())
    if not fits or 0 in x.shape[-2:] or x.shape[-3] != (channels or x.shape[-3]):
        wanted = f"c = {channels}, " if channels else ""
        raise ValueError(f"images have shape {tuple(x.shape)}; expected ({axes}) with {wanted}h and w from 1")
