"""Pre-LN Transformer blocks over a grid of sequences (Menet et al., 2023, section 4.2)."""

from collections.abc import Callable
from typing import ClassVar

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimoformer import attention
from mimoformer.causal import State
from mimoformer.config import MIMOFormerConfig
from mimoformer.features import DPFPFeatures, PositiveFeatures, ReLUFeatures
from vsa_core import hadamard

FEATURE_MAPS: dict[str, Callable[[MIMOFormerConfig], nn.Module]] = {
    "relu": lambda config: ReLUFeatures(config.dim, config.features),
    "positive": lambda config: PositiveFeatures(config.dim, config.features),
    "dpfp": lambda config: DPFPFeatures(config.nu),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class TransformerBlock(nn.Module):
    """The plain block, softmax attention and MLP, for sequences that share nothing; and the parts of the superposed ones."""

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__()
        inner = config.heads * config.dim
        self.heads, self.causal = config.heads, config.causal
        self.norm1, self.norm2 = nn.LayerNorm(config.embed_dim), nn.LayerNorm(config.embed_dim)
        self.qkv = nn.Linear(config.embed_dim, 3 * inner)
        self.out = nn.Linear(inner, config.embed_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(config.embed_dim, config.mlp_dim),
            ACTIVATIONS[config.activation](),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp_dim, config.embed_dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None) -> Float[Tensor, "b m n l e"]:
        """Embeddings to embeddings; where `mask` is False they hold nothing of use, before and after."""
        return self.rest(x, attention.softmax_attention(*self.project(x), mask, causal=self.causal), mask)

    def project(self, x: Float[Tensor, "b m n l e"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of every head, (b m n h l d); the first two divided by sqrt(m n), as published."""
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b m n l (qkv h d) -> qkv b m n h l d", qkv=3, h=self.heads)
        scale = (x.shape[1] * x.shape[2]) ** -0.5
        return q * scale, k * scale, v

    def rest(
        self, x: Float[Tensor, "b m n l e"], attended: Float[Tensor, "b m n h l d"], mask: Bool[Tensor, "b m n l"] | None
    ) -> Float[Tensor, "b m n l e"]:
        """Output projection, skip connection and MLP of every sequence by itself."""
        x = x + self.dropout(self.out(rearrange(attended, "b m n h l d -> b m n l (h d)")))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class AttentionBlock(TransformerBlock):
    """att.: attention alone is in superposition; each sequence is unbound before the output projection.

    Keys are bipolar, one of head_dim for every slot, shared by the heads and by queries, keys and values.
    """

    attend: ClassVar[Callable[..., Tensor]] = staticmethod(attention.favor_s)
    advance: ClassVar[Callable[..., tuple[Tensor, State]]] = staticmethod(attention.step)

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__(config)
        self.keys = binding_keys(config, config.dim)
        self.feature_map = FEATURE_MAPS[config.attention](config)

    def forward(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None) -> Float[Tensor, "b m n l e"]:
        """As in the plain block, on a grid of any m x n up to that of the keys, of which it uses the first m x n."""
        keys = self.keys[: x.shape[1], : x.shape[2]]
        return self.rest(x, self.attend(*self.project(x), keys, self.feature_map, mask, causal=self.causal), mask)

    def step(
        self, x: Float[Tensor, "b m n l e"], state: State | None, mask: Bool[Tensor, "b m n l"] | None = None
    ) -> tuple[Float[Tensor, "b m n l e"], State]:
        """The next tokens of causal attention, and the state after them: `attention.step`."""
        keys = self.keys[: x.shape[1], : x.shape[2]]
        attended, state = self.advance(*self.project(x), keys, self.feature_map, state, mask)
        return self.rest(x, attended, mask), state


class AttentionMLPBlock(AttentionBlock):
    """att.+MLP: output projection, skip connection and MLP too see only the sum over m; sequences are unbound at the end.

    A second set of keys, of embed_dim, binds what the skip connection carries and unbinds the block's result.
    """

    attend: ClassVar[Callable[..., Tensor]] = staticmethod(attention.favor_s_shared)
    advance: ClassVar[Callable[..., tuple[Tensor, State]]] = staticmethod(attention.step_shared)

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__(config)
        self.skip_keys = binding_keys(config, config.embed_dim)

    def rest(
        self, x: Float[Tensor, "b m n l e"], attended: Float[Tensor, "b n h l d"], mask: Bool[Tensor, "b m n l"] | None
    ) -> Float[Tensor, "b m n l e"]:
        """Everything after attention, in superposition over m."""
        keys = rearrange(self.skip_keys[: x.shape[1], : x.shape[2]], "m n e -> m n 1 e")
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        s = (x * keys).sum(1) + self.dropout(self.out(rearrange(attended, "b n h l d -> b n l (h d)")))
        s = s + self.mlp(self.norm2(s))
        unbound: Tensor = s[:, None] * keys
        return unbound


def binding_keys(config: MIMOFormerConfig, dim: int) -> nn.Parameter:
    """A bipolar key for every slot (m n dim); ones where there is but one slot, which needs no protection."""
    slots = config.m * config.n
    keys = hadamard.random_keys(slots, dim) if slots > 1 else hadamard.random_keys(1, dim).abs()
    return nn.Parameter(rearrange(keys, "(m n) d -> m n d", m=config.m), requires_grad=config.trainable_keys)


def block(config: MIMOFormerConfig) -> TransformerBlock:
    """A block of the configured kind."""
    if config.attention == "softmax":
        return TransformerBlock(config)
    return AttentionBlock(config) if config.variant == "att" else AttentionMLPBlock(config)
