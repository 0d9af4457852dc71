"""The two ends of superposition: position-wise HRR binding of feature maps, and unbinding of pooled features."""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vsa_core import checks, hrr, slots

__all__ = ["PositionwiseHRR", "Unbinding", "bind_in_place", "slot_membership"]


def slot_membership(n: int, capacity: int, like: Tensor) -> Float[Tensor, "n capacity"]:
    """Write `slots.assignment` as a matrix: 1 where a slot (column) carries an input (row), 0 elsewhere."""
    inputs = torch.arange(n, device=like.device)
    return (slots.assignment(n, capacity, device=like.device) == inputs[:, None]).to(like.dtype)


class PositionwiseHRR(nn.Module):
    """Binds every pixel's channels to the key of the image's slot, then adds up the slots (PWHRR, Eq. 5).

    An input that fills several slots is bound to the sum of their keys.
    """

    def __init__(self, capacity: int, dim: int, *, trainable: bool = True) -> None:
        super().__init__()
        self.keys = nn.Parameter(hrr.random_keys(capacity, dim), requires_grad=trainable)

    def matrices(self, n: int) -> Float[Tensor, "n out dim"]:
        """Return the matrix that multiplies each of n inputs at every pixel."""
        return hrr.circulant(slot_membership(n, int(self.keys.shape[0]), self.keys) @ self.keys)

    def forward(self, x: Float[Tensor, "b n dim h w"]) -> Float[Tensor, "b dim h w"]:
        # This is vsa_core's superpose(x, keys, hrr.bind) at every pixel. Both steps are linear, so one convolution with the keys'
        # circulants side by side does them, without storing n bound maps.
        matrices = self.matrices(int(x.shape[1]))
        if x.stride(2) != 1:
            side_by_side = x.flatten(1, 2)
        elif x.is_cuda:
            return bind_in_place(x, matrices)
        else:  # channels come last in memory, and so they do in the result
            side_by_side = rearrange(x, "b n dim h w -> b h w (n dim)").permute(0, 3, 1, 2)
        return F.conv2d(side_by_side, rearrange(matrices, "n out dim -> out (n dim) 1 1"))

    def extra_repr(self) -> str:
        return f"capacity={self.keys.shape[0]}, dim={self.keys.shape[1]}, trainable={self.keys.requires_grad}"


def bind_in_place(x: Float[Tensor, "b n dim h w"], matrices: Float[Tensor, "n out dim"]) -> Float[Tensor, "b out h w"]:
    """Multiply maps by the matrix of their input, and add them up, by a convolution over a third axis, which copies no maps."""
    weight = rearrange(matrices, "n out dim -> out n 1 1 dim").permute(0, 4, 1, 2, 3)  # channels come last in memory
    return F.conv3d(x.transpose(1, 2), weight).squeeze(2)


class Unbinding(nn.Module):
    """Unbinds each input by its slot's matrix (MBAT, Eq. 6), then adds a bias and applies ReLU unless `relu` is False.

    The slots of one input are averaged.
    """

    def __init__(self, capacity: int, dim: int, *, relu: bool = True) -> None:
        super().__init__()
        checks.positive(capacity=capacity, dim=dim)
        std = (2 / (capacity * dim)) ** 0.5  # Kaiming, fan-out of one 1x1 convolution to all slots, as published
        self.weight = nn.Parameter(torch.randn(capacity, dim, dim) * std)
        self.bias = nn.Parameter(torch.zeros(capacity, dim)) if relu else None

    def forward(self, x: Float[Tensor, "b dim"], n: int) -> Float[Tensor, "b n dim"]:
        # This is mbat.bind(x[:, None], weight), except that mbat leaves autocast, which half-precision training is to use here.
        unbound = einsum(x, self.weight, "b dim, slot out dim -> b slot out")
        if self.bias is not None:
            unbound = F.relu(unbound + self.bias)
        share = slot_membership(n, int(self.weight.shape[0]), unbound)
        return einsum(share / share.sum(1, keepdim=True), unbound, "n slot, b slot out -> b n out")

    def extra_repr(self) -> str:
        return f"capacity={self.weight.shape[0]}, dim={self.weight.shape[1]}, relu={self.bias is not None}"
