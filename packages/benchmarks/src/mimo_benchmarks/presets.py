"""Every experiment as a function of nothing; its docstring is the evidence: what was reported, and what was measured here."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

from mimo_benchmarks.baselines.controls import controls
from mimo_benchmarks.baselines.datamux import DataMUXConfig, DataMUXConvConfig
from mimo_benchmarks.config import ModelConfig, OptimConfig, RunConfig
from mimo_benchmarks.data.augment import CORRECTED, NONE
from mimo_benchmarks.data.mqar import MQAR
from mimo_benchmarks.errors import ConfigError, suggestion
from mimo_benchmarks.paper import PAPER
from mimoconv import MIMOConvConfig, WideResNetConfig
from mimoformer import MIMOFormerConfig
from mimoformer.zoo import FAMILIES, TASKS

PRESETS: dict[str, Callable[[], RunConfig]] = {}
SHORT = 20
"""A `short` preset takes one in so many of the steps."""


def preset(make: Callable[[], RunConfig], name: str = "", about: str = "") -> Callable[[], RunConfig]:
    """Enter a function under its name; one of a family is given a name, and a docstring with the paper's figures."""
    name = name or make.__name__
    if about:
        figures = (
            (f"{mean} ± {std} % with n = {n}" if std else f"{mean} % with n = {n}" for n, (mean, std) in PAPER[name].items())
            if name in PAPER
            else ()
        )
        make.__doc__ = f"{about}. Menet et al. (2023): {', '.join(figures) or 'no figure'}. Not run to the end here."
    PRESETS[name] = make
    return make


@preset
def quickstart() -> RunConfig:
    """scikit-learn's handwritten digits, 8 x 8 pixels: no download, about a minute on two CPU cores."""
    digits = MIMOConvConfig(capacity=4, depth=10, width=2, stem_channels=32, in_channels=1, image_size=8)
    return RunConfig(task="digits", model=digits, controls=True)


@preset
def mnist() -> RunConfig:
    """MNIST, 28 x 28 pixels, from the data folder."""
    base = quickstart()
    model = replace(base.model, width=1, image_size=28)
    return replace(base, task="mnist", model=model, optim=OptimConfig(steps=600))


@preset
def cifar10() -> RunConfig:
    """CIFAR-10, 32 x 32 pixels in colour, from the data folder: a few minutes on a GPU."""
    model = MIMOConvConfig(capacity=4, depth=16, width=4)
    optim = OptimConfig(steps=5000, groups=64, lr=2e-3, weight_decay=0.05, label_smoothing=0.1)
    return RunConfig(task="cifar10", model=model, optim=optim, augment=replace(NONE, crop=4, flip=True), controls=True)


PUBLISHED = OptimConfig(
    steps=468_000,
    groups=128,
    optimizer="sgd",
    lr=0.2,
    momentum=(0.95, 0.85),
    weight_decay=1e-5,
    warmup=0.3,
    label_smoothing=0.0,
    max_grad_norm=inf,
    reject=10.0,
    isometry=1e-4,
    key_penalty=0.1,
)
"""How Menet et al. (2023) train MIMOConv: 1,200 epochs of N passes over the set."""


def images(task: str, model: ModelConfig, n: tuple[int, ...] = (1,), odds: tuple[float, ...] = (1,), **optim: Any) -> RunConfig:
    """A published run on images: mixup with a share for each image, and no digit mirrored."""
    settings = replace(PUBLISHED, **optim)
    return RunConfig(task=task, model=model, n=n, n_odds=odds, optim=settings, augment=CORRECTED[task], save_every=2000)


def mimoconv(classes: int, capacity: int, **options: Any) -> MIMOConvConfig:
    """The published MIMOConv-28-10."""
    return MIMOConvConfig(**{"num_classes": classes, "capacity": capacity, "stem": "conv-norm-relu"} | options)


for name, classes in (("cifar10", 10), ("cifar100", 100), ("svhn", 10)):
    for n in (1, 2, 4):
        steps = 465_600 if n == 4 else 468_000  # an epoch leaves out what does not fill N passes
        preset(
            partial(images, name, mimoconv(classes, n), (n,), steps=steps),
            f"{name}_mimoconv_n{n}",
            f"MIMOConv-28-10 with N = {n}{'; the steps are those of CIFAR' if name == 'svhn' else ', Table 1'}",
        )
    if name == "svhn":
        continue
    # two inputs a pass are evaluated, and never trained; published steps with one a pass hold 512 of them, ours 128
    preset(
        partial(images, name, mimoconv(classes, 4), (1, 2, 4), (1, 0, 4), steps=465_600),
        f"{name}_mimoconv_dynamic",
        "One MIMOConv-28-10 for one, two and four images a pass, Table 1",
    )
    iso = WideResNetConfig(num_classes=classes, stem="conv-norm-relu", activation="prelu", final_norm=False)
    preset(partial(images, name, iso), f"{name}_wide_isonet", "WideIsoNet-28-10, Table 1")
    relu = replace(iso, activation="relu")
    preset(
        partial(images, name, relu, steps=78_000, isometry=0.0),
        f"{name}_wide_resnet",
        "WideResNet-28-10 without isometry, Table 1",
    )

ABLATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"n{n}_no_isometry": ("without isometry", {"capacity": n}, {"isometry": 0.0}) for n in (1, 2, 4)},
    **{f"n4_d{d}": (f"with D = {d} feature maps of the stem", {"stem_channels": d}, {}) for d in (16, 32, 128)},
    "n4_frozen_keys": ("with binding keys that are not trained", {"trainable_keys": False}, {"key_penalty": 0.0}),
    **{f"n4_{epochs}_epochs": (f"for {epochs} epochs", {}, {"steps": 388 * epochs}) for epochs in (200, 600)},
}
for name, (words, options, optim) in ABLATIONS.items():
    n = options.get("capacity", 4)
    network = mimoconv(10, **{"capacity": n} | options)
    make = partial(images, "cifar10", network, (n,), **optim)
    preset(make, f"cifar10_mimoconv_{name}", f"Ablation: MIMOConv-28-10 with N = {n} {words}")

for n in (1, 2, 4, 8, 16):
    small = MIMOConvConfig(depth=10, width=1, stem_channels=16, in_channels=1, image_size=20, capacity=n, stem="conv-norm-relu")
    preset(
        partial(images, "mnist20", small, (n,), steps=28_125),
        f"mnist_mimoconv_n{n}",
        f"MIMOConv-10-1 with N = {n} on the inner 20 x 20 pixels, Figure 4; the steps are those of DataMUX",
    )


def mnist_datamux(n: int) -> RunConfig:
    """DataMUX's CNN as its authors train it: SGD at 0.1 on squared errors, 15 epochs in batches of 32 N images."""
    rates: dict[str, Any] = {"lr": 0.1, "warmup": 0.0, "start": 1.0, "end": 1.0, "momentum": (0.0, 0.0), "weight_decay": 0.0}
    optim = OptimConfig(steps=28_125, groups=32, optimizer="sgd", loss="squared", label_smoothing=0.0, max_grad_norm=inf, **rates)
    model = DataMUXConvConfig(capacity=n, in_channels=1, image_size=20, num_classes=10)
    return RunConfig(task="mnist20", model=model, n=(n,), n_odds=(1,), optim=optim, augment=NONE)


for n in (1, 2, 4, 8, 16):
    preset(
        partial(mnist_datamux, n), f"mnist_datamux_n{n}", f"DataMUX's CNN with N = {n}, Figure 4; a baseline, without controls"
    )

FAST = replace(PUBLISHED, steps=5000, reject=0.0, isometry=0.0)


@preset
def cifar10_fast_n4() -> RunConfig:
    """CIFAR-10, MIMOConv-28-10 with N = 4 in 5,000 steps, without mixup and isometry; the paper trains 93 times as long."""
    return cifar10_fast(FAST)


@preset
def cifar10_muon_n4() -> RunConfig:
    """The same with Muon for the weights of the body."""
    return cifar10_fast(replace(FAST, optimizer="muon", lr=0.02, momentum=(0.95, 0.95)))


def cifar10_fast(optim: OptimConfig) -> RunConfig:
    """MIMOConv-28-10 with N = 4, cropped and mirrored images, bf16."""
    model = MIMOConvConfig(capacity=4)
    augment = replace(NONE, crop=4, flip=True)
    return RunConfig(task="cifar10", model=model, n=(4,), n_odds=(1,), optim=optim, augment=augment, precision="bf16")


LRA = OptimConfig(eps=1e-6, lr=1e-4, weight_decay=0.0, schedule="linear", label_smoothing=0.0, max_grad_norm=inf, decay="usual")
RECIPES = {
    "listops": (64, 20_000, 1_000, 3_000),
    "text": (32, 40_000, 8_000, 6_500),
    "retrieval": (32, 60_000, 800, 10_000),
    "image": (256, 70_000, 175, 10_000),
    "pathfinder": (256, 124_800, 312, 20_800),
}
"""Sequences a step, steps, those of warm-up and of the curriculum, as published."""
TABLE2: dict[str, tuple[str, int, dict[str, Any]]] = {
    "transformer": ("Transformer with softmax attention", 1, FAMILIES["transformer"]),
    "performer": ("Performer", 1, FAMILIES["performer"]),
    **{
        f"n{n}_att{suffix}": (f"MIMOFormer with N = {n}, {variant}", n, {"m": n, "n": n, "variant": variant})
        for n in (2, 4)
        for suffix, variant in (("", "att"), ("_mlp", "att+mlp"))
    },
    "n4_att_curriculum": ("MIMOFormer with N = 4, att, N = 2 to begin with (starred)", 4, {"m": 4, "n": 4}),
}


