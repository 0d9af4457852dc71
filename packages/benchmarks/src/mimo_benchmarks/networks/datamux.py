"""What the program knows of DataMUX's networks, and how they are saved."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mimo_benchmarks
from mimo_benchmarks.networks.convolutional import ImageNetwork
from mimo_benchmarks.networks.datamux_conv import DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUX, DataMUXConfig
from mimo_benchmarks.networks.transformers import TokenNetwork
from mimoconv import normalize
from mimoformer import MIMOFormerConfig
from vsa_core import slots
from vsa_core.hub import Library, card
from vsa_core.modules import evaluating

PASSES_AT_ONCE = 512
"""Passes in one batch of `predict`, which bounds memory."""


def model_card(model: DataMUXConv | DataMUX, name: str, accuracy: Mapping[int, float] | None, command: str | None) -> str:
    """Return the model card: what the network is, its accuracy, how to load it and how it was trained."""
    kind, config = type(model).__name__, model.config
    inputs = "images" if isinstance(model, DataMUXConv) else "sequences"
    paper = "[DataMUX (Murahari et al., 2022)](https://arxiv.org/abs/2202.09318)"
    return card.model_card(
        "mimo-benchmarks",
        name,
        tags=["datamux", "mimonets"],
        about=f"A network that always takes {config.capacity} {inputs} per forward pass, as in {paper}.",
        facts={"capacity": config.capacity, "parameters": sum(parameter.numel() for parameter in model.parameters())},
        accuracy=card.accuracy_table(inputs, {str(n): share for n, share in (accuracy or {}).items()}),
        use=f"""
from mimo_benchmarks.networks.datamux import {kind}

model = {kind}.from_pretrained({json.dumps(name, ensure_ascii=False)})  # takes (b, {config.capacity}, ...)
""",
        command=command,
    )


LIBRARY: Library[DataMUXConv | DataMUX] = Library(
    name="mimo-benchmarks",
    version=mimo_benchmarks.__version__,
    models={DataMUXConv: DataMUXConvConfig, DataMUX: DataMUXConfig},
    card=model_card,
)


def predict(
    module: DataMUXConv | DataMUX, inputs: Shaped[Tensor, "count *item"], mask: Bool[Tensor, "count *real"] | None = None
) -> Float[Tensor, "count *out"]:
    """Return the logits of a flat batch in eval mode, as many inputs per pass as the capacity.

    The last group is filled by repeating inputs, and every input gets its row.
    """
    n = module.config.capacity
    with torch.no_grad(), evaluating(module):
        groups = [slots.group(part, n).split(PASSES_AT_ONCE) for part in (inputs, mask) if part is not None]
        return slots.ungroup(torch.cat([module(*parts) for parts in zip(*groups, strict=True)]), len(inputs))


def multiply_adds(config: DataMUXConvConfig | DataMUXConfig, run: Callable[[], Tensor]) -> float:
    """Count the multiply-adds per input of one pass that `run` makes, by torch's flop counter, with nothing in memory."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, torch.device("meta"):
        run()
    return float(counter.get_total_flops() / 2 / config.capacity)


class DataMUXConvNetwork(ImageNetwork):
    """DataMUX's CNN."""

    settings = DataMUXConvConfig
    library = LIBRARY
    fixed_n = True

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        return DataMUXConv(self.config)

    def predict(
        self, module: Any, inputs: Shaped[Tensor, "count c h w"], n: int, mask: Bool[Tensor, " count"] | None = None
    ) -> Float[Tensor, "count classes"]:
        """Return the logits of a flat batch of images in eval mode; uint8 images are normalised as the configuration says."""
        if inputs.dtype == torch.uint8:
            inputs = normalize(inputs, self.config.mean, self.config.std)
        return predict(module, inputs)

    def count_macs(self, module: Any, n: int) -> float:
        """Count multiply-adds per image.

        >>> network = DataMUXConvNetwork(DataMUXConvConfig(capacity=16))
        >>> network.count_macs(network.build(), 16)
        548346.0
        """
        size = (1, self.capacity, self.config.in_channels, self.config.image_size, self.config.image_size)
        return multiply_adds(self.config, lambda: DataMUXConv(self.config)(torch.zeros(size)))


class DataMUXNetwork(TokenNetwork):
    """DataMUX's Transformer."""

    settings = DataMUXConfig
    library = LIBRARY
    fixed_n = True

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        return DataMUX(self.config)

    @property
    def token_settings(self) -> MIMOFormerConfig:
        """Return the configuration of the plain Transformer, with the same head, tokenizer and vocabulary."""
        transformer: MIMOFormerConfig = self.config.transformer
        return transformer

    def predict(
        self, module: Any, inputs: Integer[Tensor, "count l"], n: int, mask: Bool[Tensor, "count l"] | None = None
    ) -> Float[Tensor, "count *out"]:
        """Return the logits of a flat batch of sequences in eval mode."""
        return predict(module, inputs, mask)

    def count_macs(self, module: Any, n: int) -> float:
        """Count multiply-adds per sequence of the greatest length, products with keys among them."""
        tokens = (1, self.capacity, self.config.max_length)
        products = self.config.max_length * self.config.embed_dim
        return products + multiply_adds(self.config, lambda: DataMUX(self.config).eval()(torch.zeros(tokens, dtype=torch.long)))
