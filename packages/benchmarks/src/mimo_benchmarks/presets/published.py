"""Define the experiments of the paper, and those that it builds on, as families of presets.

Recipes follow the published code; docs/differences.md lists the exceptions. Where neither the code nor the paper gives a number,
the description of the preset says what was chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from mimo_benchmarks.data.synthetic.mqar import MQAR
from mimo_benchmarks.data.vision.augment import CORRECTED, NONE
from mimo_benchmarks.networks.datamux_conv import DataMUXConvConfig
from mimo_benchmarks.networks.datamux_transformer import DataMUXConfig
from mimo_benchmarks.networks.registry import ModelConfig, describe
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig
from mimoformer.zoo import FAMILIES, TASKS

NamedPreset = tuple[str, str, Callable[[], RunConfig]]
"""Name of a preset, its description, and a function that returns its settings."""
NO_CONTROLS = "a baseline, which has no controls"

CONV = OptimConfig(
    groups=128,
    optimizer="sgd",
    lr=0.2,
    momentum=(0.95, 0.85),
    weight_decay=1e-5,
    warmup=0.3,
    label_smoothing=0.0,
    max_grad_norm=1e3,
    reject=10.0,
    isometry=1e-4,
    key_penalty=0.1,
)
"""Recipe of Menet et al. (2023) for MIMOConv: 1,200 epochs, each of N passes over the training set."""


def image_run(
    task: str, model: ModelConfig, n: tuple[int, ...] = (1,), odds: tuple[float, ...] = (1,), **optim: Any
) -> RunConfig:
    """Return a published run on images, with the augmentation of the task."""
    steps = 1200 * (388 if 4 in n else 390)  # an epoch drops the images that do not fill its last step
    settings = replace(CONV, **{"steps": steps} | optim)
    return RunConfig(task=task, model=model, n=n, n_odds=odds, optim=settings, augment=CORRECTED[task])


def published_mimoconv(classes: int, capacity: int, **options: Any) -> MIMOConvConfig:
    """Return the published MIMOConv-28-10, with fields replaced by `options`."""
    return replace(MIMOConvConfig(num_classes=classes, capacity=capacity, stem="conv-norm-relu"), **options)


def table1() -> Iterator[NamedPreset]:
    """Yield the runs of Table 1, on CIFAR-10 and CIFAR-100, and those on SVHN, which the paper reports in its text."""
    for task, classes in (("cifar10", 10), ("cifar100", 100), ("svhn", 10)):
        source = "the steps are those of CIFAR" if task == "svhn" else "Table 1"
        for n in (1, 2, 4):
            make = partial(image_run, task, published_mimoconv(classes, n), (n,))
            yield f"{task}_mimoconv_n{n}", f"MIMOConv-28-10 with N = {n}; {source}", make
        if task == "svhn":
            continue
        words = "one MIMOConv-28-10 for one, two (never trained) and four images per pass; Table 1"
        passes = f"{words}; steps with one image per pass hold 128 images, not 512 as published"
        yield f"{task}_mimoconv_dynamic", passes, partial(image_run, task, published_mimoconv(classes, 4), (1, 2, 4), (1, 0, 4))
        plain = WideResNetConfig(num_classes=classes, stem="conv-norm-relu", activation="relu", final_norm=False)
        yield f"{task}_wide_isonet", "WideIsoNet-28-10, with ReLU as published; Table 1", partial(image_run, task, plain)
        make = partial(image_run, task, plain, steps=78_000, isometry=0.0)
        yield f"{task}_wide_resnet", "WideResNet-28-10 without isometry; Table 1", make


def ablations() -> Iterator[NamedPreset]:
    """Yield the ablations of the paper's appendix, for which its text gives no figure."""
    changes: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
        **{f"n{n}_no_isometry": ("without isometry", n, {}, {"isometry": 0.0}) for n in (1, 2, 4)},
        **{f"n4_d{d}": (f"with D = {d} feature maps of the stem", 4, {"stem_channels": d}, {}) for d in (16, 32, 128)},
        "n4_frozen_keys": ("with keys that are not trained", 4, {"trainable_keys": False}, {"key_penalty": 0.0}),
        **{f"n4_{epochs}_epochs": (f"for {epochs} epochs", 4, {}, {"steps": 388 * epochs}) for epochs in (200, 600)},
    }
    for name, (words, n, options, optim) in changes.items():
        make = partial(image_run, "cifar10", published_mimoconv(10, n, **options), (n,), **optim)
        yield f"cifar10_mimoconv_{name}", f"MIMOConv-28-10 with N = {n} {words}; ablation", make


