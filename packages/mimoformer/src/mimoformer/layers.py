"""Attention layers for Transformers: over a grid of sequences in superposition, and the softmax baseline."""

from collections.abc import Callable
from typing import ClassVar, Literal

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mimoformer import attention
from mimoformer.bundles import check_mask
from mimoformer.causal import AttentionState
from mimoformer.dispatch import Form, Implementation, uses_triton
from mimoformer.features import AnyFeatureMap, DPFPFeatures, PositiveFeatures, ReLUFeatures
from vsa_core import checks, hadamard
from vsa_core.autocast import check_meeting

__all__ = [
    "BlurryAttention",
    "FeatureKind",
    "SharedAttention",
    "SoftmaxAttention",
    "SuperposedAttention",
    "make_projections",
    "slot_keys",
]

FeatureKind = Literal["relu", "positive", "dpfp"]
FEATURE_MAPS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "relu": lambda dim, features, nu: ReLUFeatures(dim, features),
    "positive": lambda dim, features, nu: PositiveFeatures(dim, features),
    "dpfp": lambda dim, features, nu: DPFPFeatures(nu),
}


FORMS: dict[Callable[..., Tensor], Form] = {
    attention.favor_s: "grid",
    attention.favor_s_shared: "shared",
    attention.favor_s_blurry: "blurry",
}
"""What the kernels call these functions."""


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention of sequences that share nothing, the baseline; see `SuperposedAttention` for the arguments.

    In training, `dropout` is the share of attention weights that are set to 0.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        projections: tuple[nn.Linear, nn.Linear] | None = None,
    ) -> None:
        super().__init__()
        checks.booleans(causal=causal)
        inner = heads * head_dimension(embed_dim, heads, head_dim)
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.qkv, self.out = projections or make_projections(embed_dim, heads, head_dim)
        found = [(layer.in_features, layer.out_features) for layer in (self.qkv, self.out)]
        if found != [(embed_dim, 3 * inner), (inner, embed_dim)]:
            raise ValueError(f"projections map {found}; expected {embed_dim} to {3 * inner}, and {inner} to {embed_dim}")

    def forward(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None) -> Float[Tensor, "b m n l e"]:
        """Attend within every sequence; padding contributes nothing, and its own output is of no use."""
        dropout = self.dropout if self.training else 0.0
        q, k, v = split_heads(self.project(x, mask))
        return self.merge_heads(attention.softmax_attention(q, k, v, mask, causal=self.causal, dropout=dropout))

    def project(self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None) -> Float[Tensor, "b m n l 3 h d"]:
        """Queries, keys and values of every head, side by side."""
        if not isinstance(x, Tensor) or x.dtype not in checks.DTYPES:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x is {found}; it must be a tensor of floating-point embeddings")
        if x.dim() != 5 or x.shape[-1] != self.qkv.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}; expected embeddings (b, m, n, l, {self.qkv.in_features})")
        check_meeting("embeddings", x, self.qkv.weight)
        if mask is not None:  # padding may hold anything, and NaN times no gradient is NaN in the gradient of the weights
            check_mask(mask, tuple(x.shape[:-1]), "b, m, n, l")
            x = x.masked_fill(~mask[..., None], 0)
        qkv: Tensor = rearrange(self.qkv(x), "b m n l (qkv h d) -> b m n l qkv h d", qkv=3, h=self.heads)
        return qkv

    def merge_heads(self, attended: Float[Tensor, "*b h l d"]) -> Float[Tensor, "*b l e"]:
        """Output projection of all heads side by side."""
        out: Tensor = self.out(rearrange(attended, "... h l d -> ... l (h d)"))
        return out


