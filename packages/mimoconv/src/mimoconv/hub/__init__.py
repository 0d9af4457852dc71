"""Networks of this package in folders and on the Hugging Face hub (`vsa_core.hub`): `pip install mimoconv[hub]`."""

import mimoconv
from mimoconv.config import MIMOConvConfig, WideResNetConfig
from mimoconv.hub.card import model_card
from mimoconv.model import MIMOConv, WideResNet
from vsa_core.hub import Library, load_strict

__all__ = ["LIBRARY", "from_pretrained", "from_pretrained_as", "load_strict", "push_to_hub", "save_pretrained"]

LIBRARY: Library[MIMOConv | WideResNet] = Library(
    name="mimoconv",
    version=mimoconv.__version__,
    models={MIMOConv: MIMOConvConfig, WideResNet: WideResNetConfig},
    card=model_card,
)
save_pretrained = LIBRARY.save
from_pretrained = LIBRARY.load
from_pretrained_as = LIBRARY.load_as
push_to_hub = LIBRARY.push
