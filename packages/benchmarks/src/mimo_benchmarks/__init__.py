"""Train, evaluate and compare networks that compute in superposition."""

__version__ = "0.1.0"
