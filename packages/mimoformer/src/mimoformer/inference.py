"""Use a network: predict with it, count its cost."""

import copy
import math
from collections.abc import Iterator
from itertools import repeat

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from mimoformer.blocks import AttentionBlock, AttentionMLPBlock
from mimoformer.bundles import check_mask
from mimoformer.model import MIMOFormer
from vsa_core import checks, graphs, slots
from vsa_core.modules import unwrapped

__all__ = ["count_macs", "predict"]

COUNTED_PASSES = 64
"""Passes that multiply-adds are counted over, so that work done once for a whole batch is spread over many."""
REPLAYED_TOKENS = 2**14
"""Most tokens in a batch that is replayed as a CUDA graph; more keep a GPU busy by themselves, and their graphs take memory."""


@torch.no_grad()
def predict(
    model: nn.Module,
    tokens: Integer[Tensor, "count *pair l"],
    n: int | tuple[int, int] | None = None,
    mask: Bool[Tensor, "count *pair l"] | None = None,
    *,
    tokens_at_once: int = 2**17,
) -> Float[Tensor, "count *out"]:
    """Logits of a flat batch of sequences in eval mode: one row per sequence, in order, for any count.

    Consecutive sequences share a pass; the last pass is filled by repeating sequences. The same sequences in the same order get
    the same logits; in another order they share passes with others, and logits move a little. The model does not change, so any
    number of threads may use it at once, each with an n of its own, as long as none changes its mode. On a GPU, a batch of few
    tokens whose shape comes again is replayed as a CUDA graph, unless this is called `with vsa_core.graphs.disabled():`.

    Args:
        model: a MIMOFormer, compiled or not; it may be inside torch's AveragedModel, DataParallel or DistributedDataParallel, and
            answers alone.
        tokens: ids (count l), or (count 2 l) for the head pair.
        n: sequences per pass: a grid (m, n), or k for k x k; the network's whole capacity by default.
        mask: True where a token is real; all are real by default.
        tokens_at_once: tokens that the network gets at a time, at least one pass, to bound memory.

    Raises:
        ValueError: the grid is below 1 x 1 or larger than the network's, or tokens or mask do not fit.
        TypeError: n is not made of whole numbers, tokens are not integers, the mask is not boolean, or the model is none of this
            package.

    >>> from mimoformer import create_model
    >>> model = create_model("mimoformer_listops_deep", m=2, n=2, layers=1)
    >>> predict(model, torch.randint(32, (5, 100))).shape
    torch.Size([5, 10])
    """
    network = network_of(model)
    grid = network.config.grid(n)
    checks.positive(tokens_at_once=tokens_at_once)
    axes = "count, 2, l" if network.config.head == "pair" else "count, l"
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens are {type(tokens).__name__}; expected a tensor of integers")
    if tokens.dim() != len(axes.split()):
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; the head {network.config.head} needs ({axes})")
    if mask is not None:
        check_mask(mask, tuple(tokens.shape), axes)
    at_once = max(1, tokens_at_once // max(1, math.prod(grid) * math.prod(tokens.shape[1:])))
    parts = group_in_grids(tokens, grid, at_once)
    masks = repeat(None) if mask is None else group_in_grids(mask, grid, at_once)
    fits = tokens.shape[-1] <= network.config.max_length  # Python checks longer ones
    batches = zip(parts, masks, strict=False)
    answers = graphs.answer(network, batches, lambda part, _: fits and part.numel() <= REPLAYED_TOKENS)
    logits = [out for out, _ in answers]
    return slots.ungroup((logits[0] if len(logits) == 1 else torch.cat(logits)).flatten(1, 2), len(tokens))


def group_in_grids(items: Tensor, grid: tuple[int, int], at_once: int) -> Iterator[Tensor]:
    """Yield grids (b m n ...) of a flat batch (count ...), in order; the last is filled by repeating items."""
    return (groups.view(len(groups), *grid, *items.shape[1:]) for groups in slots.group_in_parts(items, math.prod(grid), at_once))


def network_of(model: nn.Module) -> MIMOFormer:
    """Return the network inside torch's wrappers; TypeError if it is none of this package."""
    network: MIMOFormer = unwrapped(model)
    if not hasattr(network, "blocks") or isinstance(network, torch.jit.ScriptModule):
        raise TypeError(f"model is a {type(model).__name__}; expected a MIMOFormer")
    return network


def count_macs(model: nn.Module, n: int | tuple[int, int] | None = None, *, length: int | None = None) -> float:
    """Multiply-adds per sequence: matrix products, as torch's flop counter counts them, and products with binding keys.

    Args:
        model: the network, as `predict` takes it; a copy without memory is run, and it stays as it is.
        n: sequences per pass: a grid (m, n), or k for k x k; the network's whole capacity by default.
        length: tokens of a sequence; the network's max_length by default.

    Raises:
        ValueError: the grid or the length is below 1 or larger than the network's.
        TypeError: a count is not a whole number.

    >>> from mimoformer import create_model
    >>> deep = create_model("mimoformer_image_deep", m=2, n=2)
    >>> round(count_macs(deep, 1) / count_macs(deep), 1)
    1.6
    """
    network = network_of(model)
    config = network.config
    m, columns = config.grid(n)
    length = config.max_length if length is None else length
    checks.positive(length=length)
    pair = (2,) if config.head == "pair" else ()
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports triton, which is slow

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe = copy.deepcopy(getattr(network, "_orig_mod", network)).to("meta", torch.float32).eval()
        probe(torch.zeros(COUNTED_PASSES, m, columns, *pair, length, dtype=torch.long, device="meta"))
    products = sum(map(count_key_products, network.blocks)) * length * (2 if pair else 1)
    return float(counter.get_total_flops()) / 2 / (COUNTED_PASSES * m * columns) + products


def count_key_products(layer: nn.Module) -> int:
    """Multiplications with binding keys per token, which torch's flop counter leaves out."""
    if not isinstance(layer, AttentionBlock):
        return 0
    inner = layer.attention.out.in_features  # q, k and v are bound in this dimension
    return 3 * inner + (2 * layer.skip_keys.shape[-1] if isinstance(layer, AttentionMLPBlock) else inner)