def lra(task: str, model: ModelConfig, n: int, curriculum: bool = False) -> RunConfig:
    """A published run on the long range arena: as many sequences a step whatever N is; the best dev accuracy is tested."""
    batch, steps, warmup, first = RECIPES[task]
    grid = n * n if isinstance(model, MIMOFormerConfig) else n
    optim = replace(LRA, steps=steps, groups=batch // grid, warmup=warmup / steps)
    begun: dict[str, Any] = {"curriculum": (n // 2,), "curriculum_share": first / steps} if curriculum else {}
    return RunConfig(task=task, model=model, n=(n,), n_odds=(1,), optim=optim, dev_every=steps // 40, best=True, **begun)


for task in TASKS:
    for size in ("deep", "wide"):
        for row, (words, n, options) in TABLE2.items():
            make = partial(lra, task, TASKS[task](size, **options), n, row.endswith("curriculum"))
            preset(make, f"{task}_{size}_{row}", f"{task.capitalize()}, {size} {words}, Table 2")
datamux = DataMUXConfig(
    capacity=2, vocab_size=32, max_length=2048, layers=6, embed_dim=512, heads=8, mlp_dim=2048, num_classes=10
)
preset(
    partial(lra, "listops", datamux, 2), "listops_deep_datamux_n2", "ListOps, DataMUX with N = 2; a baseline, without controls"
)

SYNTHETIC = OptimConfig(
    steps=62_800,
    lr=5e-4,
    weight_decay=0.1,
    decay="usual",
    schedule="linear",
    start=1e-3,
    end=1e-6,
    label_smoothing=0.0,
    max_grad_norm=inf,
)
"""H3's for associative recall: 400 epochs in batches of 32."""
H3: dict[str, Any] = {"layers": 2, "embed_dim": 32, "heads": 1, "mlp_dim": 128, "activation": "gelu", "head": "tokens"}
TABLE3: dict[str, tuple[str, int, dict[str, Any]]] = {
    "transformer": ("Transformer with softmax attention", 1, FAMILIES["transformer"]),
    "performer": ("Performer", 1, FAMILIES["performer"]),
    "n2_att": ("MIMOFormer with N = 2, att", 2, {"m": 2, "n": 2}),
    "n2_att_dpfp": ("MIMOFormer with N = 2, att, the feature map DPFP", 2, {"m": 2, "n": 2, "attention": "dpfp"}),
}


def tokens(task: str, model: ModelConfig, n: int, batch: int, optim: OptimConfig) -> RunConfig:
    """A run that predicts tokens causally: as many sequences a step whatever N is."""
    grid = n * n if isinstance(model, MIMOFormerConfig) else n
    return RunConfig(task=task, model=model, n=(n,), n_odds=(1,), optim=replace(optim, groups=batch // grid))


for task, length, optim in (
    ("recall", 42, SYNTHETIC),
    ("induction", 31, replace(SYNTHETIC, schedule="cosine", end=0.1)),
):
    shape = {**H3, "vocab_size": 20, "max_length": length}
    for row, (words, n, options) in TABLE3.items():
        network = MIMOFormerConfig(tied=True, **shape, **options)
        preset(partial(tokens, task, network, n, 32, optim), f"{task}_{row}", f"{task.capitalize()}, {words}, Table 3; causal")
    mux = DataMUXConfig(capacity=2, **shape)
    about = f"{task.capitalize()}, DataMUX with N = 2, Table 3; a baseline, without controls; causal"
    preset(partial(tokens, task, mux, 2, 32, optim), f"{task}_datamux_n2", about)

for length in MQAR:
    batch = {64: 512, 128: 512, 256: 256, 512: 128}[length]
    zoology = replace(SYNTHETIC, steps=64 * 100_000 // batch, lr=1e-3, schedule="cosine")
    for row, (words, n, options) in TABLE3.items():
        network = MIMOFormerConfig(
            vocab_size=8192, max_length=length, layers=2, embed_dim=64, heads=1, mlp_dim=64, head="tokens", **options
        )
        about = f"Multi-query recall in {length} tokens as in Zoology, with an MLP of one width, {words}"
        preset(partial(tokens, f"mqar_{length}", network, n, batch, zoology), f"mqar_{length}_{row}", about)


def find(name: str) -> RunConfig:
    """The preset of that name, or a form of it: NAME.short, or NAME.thin and other controls, or NAME.short.thin.

    Raises:
        ConfigError: there is none; the nearest names are suggested.
    """
    base, *forms = name.split(".")
    if base not in PRESETS:
        raise ConfigError(f"there is no preset {base!r}: {suggestion(base, PRESETS)}")
    config = PRESETS[base]()
    if forms and forms[0] == "short":
        forms.pop(0)
        steps, dev = -(-config.optim.steps // SHORT), -(-config.dev_every // SHORT)
        config = replace(config, optim=replace(config.optim, steps=steps), dev_every=dev)
    if forms:
        plain = controls(config.model, config.n)
        form = forms[0]
        if len(forms) > 1 or form not in plain:
            raise ConfigError(f"there is no {name!r}: {base} has the forms {', '.join(['short', *plain])}")
        config = replace(config, model=plain[form], controls=False)
    return config
