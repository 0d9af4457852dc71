"""MIMOConv: convolutional networks that classify several images in one forward pass, in superposition."""

from mimoconv.config import BodyConfig, MIMOConvConfig, WideResNetConfig
from mimoconv.inference import count_macs, predict, recalibrate
from mimoconv.model import MIMOConv, WideResNet

__version__ = "0.1.0"
__all__ = [
    "BodyConfig",
    "MIMOConv",
    "MIMOConvConfig",
    "WideResNet",
    "WideResNetConfig",
    "count_macs",
    "predict",
    "recalibrate",
]
