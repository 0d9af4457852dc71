"""The model card of a network of this package."""

import json
from collections.abc import Mapping

from mimoconv.model import MIMOConv, WideResNet
from vsa_core.hub import card


def model_card(model: MIMOConv | WideResNet, name: str, accuracy: Mapping[int, float] | None, command: str | None) -> str:
    """The card: what the network is, its accuracy for each n, how to load it and how it was trained.

    Raises:
        ValueError: an accuracy is no share, or of an n that the network does not have.
    """
    config, kind = model.config, type(model).__name__
    about = "A plain wide ResNet, the control beside MIMOConv: one image a forward pass"
    if isinstance(model, MIMOConv):
        about = f"A wide ResNet that classifies up to {model.capacity} images in one forward pass, in superposition"
    images = "uint8" if config.mean else "floating-point images, normalised as in training,"
    shape = f"(count, {config.in_channels}, {config.image_size}, {config.image_size})"
    return card.model_card(
        "mimoconv",
        name,
        tags=["image-classification", "mimonets", "wide-resnet"],
        pipeline="image-classification",
        about=about,
        facts={"capacity": model.capacity, "depth": config.depth, "width": config.width, "classes": config.num_classes},
        accuracy=card.accuracy_table("images", counted(accuracy or {}, model.capacity)),
        use=f"""
from mimoconv import {kind}, predict

model = {kind}.from_pretrained({json.dumps(name, ensure_ascii=False)})
logits = predict(model, images, n={model.capacity})  # {images} {shape}
""",
        command=command,
    )


def counted(accuracy: Mapping[int, float], capacity: int) -> dict[str, float]:
    """The accuracies in the order of their n, each of which the network must have."""
    for n in accuracy:
        if n not in range(1, capacity + 1):
            raise ValueError(f"accuracy is given for {n!r} images a pass, expected a whole number from 1 to {capacity}")
    return {str(n): share for n, share in sorted(accuracy.items())}
