"""Saving and loading as methods; the work is in `mimoconv.hub`, which is imported when it is needed, as it needs the models."""

import os
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Pretrained(nn.Module):
    """A module that can be written to a folder or to the Hugging Face hub, and read again (`pip install mimoconv[hub]`)."""

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, accuracy: Mapping[int, float] | None = None, command: str | None = None
    ) -> None:
        """Write weights, configuration and model card into a folder: `mimoconv.hub.save_pretrained`."""
        from mimoconv import hub

        hub.save_pretrained(self, folder, accuracy=accuracy, command=command)

    @classmethod
    def from_pretrained(
        cls: type[Model], source: str | os.PathLike[str], *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> Model:
        """The network in a folder or in a repository of the hub, in eval mode: `mimoconv.hub.from_pretrained`.

        Raises:
            ValueError: `source` holds a network of another class, or is damaged.
        """
        from mimoconv import hub

        return hub.from_pretrained_as(cls, source, revision=revision, device=device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        accuracy: Mapping[int, float] | None = None,
        command: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload weights, configuration and model card to the hub, and return the address: `mimoconv.hub.push_to_hub`."""
        from mimoconv import hub

        return hub.push_to_hub(self, repo_id, accuracy=accuracy, command=command, private=private, token=token)
