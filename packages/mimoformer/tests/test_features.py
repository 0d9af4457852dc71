"""Feature maps against their formulas, and what theory says of their noise."""

import loops
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mimoformer.attention import favor_s, favor_s_shared, linear_attention, softmax_attention
from mimoformer.features import DPFPFeatures, PositiveFeatures, RandomFeatures, ReLUFeatures, orthogonal_projection
from vsa_core import float64, hadamard


@pytest.mark.parametrize(("features", "dim"), [(256, 64), (10, 4), (3, 8), (8, 8), (1, 1)])
def test_rows_are_orthogonal_in_blocks(features, dim):
    projection = orthogonal_projection(features, dim).double()
    assert projection.shape == (features, dim)
    for block in projection.split(dim):
        cosine = F.normalize(block, dim=-1) @ F.normalize(block, dim=-1).mT
        assert_close(cosine, torch.eye(len(block), dtype=torch.float64), atol=1e-6, rtol=0)


def test_rows_are_as_long_as_gaussian_vectors_and_point_anywhere(dim=8, features=40_000):
    """Squared lengths have mean d and variance 2d, entries mean 0 and variance 1: each within five standard errors."""
    projection = orthogonal_projection(features, dim, generator=torch.Generator().manual_seed(0)).double()
    squared = projection.square().sum(-1)
    assert abs(squared.mean() - dim) < 5 * (2 * dim / features) ** 0.5
    assert abs(squared.var() / (2 * dim) - 1) < 0.1
    assert (projection.mean(0).abs() < 5 * features**-0.5).all()
    assert (projection.square().mean(0) - 1).abs().max() < 5 * (2 / features) ** 0.5


def test_relu_features_are_the_formula(dim=16):
    phi = ReLUFeatures(dim, 40, eps=1e-3).double()
    x = torch.randn(3, 5, dim, dtype=torch.float64)
    assert_close(phi(x), torch.relu(x @ phi.projection.mT / dim**0.25) + 1e-3)


def test_relu_features_are_homogeneous_but_for_eps(dim=16):
    phi = ReLUFeatures(dim, 40, eps=0)
    x = torch.randn(5, dim)
    assert_close(phi(3 * x), 3 * phi(x))


@pytest.mark.parametrize("nu", [1, 2, 3])
@pytest.mark.parametrize("dim", [1, 4, 5])
@pytest.mark.parametrize("eps", [0, 1e-3])
def test_dpfp_features_are_the_loop(nu, dim, eps):
    x = torch.randn(6, dim, dtype=torch.float64)
    phi = DPFPFeatures(nu, eps=eps)(x)
    assert phi.shape == (6, 2 * nu * dim)
    assert_close(phi, torch.stack([loops.dpfp(row, nu, eps) for row in x]))


def test_drawing_again_is_in_place_and_repeatable():
    phi = ReLUFeatures(8, 20, generator=torch.Generator().manual_seed(1))
    before, storage = phi.projection.clone(), phi.projection.data_ptr()
    phi.redraw(torch.Generator().manual_seed(2))
    assert phi.projection.data_ptr() == storage
    assert not torch.equal(phi.projection, before)
    phi.redraw(torch.Generator().manual_seed(1))
    assert torch.equal(phi.projection, before)
    assert list(phi.state_dict()) == ["projection"]
    assert not list(phi.parameters())
    assert "dim=8, features=20" in repr(phi)


SEEDS = 400


def kernel_estimates(q, k, features):
    """phi(k) . phi(q) for SEEDS draws of W."""
    phi, estimates = PositiveFeatures(q.shape[-1], features), []
    for seed in range(SEEDS):
        phi.redraw(torch.Generator().manual_seed(seed))
        estimates.append((phi(q) * phi(k)).sum(-1))
    return torch.stack(estimates).double()


def test_positive_features_estimate_the_softmax_kernel_without_bias(dim=16, features=64):
    """The mean over seeds is exp(<k, q> / sqrt(d)), to 4.5 standard errors for each of 50 pairs; its mean square error is at most
    exp(|x + y|^2) SM^2 (1 - exp(-|x + y|^2)) / R with x, y = q, k / d^(1/4), that of rows drawn independently
    (Choromanski et al., 2021, Lemma 2; by Theorem 2 orthogonal ones do better): the median pair has 50 to 100 % of that. Single
    pairs scatter more, as the fourth moments of log-normal features are large.
    """
    torch.manual_seed(0)
    q, k = 0.4 * torch.randn(2, 50, dim)
    kernel = ((q * k).sum(-1) / dim**0.5).exp().double()
    estimates = kernel_estimates(q, k, features)
    assert ((estimates.mean(0) - kernel).abs() < 4.5 * estimates.std(0) / SEEDS**0.5).all()
    total = ((q + k).square().sum(-1) / dim**0.5).double()
    independent = total.exp() * kernel.square() * (1 - (-total).exp()) / features
    ratio = (estimates - kernel).square().mean(0) / independent
    assert 0.5 < ratio.median() < 1


