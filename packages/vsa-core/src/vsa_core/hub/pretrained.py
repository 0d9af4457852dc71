"""Saving and loading as methods of a network; `vsa_core.hub.Library` does the work."""

import importlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

__all__ = ["Pretrained"]

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """Base class of networks that can be saved to a folder or the Hugging Face hub and loaded again (extra `hub`)."""

    hub_module: ClassVar[str]
    """Name of the module whose `LIBRARY` saves and loads this class; imported on first use, because it imports the networks."""
    config: Any
    """Configuration of the network, a dataclass."""
    accuracy: dict[Any, float]
    """Test accuracy, from 0 to 1, by n, as given when the network was saved; empty if none was given."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = {}

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, accuracy: Mapping[Any, float] | None = None, command: str | None = None
    ) -> None:
        """Write weights, configuration and model card into a folder, as `vsa_core.hub.Library.save` describes."""
        library_of(type(self)).save(self, folder, accuracy=accuracy, command=command)

    @classmethod
    def from_pretrained(
        cls: type[Model], source: str | os.PathLike[str], *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Model:
        """Load a network in eval mode from a folder, a run directory or the hub, as `vsa_core.hub.Library.load` describes.

        Raises:
            ValueError: `source` holds a network of another class, or is damaged.
        """
        model: Model = library_of(cls).load(source, kind=cls, revision=revision, device=device)
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        accuracy: Mapping[Any, float] | None = None,
        command: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload weights, configuration and model card, as `vsa_core.hub.Library.push` describes, and return the address."""
        address: str = library_of(type(self)).push(
            self, repo_id, accuracy=accuracy, command=command, private=private, token=token
        )
        return address


def library_of(kind: type[Pretrained]) -> Any:
    """Return the `Library` that a class of network belongs to."""
    return importlib.import_module(kind.hub_module).LIBRARY
