"""Save networks to folders, load them, and share them on the Hugging Face hub: `pip install 'mimoformer[hub]'`."""

import mimoformer
from mimoformer.config import MIMOFormerConfig
from mimoformer.hub.card import model_card
from mimoformer.model import MIMOFormer
from vsa_core.hub import Library, load_strict

__all__ = ["LIBRARY", "from_pretrained", "load_strict", "push_to_hub", "save_pretrained"]

LIBRARY: Library[MIMOFormer] = Library(
    name="mimoformer", version=mimoformer.__version__, models={MIMOFormer: MIMOFormerConfig}, card=model_card
)
save_pretrained = LIBRARY.save
from_pretrained = LIBRARY.load
push_to_hub = LIBRARY.push
