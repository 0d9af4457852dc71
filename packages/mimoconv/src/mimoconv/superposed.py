"""Any CNN in superposition: stem . bind and bundle . body . pool . unbind . head."""

import copy
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mimoconv.binding import PositionwiseHRR, Unbinding
from mimoconv.config import SuperposedConfig
from mimoconv.statistics_per_n import StatisticsPerN, has_statistics, require_own_statistics
from vsa_core import checks, slots
from vsa_core.autocast import check_meeting, half_types_clash
from vsa_core.hub import Pretrained
from vsa_core.hub.pretrained import library_of
from vsa_core.modules import eval_copy, unwrapped

__all__ = ["Superposed", "check_images", "check_types", "count_features", "network_of", "pool_features"]


class Superposed(Pretrained):
    """Puts any CNN in superposition, so that several images share each pass of its body (Menet et al., 2023, section 3).

    Each image passes the stem alone. Its maps are bound, pixel by pixel, to the key of its slot, and the bound maps of all images
    are added up. The body sees only the sum; its pooled features are unbound by one matrix per slot, and the head classifies
    each image. The three modules become parts of this network, and the BatchNorm layers of the body keep statistics for each n
    (`StatisticsPerN`).

    Args:
        stem: takes images (b c h w) to maps (b dim h w).
        body: takes maps (b dim h w) to maps (b features h w), which are averaged over the image, or to features (b features).
        head: takes features (b features) to logits (b classes).
        capacity: N, the most images that can share one pass.
        dim: D, channels that the stem returns.
        features: channels that the body returns; found by running the body on empty maps unless given.
        trainable_keys: whether the binding keys are trained.
        unbinding_relu: whether bias and ReLU follow the unbinding matrices, as in the published runs.

    Raises:
        TypeError: capacity, dim or features is not a whole number, a flag is not True or False, or a part of the body is
            compiled on its own.
        ValueError: capacity, dim or features is below 1; the body does not take (b dim h w) or belongs to another network; the
            head does not take (b features) to (b classes), or has layers with running statistics, which would mix all n.

    Warns:
        UserWarning: unbinding has more parameters than the network itself, and more than a million.

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
        for name, part in (("stem", stem), ("body", body), ("head", head)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"the {name} is a {type(part).__name__}; it must be a module")
        require_own_statistics(body)
        features = count_features(body, dim) if features is None else features
        self.config = SuperposedConfig(
            capacity=capacity, dim=dim, features=features, trainable_keys=trainable_keys, unbinding_relu=unbinding_relu
        )
        if any(has_statistics(layer) for layer in head.modules()):
            raise ValueError("the head has layers with running statistics, which would mix all n: move them into the body")
        check_head(head, features)
        own = sum(parameter.numel() for part in (stem, body, head) for parameter in part.parameters())
        if (unbinding := capacity * features * (features + unbinding_relu)) > max(own, 1_000_000):
            warnings.warn(
                f"unbinding will have {unbinding:,} parameters, the network itself has {own:,}: {capacity} matrices of "
                f"{features} x {features}. A body that returns maps, which are averaged, has fewer features than a flat one",
                stacklevel=2,
            )
        self.capacity = capacity
        self.stem = stem
        self.binding = PositionwiseHRR(capacity, dim, trainable=trainable_keys)
        self.unbinding = Unbinding(capacity, features, relu=unbinding_relu)
        self.body = StatisticsPerN(body, capacity)
        self.head = head

    @classmethod
    def from_pretrained(  # type: ignore[override] # a folder does not hold the caller's modules
        cls,
        source: str | os.PathLike[str],
        stem: nn.Module,
        body: nn.Module,
        head: nn.Module,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> "Superposed":
        """Load a network in eval mode from a folder, a run directory or the hub, as `vsa_core.hub.Library.load` describes.

        Args:
            source: what `save_pretrained` wrote or `push_to_hub` uploaded.
            stem, body, head: modules like those of the saved network; copies of them become the parts of the loaded one.
            revision: branch, tag or commit of a repository.
            device: where the weights go.

        Raises:
            ValueError: the modules are not like the saved ones, or `source` is damaged or holds a network of another class.
        """

        def build(config: SuperposedConfig, weights: Mapping[str, Tensor]) -> Superposed:
            sizes = {
                "binding.keys": (config.capacity, config.dim),
                "unbinding.weight": (config.capacity, config.features, config.features),
            }
            for name, size in sizes.items():  # before any of them is allocated
                if name not in weights or tuple(weights[name].shape) != size:
                    found = f"has shape {tuple(weights[name].shape)}" if name in weights else "is missing"
                    raise ValueError(f"{name} {found}, expected {size}")
            return cls(*copy.deepcopy((stem, body, head)), **asdict(config))

        model: Superposed = library_of(cls).load(source, kind=cls, build=build, revision=revision, device=device)
        return model

    def forward(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n classes"]:
        """Compute the logits of n images per pass, for any n from 1 to capacity; with n < capacity images fill several slots.

        Raises:
            ValueError: `x` is not (b, n, c, h, w) with 1 <= n <= capacity, or stem or body return other channels than expected.
            TypeError: `x` is not floating point, or has another dtype than the weights.
        """
        check_images(x, "b n c h w")
        check_types(self, x)
        n = int(x.shape[1])  # torch.jit.trace gives a tensor
        slots.check(n, self.capacity)
        out = pool_features(self.body(self.superpose(x), n))
        features = self.unbinding.weight.shape[-1]
        if out.shape[1] != features:
            raise ValueError(
                f"the body returns {out.shape[1]} features, but {features} are unbound: give features={out.shape[1]}"
            )
        logits: Tensor = self.head(rearrange(self.unbinding(out, n), "b n dim -> (b n) dim"))
        return rearrange(logits, "(b n) classes -> b n classes", n=n)

    def superpose(self, x: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b dim h2 w2"]:
        """Run the stem on each image, bind its maps and add them up."""
        maps = self.stem(rearrange(x, "b n c h w -> (b n) c h w"))
        dim = self.binding.keys.shape[1]
        if maps.dim() != 4 or maps.shape[1] != dim:
            raise ValueError(f"the stem returns maps of shape {tuple(maps.shape)}; expected (b {dim} h w), as dim = {dim}")
        bound: Tensor = self.binding(rearrange(maps, "(b n) dim h w -> b n dim h w", n=x.shape[1]))
        return bound


def pool_features(x: Float[Tensor, "b dim ..."]) -> Float[Tensor, "b dim"]:
    """Average maps over the image; features without image axes stay as they are."""
    if x.dim() == 4 and x.stride(1) == 1:  # channels come last in memory, and so they do in the gradient
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(1)
    return x.flatten(2).mean(2) if x.dim() > 2 else x


def count_features(body: nn.Module, dim: int) -> int:
    """Count the channels that the body returns, by running a copy."""
    checks.positive(dim=dim)
    try:
        return int(try_out(body, (2, dim, 64, 64)).shape[1])
    except Exception as error:
        raise ValueError(
            f"the body fails on maps of shape (2, {dim}, 64, 64): {error}. "
            f"Is dim = {dim} what the stem returns? Give features= if the body needs maps of another size"
        ) from error


def check_head(head: nn.Module, features: int) -> None:
    """Raise ValueError unless the head takes features (b features) to (b classes); a head that cannot be copied is not tried."""
    try:
        out = try_out(head, (2, features))
    except CopyError:
        return
    except Exception as error:
        raise ValueError(
            f"the head takes (b, {features}) and fails: {error}. Is {features} what the body returns and the head takes?"
        ) from error
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != 2:
        raise ValueError(f"the head takes (b, {features}) and must return (b, classes); for b = 2 it returns {found}")


class CopyError(TypeError):
    """A module cannot be copied."""


def try_out(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """Run a copy of a module in eval mode on numbers of this shape: without memory, or on zeros if it needs numbers."""
    module = getattr(module, "_orig_mod", module)
    with torch.no_grad():
        try:
            return copy.deepcopy(module).to("meta", torch.float32).eval()(torch.empty(shape, device="meta", dtype=torch.float32))
        except Exception:
            like = next(module.parameters(), torch.empty(0))
            try:
                copied = eval_copy(module)
            except TypeError as error:
                raise CopyError(str(error)) from error
            return copied(torch.zeros(shape, dtype=like.dtype, device=like.device))


def check_images(x: Tensor, axes: str, channels: int | None = None, *, raw: bool = False) -> None:
    """Raise unless `x` holds floating-point or `raw` images with the named axes, and as many channels as given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"images are a {type(x).__name__}; they must be a tensor")
    if not raw and x.dtype not in checks.DTYPES:
        raise TypeError(f"images have dtype {x.dtype}; scale and normalise them to floating point first")
    fits = x.dim() >= 4 if "..." in axes else x.dim() == len(axes.split())
    if not fits or 0 in x.shape[-2:] or x.shape[-3] != (channels or x.shape[-3]):
        wanted = f"c = {channels}, " if channels else ""
        raise ValueError(f"images have shape {tuple(x.shape)}; expected ({axes}) with {wanted}h and w at least 1")


def check_types(model: nn.Module, x: Tensor) -> None:
    """Raise TypeError if the network's first layer cannot compute with the type of the images, or its norms with autocast's."""
    weight = next(model.parameters())
    check_meeting("images", x, weight)
    if (clash := half_types_clash(weight)) and any(map(has_statistics, model.modules())):
        raise TypeError(clash)


def network_of(model: nn.Module) -> Any:
    """Return the network inside torch's wrappers; TypeError if it is none of this package."""
    network = unwrapped(model)
    if not hasattr(network, "body") or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"model is a {type(model).__name__}; expected a MIMOConv, WideResNet or Superposed")
    return network
