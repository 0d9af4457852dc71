import importlib
import inspect
import pkgutil
import re
from dataclasses import fields

import pytest

import mimoformer
from mimoformer import MIMOFormerConfig

MODULES = [module.name for module in pkgutil.walk_packages(mimoformer.__path__, "mimoformer.")]


def test_help_explains_every_field():
    """Under Attributes, which `mimonets --help` reads too, in the order of the fields."""
    _, _, attributes = (inspect.getdoc(MIMOFormerConfig) or "").partition("Attributes:\n")
    assert re.findall(r"^    (\w+): \w", attributes, re.MULTILINE) == [field.name for field in fields(MIMOFormerConfig)]


def test_package_has_a_version():
    assert mimoformer.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["mimoformer", *MODULES])
def test_every_module_says_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
