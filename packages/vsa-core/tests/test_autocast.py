"""Every type meets every other, with and without autocast: the promoted type, or an error in our words. And traces."""

from itertools import product

import pytest
import torch

from vsa_core import hadamard, hrr, interference, mbat, penalties, superposition
from vsa_core.autocast import check_meeting, half_types_clash
from vsa_core.modules import HadamardBinding, HRRBinding, MBATBinding

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AUTOCASTS = (None, torch.float16, torch.bfloat16)
OTHERS = (torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
TWO = {
    **{f"{a.__name__}.bind": lambda x, dtype, a=a: a.bind(x, a.random_keys(3, 8, dtype=dtype)) for a in (hrr, hadamard, mbat)},
    **{
        f"{a.__name__}.unbind": lambda x, dtype, a=a: a.unbind(x, a.random_keys(3, 8, dtype=dtype)) for a in (hrr, hadamard, mbat)
    },
    **{m.__name__: lambda x, dtype, m=m: m(3, 8).to(dtype).superpose(x) for m in (HRRBinding, HadamardBinding, MBATBinding)},
}
"""Functions of vectors (3 8) in one type and keys in another, which give the promoted type."""
ONE = {
    "involution": hrr.involution,
    "circulant": hrr.circulant,
    "bundle": superposition.bundle,
    "key_orthonormality": penalties.key_orthonormality,
    "crosstalk": lambda x: interference.crosstalk(x, x.flip(0)),
    "retrieval_snr": lambda x: interference.retrieval_snr(x, x.flip(0)),
}
"""Functions of vectors (3 8)."""


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype is not None)


@pytest.mark.parametrize("autocast_dtype", AUTOCASTS)
@pytest.mark.parametrize("name", TWO)
def test_two_types_promote_whatever_autocast_says(name, autocast_dtype):
    for own, other in product(DTYPES, DTYPES):
        torch.manual_seed(0)
        exact = TWO[name](torch.ones(3, 8, dtype=torch.float64), torch.float64)
        torch.manual_seed(0)
        with autocast(autocast_dtype):
            found = TWO[name](torch.ones(3, 8, dtype=own), other)
        assert found.dtype == torch.promote_types(own, other)
        assert (found.double() - exact).abs().max() < 0.1


@pytest.mark.parametrize("autocast_dtype", AUTOCASTS)
@pytest.mark.parametrize("name", ONE)
def test_one_type_gives_the_same_numbers_whatever_autocast_says(name, autocast_dtype):
    for dtype in DTYPES:
        x = torch.randn(3, 8).to(dtype)
        expected = ONE[name](x)
        with autocast(autocast_dtype):
            assert torch.equal(ONE[name](x), expected)


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", OTHERS)
@pytest.mark.parametrize("name", [*TWO, *ONE])
def test_other_types_are_refused(name, dtype):
    x = torch.ones(3, 8).to(dtype)
    with pytest.raises(TypeError, match=f"{dtype}; convert it to a real floating-point type"):
        TWO[name](x, torch.float32) if name in TWO else ONE[name](x)


def meets(own, weight, autocast_dtype):
    """Whether a linear layer computes, which is torch's own answer."""
    try:
        with autocast(autocast_dtype):
            torch.nn.functional.linear(torch.ones(2, 8, dtype=own), torch.ones(3, 8, dtype=weight))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(("own", "weight", "autocast_dtype"), [*product(DTYPES, DTYPES, AUTOCASTS)])
def test_types_may_meet_where_torch_computes(own, weight, autocast_dtype):
    with autocast(autocast_dtype):
        if meets(own, weight, autocast_dtype):
            check_meeting("vectors", torch.ones(1, dtype=own), torch.ones(1, dtype=weight))
        else:
            with pytest.raises(TypeError, match=f"vectors of {own} meet weights of {weight}: convert either"):
                check_meeting("vectors", torch.ones(1, dtype=own), torch.ones(1, dtype=weight))


@pytest.mark.parametrize(("weight", "autocast_dtype"), [*product(DTYPES, AUTOCASTS)])
def test_norms_mix_no_half_types(weight, autocast_dtype):
    """Torch's own answer, for the type that autocast gives to what a layer before them returns."""
    own = autocast_dtype if autocast_dtype and weight != torch.float64 else weight
    try:
        torch.nn.BatchNorm1d(3, dtype=weight)(torch.randn(4, 3, dtype=own))
        works = True
    except RuntimeError:
        works = False
    with autocast(autocast_dtype):
        assert (half_types_clash(torch.ones(1, dtype=weight)) is None) == works


def test_quantised_weights_and_meta_tensors():
    check_meeting("vectors", torch.ones(1), torch.ones(1, dtype=torch.int8))
    with autocast(torch.bfloat16):
        check_meeting("vectors", torch.ones(1, device="meta", dtype=torch.float16), torch.ones(1, device="meta"))
    assert mbat.bind(torch.ones(3, 8, device="meta"), torch.ones(8, 8, device="meta")).is_meta


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("dim", [8, 512])
@pytest.mark.parametrize("module", [HRRBinding, HadamardBinding, MBATBinding])
def test_a_trace_takes_other_numbers_of_vectors_and_axes(module, dim):
    """Also more than one block of the CPU's FFT holds."""
    binding = module(3, dim)
    traced = torch.jit.trace(binding, torch.randn(5, 3, dim), check_trace=False)
    for leading in ((2,), (2, 4), (700,)):
        x = torch.randn(*leading, 3, dim)
        torch.testing.assert_close(traced(x), binding(x), rtol=1e-4, atol=1e-4)
