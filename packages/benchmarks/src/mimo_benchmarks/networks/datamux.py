"""DataMUX (Murahari et al., 2022), written from the paper: N inputs always share a pass of one ordinary network."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mimoformer import MIMOFormerConfig
from mimoformer.blocks import TransformerBlock
from mimoformer.bundles import check_mask
from mimoformer.config import Activation
from mimoformer.model import head, mean
from vsa_core import checks


@dataclass(frozen=True, kw_only=True)
class DataMUXConvConfig:
    """DataMUX's CNN for images (b n c h w), in 0 to 1 in the published runs."""

    capacity: int = 4
    """N: the images that share a pass, always as many."""
    in_channels: int = 1
    """Channels of an image."""
    image_size: int = 20
    """Height and width of an image, in pixels; at least 20."""
    num_classes: int = 10
    """Number of classes."""

    def __post_init__(self) -> None:
        sizes = ("capacity", "in_channels", "image_size", "num_classes")
        checks.positive(**{name: getattr(self, name) for name in sizes})
        if self.image_size < 20:
            raise ValueError(f"image_size must be at least 20, of which the last convolution sees 3 x 3, got {self.image_size}")

    @property
    def last_size(self) -> int:
        """Height and width of the last feature maps: two convolutions, each with a pool behind it, and a third; none padded."""
        return ((self.image_size - 2) // 2 - 3) // 2 - 2


class DataMUXConv(nn.Module):
    """A LeNet on the sum of N images, each of which has gone through two convolutions of its own.

    From the published account: all sizes, tanh everywhere, answers trained towards 1 for the class and -1 for the others. That
    only the first two convolutions are padded follows from its 0.88 and 0.55 million multiply-adds an image with N = 1 and 16.
    Where it is silent: pools are means, as in LeNet-5; all weights are trained, and start with variance 1 / fan-in and biases
    of 0, as LeCun et al. (1998, Efficient BackProp) advise for tanh: from torch's own start signals fade on the way up.

    >>> network = DataMUXConv(DataMUXConvConfig(capacity=4))
    >>> network(torch.rand(8, 4, 1, 20, 20)).shape
    torch.Size([8, 4, 10])
    """

    def __init__(self, config: DataMUXConvConfig) -> None:
        super().__init__()
        self.config, n = config, config.capacity
        self.mux = nn.Sequential(  # a group of channels is an image
            nn.Conv2d(n * config.in_channels, n * 16, 3, padding=1, groups=n),
            nn.Tanh(),
            nn.Conv2d(n * 16, n * 8, 3, padding=1, groups=n),
            nn.Tanh(),
        )
        self.lenet = nn.Sequential(
            *(nn.Conv2d(8, 10, 3), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(10, 16, 4), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 120, 3), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(120 * config.last_size**2, 84), nn.Tanh()),
        )
        self.demux = nn.Sequential(nn.Linear(84, n * 84), nn.Tanh())  # N layers side by side
        self.head = nn.Sequential(nn.Linear(84, config.num_classes), nn.Tanh())
        for weight in self.parameters():
            nn.init.zeros_(weight) if weight.dim() == 1 else nn.init.kaiming_normal_(weight, nonlinearity="linear")

    def forward(self, images: Float[Tensor, "b n c h w"]) -> Float[Tensor, "b n classes"]:
        """Answers from -1 to 1, the highest for the class.

        Raises:
            ValueError: not N images a pass, or images of another size.
        """
        config = self.config
        size = (config.capacity, config.in_channels, config.image_size, config.image_size)
        if images.dim() != 5 or images.shape[1:] != size:
            raise ValueError(f"images have shape {tuple(images.shape)}; DataMUX always needs (b, n, c, h, w) with {size} after b")
        own = rearrange(self.mux(rearrange(images, "b n c h w -> b (n c) h w")), "b (n c) h w -> b n c h w", c=8)
        answers: Tensor = self.head(rearrange(self.demux(self.lenet(own.sum(1))), "b (n f) -> b n f", f=84))
        return answers


@dataclass(frozen=True, kw_only=True)
class DataMUXConfig:
    """DataMUX's Transformer; what has the name of a field of `MIMOFormerConfig` means the same."""

    capacity: int = 2
    """N: the sequences that share a pass, always as many."""
    vocab_size: int = 512
    """Token ids run from 0 to below this."""
    max_length: int = 2048
    """Positions: the longest sequence, its prefix not counted."""
    layers: int = 6
    """Blocks."""
    embed_dim: int = 512
    """Dimension of a token."""
    heads: int = 8
    """Attention heads of a block, of embed_dim / heads dimensions each."""
    mlp_dim: int = 2048
    """Hidden dimension of the blocks' MLPs and of the classifier."""
    activation: Activation = "relu"
    """Of the MLPs."""
    dropout: float = 0.1
    """Of the mixed embeddings, and of what attention and MLP add."""
    head: Literal["classes", "tokens"] = "classes"
    """Classes of a sequence, or the next token everywhere (causal)."""
    num_classes: int = 10
    """Classes of the head classes; tokens predicts one of vocab_size tokens."""

    def __post_init__(self) -> None:
        checks.positive(capacity=self.capacity)
        if self.head not in ("classes", "tokens"):
            raise ValueError(f"head must be one of classes, tokens, got {self.head!r}")
        _ = self.transformer  # checks the other fields

    @property
    def transformer(self) -> MIMOFormerConfig:
        """The plain Transformer of this size, whose blocks and head these are."""
        shared = {name: value for name, value in vars(self).items() if name != "capacity"}
        return MIMOFormerConfig(m=1, n=1, attention="softmax", **shared)