class SuperposedAttention(SoftmaxAttention):
    """Multi-head attention that up to m x n sequences share: a layer for your own Transformer (FAVOR+S, Menet et al., 2023).

    It takes the place of self-attention in a network that handles every sequence by itself, and maps embeddings (b m n l e) to
    embeddings (b m n l e). Any smaller grid runs as itself, with the first keys. Binding keys are bipolar, one per slot, shared
    by all heads and by queries, keys and values; on a 1 x 1 grid the key is all ones. A NaN in a real token of one sequence makes
    the outputs of all sequences of its pass NaN, and of no other pass.

    Args:
        embed_dim: dimension of an embedding.
        heads: number of attention heads.
        m: M, rows of the grid; queries are bundled over them.
        n: N, columns of the grid; keys and values are bundled over them.
        head_dim: d, the dimension of a head; embed_dim / heads by default.
        feature_map: the name of a map, "relu" (as published), "positive" or "dpfp"; or a plain function or module of your own.
            It gets queries and keys divided by sqrt(m n), and `ReLUFeatures` by d^(1/4) too.
        features: R, the number of random features of "relu" and "positive".
        nu: number of rolls of "dpfp".
        causal: whether a token sees only itself and earlier tokens; required by `step`.
        trainable_keys: whether the binding keys are trained.
        projections: layers for queries, keys and values side by side (e to 3 h d) and for the output (h d to e), such as those of
            a trained network; new ones by default.
        implementation: as in `attention.favor_s`.

    Raises:
        ValueError: a size is below 1, embed_dim is not divisible by heads and no head_dim is given, or there is no such map.
        TypeError: a size is not a whole number.

    >>> import torch
    >>> class Block(torch.nn.Module):
    ...     def __init__(self, dim):
    ...         super().__init__()
    ...         self.attention = SuperposedAttention(dim, heads=4, m=2, n=2)
    ...         self.mlp = torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.Linear(dim, dim), torch.nn.GELU())
    ...
    ...     def forward(self, x, mask=None):
    ...         x = x + self.attention(x, mask)
    ...         return x + self.mlp(x)
    >>> Block(64)(torch.randn(8, 2, 2, 100, 64)).shape  # 8 passes of 2 x 2 sequences of 100 tokens
    torch.Size([8, 2, 2, 100, 64])
    """

    implementation: Implementation = "auto"
    attend: ClassVar[Callable[..., Tensor]] = staticmethod(attention.favor_s)
    attend_next: ClassVar[Callable[..., tuple[Tensor, AttentionState]]] = staticmethod(attention.favor_s_step)

    def __init__(
        self,
        embed_dim: int,
        heads: int,
        m: int,
        n: int,
        *,
        head_dim: int | None = None,
        feature_map: FeatureKind | AnyFeatureMap = "relu",
        features: int = 256,
        nu: int = 3,
        causal: bool = False,
        trainable_keys: bool = False,
        projections: tuple[nn.Linear, nn.Linear] | None = None,
        implementation: Implementation = "auto",
    ) -> None:
        checks.positive(m=m, n=n, features=features, nu=nu)
        checks.booleans(trainable_keys=trainable_keys)
        super().__init__(embed_dim, heads, head_dim=head_dim, causal=causal, projections=projections)
        dim = self.out.in_features // heads
        self.keys = slot_keys(m, n, dim, trainable=trainable_keys)
        if isinstance(feature_map, str):
            if feature_map not in FEATURE_MAPS:
                raise ValueError(f"feature_map is {feature_map!r}; expected {', '.join(FEATURE_MAPS)}, a function or a module")
            feature_map = FEATURE_MAPS[feature_map](dim, features, nu)
        if not callable(feature_map):
            raise TypeError(f"feature_map is {feature_map!r}; expected a name, a function or a module")
        self.feature_map, self.implementation = feature_map, implementation

    def forward(
        self, x: Float[Tensor, "b m n l e"], mask: Bool[Tensor, "b m n l"] | None = None
    ) -> Float[Tensor, "b *slots l e"]:
        """Attend within every sequence of the grid, all in superposition.

        Args:
            x: embeddings.
            mask: True where a token is real; all are real by default. Padding contributes nothing.

        Returns:
            Embeddings (b m n l e); of `SharedAttention`, (b n l e).

        Raises:
            ValueError: the grid is larger than the layer's, or a shape does not fit.
            TypeError: x is not floating point or has another dtype than the weights, or the mask is not boolean.
        """
        qkv, keys = self.project(x, mask), keys_of_grid(self.keys, x)
        q, k, v = split_heads(qkv)
        form = FORMS.get(self.attend)
        if form and uses_triton(self.implementation, q, k, v, keys, self.feature_map, self.causal):
            # Queries, keys and values stay side by side, and so do their gradients.
            return self.merge_heads(
                attention.attend_by_kernels([qkv], keys, self.feature_map, mask, self.scale(qkv), form, self.causal)
            )
        implementation = "plain" if form else self.implementation  # an attention of your own decides for itself
        attended = self.attend(
            q, k, v, keys, self.feature_map, mask, causal=self.causal, scale=self.scale(q), implementation=implementation
        )
        return self.merge_heads(attended)

    def step(
        self,
        x: Float[Tensor, "b m n l e"],
        state: AttentionState | None = None,
        mask: Bool[Tensor, "b m n l"] | None = None,
    ) -> tuple[Float[Tensor, "b *slots l e"], AttentionState]:
        """Attend from the next tokens of causal attention, and return the state after them: `attention.favor_s_step`.

        Raises:
            ValueError: the layer is not causal, or for the reasons of `forward` and `attention.favor_s_step`.
            TypeError: for the reasons of `forward` and `attention.favor_s_step`.
        """
        if not self.causal:
            raise ValueError("steps are possible with causal attention only; make the layer with causal=True")
        q, k, v = split_heads(self.project(x, mask))
        keys = keys_of_grid(self.keys, x)
        attended, state = self.attend_next(
            q, k, v, keys, self.feature_map, state, mask, scale=self.scale(q), implementation=self.implementation
        )
        return self.merge_heads(attended), state

    def scale(self, q: Float[Tensor, "b m n *l d"]) -> float:
        """What queries and keys are multiplied by, 1 / sqrt(m n).

        Before `ReLUFeatures`, which divide by d^(1/4) themselves, they are divided by d^(1/4) as well, as in the published code:
        that settles how much the map's eps weighs beside its features.
        """
        scale: float = (q.shape[1] * q.shape[2]) ** -0.5
        if isinstance(getattr(self.feature_map, "_orig_mod", self.feature_map), ReLUFeatures):  # compiled or not
            scale *= q.shape[-1] ** -0.25
        return scale


