"""Each law once, for every algebra, beside the definitions."""

import definitions
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from vsa_core import hadamard, hrr, mbat
from vsa_core.interference import retrieval_noise
from vsa_core.superposition import bundle, superpose

ALGEBRAS = [hrr, hadamard, mbat]
KEYS = [(hrr, hrr.unitary_keys), (hadamard, hadamard.random_keys), (mbat, mbat.random_keys)]
"""Every algebra with keys that rotate: unbinding inverts them exactly."""
every_algebra = pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda algebra: algebra.__name__)
every_key = pytest.mark.parametrize(("algebra", "make_keys"), KEYS, ids=[algebra.__name__ for algebra, _ in KEYS])
seeds = st.integers(0, 2**31)
dims = st.one_of(st.integers(1, 40), st.sampled_from([64, 97, 128, 129]))


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(n: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, dim, generator=generator, dtype=torch.float64)


DEFINITIONS = {
    (hrr, "bind"): definitions.circular_convolution,
    (hrr, "unbind"): definitions.circular_correlation,
    (hadamard, "bind"): definitions.elementwise_product,
    (hadamard, "unbind"): definitions.elementwise_product,
    (mbat, "bind"): definitions.matrix_product,
    (mbat, "unbind"): definitions.transposed_product,
}


@pytest.mark.parametrize(
    ("operation", "definition", "make_keys"),
    [
        (hrr.bind, definitions.circular_convolution, hrr.random_keys),
        (hrr.unbind, definitions.circular_correlation, hrr.random_keys),
        (hadamard.bind, definitions.elementwise_product, hadamard.random_keys),
        (hadamard.unbind, definitions.elementwise_product, hadamard.random_keys),
        (mbat.bind, definitions.matrix_product, mbat.random_keys),
        (mbat.unbind, definitions.transposed_product, mbat.random_keys),
    ],
    ids=["hrr.bind", "hrr.unbind", "hadamard.bind", "hadamard.unbind", "mbat.bind", "mbat.unbind"],
)
@given(dim=st.integers(1, 33), seed=seeds)
def test_equals_its_definition(operation, definition, make_keys, dim, seed):
    generator = draw(seed)
    (x,), (key,) = vectors(1, dim, generator), make_keys(1, dim, generator=generator, dtype=torch.float64)
    assert_close(operation(x, key), definition(x, key), rtol=1e-12, atol=1e-12)


@every_algebra
@pytest.mark.parametrize("operation", ["bind", "unbind"])
@given(
    count=st.integers(0, 3),
    dim=st.integers(1, 17),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["contiguous", "transposed", "every other", "expanded"]),
    seed=seeds,
)
def test_batches_of_any_size_type_and_layout_equal_the_definition(algebra, operation, count, dim, dtype, layout, seed):
    """One by one in float64, within the rounding of the type."""
    generator = draw(seed)
    keys = algebra.random_keys(max(1, count), dim, generator=generator).to(dtype)[:count]
    x = vectors(2 * count, dim, generator).to(dtype)
    match layout:
        case "transposed":
            x, keys = x[:count].T.contiguous().T, keys.mT.contiguous().mT
        case "every other":
            x = x[::2]
        case "expanded":
            x = x[:1].expand(count, -1)
        case _:
            x = x[:count]
    found = getattr(algebra, operation)(x, keys)
    assert (found.shape, found.dtype) == ((count, dim), dtype)
    for row, one, key in zip(found, x, keys, strict=True):
        exact = DEFINITIONS[algebra, operation](one.double(), key.double())
        assert (row.double() - exact).norm() <= 4 * torch.finfo(dtype).eps * one.double().norm() * max(1.0, key.double().norm())


