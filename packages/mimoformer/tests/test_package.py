import importlib
import pkgutil

import pytest

import mimoformer

MODULES = [module.name for module in pkgutil.walk_packages(mimoformer.__path__, "mimoformer.")]


def test_package_has_a_version():
    assert mimoformer.__version__.count(".") == 2


@pytest.mark.parametrize("name", ["mimoformer", *MODULES])
def test_every_module_says_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, public) for public in module.__all__)
