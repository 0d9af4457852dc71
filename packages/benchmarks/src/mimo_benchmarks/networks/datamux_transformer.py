"""DataMUX's Transformer (Murahari et al., 2022), written from the paper; N sequences always share a pass."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from mimoformer import MIMOFormerConfig
from mimoformer.blocks import TransformerBlock, init_as_gpt2
from mimoformer.bundles import check_mask, close_gaps
from mimoformer.config import Activation, Init, Tokenizer
from mimoformer.heads import at_places, build_head, mean_over_tokens
from vsa_core import checks
from vsa_core.hub import Pretrained


@dataclass(frozen=True, kw_only=True)
class DataMUXConfig:
    """Configuration of DataMUX's Transformer; fields named as in `MIMOFormerConfig` mean the same.

    Attributes:
        capacity: N: the number of sequences that share every pass.
        vocab_size: Number of token ids, which run from 0.
        max_length: Most real tokens of a sequence, without its prefix.
        layers: Number of Transformer blocks.
        embed_dim: Dimension of a token's embedding.
        heads: Number of attention heads of a block, of embed_dim / heads dimensions each.
        mlp_dim: Hidden dimension of the blocks' MLPs and of the classifier.
        activation: Activation of the MLPs.
        dropout: Dropout rate of the mixed embeddings, and of the blocks unless `residual_dropout` is given.
        residual_dropout: Dropout rate within MLPs and of what attention and MLPs add to the residual stream; `dropout` by
            default.
        attention_dropout: Dropout rate of attention weights.
        init: How weights start: as torch's layers do (torch), or as in GPT-2 (gpt2).
        head: What the network predicts: classes of a sequence (classes), or the next token at every position (tokens, causal).
        num_classes: Number of classes of the head classes; the head tokens predicts one of vocab_size tokens.
        class_names: Names of the classes, in the order of the logits.
        tokenizer: How texts become tokens, as in `mimoformer.tokenize`.
        words: Vocabulary of the tokenizer words; the first word has id 1.
    """

    capacity: int = 2
    vocab_size: int = 512
    max_length: int = 2048
    layers: int = 6
    embed_dim: int = 512
    heads: int = 8
    mlp_dim: int = 2048
    activation: Activation = "relu"
    dropout: float = 0.1
    residual_dropout: float | None = None
    attention_dropout: float = 0.0
    init: Init = "torch"
    head: Literal["classes", "tokens"] = "classes"
    num_classes: int = 10
    class_names: tuple[str, ...] | None = None
    tokenizer: Tokenizer | None = None
    words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        checks.positive(capacity=self.capacity)
        if self.head not in ("classes", "tokens"):
            raise ValueError(f"head must be one of classes, tokens, got {self.head!r}")
        _ = self.transformer  # checks the other fields

    @property
    def label(self) -> str:
        """Return the name of the network in tables."""
        return "DataMUX"

    @property
    def transformer(self) -> MIMOFormerConfig:
        """Return the configuration of the plain Transformer whose blocks and head are used."""
        shared = {name: value for name, value in vars(self).items() if name != "capacity"}
        return MIMOFormerConfig(m=1, n=1, attention="softmax", **shared)


class DataMUX(Pretrained):
    """A Transformer on the mean of N sequences, each multiplied with a key of its own.

    From the paper: tokens with their positions are multiplied with a fixed Gaussian vector for each place of the pass, and
    averaged over the pass (Hadamard multiplexing). Before the sequence at place i stand N more tokens, a marker of i at the
    i-th of them and a marker of padding at the others; what the network makes of the i-th, p_i, tells the places apart: a
    shared Linear, GELU, LayerNorm on [p_i; h_j] gives token j of sequence i (index embeddings). Ours:

    - Keys have norm sqrt(embed_dim), as Gaussian ones of variance 1 have. The published code's norm is 1 (20 in its warm-up),
      which would leave embeddings of 0.02 below the epsilon of the first LayerNorm.
    - Blocks, head and initialisation are those of the plain Transformer beside MIMOFormer, not BERT's. There is no class token;
      the head classes averages the real tokens of each sequence.
    - Sequences share a pass as if each began with its first real token and had no padding among them. A padding token counts as
      0 in the mean over the pass; positions at which no sequence has a real token are masked.
    - For the head tokens attention is causal, so that p_i, of the prefix that all see, is the same for all sequences.
    - There is no warm-up on retrieving tokens.

    The sequences of a pass influence each other: one set of attention weights serves all of them.

    >>> network = DataMUX(DataMUXConfig(capacity=2, vocab_size=16, max_length=50, layers=1, embed_dim=32, heads=2, mlp_dim=64))
    >>> network(torch.randint(16, (8, 2, 50))).shape
    torch.Size([8, 2, 10])
    """

    hub_module = "mimo_benchmarks.networks.datamux"
    keys: Tensor

    def __init__(self, config: DataMUXConfig) -> None:
        super().__init__()
        self.config, n, dim = config, config.capacity, config.embed_dim
        self.register_buffer("keys", F.normalize(torch.randn(n, dim), dim=-1) * dim**0.5)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.markers = nn.Embedding(n + 1, dim)  # the last one marks padding
        self.positions = nn.Parameter(torch.empty(n + config.max_length, dim))
        for table in (self.embedding.weight, self.markers.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config.transformer) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        # one matrix on [p; h] in two halves, so that each half is applied once per vector and not once per pair
        self.of_index, self.of_token = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.demux = nn.Sequential(nn.GELU(), nn.LayerNorm(dim))
        self.head: Any = build_head(config.transformer)
        if config.init == "gpt2":
            init_as_gpt2(self)

    def forward(self, tokens: Integer[Tensor, "b n l"], mask: Bool[Tensor, "b n l"] | None = None) -> Float[Tensor, "b n *out"]:
        """Compute logits of N sequences per pass: (b n classes), or (b n l vocab) for the head tokens.

        Args:
            tokens: token ids; it does not matter where padding stands, nor what its ids are.
            mask: True where a token is real; all are unless given.

        Raises:
            ValueError: there are not N sequences per pass, no tokens or more real ones than max_length, or the mask has another
                shape.
            TypeError: the mask is not boolean.
        """
        config, n = self.config, self.config.capacity
        expected = f"DataMUX always needs (b, n, l) with n = {n} sequences per pass and l from 1 to {config.max_length}"
        if tokens.dim() != 3 or tokens.shape[1] != n or tokens.shape[2] < 1:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; {expected}")
        seen = place = None
        if mask is not None:
            check_mask(mask, tuple(tokens.shape), "b, n, l")
            tokens, mask, place = close_gaps(tokens, mask)
            if tokens.shape[2] > config.max_length and not mask[..., config.max_length :].any():
                tokens, mask = tokens[..., : config.max_length], mask[..., : config.max_length]
        if tokens.shape[2] > config.max_length:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; {expected} real tokens")
        if mask is not None:
            seen = rearrange(F.pad(mask.any(1), (n, 0), value=True), "b l -> b 1 1 l")
        x = self.embedding(tokens) + self.positions[n : n + tokens.shape[2]]
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        mixed = torch.cat([repeat(self.prefix(), "1 n e -> b n e", b=len(x)), self.multiplex(x)], 1)
        hidden = rearrange(self.dropout(mixed), "b l e -> b 1 1 l e")
        for layer in self.blocks:
            hidden = layer(hidden, seen)
        p, h = self.norm(hidden)[:, 0, 0].split([n, tokens.shape[2]], 1)
        own = self.demux(rearrange(self.of_index(p), "b n e -> b n 1 e") + rearrange(self.of_token(h), "b l e -> b 1 l e"))
        if config.head == "classes":
            own = mean_over_tokens(own, mask, "real")
        elif place is not None:
            own = at_places(own, place)
        logits: Tensor = self.head(own)
        return logits

    def prefix(self) -> Float[Tensor, "1 n e"]:
        """Return the N tokens before every mixture: N prefixes, each with one marker, mixed as sequences are."""
        place = torch.arange(self.config.capacity, device=self.keys.device)
        marker = torch.where(place == place[:, None], place, self.config.capacity)
        return self.multiplex(self.markers(marker)[None] + self.positions[: self.config.capacity])

    def multiplex(self, x: Float[Tensor, "b n l e"]) -> Float[Tensor, "b l e"]:
        """Multiply with the keys, and average over the pass."""
        return (x * rearrange(self.keys, "n e -> n 1 e")).mean(1)
