"""MIMOFormer: a Transformer over a grid of sequences that share every attention of a forward pass."""

from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from mimoformer.blocks import ACTIVATIONS, AttentionBlock, block
from mimoformer.bundles import check_mask
from mimoformer.causal import State
from mimoformer.config import MIMOFormerConfig, Pool
from vsa_core.hub import Pretrained


class ModelState(NamedTuple):
    """What a causal model keeps between steps."""

    length: int
    """Tokens so far."""
    blocks: tuple[State, ...]
    """The sums of every block."""


class MIMOFormer(Pretrained):
    """A Transformer that takes up to M x N sequences in one pass (Menet et al., 2023, section 4).

    Any grid m x n with m <= M and n <= N runs as itself, with the first m x n keys: the shape of the tokens says which.
    Embeddings and positions are learned; a classifier has one hidden layer.

    >>> import torch
    >>> config = MIMOFormerConfig(m=2, n=2, vocab_size=16, max_length=100, layers=1, embed_dim=32, heads=2, mlp_dim=64)
    >>> model = MIMOFormer(config).eval()
    >>> model(torch.randint(16, (8, 2, 2, 50))).shape  # 8 passes of 4 sequences of 50 tokens each
    torch.Size([8, 2, 2, 10])
    """

    hub_module: ClassVar[str] = "mimoformer.hub"

    def __init__(self, config: MIMOFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.positions = nn.Parameter(torch.empty(config.max_length, config.embed_dim))
        for table in (self.embedding.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.head = head(config)

    def forward(
        self, tokens: Integer[Tensor, "b m n *pair l"], mask: Bool[Tensor, "b m n *pair l"] | None = None
    ) -> Float[Tensor, "b m n *out"]:
        """Logits of m x n sequences a pass, or of pairs of them.

        A token that is not real changes nothing, whatever its id, so sequences may be padded to any length (with `pool="all"`
        the mean, as published, counts padding).

        Args:
            tokens: ids, (b m n l), or for the head pair (b m n 2 l).
            mask: True where a token is real; all are unless given.

        Returns:
            (b m n classes) for the heads classes and pair, (b m n vocab) for last, (b m n l vocab) for tokens.

        Raises:
            ValueError: a grid beyond M x N, a sequence longer than the positions, shapes that do not fit, or, on the CPU, an id
                outside the vocabulary.
            TypeError: the tokens are no integers, or the mask is not boolean.
        """
        config = self.config
        tokens = self.check(tokens, mask, "b, m, n, 2, l" if config.head == "pair" else "b, m, n, l")
        if config.head == "pair":  # both documents sit in the same slot, of passes of their own
            pairs = None if mask is None else rearrange(mask, "b m n pair l -> (b pair) m n l")
            hidden = self.encode(rearrange(tokens, "b m n pair l -> (b pair) m n l"), pairs)
            hidden = rearrange(hidden, "(b pair) m n l e -> b m n pair l e", pair=2)
        else:
            hidden = self.encode(tokens, mask)
        return self.read_out(hidden, mask)

    def step(
        self,
        tokens: Integer[Tensor, "b m n"],
        state: ModelState | None = None,
        mask: Bool[Tensor, "b m n"] | None = None,
    ) -> tuple[Float[Tensor, "b m n vocab"], ModelState]:
        """Logits after the next token of every sequence, and the state after it, which has the same size after any length.

        Step by step this gives what the whole sequences at once give. For the head tokens, in eval mode.

        Args:
            tokens: ids, one a sequence.
            state: what the last step returned; none at the beginning.
            mask: False for sequences that have no token here.

        Raises:
            ValueError: the model is not causal, has softmax attention, the state is of another grid or batch, or for the reasons
                of `forward`.
            TypeError: the state is no state of this model, or for the reasons of `forward`.
        """
        head, kind = self.config.head, self.config.attention
        if not self.config.causal or kind == "softmax":
            raise ValueError(f"steps need the head tokens and linear attention; this model has {head!r} and {kind!r}")
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens are {type(tokens).__name__}; they must be a tensor of integers")
        if tokens.dim() != 3:
            raise ValueError("a step takes one token of every sequence, a tensor (b, m, n)")
        mask = None if mask is None else mask[..., None]
        tokens = self.check(tokens[..., None], mask, "b, m, n, 1")
        if state is not None and not (isinstance(state, ModelState) and len(state.blocks) == len(self.blocks)):
            raise TypeError(f"the state must be what step of this model returned, got a {type(state).__name__}")
        start = 0 if state is None else state.length
        x, after = self.embed(tokens, mask, start), []
        for number, layer in enumerate(self.blocks):
            assert isinstance(layer, AttentionBlock)
            x, kept = layer.step(x, None if state is None else state.blocks[number], mask)
            after.append(kept)
        return self.read_out(self.norm(x), mask)[..., 0, :], ModelState(start + 1, tuple(after))

    def encode(self, tokens: Integer[Tensor, "b m n l"], mask: Bool[Tensor, "b m n l"] | None) -> Float[Tensor, "b m n l e"]:
        """Embeddings, blocks and the last LayerNorm."""
        x = self.embed(tokens, mask, 0)
        for layer in self.blocks:
            x = layer(x, mask)
        hidden: Tensor = self.norm(x)
        return hidden

    def embed(
        self, tokens: Integer[Tensor, "b m n l"], mask: Bool[Tensor, "b m n l"] | None, start: int
    ) -> Float[Tensor, "b m n l e"]:
        """Embeddings and positions, from `start`."""
        stop = start + tokens.shape[-1]
        if stop > self.config.max_length:
            raise ValueError(f"a sequence of {stop} tokens, but this network has {self.config.max_length} positions")
        try:
            embedded = self.embedding(tokens)
        except IndexError as error:  # of the CPU alone: elsewhere somebody would have to wait for the answer
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(
                f"token ids from {low} to {high}, but the vocabulary is 0 to {self.config.vocab_size - 1}"
            ) from error
        out: Tensor = self.dropout(embedded + self.positions[start:stop])
        return out

    def read_out(self, hidden: Float[Tensor, "b m n *rest e"], mask: Bool[Tensor, "b m n *real"] | None) -> Tensor:
        """The head."""
        if self.config.head == "last":
            hidden = last_real(hidden, mask)
        elif self.config.head != "tokens":
            hidden = mean(hidden, mask, self.config.pool)
        if self.config.head == "pair":
            one, two = hidden.unbind(-2)
            hidden = torch.cat([one, two, one * two, one - two], -1)
        logits: Tensor = F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)
        return logits

    def check(self, tokens: Tensor, mask: Tensor | None, axes: str) -> Integer[Tensor, "b m n *l"]:
        """The tokens, 0 where not real, if they and the mask are what this network takes; else an error."""
        config = self.config
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens are {found}; they must be a tensor of integers, ids from 0 to {config.vocab_size - 1}")
        pair = tokens.dim() == 5 and tokens.shape[3] == 2
        if not (pair if config.head == "pair" else tokens.dim() == 4) or 0 in tokens.shape[1:]:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; the head {config.head} needs ({axes}), none of them 0 but b"
            )
        if tokens.shape[1] > config.m or tokens.shape[2] > config.n:
            m, n = tokens.shape[1:3]
            raise ValueError(f"a grid of {m} x {n} sequences, but this network has keys for {config.m} x {config.n}")
        tokens = tokens.long()
        if mask is not None:
            check_mask(mask, tuple(tokens.shape), axes)
            tokens = tokens.masked_fill(~mask, 0)
        return tokens

    def extra_repr(self) -> str:
        config = self.config
        return f"grid {config.m} x {config.n}, {config.attention} attention, head {config.head}"


