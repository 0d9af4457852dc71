"""The model card of a network of this package."""

import json
from collections.abc import Mapping

from mimoformer.config import MIMOFormerConfig
from mimoformer.model import MIMOFormer
from vsa_core.hub import card

TASKS = {
    "classes": "classifies {}",
    "pair": "classifies {}",
    "tokens": "predicts the next token everywhere in {}",
    "last": "predicts the token after {}",
}
"""What a network with each head does with its inputs."""


def model_card(model: MIMOFormer, name: str, accuracy: Mapping[tuple[int, int], float] | None, command: str | None) -> str:
    """The card: what the network is, its accuracy for each grid (m, n), how to load it and how it was trained.

    Raises:
        ValueError: an accuracy is no share, or of a grid that does not fit into the network's.
    """
    config = model.config
    one, inputs, shape = ("sequence", "sequences", "(count, length)")
    if config.head == "pair":
        one, inputs, shape = ("pair of sequences", "pairs", "(count, 2, length)")
    capacity, does = config.m * config.n, TASKS[config.head]
    plain = "Transformer" if config.attention == "softmax" else "Performer"
    about = f"A plain {plain}, the control beside MIMOFormer, that {does.format(f'one {one}')} a forward pass"
    if capacity > 1:
        about = f"A Transformer that {does.format(f'up to {capacity} {inputs}')} in one forward pass, in superposition"
    tokens = f"integers below {config.vocab_size} {shape}, length to {config.max_length}"
    answers = {"classes": config.num_classes} if config.head in ("classes", "pair") else {}
    return card.model_card(
        "mimoformer",
        name,
        tags=["linear-attention", "mimonets", "transformer"],
        about=about,
        facts={
            "grid": f"{config.m} x {config.n}",
            "layers": config.layers,
            "dimension": config.embed_dim,
            "attention": config.attention,
            **({"in superposition": config.variant} if capacity > 1 else {}),
            "vocabulary": config.vocab_size,
            **answers,
        },
        accuracy=card.accuracy_table(inputs, gridded(accuracy or {}, config)),
        use=f"""
from mimoformer import MIMOFormer, predict

model = MIMOFormer.from_pretrained({json.dumps(name, ensure_ascii=False)})
logits = predict(model, tokens, m={config.m}, n={config.n})  # {tokens}
""",
        command=command,
    )


def gridded(accuracy: Mapping[tuple[int, int], float], config: MIMOFormerConfig) -> dict[str, float]:
    """The accuracies in the order of their grids, each of which must fit into the network's."""
    rows, columns = range(1, config.m + 1), range(1, config.n + 1)
    for grid in accuracy:
        if not isinstance(grid, tuple) or len(grid) != 2 or grid[0] not in rows or grid[1] not in columns:
            raise ValueError(f"accuracy is given for {grid!r}, expected a grid (m, n) from (1, 1) to ({config.m}, {config.n})")
    return {f"{m} x {n}": share for (m, n), share in sorted(accuracy.items())}
