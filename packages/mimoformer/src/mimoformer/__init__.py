"""MIMOFormer: Transformers that attend over several sequences in one forward pass, in superposition."""

from mimoformer import attention, blurring, features
from mimoformer.config import MIMOFormerConfig
from mimoformer.importer import import_published
from mimoformer.inference import count_macs, predict
from mimoformer.layers import SuperposedAttention
from mimoformer.model import MIMOFormer
from mimoformer.tokens import tokenize
from mimoformer.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = [
    "MIMOFormer",
    "MIMOFormerConfig",
    "SuperposedAttention",
    "attention",
    "blurring",
    "count_macs",
    "create_model",
    "features",
    "import_published",
    "list_models",
    "predict",
    "tokenize",
]
