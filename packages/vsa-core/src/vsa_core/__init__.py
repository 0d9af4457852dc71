"""Vector-symbolic binding for PyTorch: three algebras with the same functions, and what superposition needs besides."""

from vsa_core import hadamard, hrr, interference, mbat, modules, penalties, slots, superposition

__version__ = "0.1.0"
__all__ = ["hadamard", "hrr", "interference", "mbat", "modules", "penalties", "slots", "superposition"]
