import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vsa_core import hadamard, hrr, mbat
from vsa_core.modules import HadamardBinding, HRRBinding, MBATBinding, eval_copy, in_eval_mode
from vsa_core.superposition import superpose

every_module = pytest.mark.parametrize("module", [HRRBinding, HadamardBinding, MBATBinding])


@every_module
def test_modules_own_keys_and_leave_computing_to_the_algebra(module):
    binding, x = module(3, 8), torch.randn(5, 2, 3, 8)
    algebra = {HRRBinding: hrr, HadamardBinding: hadamard, MBATBinding: mbat}[module]
    assert_close(binding(x), algebra.bind(x, binding.keys))
    s = binding.superpose(x)
    assert_close(s, superpose(x, binding.keys, algebra.bind))
    assert_close(binding.unbind(s), torch.stack([algebra.unbind(s, key) for key in binding.keys], -2))
    assert repr(binding).endswith("(n=3, dim=8, trainable=True)")


@pytest.mark.unchecked
@every_module
def test_as_many_vectors_as_keys(module):
    binding = module(3, 8)
    for call in (binding, binding.superpose):
        for x in (torch.randn(5, 1, 8), torch.randn(5, 4, 8), torch.randn(8)):
            with pytest.raises(ValueError, match=r"there are 3 keys: x must be \(\.\.\., 3, dim\)"):
                call(x)


@every_module
def test_keys_train_only_where_asked_and_are_seeded(module):
    def make(**options):
        return module(2, 4, generator=torch.Generator().manual_seed(3), **options)

    assert make().keys.requires_grad
    assert not make(trainable=False).keys.requires_grad
    assert torch.equal(make().keys, make().keys)
    assert set(make().state_dict()) == {"keys"}


class Entangled(nn.Module):
    """Reaches its layers by a list, a bound method and a partial function too, and one weight is computed by a hook."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.scaled = nn.utils.spectral_norm(nn.Linear(4, 4))
        self.layers, self.last = [self.norm, self.drop], partial(self.finish)
        self.forward = self.run

    def run(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(x)

    def finish(self, x):
        return self.drop(self.scaled(x))


def test_a_copy_in_eval_mode_shares_weights_statistics_and_hooks():
    model, x, calls = Entangled(), torch.randn(8, 4), []
    model(x)
    model.norm.register_forward_hook(lambda layer, *_: calls.append(layer.training))
    copied = in_eval_mode(model)
    before = model.norm.running_mean.clone()
    answer = copied(x)
    assert torch.equal(model.norm.running_mean, before)
    assert calls == [False]
    assert all(layer.training for layer in model.modules())
    with torch.no_grad():
        model.norm.bias += 1
        model.norm.running_mean += 1
    model.eval()
    assert torch.equal(copied(x), model(x))
    assert not torch.equal(copied(x), answer)
    assert in_eval_mode(model) is model
    assert eval_copy(model) is not model


def test_a_model_that_cannot_be_copied():
    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"a Linear in training mode cannot be copied .*: call its eval\(\) first"):
        in_eval_mode(model)
    assert in_eval_mode(model.eval()) is model


def test_a_forward_that_would_run_the_original():
    model = nn.Sequential(nn.Dropout())
    inner = model[0].forward
    model[0].forward = lambda x: inner(x) + 0
    with pytest.raises(TypeError, match=r"forward is a function that may hold the original\): call its eval\(\) first"):
        in_eval_mode(model)
