"""MIMOConv: convolutional networks that classify several images in one forward pass, in superposition."""

from mimoconv.config import MIMOConvConfig, WideResNetConfig
from mimoconv.model import MIMOConv, WideResNet, count_macs, predict

__version__ = "0.1.0"
__all__ = ["MIMOConv", "MIMOConvConfig", "WideResNet", "WideResNetConfig", "count_macs", "predict"]
