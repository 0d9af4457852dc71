"""Saving and loading as methods; the work is in `vsa_core.hub`."""

import importlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from vsa_core.hub.library import Library

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """A module that can be written to a folder or to the Hugging Face hub, and read again (extra `hub` of its package)."""

    hub_module: ClassVar[str]
    """Name of the module that has the package's `LIBRARY`; imported when it is needed, as it needs the models."""

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, accuracy: Mapping[Any, float] | None = None, command: str | None = None
    ) -> None:
        """Write weights, configuration and model card into a folder: `vsa_core.hub.Library.save`."""
        library(type(self)).save(self, folder, accuracy=accuracy, command=command)

    @classmethod
    def from_pretrained(
        cls: type[Model], source: str | os.PathLike[str], *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Model:
        """The network in a folder or in a repository of the hub, in eval mode: `vsa_core.hub.Library.load`.

        Raises:
            ValueError: `source` holds a network of another class, or is damaged.
        """
        return library(cls).load_as(cls, source, revision=revision, device=device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload weights, configuration and model card to the hub, and return the address: `vsa_core.hub.Library.push`."""
        return library(type(self)).push(self, repo_id, accuracy=accuracy, command=command, private=private, token=token)


def library(kind: type[Pretrained]) -> Library[Any]:
    """The library of the package that a class belongs to."""
    found: Library[Any] = importlib.import_module(kind.hub_module).LIBRARY
    return found
