"""Saves networks of this package to folders and the Hugging Face hub and loads them (`pip install 'mimoconv[hub]'`)."""

import mimoconv
from mimoconv.config import MIMOConvConfig, SuperposedConfig, WideResNetConfig
from mimoconv.hub.card import model_card
from mimoconv.model import MIMOConv, WideResNet
from mimoconv.superposed import Superposed
from vsa_core.hub import Library, load_strict

__all__ = ["LIBRARY", "from_pretrained", "load_strict", "push_to_hub", "save_pretrained"]

LIBRARY: Library[MIMOConv | WideResNet | Superposed] = Library(
    name="mimoconv",
    version=mimoconv.__version__,
    models={MIMOConv: MIMOConvConfig, WideResNet: WideResNetConfig, Superposed: SuperposedConfig},
    card=model_card,
    assembled=(Superposed,),
)
save_pretrained = LIBRARY.save
from_pretrained = LIBRARY.load
push_to_hub = LIBRARY.push
