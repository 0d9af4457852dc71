"""Saving networks to folders and to the Hugging Face hub, for packages that have networks (extra `hub`)."""

from vsa_core.hub.library import Library, class_name, load_strict, resolve
from vsa_core.hub.markdown import markdown_table
from vsa_core.hub.pretrained import Pretrained

__all__ = ["Library", "Pretrained", "class_name", "load_strict", "markdown_table", "resolve"]