def figure4() -> Iterator[NamedPreset]:
    """Yield the runs of Figure 4: MIMOConv and DataMUX on the inner 20 x 20 pixels of MNIST."""
    for n in (1, 2, 4, 8, 16):
        sizes: dict[str, Any] = {"depth": 10, "width": 1, "stem_channels": 16, "in_channels": 1, "image_size": 20}
        make = partial(image_run, "mnist20", published_mimoconv(10, n, **sizes), (n,), steps=28_125)
        yield f"mnist_mimoconv_n{n}", f"MIMOConv-10-1 with N = {n}; Figure 4, with the steps of DataMUX", make
        yield (
            f"mnist_datamux_n{n}",
            f"DataMUX's CNN with N = {n} on normalised pixels; Figure 4; {NO_CONTROLS}",
            partial(datamux_cnn, n),
        )


def datamux_cnn(n: int) -> RunConfig:
    """Return the run of DataMUX's authors: plain SGD at 0.1 on squared errors, 15 epochs in batches of 32 N images."""
    rates: dict[str, Any] = {"lr": 0.1, "start": 1.0, "end": 1.0, "momentum": (0.0, 0.0), "weight_decay": 0.0}
    optim = OptimConfig(steps=28_125, groups=32, optimizer="sgd", loss="squared", label_smoothing=0.0, max_grad_norm=inf, **rates)
    return RunConfig(task="mnist20", model=DataMUXConvConfig(capacity=n), n=(n,), n_odds=(1,), optim=optim, augment=NONE)


BLURRY: tuple[str, int, dict[str, Any]] = (
    "MIMOFormer with N = 2, blurry att.: one set of attention weights for all sequences of a pass, which saves N^2 instead of N",
    2,
    {"m": 2, "n": 2, "variant": "blurry"},
)
"""A row beside those of the paper: description, n, and fields of the configuration."""

LRA = OptimConfig(
    betas=(0.95, 0.999),
    peak_beta1=0.85,
    eps=1e-6,
    lr=1e-4,
    weight_decay=0.0,
    schedule="linear",
    label_smoothing=0.0,
    max_grad_norm=inf,
)
"""Recipe of Menet et al. (2023) for the Long Range Arena. The betas are those of torch's OneCycleLR, whose cycle of momentum the
published code leaves on, not the (0.9, 0.999) with which it constructs AdamW."""
RECIPES = {
    "listops": (64, 20_000, 1_000, 3_000),
    "text": (32, 40_000, 8_000, 6_500),
    "retrieval": (32, 60_000, 800, 10_000),
    "image": (256, 70_000, 175, 10_000),
    "pathfinder": (256, 124_800, 312, 20_800),
}
"""For each task: sequences per step, steps, steps of warm-up, steps of the curriculum."""


