"""Attention in superposition by Triton kernels; `mimoformer.dispatch` decides when they compute."""

__all__: list[str] = []
