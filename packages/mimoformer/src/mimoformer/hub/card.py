"""The model card of a network of this package."""

import json
from collections.abc import Mapping

from mimoformer.config import MIMOFormerConfig
from mimoformer.model import MIMOFormer
from vsa_core import checks
from vsa_core.hub import card

__all__ = ["model_card"]

PAPER = "[MIMONets (Menet et al., 2023)](https://arxiv.org/abs/2312.02829)"
TASKS = {
    "classes": "classifies {}",
    "pair": "classifies {}",
    "tokens": "predicts the next token at every position of {}",
    "last": "predicts the token that follows {}",
}
"""What a network with each head does with its inputs."""
BLURRY = " Its sequences share one set of attention weights (blurry attention), which is cheaper and less accurate than FAVOR+S."


def model_card(model: MIMOFormer, name: str, accuracy: Mapping[tuple[int, int], float] | None, command: str | None) -> str:
    """Write the card: what the network is, its accuracy for each grid (m, n), how to use it and how it was trained.

    Raises:
        ValueError: an accuracy is not from 0 to 1, or its grid is larger than the network's.
    """
    config = model.config
    one, inputs = ("pair of sequences", "pairs") if config.head == "pair" else ("sequence", "sequences")
    does = TASKS[config.head].format(f"one {one}" if config.capacity == 1 else f"up to {config.capacity} {inputs}")
    plain = "Transformer" if config.attention == "softmax" else "Performer"
    about = f"A plain {plain} that {does} in one forward pass: a baseline of MIMOFormer, as in {PAPER}."
    if config.capacity > 1:
        blurry = BLURRY if config.variant == "blurry" else ""
        about = f"A Transformer that {does} in one forward pass, in superposition, as in {PAPER}.{blurry}"
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
            **({"in superposition": config.variant} if config.capacity > 1 else {}),
            "vocabulary": config.vocab_size,
            **({"classes": config.num_classes} if config.head in ("classes", "pair") else {}),
        },
        accuracy=card.accuracy_table(inputs, name_grids(accuracy or {}, config)),
        use=usage(config, name),
        command=command,
    )


def usage(config: MIMOFormerConfig, name: str) -> str:
    """Code that loads the network and predicts, from texts where it has a tokenizer for them."""
    load = f"model = MIMOFormer.from_pretrained({json.dumps(name, ensure_ascii=False)})"
    if config.tokenizer in (None, "pixels"):
        shape = "(count, 2, length)" if config.head == "pair" else "(count, length)"
        what = "grey levels + 1, row by row" if config.tokenizer == "pixels" else f"integers below {config.vocab_size}"
        predict = f"logits = predict(model, tokens)  # {what}: {shape}, length to {config.max_length}"
        return f"from mimoformer import MIMOFormer, predict\n\n{load}\n{predict}"
    what = "texts of ids such as '3 1 4'" if config.tokenizer == "ids" else "texts"
    what = f"pairs of {what}" if config.head == "pair" else what
    predict = f"tokens, mask = tokenize(model, texts)  # a list of {what}\nlogits = predict(model, tokens, mask=mask)"
    return f"from mimoformer import MIMOFormer, predict, tokenize\n\n{load}\n{predict}"


def name_grids(accuracy: Mapping[tuple[int, int], float], config: MIMOFormerConfig) -> dict[str, float]:
    """Order accuracies by grid, and name the grids."""
    rows, columns = range(1, config.m + 1), range(1, config.n + 1)
    for grid in accuracy:
        if isinstance(grid, tuple):
            checks.whole_numbers(**dict(zip(("m", "n"), grid, strict=False)))
        if not isinstance(grid, tuple) or len(grid) != 2 or grid[0] not in rows or grid[1] not in columns:
            raise ValueError(f"accuracy is given for {grid!r}; expected a grid (m, n) from (1, 1) to ({config.m}, {config.n})")
    return {f"{m} x {n}": share for (m, n), share in sorted(accuracy.items())}
