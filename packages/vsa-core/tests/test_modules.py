import pytest
import torch
from torch.testing import assert_close

from vsa_core import hadamard, hrr, mbat
from vsa_core.modules import HadamardBinding, HRRBinding, MBATBinding
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
