"""Networks by name, and the configurations of the published runs on the long range arena."""

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal

from mimoformer.config import MIMOFormerConfig
from mimoformer.model import MIMOFormer

Size = Literal["deep", "wide"]


def listops(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """ListOps: 6 layers of 8 heads or one of 48, of 64 dimensions; 2,048 positions, ten classes."""
    return lra(
        size, (6, 8), 48, options, embed_dim=512, mlp_dim=2048, head_dim=64, max_length=2048, vocab_size=32, num_classes=10
    )


def text(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Text, IMDb's reviews as bytes: the network of ListOps with 4,096 positions, two classes."""
    return lra(size, (6, 8), 48, options, embed_dim=512, mlp_dim=2048, head_dim=64, max_length=4096, num_classes=2)


def retrieval(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Retrieval, pairs of documents as bytes: 4 layers of 4 heads or one of 16, of 32 dimensions; 4,096 positions."""
    shape = {"embed_dim": 128, "mlp_dim": 512, "head_dim": 32, "max_length": 4096, "num_classes": 2, "head": "pair"}
    return lra(size, (4, 4), 16, options, **shape)


def image(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Image, CIFAR-10 in grey as 1,024 pixels: 3 layers of 4 heads or one of 12, of 64 dimensions; ten classes."""
    return lra(size, (3, 4), 12, options, embed_dim=64, mlp_dim=128, head_dim=64, max_length=1024, num_classes=10)


def pathfinder(size: Size = "deep", **options: Any) -> MIMOFormerConfig:
    """Pathfinder32 as 1,024 pixels: 4 layers of 8 heads or one of 32, of 128 dimensions; two classes."""
    return lra(size, (4, 8), 32, options, embed_dim=128, mlp_dim=128, head_dim=128, max_length=1024, num_classes=2)


def lra(size: Size, deep: tuple[int, int], wide: int, options: dict[str, Any], **published: Any) -> MIMOFormerConfig:
    """A published configuration (Menet et al., 2023, Table 2), with fields of it replaced.

    Their mean over all positions, padding included, is an option: pool="all".

    Raises:
        ValueError: there is no such size, or an option's value cannot work.
        TypeError: there is no such option.
    """
    if size not in ("deep", "wide"):
        raise ValueError(f"size must be deep or wide, got {size!r}")
    layers, heads = deep if size == "deep" else (1, wide)
    return MIMOFormerConfig(**{"layers": layers, "heads": heads, **published, **options})


FAMILIES: dict[str, dict[str, Any]] = {
    "mimoformer": {},
    "performer": {"m": 1, "n": 1},
    "transformer": {"m": 1, "n": 1, "attention": "softmax"},
}
"""What sets each apart: MIMOFormer, and the baselines that take one sequence a pass."""
TASKS: dict[str, Callable[..., MIMOFormerConfig]] = {
    task.__name__: task for task in (listops, text, retrieval, image, pathfinder)
}
CONFIGS = {f"{family}_{task}_{size}": (family, task, size) for family in FAMILIES for task in TASKS for size in ("deep", "wide")}


def list_models(pattern: str = "*") -> list[str]:
    """Names for `create_model` that match a pattern with the wildcards of a shell.

    >>> list_models("*_listops_deep")
    ['mimoformer_listops_deep', 'performer_listops_deep', 'transformer_listops_deep']
    """
    return [name for name in CONFIGS if fnmatchcase(name, pattern)]


def create_model(name: str, **options: Any) -> MIMOFormer:
    """A fresh network by its name, FAMILY_TASK_SIZE, as in the published runs on the long range arena.

    Args:
        name: mimoformer, or a baseline that takes one sequence a pass, performer or transformer; listops, text, retrieval,
            image or pathfinder; deep or wide; joined by "_".
        options: fields of `MIMOFormerConfig`, such as `m`, `n`, `variant`.

    Raises:
        ValueError: there is no such network, or an option's value cannot work.
        TypeError: there is no such option, or the family fixes it.

    >>> create_model("mimoformer_image_wide", m=4, n=4, variant="att+mlp").config.heads
    12
    """
    if name not in CONFIGS:
        near = difflib.get_close_matches(name, CONFIGS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"names read {' or '.join(FAMILIES)}, then _TASK_SIZE"
        raise ValueError(f"there is no network {name!r}: {hint}")
    family, task, size = CONFIGS[name]
    if given := options.keys() & FAMILIES[family].keys():
        raise TypeError(f"{name} is a baseline with {FAMILIES[family]}, which {', '.join(sorted(given))} cannot change")
    return MIMOFormer(TASKS[task](size, **FAMILIES[family], **options))