class SharedAttention(SuperposedAttention):
    """Attention of the published att.+MLP variant: its output stays bound and bundled over m, for an MLP that follows."""

    attend = staticmethod(attention.favor_s_shared)
    attend_next = staticmethod(attention.favor_s_shared_step)


class BlurryAttention(SuperposedAttention):
    """Blurry attention: queries, keys and values all bundled over the whole grid, so that every slot has the same weights."""

    attend = staticmethod(attention.favor_s_blurry)
    attend_next = staticmethod(attention.favor_s_blurry_step)


def split_heads(
    qkv: Float[Tensor, "b m n l 3 h d"],
) -> tuple[Float[Tensor, "b m n h l d"], Float[Tensor, "b m n h l d"], Float[Tensor, "b m n h l d"]]:
    """Take queries, keys and values apart."""
    q, k, v = rearrange(qkv, "b m n l qkv h d -> qkv b m n h l d")
    return q, k, v


def make_projections(embed_dim: int, heads: int, head_dim: int | None = None) -> tuple[nn.Linear, nn.Linear]:
    """New projections: to queries, keys and values side by side, and from all heads back to embeddings."""
    inner = heads * head_dimension(embed_dim, heads, head_dim)
    return nn.Linear(embed_dim, 3 * inner), nn.Linear(inner, embed_dim)


def head_dimension(embed_dim: int, heads: int, head_dim: int | None) -> int:
    """The dimension of a head, by default embed_dim / heads, if all three sizes can be."""
    checks.positive(embed_dim=embed_dim, heads=heads, **({} if head_dim is None else {"head_dim": head_dim}))
    if head_dim is None and embed_dim % heads:
        raise ValueError(f"embed_dim {embed_dim} is not divisible by heads {heads}; change either, or give head_dim")
    return embed_dim // heads if head_dim is None else head_dim


def slot_keys(m: int, n: int, dim: int, *, trainable: bool = False) -> nn.Parameter:
    """Draw a bipolar key for every slot (m n dim); a single slot needs no protection, so its key is all ones."""
    keys = hadamard.random_keys(m * n, dim)
    return nn.Parameter(rearrange(keys if m * n > 1 else keys.abs(), "(m n) d -> m n d", m=m), requires_grad=trainable)


def keys_of_grid(keys: Float[Tensor, "M N e"], x: Float[Tensor, "b m n *l"]) -> Float[Tensor, "m n e"]:
    """The first m x n keys; ValueError where the grid of x is larger than that of the keys."""
    if x.shape[1] > keys.shape[0] or x.shape[2] > keys.shape[1]:
        raise ValueError(
            f"a grid of {x.shape[1]} x {x.shape[2]} sequences is too large; there are keys for {keys.shape[0]} x {keys.shape[1]}"
        )
    return keys[: x.shape[1], : x.shape[2]]