@every_algebra
@given(dim=dims, seed=seeds, scale=st.floats(-10, 10))
def test_bind_is_linear_so_it_distributes_over_bundle(algebra, dim, seed, scale):
    generator = draw(seed)
    xs, (key,) = vectors(3, dim, generator), algebra.random_keys(1, dim, generator=generator, dtype=torch.float64)
    assert_close(algebra.bind(bundle(xs), key), bundle(algebra.bind(xs, key)), rtol=1e-10, atol=1e-10)
    assert_close(algebra.bind(scale * xs, key), scale * algebra.bind(xs, key), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("algebra", [hrr, hadamard], ids=["hrr", "hadamard"])
@given(dim=dims, seed=seeds)
def test_bind_commutes_and_associates(algebra, dim, seed):
    x, y, z = vectors(3, dim, draw(seed))
    assert_close(algebra.bind(x, y), algebra.bind(y, x), rtol=1e-10, atol=1e-10)
    assert_close(algebra.bind(algebra.bind(x, y), z), algebra.bind(x, algebra.bind(y, z)), rtol=1e-10, atol=1e-10)


def test_matrix_binding_does_not_commute():
    a, b = mbat.random_keys(2, 8, dtype=torch.float64)
    x = torch.randn(8, dtype=torch.float64)
    assert not torch.allclose(mbat.bind(mbat.bind(x, a), b), mbat.bind(mbat.bind(x, b), a))


@every_key
@given(dim=dims, seed=seeds)
def test_unbind_inverts_bind(algebra, make_keys, dim, seed):
    generator = draw(seed)
    x, keys = vectors(3, dim, generator), make_keys(3, dim, generator=generator, dtype=torch.float64)
    assert_close(algebra.unbind(algebra.bind(x, keys), keys), x, rtol=1e-9, atol=1e-9)
    assert_close(algebra.bind(algebra.unbind(x, keys), keys), x, rtol=1e-9, atol=1e-9)


@every_key
@given(dim=dims, seed=seeds)
def test_binding_preserves_similarity(algebra, make_keys, dim, seed):
    generator = draw(seed)
    (x, y), (key,) = vectors(2, dim, generator), make_keys(1, dim, generator=generator, dtype=torch.float64)
    assert_close(algebra.bind(x, key) @ algebra.bind(y, key), x @ y, rtol=1e-9, atol=1e-9)


@every_key
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_retrieval_cosine_is_one_over_sqrt_n(algebra, make_keys, n, dim=512):
    """n - 1 crosstalk terms as long as the signal and nearly orthogonal to it; 5 standard deviations of 1/sqrt(dim)."""
    generator = draw(n)
    x, keys = vectors(n, dim, generator), make_keys(n, dim, generator=generator, dtype=torch.float64)
    retrieved = algebra.unbind(superpose(x, keys, algebra.bind), keys)
    assert (F.cosine_similarity(retrieved, x) - n**-0.5).abs().max() < 5 * dim**-0.5


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_retrieval_cosine_with_gaussian_keys_is_one_over_sqrt_n_plus_1(n, dim=1024):
    """The key's own uneven spectrum counts as one more term."""
    generator = draw(n)
    x, keys = vectors(n, dim, generator), hrr.random_keys(n, dim, generator=generator, dtype=torch.float64)
    retrieved = hrr.unbind(superpose(x, keys, hrr.bind), keys)
    assert (F.cosine_similarity(retrieved, x) - (n + 1) ** -0.5).abs().max() < 5 * dim**-0.5


FULL = [(n, dim) for n in (1, 2, 3, 4, 8, 16) for dim in (64, 65, 127, 128, 256)]


@pytest.mark.parametrize(
    ("algebra", "make_keys", "unitary"),
    [*((algebra, make_keys, True) for algebra, make_keys in KEYS), (hrr, hrr.random_keys, False)],
    ids=["hrr", "hadamard", "mbat", "hrr gaussian"],
)
@pytest.mark.parametrize(
    ("n", "dim"), [(2, 64), (3, 65), (4, 64), *(pytest.param(*sizes, marks=pytest.mark.torture) for sizes in FULL)]
)
def test_mean_retrieval_cosine_over_100_seeds(algebra, make_keys, unitary, n, dim):
    """Within three standard errors of 1 / sqrt(1 + noise), which a finite dim changes by 1 / dim at most."""
    cosines = []
    for seed in range(100):
        generator = draw(seed)
        x, keys = vectors(n, dim, generator), make_keys(n, dim, generator=generator, dtype=torch.float64)
        cosines.append(F.cosine_similarity(algebra.unbind(superpose(x, keys, algebra.bind), keys[0]), x[0], dim=0))
    found, expected = torch.stack(cosines), (1 + retrieval_noise(n, dim, unitary=unitary)) ** -0.5
    assert (found.mean() - expected).abs() <= 3 * found.std() / 10 + 1 / dim


@pytest.mark.parametrize(
    ("algebra", "make_keys", "unitary"),
    [*((algebra, make_keys, True) for algebra, make_keys in KEYS), (hrr, hrr.random_keys, False)],
    ids=["hrr", "hadamard", "mbat", "hrr gaussian"],
)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("dim", [1, 2, 7, 16])
def test_retrieval_noise_is_what_theory_expects(algebra, make_keys, unitary, n, dim):
    """The mean of 4,000 independent trials lies within 4 of its own standard errors of the expectation."""
    generator = draw(100 * n + dim)
    trials = 4000
    keys = make_keys(trials * n, dim, generator=generator, dtype=torch.float64)
    keys = keys.unflatten(0, (trials, n))
    x = torch.randn(trials, n, dim, generator=generator, dtype=torch.float64)
    retrieved = algebra.unbind(bundle(algebra.bind(x, keys))[:, None], keys)[:, 0]
    noise = (retrieved - x[:, 0]).square().sum(-1) / dim  # E|x|^2 = dim
    expected = retrieval_noise(n, dim, unitary=unitary)
    assert (noise.mean() - expected).abs() <= 4 * noise.std() / trials**0.5 + 1e-12
