"""What turns a network's features into logits: pooling over tokens, and classifiers."""

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from mimoformer.blocks import ACTIVATIONS
from mimoformer.config import MIMOFormerConfig, Pool

__all__ = ["at_places", "build_head", "last_real_token", "mean_over_tokens"]


def build_head(config: MIMOFormerConfig) -> nn.Module | None:
    """The layers from features to logits; None where the embeddings serve as weights."""
    if config.head in ("tokens", "last"):
        return None if config.tied else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
    features = config.embed_dim * (4 if config.head == "pair" else 1)
    activation = ACTIVATIONS[config.activation]()
    return nn.Sequential(nn.Linear(features, config.mlp_dim), activation, nn.Linear(config.mlp_dim, config.num_classes))


def mean_over_tokens(hidden: Float[Tensor, "*b l e"], mask: Bool[Tensor, "*b l"] | None, pool: Pool) -> Float[Tensor, "*b e"]:
    """Average over real tokens, or with "all" over all positions with zeros for padding; a sequence without tokens gives 0."""
    if mask is None:
        return hidden.mean(-2)
    total: Tensor = hidden.masked_fill(~mask[..., None], 0).sum(-2)
    count = mask.sum(-1, keepdim=True).clamp_min(1) if pool == "real" else hidden.shape[-2]
    return total / count


def at_places(hidden: Float[Tensor, "*b l e"], place: Integer[Tensor, "*b places"]) -> Float[Tensor, "*b places e"]:
    """Features of the tokens at these places."""
    return hidden.gather(-2, place[..., None].expand(*place.shape, hidden.shape[-1]))


def last_real_token(hidden: Float[Tensor, "*b l e"], mask: Bool[Tensor, "*b l"] | None) -> Float[Tensor, "*b e"]:
    """Features of the last real token; a sequence without tokens gives 0."""
    if mask is None:
        return hidden[..., -1, :]
    hidden = hidden.masked_fill(~mask[..., None], 0)
    back = mask.flip(-1).int().argmax(-1)
    place = (hidden.shape[-2] - 1 - back)[..., None, None].expand(*back.shape, 1, hidden.shape[-1])
    return hidden.gather(-2, place)[..., 0, :]
