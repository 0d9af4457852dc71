"""Using a network: predict, count its cost."""

import copy

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimoformer.blocks import AttentionBlock, AttentionMLPBlock
from mimoformer.bundles import check_mask
from mimoformer.model import MIMOFormer
from vsa_core import checks, slots
from vsa_core.modules import evaluating

TOKENS_AT_ONCE = 2**17
"""Tokens that `predict` hands over at a time, to bound memory; at least one pass."""
PASSES = 64
"""Passes that multiply-adds are counted over: what is computed once for a whole batch is shared by all of them."""


@torch.no_grad()
def predict(
    model: MIMOFormer,
    tokens: Integer[Tensor, "count *pair l"],
    m: int,
    n: int,
    mask: Bool[Tensor, "count *pair l"] | None = None,
) -> Float[Tensor, "count *out"]:
    """Logits of a flat batch in eval mode, m x n sequences a pass in their order; the last group is filled by repeating some.

    Every sequence gets its row, whatever the count. The same sequences in the same order get the same logits; in another order
    they share their passes with others, and logits move a little. The mode of the model and of each layer stays as it is.

    Args:
        model: the network.
        tokens: ids (count l), or (count 2 l) for the head pair.
        m, n: the grid, up to the model's.
        mask: True where a token is real; all are unless given.

    Raises:
        ValueError: a grid beyond the model's, or tokens or mask that do not fit it.
        TypeError: m or n is not a whole number, tokens are no integers, or the mask is not boolean.

    >>> from mimoformer import create_model
    >>> model = create_model("mimoformer_listops_deep", m=2, n=2, layers=1)
    >>> predict(model, torch.randint(32, (5, 100)), m=2, n=2).shape
    torch.Size([5, 10])
    """
    checks.positive(m=m, n=n)
    axes = "count, 2, l" if model.config.head == "pair" else "count, l"
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens are {type(tokens).__name__}; they must be a tensor of integers")
    if tokens.dim() != len(axes.split()):
        found = tuple(tokens.shape)
        raise ValueError(f"tokens are {found}; the head {model.config.head} needs a tensor ({axes})")
    groups = grid(tokens, m, n)
    if mask is not None:
        check_mask(mask, tuple(tokens.shape), axes)
    masks = None if mask is None else grid(mask, m, n)
    at_once = max(1, TOKENS_AT_ONCE // max(1, groups[:1].numel()))
    with evaluating(model):
        logits = [
            model(groups[start : start + at_once], None if masks is None else masks[start : start + at_once])
            for start in range(0, max(1, len(groups)), at_once)
        ]
    return slots.ungroup(torch.cat(logits).flatten(1, 2), len(tokens))


def grid(items: Tensor, m: int, n: int) -> Tensor:
    """A flat batch (count ...) as groups (b m n ...), in order; the last is filled by repeating items."""
    groups = slots.group(items, m * n)
    return groups.reshape(len(groups), m, n, *items.shape[1:])


def count_macs(model: MIMOFormer, m: int | None = None, n: int | None = None, *, length: int | None = None) -> float:
    """Multiply-adds per sequence with m x n sequences a pass: matrix products by torch's flop counter, and products with keys.

    Args:
        model: the network; a copy of it without memory is run, and it stays as it is.
        m, n: the grid; the model's unless given.
        length: tokens of a sequence; the model's positions unless given.

    Raises:
        ValueError: a grid or length beyond the model's.
        TypeError: a number that is not whole.

    >>> from mimoformer import create_model
    >>> deep = create_model("mimoformer_image_deep", m=2, n=2)
    >>> round(count_macs(deep, 1, 1) / count_macs(deep, 2, 2), 1)
    1.6
    """
    config = model.config
    defaults = ((m, config.m), (n, config.n), (length, config.max_length))
    m, n, length = (default if given is None else given for given, default in defaults)
    checks.positive(m=m, n=n, length=length)
    shape = (PASSES, m, n, 2, length) if config.head == "pair" else (PASSES, m, n, length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe = copy.deepcopy(getattr(model, "_orig_mod", model)).to("meta", torch.float32).eval()
        probe(torch.zeros(shape, dtype=torch.long, device="meta"))
    tokens = length * (2 if config.head == "pair" else 1)
    return float(counter.get_total_flops()) / 2 / (PASSES * m * n) + tokens * sum(map(key_products, model.blocks))


def key_products(layer: torch.nn.Module) -> int:
    """Multiplications with binding keys per token: of q, k and v and of what is unbound, in a head's dimension or embed_dim."""
    if not isinstance(layer, AttentionBlock):
        return 0
    inner = layer.heads * layer.keys.shape[-1]
    return 3 * inner + (2 * layer.skip_keys.shape[-1] if isinstance(layer, AttentionMLPBlock) else inner)
