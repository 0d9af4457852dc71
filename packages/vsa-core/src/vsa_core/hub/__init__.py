"""Saving networks to folders and to the Hugging Face hub, for packages that have networks (extra `hub`)."""

from vsa_core.hub.library import Library, load_strict
from vsa_core.hub.pretrained import Pretrained

__all__ = ["Library", "Pretrained", "load_strict"]
