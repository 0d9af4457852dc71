"""Keys come from their generator, and every wrong argument is refused with its value and a remedy."""

import math

import pytest
import torch

from vsa_core import hadamard, hrr, interference, mbat, penalties, slots, superposition
from vsa_core.modules import HRRBinding

pytestmark = pytest.mark.unchecked  # these errors are ours, not the shape checker's
KEY_MAKERS = [hrr.random_keys, hrr.unitary_keys, hrr.orthogonal_keys, hadamard.random_keys, mbat.random_keys]
every_maker = pytest.mark.parametrize("make_keys", KEY_MAKERS, ids=lambda make: f"{make.__module__}.{make.__name__}")
every_algebra = pytest.mark.parametrize("algebra", [hrr, hadamard, mbat], ids=lambda algebra: algebra.__name__)


@every_maker
def test_keys_are_a_function_of_the_generator(make_keys):
    def keys(seed):
        return make_keys(3, 8, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(keys(1), keys(1))
    assert not torch.equal(keys(1), keys(2))


@every_maker
def test_keys_have_the_type_and_device_asked_for(make_keys):
    assert make_keys(3, 8).dtype == torch.float32
    assert make_keys(3, 8, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert make_keys(3, 8, device="cpu").shape[:2] == (3, 8)


@every_maker
@pytest.mark.parametrize(
    ("n", "dim", "named"), [(0, 8, "n must be at least 1, got 0"), (2, -1, "dim must be at least 1, got -1")]
)
def test_too_few_keys_or_dims(make_keys, n, dim, named):
    with pytest.raises(ValueError, match=named):
        make_keys(n, dim)


@every_maker
def test_integer_keys(make_keys):
    with pytest.raises(TypeError, match=r"torch\.int64; choose a floating-point type"):
        make_keys(2, 8, dtype=torch.int64)


@every_maker
@pytest.mark.parametrize(("n", "dim", "named"), [(2.0, 8, "n must be a whole number, got 2.0"), (2, "8", "dim .* got '8'")])
def test_counts_that_are_not_whole(make_keys, n, dim, named):
    with pytest.raises(TypeError, match=named):
        make_keys(n, dim)


def test_matrix_keys_are_uniform():
    """Under the Haar measure the trace has mean 0 and variance 1 (from dim 2 on; at dim 1 it is a fair sign)."""
    for dim in (1, 3):
        traces = mbat.random_keys(2000, dim).diagonal(dim1=1, dim2=2).sum(1)
        assert abs(traces.mean()) < 5 / 2000**0.5
        assert abs(traces.var() - 1) < 0.2


def test_more_orthogonal_keys_than_dims():
    with pytest.raises(ValueError, match="9 orthogonal keys of dim 8 do not exist, only up to 8"):
        hrr.orthogonal_keys(9, 8)


@every_algebra
@pytest.mark.parametrize("operation", ["bind", "unbind"])
def test_mismatched_dims(algebra, operation):
    (key,) = algebra.random_keys(1, 8)
    with pytest.raises(ValueError, match="x has dim 7 and key has dim 8"):
        getattr(algebra, operation)(torch.randn(7), key)
    with pytest.raises(ValueError, match="at least 1"):
        getattr(algebra, operation)(torch.randn(3, 0), key[..., :0, :0] if algebra is mbat else key[:0])


@every_algebra
def test_leading_axes_that_do_not_broadcast(algebra):
    with pytest.raises(ValueError, match=r"x \(2,\) and key \(3,\) do not broadcast"):
        algebra.bind(torch.randn(2, 8), algebra.random_keys(3, 8))


@every_algebra
@pytest.mark.parametrize("operation", ["bind", "unbind"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_operands_that_are_not_real_floating_point(algebra, operation, dtype):
    keys = algebra.random_keys(1, 8)
    with pytest.raises(TypeError, match=f"x has dtype {dtype}"):
        getattr(algebra, operation)(torch.zeros(8, dtype=dtype), keys[0])
    with pytest.raises(TypeError, match=f"key has dtype {dtype}"):
        getattr(algebra, operation)(torch.zeros(8), keys[0].to(dtype))


@every_algebra
def test_scalars(algebra):
    with pytest.raises(ValueError, match="need a last axis"):
        algebra.bind(torch.tensor(1.0), algebra.random_keys(1, 8)[0])


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: superposition.bundle(torch.zeros(3)), ValueError, r"shape \(3,\)"),
        (lambda: superposition.bundle(torch.zeros(3, 2).long()), TypeError, "int64"),
        (
            lambda: superposition.superpose(torch.zeros(3, 8), torch.zeros(2, 8), hrr.bind),
            ValueError,
            r"2 keys: x must be \(\.\.\., 2, dim",
        ),
        (lambda: slots.assignment(0, 4), ValueError, "0 superposed inputs, but there are 4 slots"),
        (lambda: slots.assignment(5, 4), ValueError, "n must be from 1 to 4"),
        (lambda: superposition.superpose(torch.zeros(3, 8), torch.tensor(1.0), hrr.bind), ValueError, "keys is a scalar"),
        (lambda: slots.assignment(2.0, 4), TypeError, r"n must be a whole number, got 2\.0"),
        (lambda: slots.group(torch.zeros(3), 0), ValueError, "n must be at least 1, got 0"),
        (lambda: slots.group(torch.zeros(3), 1.5), TypeError, r"n must be a whole number, got 1\.5"),
        (lambda: slots.ungroup(torch.zeros(3, 2), 2.0), TypeError, r"count must be a whole number, got 2\.0"),
        (lambda: hrr.circulant(torch.ones(3).long()), TypeError, "key has dtype torch.int64"),
        (lambda: hrr.circulant(torch.tensor(1.0)), ValueError, r"key has shape \(\)"),
        (lambda: hrr.involution(torch.ones(3).long()), TypeError, "key has dtype torch.int64"),
        (lambda: hrr.involution(torch.ones(2, 0)), ValueError, r"key has shape \(2, 0\)"),
        (lambda: slots.group(torch.tensor(1.0), 2), ValueError, "scalar"),
        (lambda: slots.ungroup(torch.zeros(3), 2), ValueError, r"shape \(3,\)"),
        (lambda: slots.ungroup(torch.zeros(3, 2), 7), ValueError, "cannot take 7 items from 3 groups of 2"),
        (lambda: slots.ungroup(torch.zeros(3, 2), -1), ValueError, "from 0 to 6"),
        (lambda: penalties.key_orthonormality(torch.zeros(8)), ValueError, r"shape \(8,\)"),
        (lambda: penalties.key_orthonormality(torch.zeros(0, 8)), ValueError, "n >= 1"),
        (lambda: penalties.key_orthonormality(torch.zeros(2, 8).long()), TypeError, "int64"),
        (lambda: interference.crosstalk(torch.zeros(3, 2), torch.zeros(4, 2)), ValueError, r"\(3, 2\) and reference \(4, 2\)"),
        (
            lambda: interference.crosstalk(torch.zeros(1, 2), torch.zeros(1, 2)),
            ValueError,
            "got 1 inputs; a variance needs at least 2",
        ),
        (lambda: interference.crosstalk(torch.ones(3, 2), torch.ones(3, 2)), ValueError, "do not vary"),
        (lambda: interference.crosstalk(torch.eye(2) * math.nan, torch.eye(2)), ValueError, "are not finite"),
        (lambda: interference.crosstalk(torch.eye(2), torch.eye(2) * math.inf), ValueError, "are not finite"),
        (lambda: interference.crosstalk(torch.ones(3, 2).long(), torch.ones(3, 2)), TypeError, "outputs has dtype torch.int64"),
        (
            lambda: interference.crosstalk(torch.ones(0, 3, 2), torch.ones(3, 2)),
            ValueError,
            "at least one redraw and one feature",
        ),
        (lambda: interference.crosstalk(torch.ones(3, 0), torch.ones(3, 0)), ValueError, "at least one redraw and one feature"),
        (lambda: mbat.unbind(torch.ones(3), torch.ones(3)), ValueError, r"key has shape \(3,\)"),
        (lambda: HRRBinding(2, 4).unbind(torch.tensor(1.0)), ValueError, r"s has shape \(\)"),
        (lambda: hrr.random_keys(True, 4), TypeError, "n must be a whole number, got True"),
        (lambda: hrr.bind([1.0, 2.0], torch.ones(2)), TypeError, "x is a list; it must be a tensor"),
        (lambda: hrr.bind(torch.ones(2), None), TypeError, "key is a NoneType"),
        (lambda: slots.group([1, 2], 2), TypeError, "items is a list"),
        (lambda: slots.ungroup([[1, 2]], 2), TypeError, "groups is a list"),
        (lambda: superposition.superpose([1.0], torch.ones(1, 8), hrr.bind), TypeError, "x is a list"),
        (lambda: superposition.superpose(torch.ones(1, 8), None, hrr.bind), TypeError, "keys is a NoneType"),
        (lambda: HRRBinding(2, 4)(None), TypeError, "x is a NoneType"),
        (lambda: interference.retrieval_noise(2.5, 8), TypeError, r"n must be a whole number, got 2\.5"),
        (lambda: interference.attention_score_bounds(2, 2, 8, alpha=math.nan, cosine=1), ValueError, "got nan"),
        (lambda: interference.attention_score_bounds(2, 2, 8, alpha=math.inf, cosine=1), ValueError, "got inf"),
        (lambda: interference.attention_score_bounds(2, 2, 8, alpha=1, cosine=math.nan), ValueError, "got nan"),
        (lambda: interference.retrieval_snr(torch.ones(3), torch.ones(4)), ValueError, r"\(3,\) and reference \(4,\)"),
        (lambda: interference.retrieval_snr(torch.ones(3), torch.zeros(3)), ValueError, "zero everywhere"),
        (lambda: interference.retrieval_noise(0, 8), ValueError, "n must be at least 1, got 0"),
        (lambda: interference.attention_score_bounds(2, 0, 8, alpha=1, cosine=1), ValueError, "m must be at least 1, got 0"),
        (
            lambda: interference.attention_score_bounds(2, 2, 8, alpha=0, cosine=1),
            ValueError,
            "alpha must be above 0 and finite, got 0",
        ),
        (lambda: interference.attention_score_bounds(2, 2, 8, alpha=1, cosine=1.5), ValueError, r"got 1\.5"),
        (lambda: interference.attention_score_bounds(2, 2, 8, alpha=1, cosine=0), ValueError, "not 0, got 0"),
    ],
)
def test_wrong_arguments(call, error, named):
    with pytest.raises(error, match=named):
        call()
