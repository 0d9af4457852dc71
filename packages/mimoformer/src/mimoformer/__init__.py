"""MIMOFormer: Transformers that attend over several sequences in one forward pass, in superposition."""

__version__ = "0.1.0"
