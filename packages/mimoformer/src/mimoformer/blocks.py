"""Pre-LN Transformer blocks over a grid of sequences (Menet et al., 2023, section 4.2)."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimoformer.causal import AttentionState
from mimoformer.config import MIMOFormerConfig
from mimoformer.layers import (
    BlurryAttention,
    SharedAttention,
    SoftmaxAttention,
    SuperposedAttention,
    keys_of_grid,
    make_projections,
    slot_keys,
)
from vsa_core import hadamard

__all__ = ["AttentionBlock", "AttentionMLPBlock", "TransformerBlock", "build_block", "init_as_gpt2"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
ATTENTIONS = {"att": SuperposedAttention, "att+mlp": SharedAttention, "blurry": BlurryAttention}
"""Attention in superposition, by variant."""


class TransformerBlock(nn.Module):
    """The plain block of the baseline: softmax attention and MLP of sequences that share nothing."""

    attention: SoftmaxAttention

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.embed_dim), nn.LayerNorm(config.embed_dim)
        # Draw projections before the MLP, and keys and features after it, so that a seed gives the weights it always gave.
        projections, mlp = make_projections(config.embed_dim, config.heads, config.dim), make_mlp(config)
        self.attention = make_attention(config, projections)
        self.dropout = nn.Dropout(config.residual_rate)
        self.mlp = mlp

    def forward(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None) -> Float[Tensor, "b m n l e"]:
        """Embeddings to embeddings; where `mask` is False, neither holds anything of use."""
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class AttentionBlock(TransformerBlock):
    """The block of the variants att. and blurry: only attention is in superposition, on any grid up to the configured one."""

    attention: SuperposedAttention

    def step(
        self, x: Float[Tensor, "b m n l e"], state: AttentionState | None, mask: Bool[Tensor, "b m n l"] | None = None
    ) -> tuple[Float[Tensor, "b m n l e"], AttentionState]:
        """Take the next tokens of causal attention; returns the state after them as well."""
        attended, state = self.attention.step(self.norm1(x), state, mask)
        x = x + self.dropout(attended)
        return x + self.mlp(self.norm2(x)), state


class AttentionMLPBlock(AttentionBlock):
    """The block of the variant att.+MLP: everything after attention sees only the sum over m, which is unbound at the end.

    A second set of keys, of embed_dim, binds what the residual connection carries and unbinds the block's result.
    """

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__(config)
        self.skip_keys = slot_keys(config.m, config.n, config.embed_dim, trainable=config.trainable_keys)

    def forward(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None) -> Float[Tensor, "b m n l e"]:
        """Embeddings to embeddings, in superposition from attention to the end of the MLP."""
        keys = rearrange(keys_of_grid(self.skip_keys, x), "m n e -> m n 1 e")
        s = self.superpose(x, keys, mask) + self.dropout(self.attention(self.norm1(x), mask))
        s = s + self.mlp(self.norm2(s))
        return hadamard.unbind(s[:, None], keys)

    def step(
        self, x: Float[Tensor, "b m n l e"], state: AttentionState | None, mask: Bool[Tensor, "b m n l"] | None = None
    ) -> tuple[Float[Tensor, "b m n l e"], AttentionState]:
        """Take the next tokens of causal attention; returns the state after them as well."""
        keys = rearrange(keys_of_grid(self.skip_keys, x), "m n e -> m n 1 e")
        attended, state = self.attention.step(self.norm1(x), state, mask)
        s = self.superpose(x, keys, mask) + self.dropout(attended)
        s = s + self.mlp(self.norm2(s))
        return hadamard.unbind(s[:, None], keys), state

    def superpose(
        self, x: Float[Tensor, "b m n l e"], keys: Float[Tensor, "m n 1 e"], mask: Bool[Tensor, "b m n l"] | None
    ) -> Float[Tensor, "b n l e"]:
        """Bind real tokens to their slots' keys and bundle over m, an axis that `vsa_core.superposition` does not sum over."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        return hadamard.bind(x, keys).sum(1)


def make_mlp(config: MIMOFormerConfig) -> nn.Sequential:
    """The MLP of a block, with dropout."""
    return nn.Sequential(
        nn.Linear(config.embed_dim, config.mlp_dim),
        ACTIVATIONS[config.activation](),
        nn.Dropout(config.residual_rate),
        nn.Linear(config.mlp_dim, config.embed_dim),
        nn.Dropout(config.residual_rate),
    )


def make_attention(config: MIMOFormerConfig, projections: tuple[nn.Linear, nn.Linear]) -> SoftmaxAttention:
    """The attention of the configured kind."""
    if config.attention == "softmax":
        return SoftmaxAttention(
            config.embed_dim,
            config.heads,
            head_dim=config.head_dim,
            causal=config.causal,
            dropout=config.attention_dropout,
            projections=projections,
        )
    return ATTENTIONS[config.variant](
        config.embed_dim,
        config.heads,
        config.m,
        config.n,
        head_dim=config.head_dim,
        feature_map=config.attention,
        features=config.features,
        nu=config.nu,
        causal=config.causal,
        trainable_keys=config.trainable_keys,
        projections=projections,
    )


def build_block(config: MIMOFormerConfig) -> TransformerBlock:
    """A block of the configured kind."""
    if config.attention == "softmax":
        return TransformerBlock(config)
    return AttentionMLPBlock(config) if config.variant == "att+mlp" else AttentionBlock(config)


def init_as_gpt2(network: nn.Module) -> None:
    """Draw the weights of linear layers as GPT-2 does (Radford et al., 2019), and so do H3 and Zoology; biases become 0.

    Weights are N(0, 0.02), and those of the layers that add to the residual stream N(0, 0.02 / sqrt(2 layers)).
    """
    blocks = [part for part in network.modules() if isinstance(part, TransformerBlock)]
    ends = {layer for block in blocks for layer in (block.attention.out, block.mlp[3])}
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02 / (2 * len(blocks)) ** 0.5 if layer in ends else 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
