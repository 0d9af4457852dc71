"""MIMOConv: convolutional networks that classify several images in one pass, in superposition."""

from mimoconv.config import MIMOConvConfig, NetworkConfig, SuperposedConfig, WideResNetConfig
from mimoconv.importer import import_published
from mimoconv.inference import count_macs, predict, recalibrate
from mimoconv.isometry import isometry_penalty
from mimoconv.model import MIMOConv, WideResNet
from mimoconv.normalization import normalization_gain_offset, normalize
from mimoconv.superposed import Superposed
from mimoconv.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = [
    "MIMOConv",
    "MIMOConvConfig",
    "NetworkConfig",
    "Superposed",
    "SuperposedConfig",
    "WideResNet",
    "WideResNetConfig",
    "count_macs",
    "create_model",
    "import_published",
    "isometry_penalty",
    "list_models",
    "normalization_gain_offset",
    "normalize",
    "predict",
    "recalibrate",
]
