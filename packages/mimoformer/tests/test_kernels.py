"""When attention is computed by Triton kernels; the kernels themselves, interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mimoformer import dispatch
from mimoformer.attention import favor_s, favor_s_blurry, favor_s_shared
from mimoformer.dispatch import uses_triton, why_plain
from mimoformer.features import DPFPFeatures, ReLUFeatures
from mimoformer.layers import SuperposedAttention
from vsa_core import hadamard


@pytest.mark.once
def test_the_kernels_in_tritons_interpreter():
    """The interpreter replaces Triton's compiler when it is imported, so it needs a process of its own."""
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("kernel_cases.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", cases],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


@pytest.fixture
def offered(monkeypatch):
    """Every device passes for one with kernels."""
    monkeypatch.setattr(dispatch, "kernels_run", lambda device: True)


def operands(m=2, n=2, d=8, dtype=torch.float32):
    q, k, v = torch.randn(3, 2, m, n, 1, 5, d, dtype=dtype)
    return q, k, v, hadamard.random_keys(m * n, d).unflatten(0, (m, n)), ReLUFeatures(d, 16)


def test_the_kernels_take_what_they_were_made_for(offered):
    for dtype in dispatch.DTYPES:
        assert why_plain(*operands(dtype=dtype)) is None
    assert why_plain(*operands(4, 4, 128)) is None


class Own(ReLUFeatures):
    """A class of its own."""


def test_plain_attention_takes_everything_else(offered):
    q, k, v, keys, phi = operands()
    hooked, trained = ReLUFeatures(8, 16), ReLUFeatures(8, 16)
    hooked.register_forward_hook(lambda *_: None)
    trained.projection.requires_grad_()
    found = {
        "device": why_plain(q, k, v, keys.to("meta"), phi),
        "float64": why_plain(*operands(dtype=torch.float64)),
        "dtypes": why_plain(q, k, v.bfloat16(), keys, phi),
        "function": why_plain(q, k, v, keys, torch.relu),
        "DPFP": why_plain(q, k, v, keys, DPFPFeatures()),
        "Own": why_plain(q, k, v, keys, Own(8, 16)),
        "hooks": why_plain(q, k, v, keys, hooked),
        "gradient": why_plain(q, k, v, keys.requires_grad_(), phi),
        "projection": why_plain(q, k, v, keys.detach(), trained),
        "dimensions": why_plain(*operands(d=129)),
        "grid": why_plain(*operands(17, 1)),
        "causal": why_plain(*operands(), causal=True),
        "no sequences": why_plain(q[:0], k[:0], v[:0], keys.detach(), phi),
        "transformed": torch.func.vmap(lambda q: [why_plain(q, k, v, keys.detach(), phi), q][1])(q[None]) is None,
    }
    assert all(reason is not None for reason in found.values()), found
    for word in ("device", "float64", "DPFP", "Own", "hooks", "gradient", "dimensions", "grid", "causal", "no sequences"):
        assert word in found[word]


def test_networks_are_exported_in_plain_pytorch(offered):
    layer = SuperposedAttention(16, 2, 2, 2, features=16)
    exported = torch.export.export(layer, (torch.randn(1, 2, 2, 5, 16),))
    assert "mimoformer" not in str(exported.graph_module.code)


@pytest.mark.parametrize("function", [favor_s, favor_s_shared, favor_s_blurry])
def test_an_implementation_that_is_asked_for_never_falls_back(function):
    with pytest.raises(ValueError, match="'triton' cannot compute this: the tensors are on cpu"):
        function(*operands(), implementation="triton")
    with pytest.raises(ValueError, match="implementation is 'cuda'; expected auto, plain or triton"):
        function(*operands(), implementation="cuda")
    layer = SuperposedAttention(16, 2, 2, 2, implementation="triton")
    with pytest.raises(ValueError, match="cannot compute this"):
        layer(torch.randn(1, 2, 2, 5, 16))


def test_plain_is_never_replaced():
    assert not uses_triton("plain", None)
    assert uses_triton("auto", None)
    assert not uses_triton("auto", "a reason")


def test_a_scale_multiplies_queries_and_keys():
    q, k, v, keys, phi = operands()
    for causal in (False, True):
        found = favor_s(q, k, v, keys, phi, causal=causal, scale=0.5)
        torch.testing.assert_close(found, favor_s(q / 2, k / 2, v, keys, phi, causal=causal))


def test_layers_are_modules_that_can_be_copied():
    layer = SuperposedAttention(16, 2, 2, 2, implementation="plain")
    assert isinstance(layer, nn.Module)
    assert layer.implementation == "plain"
