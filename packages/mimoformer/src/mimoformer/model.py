"""MIMOFormer: a Transformer over a grid of sequences that share every attention of a forward pass."""

from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from mimoformer.blocks import AttentionBlock, build_block, init_as_gpt2
from mimoformer.bundles import check_mask, close_gaps
from mimoformer.causal import AttentionState
from mimoformer.config import MIMOFormerConfig
from mimoformer.heads import at_places, build_head, last_real_token, mean_over_tokens
from vsa_core.autocast import half_types_clash
from vsa_core.hub import Pretrained

__all__ = ["MIMOFormer", "ModelState"]


class ModelState(NamedTuple):
    """What a causal network remembers between steps."""

    length: int
    """Number of steps so far."""
    blocks: tuple[AttentionState, ...]
    """What the attention of every block remembers."""
    real: Integer[Tensor, "b m n"] | None = None
    """Number of real tokens of every sequence so far; None if every step had one for each."""


class MIMOFormer(Pretrained):
    """A Transformer that takes up to M x N sequences in one pass (Menet et al., 2023, section 4).

    The shape of the tokens says which grid m x n a pass has; any with m <= M and n <= N runs as itself, with the first keys.
    Embeddings and positions are learned, and the classifier has one hidden layer.

    >>> import torch
    >>> config = MIMOFormerConfig(m=2, n=2, vocab_size=16, max_length=100, layers=1, embed_dim=32, heads=2, mlp_dim=64)
    >>> model = MIMOFormer(config).eval()
    >>> model(torch.randint(16, (8, 2, 2, 50))).shape  # 8 passes of 4 sequences of 50 tokens each
    torch.Size([8, 2, 2, 10])
    """

    config: MIMOFormerConfig
    hub_module: ClassVar[str] = "mimoformer.hub"

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.embed_dim)) if config.positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(build_block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head = build_head(config)
        if config.init == "gpt2":
            init_as_gpt2(self)

    @property
    def capacity(self) -> int:
        """Most sequences that can share a pass: M x N."""
        return int(self.config.capacity)

    def forward(
        self, tokens: Integer[Tensor, "b m n *pair l"], mask: Bool[Tensor, "b m n *pair l"] | None = None
    ) -> Float[Tensor, "b m n *out"]:
        """Logits of every sequence, or pair of sequences, of a batch of passes.

        Padding changes nothing, whatever its ids: it may stand before, after and among the tokens of a sequence, which share a
        pass as if each began with its first real token. (With `pool="all"` every token keeps its place, and padding counts in
        the mean, as published.)

        Args:
            tokens: ids (b m n l), or (b m n 2 l) for the head pair.
            mask: True where a token is real; all are real by default.

        Returns:
            (b m n classes) for the heads classes and pair, (b m n vocab) for last, (b m n l vocab) for tokens, where those of
            padding are of no use.

        Raises:
            ValueError: the grid is larger than M x N, a sequence has more than max_length real tokens, shapes do not fit, or, on
                the CPU, an id is outside the vocabulary.
            TypeError: the tokens are not integers, the mask is not boolean, or weights and autocast have different half types.
        """
        config = self.config
        tokens = self.check_tokens(tokens, mask, "b, m, n, 2, l" if config.head == "pair" else "b, m, n, l")
        place = None
        if mask is not None and config.pool == "real":
            tokens, mask, place = close_gaps(tokens, mask)
        if config.head == "pair":  # the two sequences of a pair take the same slot of two passes
            pairs = None if mask is None else rearrange(mask, "b m n pair l -> (b pair) m n l")
            hidden = self.encode(rearrange(tokens, "b m n pair l -> (b pair) m n l"), pairs)
            hidden = rearrange(hidden, "(b pair) m n l e -> b m n pair l e", pair=2)
        else:
            hidden = self.encode(tokens, mask)
            if config.head == "tokens" and place is not None:
                hidden = at_places(hidden, place)
        return self.read_out(hidden, mask)

    def step(
        self,
        tokens: Integer[Tensor, "b m n"],
        state: ModelState | None = None,
        mask: Bool[Tensor, "b m n"] | None = None,
    ) -> tuple[Float[Tensor, "b m n vocab"], ModelState]:
        """Take the next token of every sequence: logits after it, and a state whose size does not depend on the length.

        Needs the head tokens. In eval mode, steps give what `forward` gives for the whole sequences, if each has a token in every
        step until it ends. A sequence may also begin later or pause, and its positions go on from its last token. On a grid
        larger than 1 x 1 it then shares bundles with other tokens of its neighbours than in `forward`, and their crosstalk
        differs. (With `pool="all"`, positions number steps.)

        Args:
            tokens: ids, one per sequence.
            state: what the previous step returned; None at the beginning.
            mask: False for sequences that have no token here; all have one by default. Their logits are of no use.

        Raises:
            ValueError: the network is not causal or has softmax attention, the state is of another grid or batch, or for the
                reasons of `forward`.
            TypeError: the state is not of this network, or for the reasons of `forward`.
        """
        head, kind = self.config.head, self.config.attention
        if not self.config.causal or kind == "softmax":
            raise ValueError(
                f"steps are not possible with head {head} and {kind} attention; they need head tokens and linear attention"
            )
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens are {type(tokens).__name__}; expected a tensor of integers")
        if tokens.dim() != 3:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}; a step takes one token per sequence, (b, m, n)")
        mask = None if mask is None else mask[..., None]
        tokens = self.check_tokens(tokens[..., None], mask, "b, m, n, 1")
        if state is not None and not (isinstance(state, ModelState) and len(state.blocks) == len(self.blocks)):
            raise TypeError(
                f"state is a {type(state).__name__}; expected the ModelState that the previous step of this network returned"
            )
        length, real = (0, None) if state is None else (state.length, state.real)
        if (mask is not None or real is not None) and self.config.pool == "real":
            if real is not None and real.shape != tokens.shape[:-1]:
                raise ValueError(f"the state has (b, m, n) = {tuple(real.shape)}; these tokens have {tuple(tokens.shape[:-1])}")
            now = torch.ones_like(tokens[..., 0]) if mask is None else mask[..., 0].long()
            real = now + (length if real is None else real)
        x, after = self.embed(tokens, self.next_positions(length, real)), []
        for number, layer in enumerate(self.blocks):
            assert isinstance(layer, AttentionBlock)
            x, kept = layer.step(x, None if state is None else state.blocks[number], mask)
            after.append(kept)
        return self.read_out(self.norm(x), mask)[..., 0, :], ModelState(length + 1, tuple(after), real)

    def encode(self, tokens: Integer[Tensor, "b m n l"], mask: Bool[Tensor, "b m n l"] | None) -> Float[Tensor, "b m n l e"]:
        """Features of every token at its place: embeddings, blocks and the last LayerNorm."""
        x = self.embed(tokens, self.first_positions(tokens.shape[-1], mask))
        for layer in self.blocks:
            x = layer(x, mask)
        hidden: Tensor = self.norm(x)
        return hidden

    def first_positions(self, length: int, mask: Bool[Tensor, "b m n l"] | None) -> Float[Tensor, "l e"] | None:
        """Embeddings of the first positions; zeros beyond max_length, where padding alone may stand."""
        beyond = length - self.config.max_length
        if beyond > 0:  # rare, so the device may wait here
            used = range(length) if mask is None else mask.flatten(0, -2).any(0).nonzero().flatten().tolist()
            self.check_length(max(used, default=-1) + 1)
        if self.positions is None:
            return None
        return F.pad(self.positions, (0, 0, 0, beyond)) if beyond > 0 else self.positions[:length]

    def next_positions(self, length: int, real: Integer[Tensor, "b m n"] | None) -> Float[Tensor, "*b 1 e"] | None:
        """Embeddings of the position after `length` steps, or of each sequence's last one of `real` tokens."""
        if length >= self.config.max_length:
            self.check_length(length + 1 if real is None else max(real.flatten().tolist(), default=0))
        if self.positions is None:
            return None
        if real is None:
            return self.positions[length : length + 1]
        return F.embedding((real - 1).clamp_min(0)[..., None], self.positions)

    def check_length(self, count: int) -> None:
        """Raise ValueError if a sequence has too many tokens."""
        if count > self.config.max_length:
            raise ValueError(f"a sequence has {count} tokens; this network takes up to {self.config.max_length}, its max_length")

    def embed(self, tokens: Integer[Tensor, "b m n l"], positions: Float[Tensor, "*#b l e"] | None) -> Float[Tensor, "b m n l e"]:
        """Embeddings of tokens plus those of their positions."""
        try:
            embedded = self.embedding(tokens)
        except IndexError as error:  # the CPU alone checks ids; a check on another device would make it wait
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"token ids run from {low} to {high}; this network knows 0 to {self.config.vocab_size - 1}"
            ) from error
        out: Tensor = self.dropout(embedded if positions is None else embedded + positions)
        return out

    def read_out(self, hidden: Float[Tensor, "b m n *l e"], mask: Bool[Tensor, "b m n *l"] | None) -> Float[Tensor, "b m n *out"]:
        """Logits from the features of every token."""
        if self.config.head == "last":
            hidden = last_real_token(hidden, mask)
        elif self.config.head != "tokens":
            hidden = mean_over_tokens(hidden, mask, self.config.pool)
        if self.config.head == "pair":
            one, two = hidden.unbind(-2)
            hidden = torch.cat([one, two, one * two, one - two], -1)
        logits: Tensor = F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        return logits

    def check_tokens(self, tokens: Tensor, mask: Tensor | None, axes: str) -> Integer[Tensor, "b m n *l"]:
        """Check tokens and mask, and set padding to id 0."""
        config = self.config
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens are {found}; expected a tensor of integers, ids from 0 to {config.vocab_size - 1}")
        pair = tokens.dim() == 5 and tokens.shape[3] == 2
        if not (pair if config.head == "pair" else tokens.dim() == 4) or 0 in tokens.shape[1:]:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; the head {config.head} needs ({axes}), all but b at least 1"
            )
        if tokens.shape[1] > config.m or tokens.shape[2] > config.n:
            m, n = tokens.shape[1:3]
            raise ValueError(f"a grid of {m} x {n} sequences is too large; this network takes {config.m} x {config.n}")
        if not tokens.is_cuda and (clash := half_types_clash(self.embedding.weight)):  # CUDA's LayerNorm takes either
            raise TypeError(clash)
        tokens = tokens.long()
        if mask is not None:
            check_mask(mask, tuple(tokens.shape), axes)
            tokens = tokens.masked_fill(~mask, 0)
        return tokens

    def extra_repr(self) -> str:
        config = self.config
        return f"grid {config.m} x {config.n}, {config.attention} attention, head {config.head}"
