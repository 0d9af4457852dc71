"""What the program knows of DataMUX's networks (Murahari et al., 2022), whose passes always hold N inputs."""

from typing import Any

from mimo_benchmarks.networks.convolutional import ImageNetwork
from mimo_benchmarks.networks.datamux_conv import DataMUXConv, DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUX, DataMUXConfig
from mimo_benchmarks.networks.saving import network_library
from mimo_benchmarks.networks.transformers import TokenNetwork
from mimoformer import MIMOFormerConfig

PAPER = "[DataMUX (Murahari et al., 2022)](https://arxiv.org/abs/2202.09318)"
LIBRARY = network_library(
    {DataMUXConv: DataMUXConvConfig, DataMUX: DataMUXConfig},
    about=f"A network that always takes {{capacity}} inputs per forward pass, as in {PAPER}.",
    tags=["datamux"],
)


class DataMUXConvNetwork(ImageNetwork):
    """DataMUX's CNN.

    >>> network = DataMUXConvNetwork(DataMUXConvConfig(capacity=16))
    >>> network.count_macs(network.build(), 16)
    548346.0
    """

    settings = DataMUXConvConfig
    library = LIBRARY
    fixed_n = True


class DataMUXNetwork(TokenNetwork):
    """DataMUX's Transformer."""

    settings = DataMUXConfig
    library = LIBRARY
    fixed_n = True

    @property
    def token_settings(self) -> MIMOFormerConfig:
        """Return the configuration of the plain Transformer, with the same head, tokenizer and vocabulary."""
        transformer: MIMOFormerConfig = self.config.transformer
        return transformer

    def count_macs(self, module: Any, n: int) -> float:
        """Count multiply-adds per sequence of the greatest length, including products with keys."""
        products = self.config.max_length * self.config.embed_dim
        return products + super().count_macs(module, n)
