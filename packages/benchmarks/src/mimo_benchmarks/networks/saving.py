"""Save and load the networks of this program, which belong to no model package."""

import json
from collections.abc import Mapping
from typing import Any

import mimo_benchmarks
from vsa_core.hub import Library, Pretrained, card


def network_library(models: Mapping[type[Pretrained], type[Any]], *, about: str, tags: list[str]) -> Library[Any]:
    """Return what saves and loads networks, and writes their model cards.

    Args:
        models: for each class of network, the class of its configuration.
        about: what the networks are, in a sentence or two for the card; {capacity} stands for that of the network.
        tags: tags of the card, besides mimonets.
    """

    def model_card(model: Any, name: str, accuracy: Mapping[Any, float] | None, command: str | None) -> str:
        kind, capacity = type(model), model.config.capacity
        load = f"model = {kind.__name__}.from_pretrained({json.dumps(name, ensure_ascii=False)})"
        return card.model_card(
            "mimo-benchmarks",
            name,
            tags=[*tags, "mimonets"],
            about=about.format(capacity=capacity),
            facts={"capacity": capacity, "parameters": sum(parameter.numel() for parameter in model.parameters())},
            accuracy=card.accuracy_table("inputs", {str(n): share for n, share in (accuracy or {}).items()}),
            use=f"from {kind.hub_module} import {kind.__name__}\n\n{load}  # takes (b, {capacity}, ...)",
            command=command,
        )

    return Library(name="mimo-benchmarks", version=mimo_benchmarks.__version__, models=models, card=model_card)