def lra_run(task: str, model: ModelConfig, n: int, curriculum: tuple[int, ...] = ()) -> RunConfig:
    """Return a run on the Long Range Arena; sequences per step do not depend on N, and the weights of best dev accuracy count."""
    batch, steps, warmup, first = RECIPES[task]
    share = first / steps if curriculum else 0.0
    return RunConfig(
        task=task,
        model=model,
        n=(n,),
        n_odds=(1,),
        curriculum=curriculum,
        curriculum_share=share,
        optim=replace(LRA, steps=steps, groups=batch // describe(model).inputs(n), warmup=warmup / steps),
        dev_every=steps // 40,
        best=True,
    )


def table2() -> Iterator[NamedPreset]:
    """Yield the runs of Table 2 (Long Range Arena), the blurry variant on ListOps, and the DataMUX run of the paper's text."""
    rows: dict[str, tuple[str, int, dict[str, Any]]] = {
        "transformer": ("Transformer with softmax attention", 1, FAMILIES["transformer"]),
        "performer": ("Performer", 1, FAMILIES["performer"]),
        "n2_att": ("MIMOFormer with N = 2, att.", 2, {"m": 2, "n": 2}),
        "n2_att_mlp": ("MIMOFormer with N = 2, att.+MLP", 2, {"m": 2, "n": 2, "variant": "att+mlp"}),
        "n4_att": ("MIMOFormer with N = 4, att.", 4, {"m": 4, "n": 4}),
        "n4_att_curriculum": ("MIMOFormer with N = 4, att.*, which begins with N = 2", 4, {"m": 4, "n": 4}),
        "n4_att_mlp": ("MIMOFormer with N = 4, att.+MLP", 4, {"m": 4, "n": 4, "variant": "att+mlp"}),
    }
    for task, network in TASKS.items():
        for size in ("deep", "wide"):
            for row, (words, n, options) in rows.items():
                make = partial(lra_run, task, network(size, **options), n, (2,) if row.endswith("curriculum") else ())
                yield f"{task}_{size}_{row}", f"{size} {words}; Table 2", make
            if task == "listops":
                words, n, options = BLURRY
                yield (
                    f"{task}_{size}_n2_blurry",
                    f"{size} {words}",
                    partial(lra_run, task, network(size, **options), n),
                )
    sizes: dict[str, Any] = {"layers": 6, "embed_dim": 512, "heads": 8, "mlp_dim": 2048, "num_classes": 10}
    mux = DataMUXConfig(capacity=2, vocab_size=32, max_length=2048, attention_dropout=0.1, **sizes)
    yield "listops_deep_datamux_n2", f"DataMUX's Transformer with N = 2; {NO_CONTROLS}", partial(lra_run, "listops", mux, 2)


RECALL = OptimConfig(
    steps=62_800,
    lr=5e-4,
    weight_decay=0.1,
    schedule="linear",
    warmup=(6_280 + 1) / (62_800 + 1),  # a cycle counts its points from 1, and has one more than steps
    start=1e-9,
    end=1e-9,
    label_smoothing=0.0,
    max_grad_norm=inf,
)
"""H3's recipe for associative recall: 400 epochs in batches of 32; a linear rise from 0 over 40 of them, then a fall to 0."""
INDUCTION = replace(RECALL, schedule="annealing", warmup=0.1, start=1e-6 / 5e-4, end=0.1)
"""H3's recipe for the induction head: as for recall, with the schedule of timm's CosineLRScheduler."""
ZOOLOGY = replace(RECALL, lr=10 ** (-8 / 3), schedule="annealing", rate_parts=64, warmup=0.0, end=0.0)
"""Zoology's recipe for multi-query recall: 64 epochs; the learning rate falls to 0 along a half cosine, epoch by epoch."""
RESIDUAL: dict[str, Any] = {"residual_dropout": 0.0, "init": "gpt2"}
"""Fields of the networks of H3 and Zoology: dropout of embeddings, but not of the residual stream, and GPT-2's initialisation."""
CAUSAL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "transformer": ("Transformer with softmax attention", 1, {**FAMILIES["transformer"], "attention_dropout": 0.1}),
    "performer": ("Performer", 1, FAMILIES["performer"]),
    "n2_att": ("MIMOFormer with N = 2, att.", 2, {"m": 2, "n": 2}),
    "n2_att_dpfp": ("MIMOFormer with N = 2, att., the feature map DPFP", 2, {"m": 2, "n": 2, "attention": "dpfp"}),
}


def token_run(task: str, model: ModelConfig, n: int, batch: int, optim: OptimConfig) -> RunConfig:
    """Return a run that predicts tokens causally; sequences per step do not depend on N."""
    return RunConfig(task=task, model=model, n=(n,), n_odds=(1,), optim=replace(optim, groups=batch // describe(model).inputs(n)))


def table3() -> Iterator[NamedPreset]:
    """Yield the runs of Table 3, on H3's synthetic tasks, and the blurry variant beside them."""
    for task, length, optim in (("recall", 42, RECALL), ("induction", 31, INDUCTION)):
        shape: dict[str, Any] = {"layers": 2, "embed_dim": 32, "heads": 1, "mlp_dim": 128, "activation": "gelu", "head": "tokens"}
        shape |= {"vocab_size": 20, "max_length": length, **RESIDUAL}
        for row, (words, n, options) in {**CAUSAL, "n2_blurry": BLURRY}.items():
            make = partial(token_run, task, MIMOFormerConfig(tied=True, **shape, **options), n, 32, optim)
            yield f"{task}_{row}", f"{words}, causal, trained as in H3{'; Table 3' * (row in CAUSAL)}", make
        mux = DataMUXConfig(capacity=2, attention_dropout=0.1, **shape)
        words = "DataMUX's Transformer with N = 2, causal, untied, trained as in H3"
        yield f"{task}_datamux_n2", f"{words}; Table 3; {NO_CONTROLS}", partial(token_run, task, mux, 2, 32, optim)


def mqar() -> Iterator[NamedPreset]:
    """Yield the runs on Zoology's multi-query recall."""
    zoology = (
        "trained as in Zoology with 64 dimensions, at the third of its four learning rates, without early stopping, and with "
    )
    zoology += "an MLP of one width where it has none"
    for length, setting in MQAR.items():
        batch = setting.batch_size
        optim = replace(ZOOLOGY, steps=64 * -(-setting.train // batch))
        shape: dict[str, Any] = {
            "vocab_size": 8192,
            "max_length": length,
            "layers": 2,
            "embed_dim": 64,
            "heads": 1,
            "mlp_dim": 64,
            "head": "tokens",
            "tied": True,
        }
        for row, (words, n, options) in CAUSAL.items():
            model = MIMOFormerConfig(positions=row == "transformer", **shape, **RESIDUAL, **options)
            make = partial(token_run, f"mqar_{length}", model, n, batch, optim)
            yield f"mqar_{length}_{row}", f"{words}, {length} tokens, causal; {zoology}", make