class DataMUX(nn.Module):
    """A Transformer on the mean of N sequences, each multiplied with a key of its own.

    From the paper: tokens with their positions are multiplied with a fixed Gaussian vector for each place of the pass, and
    averaged over the pass (Hadamard multiplexing). Before the sequence at place i stand N more tokens, a marker of i at the
    i-th of them and a marker of padding at the others; what the network makes of the i-th, p_i, tells the places apart: a
    shared Linear, GELU, LayerNorm on [p_i; h_j] gives token j of sequence i (index embeddings). Ours:

    - Keys have norm sqrt(embed_dim), as Gaussian ones of variance 1 have. The published code's norm is 1 (20 in its warm-up),
      which would leave embeddings of 0.02 below the epsilon of the first LayerNorm.
    - Blocks, head and initialisation are those of the plain Transformer beside MIMOFormer, not BERT's. There is no class token;
      the head classes averages the real tokens of each sequence.
    - A token that is not real counts as 0 in the mean over the pass; positions where no sequence has a real one are not seen.
    - For the head tokens attention is causal, so that p_i, of the prefix that all see, is the same for all sequences.
    - There is no warm-up by retrieving tokens.

    Sequences of a pass do not leave each other alone: one set of attention weights serves all of them.

    >>> network = DataMUX(DataMUXConfig(capacity=2, vocab_size=16, max_length=50, layers=1, embed_dim=32, heads=2, mlp_dim=64))
    >>> network(torch.randint(16, (8, 2, 50))).shape
    torch.Size([8, 2, 10])
    """

    keys: Tensor

    def __init__(self, config: DataMUXConfig) -> None:
        super().__init__()
        self.config, n, dim = config, config.capacity, config.embed_dim
        self.register_buffer("keys", F.normalize(torch.randn(n, dim), dim=-1) * dim**0.5)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.markers = nn.Embedding(n + 1, dim)  # the last is the one of padding
        self.positions = nn.Parameter(torch.empty(n + config.max_length, dim))
        for table in (self.embedding.weight, self.markers.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config.transformer) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        # one matrix on [p; h], in halves: each is applied once to what it sees, not to every pair of them
        self.of_index, self.of_token = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.demux = nn.Sequential(nn.GELU(), nn.LayerNorm(dim))
        self.head: Any = head(config.transformer)

    def forward(self, tokens: Integer[Tensor, "b n l"], mask: Bool[Tensor, "b n l"] | None = None) -> Float[Tensor, "b n *out"]:
        """Logits of N sequences a pass: (b n classes), or (b n l vocab) for the head tokens.

        Args:
            tokens: ids; what they are where not real changes nothing.
            mask: True where a token is real; all are unless given.

        Raises:
            ValueError: not N sequences a pass, more tokens than positions or none, or a mask of another shape.
            TypeError: the mask is not boolean.
        """
        config, n = self.config, self.config.capacity
        if tokens.dim() != 3 or tokens.shape[1] != n or not 1 <= tokens.shape[2] <= config.max_length:
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)}; DataMUX always needs (b, n, l) with n = {n} sequences a pass "
                f"and l from 1 to {config.max_length}"
            )
        seen = None
        if mask is not None:
            check_mask(mask, tuple(tokens.shape), "b, n, l")
            tokens = tokens.masked_fill(~mask, 0)
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
        logits: Tensor = self.head(own if config.head == "tokens" else mean(own, mask, "real"))
        return logits

    def prefix(self) -> Float[Tensor, "1 n e"]:
        """The N tokens before every mixture: N prefixes, of one marker each, mixed as sequences are."""
        place = torch.arange(self.config.capacity, device=self.keys.device)
        marker = torch.where(place == place[:, None], place, self.config.capacity)
        return self.multiplex(self.markers(marker)[None] + self.positions[: self.config.capacity])

    def multiplex(self, x: Float[Tensor, "b n l e"]) -> Float[Tensor, "b l e"]:
        """Mean over the pass, after multiplication with the keys."""
        return (x * rearrange(self.keys, "n e -> n 1 e")).mean(1)


def count_macs(network: DataMUXConv | DataMUX) -> float:
    """Multiply-adds per input, at the network's image size or its longest sequence, as torch's flop counter has them, and
    products with keys.

    A copy without memory is run.

    >>> count_macs(DataMUXConv(DataMUXConvConfig(capacity=16)))
    548346.0
    """
    n = network.config.capacity
    with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
        if isinstance(network, DataMUXConv):
            size = network.config.image_size
            DataMUXConv(network.config)(torch.zeros(1, n, network.config.in_channels, size, size))
            products = 0
        else:
            length = network.config.max_length
            DataMUX(network.config).eval()(torch.zeros(1, n, length, dtype=torch.long))
            products = length * network.config.embed_dim
    return counter.get_total_flops() / 2 / n + products
