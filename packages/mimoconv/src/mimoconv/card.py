"""The model card of a network: what somebody who finds it on the hub needs to know."""

import json
import re
from collections.abc import Mapping

from mimoconv.model import MIMOConv, WideResNet


def model_card(model: MIMOConv | WideResNet, name: str, accuracy: Mapping[int, float] | None, command: str | None) -> str:
    """The card: what the network is, its accuracy for each n, how to load it and how it was trained."""
    config = model.config
    about = "A plain wide ResNet, the control beside MIMOConv: one image a forward pass"
    if isinstance(model, MIMOConv):
        about = f"A wide ResNet that classifies up to {model.capacity} images in one forward pass, in superposition"
    images = "uint8" if config.mean else "floating-point images, normalised as in training,"
    shape = f"(count, {config.in_channels}, {config.image_size}, {config.image_size})"
    return f"""---
library_name: mimoconv
license: apache-2.0
pipeline_tag: image-classification
tags:
- image-classification
- mimonets
- wide-resnet
---

# {name}

{about}, as in [MIMONets (Menet et al., 2023)](https://arxiv.org/abs/2312.02829).

| capacity | depth | width | classes |
|---|---|---|---|
| {model.capacity} | {config.depth} | {config.width} | {config.num_classes} |

## Accuracy

{accuracy_table(accuracy or {}, model.capacity)}

## Use

`pip install mimoconv[hub]`, then

```python
from mimoconv import {type(model).__name__}, predict

model = {type(model).__name__}.from_pretrained({json.dumps(name, ensure_ascii=False)})
logits = predict(model, images, n={model.capacity})  # {images} {shape}
```

## Training

{fenced(command) if command else "No command was given."}
"""


def fenced(command: str) -> str:
    """A block of code, whose fence is longer than any inside."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", command))]))
    return f"{fence}bash\n{command.strip()}\n{fence}"


def accuracy_table(accuracy: Mapping[int, float], capacity: int) -> str:
    """A row for each n, or a sentence where there is none."""
    for n, share in accuracy.items():
        if n not in range(1, capacity + 1):
            raise ValueError(f"accuracy is given for {n!r} images a pass, expected a whole number from 1 to {capacity}")
        if not 0 <= share <= 1:
            raise ValueError(f"accuracy for {n} images a pass is {share}, expected a share from 0 to 1")
    rows = [f"| {n} | {100 * share:.2f} % |" for n, share in sorted(accuracy.items())]
    return "\n".join(["| images a pass | test accuracy |", "|---|---|", *rows]) if rows else "No accuracy was given."
