"""torch.compile without graph breaks, torch.export with a dynamic batch."""

import pytest
import torch
from torch.testing import assert_close

from vsa_core import hadamard, hrr, mbat, slots
from vsa_core.modules import HadamardBinding, HRRBinding, MBATBinding

pytestmark = [pytest.mark.unchecked, pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation")]


@pytest.mark.parametrize("operation", [hrr.bind, hrr.unbind, hadamard.bind, mbat.bind, mbat.unbind])
@pytest.mark.parametrize("shared", [True, False])
def test_compiles_whole(operation, shared):
    keys = (mbat if operation in (mbat.bind, mbat.unbind) else hrr).random_keys(20, 12)
    x, key = torch.randn(20, 12), keys[0] if shared else keys
    torch.compiler.reset()
    assert_close(torch.compile(operation, fullgraph=True, backend="aot_eager")(x, key), operation(x, key))


def test_inductor_generates_binding_and_its_gradient():
    x, key = torch.randn(20, 12, requires_grad=True), torch.randn(20, 12)
    torch.compiler.reset()
    out = torch.compile(hrr.bind, fullgraph=True)(x, key)
    assert_close(out, hrr.bind(x, key))
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    (expected,) = torch.autograd.grad(hrr.bind(x, key).square().sum(), x)
    assert_close(grad, expected)


class RoundTrip(torch.nn.Module):
    def __init__(self, binding):
        super().__init__()
        self.binding = binding

    def forward(self, x):
        return self.binding.unbind(self.binding.superpose(x))


@pytest.mark.parametrize("module", [HRRBinding, HadamardBinding, MBATBinding])
def test_exports_with_a_dynamic_batch(module):
    model = RoundTrip(module(4, 16))
    exported = torch.export.export(model, (torch.randn(3, 4, 16),), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    for b in (2, 5, 100):
        x = torch.randn(b, 4, 16)
        assert_close(exported(x), model(x))


def test_bind_of_a_key_each_exports_with_a_dynamic_batch():
    class Bind(torch.nn.Module):
        def forward(self, x, key):
            return hrr.bind(x, key)

    batch = torch.export.Dim("b")
    exported = torch.export.export(
        Bind(), (torch.randn(3, 16), torch.randn(3, 16)), dynamic_shapes=({0: batch}, {0: batch})
    ).module()
    x, key = torch.randn(2, 50, 16)
    assert_close(exported(x, key), hrr.bind(x, key))


def test_bind_exports_with_a_dynamic_number_of_keys():
    class Bind(torch.nn.Module):
        def forward(self, x, keys):
            return hrr.bind(x, keys)

    n = torch.export.Dim("n")
    example = torch.randn(5, 3, 16), torch.randn(3, 16)
    exported = torch.export.export(Bind(), example, dynamic_shapes=({1: n}, {0: n})).module()
    x, keys = torch.randn(5, 40, 16), torch.randn(40, 16)
    assert_close(exported(x, keys), hrr.bind(x, keys))


def test_grouping_compiles():
    torch.compiler.reset()
    items = torch.randn(7, 3)
    compiled = torch.compile(lambda x: slots.ungroup(slots.group(x, 4), len(x)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(items), items)
