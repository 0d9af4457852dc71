"""What a network of this package is made of: a frozen dataclass that checks itself."""

from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from vsa_core import checks

Variant = Literal["att", "att+mlp"]
Attention = Literal["relu", "positive", "dpfp", "softmax"]
Activation = Literal["relu", "gelu"]
Head = Literal["classes", "pair", "tokens", "last"]
Pool = Literal["real", "all"]


@dataclass(frozen=True, kw_only=True)
class MIMOFormerConfig:
    """MIMOFormer (Menet et al., 2023, section 4); on a grid of 1 x 1 the plain Performer, or with softmax the Transformer."""

    m: int = 2
    """M, rows of the grid: queries are bundled over m."""
    n: int = 2
    """N, columns of the grid: keys and values are bundled over n. m x n sequences share a pass."""
    vocab_size: int = 512
    """Token ids run from 0 to below this."""
    max_length: int = 2048
    """Positions: the longest sequence."""
    layers: int = 6
    """Blocks."""
    embed_dim: int = 512
    """Dimension of a token between blocks."""
    heads: int = 8
    """Attention heads of a block."""
    head_dim: int | None = None
    """d, the dimension of a head that keys bind in; embed_dim / heads unless given."""
    mlp_dim: int = 2048
    """Hidden dimension of the blocks' MLPs and of the classifier."""
    variant: Variant = "att"
    """What is computed in superposition: attention, or also what follows it in the block, up to the MLP."""
    attention: Attention = "relu"
    """The feature map of FAVOR+S, or exact softmax attention, which no grid but 1 x 1 can share."""
    features: int = 256
    """R, random features of the maps relu and positive."""
    nu: int = 3
    """Of the map dpfp, which has 2 nu d features."""
    activation: Activation = "relu"
    """Of the MLPs."""
    dropout: float = 0.1
    """Of embeddings, and of what attention and MLP add."""
    head: Head = "classes"
    """Classes of a sequence or of a pair of them, the next token everywhere (causal), or the one after the last real token."""
    num_classes: int = 10
    """Classes of the heads classes and pair; tokens and last predict one of vocab_size tokens."""
    pool: Pool = "real"
    """What the heads classes and pair average: real tokens, or all positions with zeros for padding, as in the published runs;
    then answers depend on how far sequences are padded."""
    tied: bool = False
    """Whether the heads tokens and last use the embeddings as their weights."""
    trainable_keys: bool = False
    """Whether binding keys are trained; they start bipolar in any case."""

    def __post_init__(self) -> None:
        sizes = ("m", "n", "vocab_size", "max_length", "layers", "embed_dim", "heads", "mlp_dim", "features", "nu", "num_classes")
        checks.positive(**{name: getattr(self, name) for name in sizes})
        choices = {"variant": Variant, "attention": Attention, "activation": Activation, "head": Head, "pool": Pool}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        if self.head_dim is not None:
            checks.positive(head_dim=self.head_dim)
        elif self.embed_dim % self.heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by heads {self.heads}: change either, or give head_dim"
            )
        if not isinstance(self.dropout, Real) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {self.dropout!r}")
        if self.attention == "softmax" and (self.m, self.n, self.variant) != (1, 1, "att"):
            raise ValueError(f"softmax attention is for m = n = 1 and variant att, not {self.m} x {self.n} and {self.variant}")
        for name in ("tied", "trainable_keys"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")

        if self.tied and self.head not in ("tokens", "last"):
            raise ValueError(f"tied embeddings predict tokens: head must be tokens or last, got {self.head!r}")

    @property
    def dim(self) -> int:
        """d, the dimension of a head."""
        return self.head_dim or self.embed_dim // self.heads

    @property
    def causal(self) -> bool:
        """Whether a token sees only itself and those before it."""
        return self.head == "tokens"