def test_bias_and_variance_of_attention_with_positive_features(dim=16, length=12):
    """Against exact softmax attention. It divides two estimates, so it has a bias of order 1/R beside a variance of order 1/R:
    over 400 draws of W the root mean square error is at most 0.25 of the output at R = 64 and half of that at R = 256 (0.4 to
    0.6), and the bias is below a fifth of that error, where pure noise would leave a twentieth.
    """
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, length, dim)
    q, k = q / 2, k / 2
    exact = softmax_attention(q, k, v).double()
    spread, bias = {}, {}
    for features in (64, 256):
        phi, outs = PositiveFeatures(dim, features), []
        for seed in range(SEEDS):
            phi.redraw(torch.Generator().manual_seed(seed))
            outs.append(linear_attention(q, k, v, phi).double())
        errors = torch.stack(outs) - exact
        spread[features] = errors.square().mean().sqrt() / exact.square().mean().sqrt()
        bias[features] = errors.mean(0).square().mean().sqrt() / exact.square().mean().sqrt()
    assert spread[64] < 0.25
    assert 0.4 < spread[256] / spread[64] < 0.6
    assert bias[64] < 0.2 * spread[64]
    assert bias[256] < 0.2 * spread[256]


@pytest.mark.parametrize("causal", [False, True])
def test_stabilisers_keep_long_vectors_exact(causal):
    """Exponents of hundreds, whose exponentials no float32 holds: it gives what float64 gives."""
    torch.manual_seed(0)
    phi = PositiveFeatures(8, 16)
    q, k, v = torch.randn(3, 2, 3, 20, 8)
    q, k = 8 * q, 8 * k
    assert (phi(k).sum(-1) == 0).any()
    out = linear_attention(q, k, v, phi, causal=causal)
    exact = linear_attention(q.double(), k.double(), v.double(), phi.double(), causal=causal)
    assert (out.double() - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("function", [favor_s, favor_s_shared])
@pytest.mark.parametrize("scale", [1, 4, 16, 64])
def test_a_slot_that_the_others_drown_stays_finite(causal, function, scale):
    """Its denominator can be 10^-40 of what the numerator holds: the quotient would be infinite, and is 0 instead. Not above
    8 rounding units, it is at most a million times the values; gradients are finite too. Also where all that drowns a slot
    stands in columns beside it, at tokens that are padding in its own.
    """
    phi, keys = PositiveFeatures(8, 16), hadamard.random_keys(4, 8).unflatten(0, (2, 2))
    for seed in range(8):
        torch.manual_seed(seed)
        phi.redraw()
        q, k, v = torch.randn(3, 2, 2, 2, 3, 20, 8)
        q, k, v = (scale * q).requires_grad_(), (scale * k).requires_grad_(), v.requires_grad_()
        left = (torch.arange(20) < torch.randint(1, 21, (2, 2, 2, 1))).flip(-1)
        for mask in (None, left, torch.rand(2, 2, 2, 20) < 0.5):
            out = function(q, k, v, keys, phi, mask, causal=causal)
            assert out.abs().max() < 1e7
            grads = torch.autograd.grad(out.square().mean(), (q, k, v))
            assert all(grad.isfinite().all() for grad in grads)


def test_queries_and_keys_are_divided_by_their_own_largest_features():
    phi = PositiveFeatures(8, 16)
    x = 5 * torch.randn(2, 3, 4, 10, 8)
    assert_close(phi.query(x).amax(-1), torch.ones(2, 3, 4, 10))
    assert_close(phi.key(x).amax((1, 3, 4)), torch.ones(2, 4))
    mask = torch.rand(2, 3, 10) < 0.5
    real = mask[:, :, None, :, None]
    hidden = x.masked_fill(~real, 0)  # whose exponent, 0, is larger than those of long vectors
    assert_close(phi.key(hidden, mask).amax((1, 3, 4)), torch.ones(2, 4))
    assert torch.equal(phi.key(hidden, mask).masked_fill(real, 0), torch.zeros(2, 3, 4, 10, 16))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: RandomFeatures(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: ReLUFeatures(8, 0), ValueError, "features must be at least 1, got 0"),
        (lambda: PositiveFeatures(8, 2.5), TypeError, r"features must be a whole number, got 2\.5"),
        (lambda: DPFPFeatures(0), ValueError, "nu must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_a_projection_is_drawn_where_float64_is(monkeypatch):
    """On the CPU for a device without it, such as MPS, for which meta stands in."""
    draw, places = torch.randn, []

    def noted(*shape, **options):
        places.append(str(options["device"]))
        return draw(*shape, **options)

    monkeypatch.setattr(float64, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "randn", noted)
    with torch.device("meta"):
        assert orthogonal_projection(6, 4).is_meta
    assert places == ["cpu", "cpu"]
