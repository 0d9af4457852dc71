"""Configuration of a network: a frozen dataclass that checks itself."""

from collections import Counter
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from vsa_core import checks

__all__ = ["Activation", "Attention", "Head", "Init", "MIMOFormerConfig", "Pool", "Tokenizer", "Variant"]

Variant = Literal["att", "att+mlp", "blurry"]
Attention = Literal["relu", "positive", "dpfp", "softmax"]
Activation = Literal["relu", "gelu"]
Head = Literal["classes", "pair", "tokens", "last"]
Pool = Literal["real", "all"]
Init = Literal["torch", "gpt2"]
Tokenizer = Literal["bytes", "pixels", "words", "ids"]


@dataclass(frozen=True, kw_only=True)
class MIMOFormerConfig:
    """Sizes and choices of a MIMOFormer (Menet et al., 2023, section 4).

    A grid of 1 x 1 makes it the plain Performer, or with softmax attention the plain Transformer.

    Attributes:
        m: M, rows of the grid of sequences that share a pass; queries are bundled over them.
        n: N, columns of the grid of sequences that share a pass; keys and values are bundled over them.
        vocab_size: Number of token ids, which run from 0; id 0 is padding.
        max_length: Most tokens of a sequence, padding not counted.
        layers: Number of Transformer blocks.
        embed_dim: Dimension of a token's embedding between blocks.
        heads: Number of attention heads of a block.
        head_dim: Dimension of an attention head, in which binding keys act; embed_dim / heads by default.
        mlp_dim: Hidden dimension of the MLPs of the blocks and of the classifier.
        variant: What is computed in superposition: attention (att), attention and MLP (att+mlp), or attention with one set of
            weights that all sequences share (blurry), which is cheapest and least accurate.
        attention: Feature map of linear attention (relu, positive, dpfp), or softmax attention, which needs a grid of 1 x 1.
        features: Number of random features of the maps relu and positive.
        nu: Number of rolls of the feature map dpfp, which has 2 nu features per dimension of a head.
        activation: Activation of the MLPs.
        dropout: Dropout rate of embeddings, and of the blocks unless `residual_dropout` is given.
        residual_dropout: Dropout rate within MLPs and of what attention and MLPs add to the residual stream; `dropout` by
            default.
        attention_dropout: Dropout rate of the weights of softmax attention; linear attention has no such weights, and needs 0.
        positions: Whether learned embeddings of positions are added to those of tokens.
        init: How weights start: as torch's layers do (torch); or with linear weights N(0, 0.02), those that add to the residual
            stream N(0, 0.02 / sqrt(2 layers)), and biases 0 (gpt2). Embeddings start at N(0, 0.02) either way.
        head: What the network predicts: classes of a sequence (classes) or of a pair of sequences (pair), the next token at every
            position (tokens, causal), or the token after the last real one (last).
        num_classes: Number of classes of the heads classes and pair; the heads tokens and last predict one of vocab_size tokens.
        pool: What positions number and the heads classes and pair average: real tokens (real), so that answers are the same
            wherever and however far a sequence is padded; or all places, with zeros for padding in the average (all), as in the
            published runs, where black pixels are padding and keep their place.
        tied: Whether the heads tokens and last use the embeddings as their weights.
        trainable_keys: Whether binding keys are trained; they start bipolar either way.
        class_names: Names of the classes, in the order of the logits.
        tokenizer: How inputs become token ids: UTF-8 bytes (bytes) or grey levels (pixels) plus one, the places of words in
            the vocabulary (words), or ids written as numbers (ids).
        words: Vocabulary of the tokenizer words; the first word has id 1.
    """

    m: int = 2
    n: int = 2
    vocab_size: int = 512
    max_length: int = 2048
    layers: int = 6
    embed_dim: int = 512
    heads: int = 8
    head_dim: int | None = None
    mlp_dim: int = 2048
    variant: Variant = "att"
    attention: Attention = "relu"
    features: int = 256
    nu: int = 3
    activation: Activation = "relu"
    dropout: float = 0.1
    residual_dropout: float | None = None
    attention_dropout: float = 0.0
    positions: bool = True
    init: Init = "torch"
    head: Head = "classes"
    num_classes: int = 10
    pool: Pool = "real"
    tied: bool = False
    trainable_keys: bool = False
    class_names: tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        sizes = ("m", "n", "vocab_size", "max_length", "layers", "embed_dim", "heads", "mlp_dim", "features", "nu", "num_classes")
        checks.positive(**{name: getattr(self, name) for name in sizes})
        choices = {"variant": Variant, "attention": Attention, "activation": Activation, "head": Head, "pool": Pool, "init": Init}
        if self.tokenizer is not None:
            choices["tokenizer"] = Tokenizer
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(get_args(allowed))}")
        if self.head_dim is not None:
            checks.positive(head_dim=self.head_dim)
        elif self.embed_dim % self.heads:
            raise ValueError(
                f"embed_dim {self.embed_dim} is not divisible by heads {self.heads}; change either, or give head_dim"
            )
        self.check_rates()
        if self.attention == "softmax" and (self.m, self.n, self.variant) != (1, 1, "att"):
            raise ValueError(
                f"softmax attention cannot be shared by a grid of {self.m} x {self.n} in variant {self.variant}; "
                "it needs m = n = 1 and variant att"
            )
        for name in ("positions", "tied", "trainable_keys"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if self.tied and self.head not in ("tokens", "last"):
            raise ValueError(f"tied embeddings cannot serve head {self.head!r}; expected head tokens or last")
        self.check_names()

    def check_rates(self) -> None:
        """Check dropout rates."""
        rates = {"dropout": self.dropout, "residual_dropout": self.residual_rate, "attention_dropout": self.attention_dropout}
        for name, rate in rates.items():
            if not isinstance(rate, Real):
                raise TypeError(f"{name} is {rate!r}; expected a number from 0 to below 1")
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate!r}; expected a number from 0 to below 1")
        if self.attention_dropout and self.attention != "softmax":
            raise ValueError(
                f"attention_dropout is {self.attention_dropout} with {self.attention} attention, which has no matrix of weights; "
                "expected 0, or softmax attention"
            )

    def check_names(self) -> None:
        """Check class names and vocabulary, and make them tuples."""
        for name in ("class_names", "words"):
            if (value := getattr(self, name)) is not None:
                if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
                    raise TypeError(f"{name} is {value!r}; expected a sequence of strings")
                object.__setattr__(self, name, tuple(value))
        if self.class_names is not None:
            if self.head not in ("classes", "pair"):
                raise ValueError(f"class_names are given, but head {self.head} has no classes; leave them out")
            if len(self.class_names) != self.num_classes:
                raise ValueError(f"class_names has {len(self.class_names)} names; expected num_classes = {self.num_classes}")
        if (self.words is not None) != (self.tokenizer == "words"):
            given = "are given" if self.words is not None else "are missing"
            raise ValueError(f"words {given} with tokenizer {self.tokenizer!r}; the tokenizer 'words' needs them, no other does")
        words = self.words or ()
        counts = Counter(words)
        for word in words:
            if word.split() != [word] or set("()") & set(word) or counts[word] > 1:
                raise ValueError(f"words holds {word!r}; each must be there once, without white space and parentheses")
        largest = {"bytes": 256, "pixels": 256, "words": len(words)}.get(self.tokenizer or "", 0)
        if largest >= self.vocab_size:
            raise ValueError(f"vocab_size {self.vocab_size} is too small for tokenizer {self.tokenizer}; it needs {largest + 1}")

    def grid(self, n: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """The grid (m, n) of a pass: the whole capacity for None, k x k for a number k, or the pair that is given.

        Raises:
            ValueError: a count is below 1 or beyond this network's M or N.
            TypeError: a count is not a whole number.

        >>> MIMOFormerConfig(m=4, n=4).grid(2)
        (2, 2)
        """
        if n is None:
            return self.m, self.n
        counts = n if isinstance(n, tuple) else (n, n)
        if not all(isinstance(count, Integral) and not isinstance(count, bool) for count in counts):
            raise TypeError(f"n is {n!r}; expected a whole number k, a grid (m, n) of whole numbers, or None")
        if len(counts) != 2:
            raise ValueError(f"n is {n}; expected a whole number k, a grid (m, n), or None")
        rows, columns = counts
        if not (1 <= rows <= self.m and 1 <= columns <= self.n):
            raise ValueError(f"n is {n}, a grid of {rows} x {columns}; this network takes 1 x 1 to {self.m} x {self.n}")
        return rows, columns

    @property
    def capacity(self) -> int:
        """Most sequences that can share a pass: M x N."""
        return self.m * self.n

    @property
    def dim(self) -> int:
        """d, the dimension of a head."""
        return self.head_dim or self.embed_dim // self.heads

    @property
    def residual_rate(self) -> float:
        """Dropout rate of the blocks: `residual_dropout`, or `dropout` where that is None."""
        return self.dropout if self.residual_dropout is None else self.residual_dropout

    @property
    def causal(self) -> bool:
        """Whether a token sees only itself and earlier tokens."""
        return self.head == "tokens"

    @property
    def label(self) -> str:
        """What tables call the network: family, layers x heads x dimension of a head, and variant.

        >>> MIMOFormerConfig().label
        'MIMOFormer 6x8x64 att'
        """
        size = f"{self.layers}x{self.heads}x{self.dim}"
        if self.capacity == 1:
            return f"{'Transformer' if self.attention == 'softmax' else 'Performer'} {size}"
        return f"MIMOFormer {size} {self.variant}"
