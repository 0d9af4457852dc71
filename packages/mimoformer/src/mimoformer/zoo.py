"""Networks by name, with the published configurations for the long range arena."""

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal

from mimoformer.config import MIMOFormerConfig
from mimoformer.model import MIMOFormer

__all__ = ["FAMILIES", "TASKS", "create_model", "image", "list_models", "listops", "pathfinder", "retrieval", "text"]

Size = Literal["deep", "wide"]


def listops(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """ListOps: 6 layers of 8 heads (deep) or 1 layer of 48 heads (wide), 64 dimensions a head; 2,048 tokens, ten classes."""
    return lra(
        size, (6, 8), 48, options, embed_dim=512, mlp_dim=2048, head_dim=64, max_length=2048, vocab_size=32, num_classes=10
    )


def text(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Text, IMDb reviews as bytes: the network of ListOps with 4,096 tokens, two classes, and no dropout of softmax's weights."""
    shape = {"embed_dim": 512, "mlp_dim": 2048, "head_dim": 64, "max_length": 4096, "num_classes": 2, "attention_dropout": 0.0}
    return lra(size, (6, 8), 48, options, **shape)


def retrieval(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Retrieval, pairs of byte documents: 4 layers of 4 heads (deep) or 1 of 16 (wide), 32 dimensions a head; 4,096 tokens."""
    shape = {"embed_dim": 128, "mlp_dim": 512, "head_dim": 32, "max_length": 4096, "num_classes": 2, "head": "pair"}
    return lra(size, (4, 4), 16, options, **shape)


def image(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Image, grey CIFAR-10 as 1,024 pixels: 3 layers of 4 heads (deep) or 1 of 12 (wide), 64 dimensions a head; ten classes."""
    return lra(size, (3, 4), 12, options, embed_dim=64, mlp_dim=128, head_dim=64, max_length=1024, num_classes=10)


def pathfinder(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Pathfinder32 as 1,024 pixels: 4 layers of 8 heads (deep) or 1 of 32 (wide), 128 dimensions a head; two classes."""
    return lra(size, (4, 8), 32, options, embed_dim=128, mlp_dim=128, head_dim=128, max_length=1024, num_classes=2)


def lra(size: Size, deep: tuple[int, int], wide: int, options: dict[str, Any], **published: Any) -> MIMOFormerConfig:
    """A published configuration (Menet et al., 2023, Table 2), with the given fields replaced.

    With softmax attention, a tenth of its weights is dropped. One thing differs: the published runs average over padding too;
    give pool="all" for that.

    Raises:
        ValueError: there is no such size, or an option has a value that cannot work.
        TypeError: there is no such option.
    """
    if size not in ("deep", "wide"):
        raise ValueError(f"size is {size!r}; expected deep or wide")
    layers, heads = deep if size == "deep" else (1, wide)
    weights = {"attention_dropout": 0.1} if options.get("attention") == "softmax" else {}
    return MIMOFormerConfig(**{"layers": layers, "heads": heads, **weights, **published, **options})


FAMILIES: dict[str, dict[str, Any]] = {
    "mimoformer": {},
    "performer": {"m": 1, "n": 1},
    "transformer": {"m": 1, "n": 1, "attention": "softmax"},
}
"""Fields that make a family: MIMOFormer, and the baselines that take one sequence per pass."""
TASKS: dict[str, Callable[..., MIMOFormerConfig]] = {
    task.__name__: task for task in (listops, text, retrieval, image, pathfinder)
}
"""Published configurations, by task."""
CONFIGS = {f"{family}_{task}_{size}": (family, task, size) for family in FAMILIES for task in TASKS for size in ("deep", "wide")}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows and that match a pattern with shell wildcards.

    >>> list_models("*_listops_deep")
    ['mimoformer_listops_deep', 'performer_listops_deep', 'transformer_listops_deep']
    """
    return [name for name in CONFIGS if fnmatchcase(name, pattern)]


def create_model(name: str, **options: Any) -> MIMOFormer:
    """Create an untrained network by its name, FAMILY_TASK_SIZE, as in the published runs on the long range arena.

    Args:
        name: mimoformer, or a baseline that takes one sequence per pass, performer or transformer; then listops, text,
            retrieval, image or pathfinder; then deep or wide; joined by "_".
        options: fields of `MIMOFormerConfig` to replace, such as `m`, `n`, `variant`.

    Raises:
        ValueError: there is no such network, or an option has a value that cannot work.
        TypeError: there is no such option, or the family fixes it.

    >>> create_model("mimoformer_image_wide", m=4, n=4, variant="att+mlp").config.heads
    12
    """
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names are {' or '.join(FAMILIES)}, then _TASK_SIZE"
        raise ValueError(f"there is no network {name!r}; {hint}")
    family, task, size = CONFIGS[name]
    if given := options.keys() & FAMILIES[family].keys():
        raise TypeError(f"{', '.join(sorted(given))} cannot be given for {name}, a baseline with {FAMILIES[family]}")
    return MIMOFormer(TASKS[task](size, **FAMILIES[family], **options))