def head(config: MIMOFormerConfig) -> nn.Module | None:
    """What turns features into logits; nothing where the embeddings do it."""
    if config.head in ("tokens", "last"):
        return None if config.tied else nn.Linear(config.embed_dim, config.vocab_size, bias=False)
    features = config.embed_dim * (4 if config.head == "pair" else 1)
    activation = ACTIVATIONS[config.activation]()
    return nn.Sequential(nn.Linear(features, config.mlp_dim), activation, nn.Linear(config.mlp_dim, config.num_classes))


def mean(hidden: Float[Tensor, "*b l e"], mask: Bool[Tensor, "*b l"] | None, pool: Pool) -> Float[Tensor, "*b e"]:
    """Mean over real tokens, or over all positions with zeros for padding; 0 of a sequence without real tokens."""
    if mask is None:
        return hidden.mean(-2)
    total: Tensor = hidden.masked_fill(~mask[..., None], 0).sum(-2)
    count = mask.sum(-1, keepdim=True).clamp_min(1) if pool == "real" else hidden.shape[-2]
    return total / count


def last_real(hidden: Float[Tensor, "*b l e"], mask: Bool[Tensor, "*b l"] | None) -> Float[Tensor, "*b e"]:
    """The last real token; 0 of a sequence without any."""
    if mask is None:
        return hidden[..., -1, :]
    hidden = hidden.masked_fill(~mask[..., None], 0)
    back = mask.flip(-1).int().argmax(-1)
    place = (hidden.shape[-2] - 1 - back)[..., None, None].expand(*back.shape, 1, hidden.shape[-1])
    return hidden.gather(-2, place)[..., 0, :]
