"""MIMOFormer: Transformers that attend over several sequences in one forward pass, in superposition."""

from mimoformer import attention, features
from mimoformer.config import MIMOFormerConfig
from mimoformer.inference import count_macs, predict
from mimoformer.model import MIMOFormer
from mimoformer.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = ["MIMOFormer", "MIMOFormerConfig", "attention", "count_macs", "create_model", "features", "list_models", "predict"]
