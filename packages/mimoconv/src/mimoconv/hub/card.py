"""Model cards of the networks of this package."""

import json
from collections.abc import Mapping

from mimoconv.config import NetworkConfig
from mimoconv.model import WideResNet
from mimoconv.superposed import Superposed
from vsa_core import checks
from vsa_core.hub import card

__all__ = ["model_card"]

PAPER = "[MIMONets (Menet et al., 2023)](https://arxiv.org/abs/2312.02829)"


def model_card(model: Superposed | WideResNet, name: str, accuracy: Mapping[int, float] | None, command: str | None) -> str:
    """Write the card of a network: what it is, its accuracy for each n, how to load it and how it was trained.

    Raises:
        ValueError: an accuracy is not a share from 0 to 1, or its n is not from 1 to capacity.
    """
    config, kind = model.config, type(model).__name__
    facts: dict[str, object] = {"capacity": model.capacity}
    if isinstance(config, NetworkConfig):
        network, tags, note, parts = "wide ResNet", ["wide-resnet"], "", ""
        facts |= {"depth": config.depth, "width": config.width, "classes": config.num_classes}
        images = "uint8" if config.mean else "floating-point images, normalised as in training,"
        images += f" (count, {config.in_channels}, {config.image_size}, {config.image_size})"
    else:
        network, tags, parts = "CNN", [], ", stem, body, head"
        note = "# stem, body, head: new modules, made like those of this network\n"
        facts |= {"dim": config.dim, "features": config.features}
        images = "floating-point images, normalised as in training, (count, c, h, w)"
    about = f"A {network} that classifies up to {model.capacity} images in one pass, in superposition, as in {PAPER}."
    if isinstance(model, WideResNet):
        about = f"A plain wide ResNet with one image per pass, the control beside MIMOConv in {PAPER}."
    return card.model_card(
        "mimoconv",
        name,
        tags=["image-classification", "mimonets", *tags],
        pipeline="image-classification",
        about=about,
        facts=facts,
        accuracy=card.accuracy_table("images", sort_accuracy(accuracy or {}, model.capacity)),
        use=f"""
from mimoconv import {kind}, predict

{note}model = {kind}.from_pretrained({json.dumps(name, ensure_ascii=False)}{parts})
logits = predict(model, images, n={model.capacity})  # {images}
""",
        command=command,
    )


def sort_accuracy(accuracy: Mapping[int, float], capacity: int) -> dict[str, float]:
    """Sort accuracies by n; ValueError unless every n is from 1 to capacity."""
    for n in accuracy:
        checks.whole_numbers(n=n)
        if n not in range(1, capacity + 1):
            raise ValueError(f"accuracy is given for {n!r} images per pass, expected a whole number from 1 to {capacity}")
    return {str(n): share for n, share in sorted(accuracy.items())}
