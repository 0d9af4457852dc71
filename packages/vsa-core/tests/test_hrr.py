"""What HRR binding promises beyond the laws: exactness, every shape and type, either algorithm, keys with the right norms."""

import definitions
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vsa_core import hadamard, hrr, mbat


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    return request.param


def loops(x, key):
    """Circular convolution over the broadcast leading axes, vector by vector."""
    x, key = torch.broadcast_tensors(x, key)
    rows = zip(x.reshape(-1, x.shape[-1]), key.reshape(-1, x.shape[-1]), strict=True)
    return torch.stack([definitions.circular_convolution(a, b) for a, b in rows]).reshape(x.shape)


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 64, 127, 129, 257])
def test_bind_is_exact_to_1e_12(dim, device):
    x, key = torch.randn(2, dim, dtype=torch.float64)
    assert_close(hrr.bind(x.to(device), key.to(device)).cpu(), definitions.circular_convolution(x, key), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("x_shape", "key_shape"),
    [
        ((5,), (5,)),
        ((40, 5), (5,)),  # a shared key: circulant
        ((5,), (40, 5)),  # one vector for many keys: the same by commutation
        ((40, 3, 5), (3, 5)),  # three keys shared by a batch: circulant
        ((2, 3, 5), (2, 3, 5)),  # a key each: FFT
        ((2, 1, 5), (3, 5)),
        ((2, 3, 5), (1, 5)),
        ((1, 3, 5), (2, 1, 5)),
        ((200, 200), (1, 200)),
    ],
)
def test_bind_broadcasts(x_shape, key_shape, device):
    x, key = torch.randn(x_shape, dtype=torch.float64), torch.randn(key_shape, dtype=torch.float64)
    if max(x_shape[-1], key_shape[-1]) > 100:
        expected = torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(key)).real
    else:
        expected = loops(x, key)
    assert_close(hrr.bind(x.to(device), key.to(device)).cpu(), expected, rtol=1e-12, atol=1e-12)


class Operations(TorchDispatchMode):
    """Records the operations that torch runs inside a `with` block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name())
        return function(*args, **(kwargs or {}))


def operations(x, key):
    with Operations() as recorded:
        hrr.bind(x, key)
    return recorded.names


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("key_shape", [(500,), (1, 500), (1200, 500)], ids=["shared", "shared 2d", "each"])
def test_large_batches_run_in_blocks_that_change_nothing(key_shape, gradient, one_thread):
    x, key = torch.randn(1200, 500, dtype=torch.float64, requires_grad=gradient), torch.randn(key_shape, dtype=torch.float64)
    assert operations(x, key).count("aten::_fft_c2r") == 3  # 600,000 numbers, 262,144 at a time
    expected = torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(key)).real
    assert_close(hrr.bind(x, key), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own use, at its first forward derivative
def test_blocks_under_transforms(one_thread):
    """vmap over either operand or both, and derivatives forward and backward, of batches of several blocks."""
    keys = torch.randn(2, 1200, 500, dtype=torch.float64)
    x, tangent = torch.randn(2, 1200, 500, dtype=torch.float64)
    expected = torch.stack([hrr.bind(x, key) for key in keys])
    assert_close(torch.vmap(lambda key: hrr.bind(x, key))(keys), expected)
    assert_close(torch.vmap(lambda key: hrr.bind(key, x))(keys), expected)
    assert_close(torch.vmap(hrr.bind)(x.expand(2, -1, -1), keys), expected)
    value, moved = torch.func.jvp(lambda x: hrr.bind(x, keys[0]), (x,), (tangent,))
    assert_close(value, expected[0])
    assert_close(moved, hrr.bind(tangent, keys[0]))
    found = torch.func.grad(lambda x: (hrr.bind(x, keys[0]) * tangent).sum())(x)
    assert_close(found, hrr.unbind(tangent, keys[0]))
    per_key = torch.vmap(torch.func.grad(lambda key: (hrr.bind(x, key) * tangent).sum()))(keys[:, 0])
    assert_close(per_key, hrr.unbind(tangent, x).sum(0).expand(2, -1))


@pytest.mark.parametrize(
    ("x_shape", "key_shape", "by_fft"),
    [((64, 16), (16,), False), ((64, 16), (64, 16), True), ((1000, 512), (512,), True)],
    ids=["a key shared by many", "a key each", "a dim that is too large"],
)
def test_the_circulant_is_used_only_where_it_pays(x_shape, key_shape, by_fft):
    names = operations(torch.randn(x_shape), torch.randn(key_shape))
    assert ("aten::_fft_r2c" in names) == by_fft
    assert ("aten::bmm" in names) != by_fft


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dim", [16, 64, 100, 1024])
def test_half_types_in_and_out_within_2_percent(dtype, shared, dim, device):
    x, keys = torch.randn(64, dim).to(device, dtype), hrr.random_keys(64, dim).to(device, dtype)
    key = keys[0] if shared else keys
    out = hrr.bind(x, key)
    exact = hrr.bind(x.double(), key.double())
    assert out.dtype == dtype
    assert (out.double() - exact).norm() / exact.norm() < 0.02


def test_result_has_the_promoted_type():
    assert hrr.bind(torch.randn(4).bfloat16(), torch.randn(4)).dtype == torch.float32
    assert hrr.unbind(torch.randn(40, 4), torch.randn(4).double()).dtype == torch.float64


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algebra", [hrr, hadamard, mbat], ids=lambda algebra: algebra.__name__)
def test_autocast_changes_neither_type_nor_precision(algebra, shared, device):
    x, keys = torch.randn(64, 16, device=device), algebra.random_keys(64, 16, device=device)
    key = keys[0] if shared else keys
    expected = algebra.bind(x, key)
    with torch.autocast(device, torch.bfloat16):
        out = algebra.bind(x, key)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


def test_non_contiguous_and_empty_operands():
    x = torch.randn(6, 4, dtype=torch.float64).T[:, ::2]  # (4, 3), strided
    key = torch.randn(3, dtype=torch.float64)
    assert_close(hrr.bind(x, key), loops(x, key), rtol=1e-12, atol=1e-12)
    assert hrr.bind(torch.randn(0, 8), torch.randn(8)).shape == (0, 8)
    assert hrr.bind(torch.randn(0, 8), torch.randn(0, 8)).shape == (0, 8)


@pytest.mark.parametrize("operation", [hrr.bind, hrr.unbind])
@pytest.mark.parametrize(("x_shape", "key_shape"), [((2, 3, 5), (3, 5)), ((30, 5), (5,)), ((3, 5), (3, 5)), ((2, 6), (2, 6))])
@pytest.mark.filterwarnings("ignore:Attempting to run cuFFT, but there was no current CUDA context:UserWarning")
def test_gradients(operation, x_shape, key_shape, device):
    x = torch.randn(x_shape, dtype=torch.float64, device=device, requires_grad=True)
    key = torch.randn(key_shape, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(operation, (x, key))
    assert torch.autograd.gradgradcheck(operation, (x, key))


def test_circulant_is_the_key_as_a_matrix():
    key, x = torch.randn(2, 7, dtype=torch.float64)
    assert_close(hrr.circulant(key) @ x, definitions.circular_convolution(x, key))
    assert hrr.circulant(torch.randn(2, 3, 7)).shape == (2, 3, 7, 7)


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (2, 3, 8), (0, 4), (2, 0, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_circulant_equals_a_table_of_indices(shape, dtype, device):
    """Bit for bit, and so do its gradients up to the order of their sums."""
    key = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    index = torch.arange(shape[-1], device=device)
    table = key[..., (index[:, None] - index) % shape[-1]]
    out = hrr.circulant(key)
    assert out.shape == table.shape
    assert torch.equal(out, table)
    weight = torch.randint(-4, 5, out.shape, device=device).to(dtype)  # small whole numbers, so that sums are exact
    assert torch.equal(*(torch.autograd.grad(values, key, weight)[0] for values in (out, table)))


def backward_operations(tensor):
    """Names of all operations of a tensor's gradient."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        function = waiting.pop()
        found.add(function.name())
        waiting += [following for following, _ in function.next_functions if following]
    return found


def test_gradients_of_circulants_add_nothing_by_index():
    key = torch.randn(3, 8, requires_grad=True)
    names = backward_operations(hrr.circulant(key))
    assert "AccumulateGrad" in str(names)
    assert not {name for name in names if any(word in name for word in ("Index", "Gather", "AsStrided", "Put"))}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_circulants_of_vmap_trace_and_meta():
    keys = torch.randn(5, 3, 8)
    assert torch.equal(torch.vmap(hrr.circulant)(keys), hrr.circulant(keys))
    assert torch.equal(torch.vmap(hrr.circulant, in_dims=1)(keys), hrr.circulant(keys.transpose(0, 1)))
    assert torch.equal(torch.jit.trace(hrr.circulant, keys, check_trace=False)(keys + 1), hrr.circulant(keys + 1))
    assert hrr.circulant(keys.to("meta")).shape == (5, 3, 8, 8)


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 65])
def test_key_norms_and_spectra(dim):
    gaussian, unitary = (make(50, dim, dtype=torch.float64) for make in (hrr.random_keys, hrr.unitary_keys))
    assert_close(gaussian.norm(dim=-1), torch.ones(50, dtype=torch.float64))
    assert_close(unitary.norm(dim=-1), torch.ones(50, dtype=torch.float64))
    spectrum = torch.fft.fft(unitary).abs()
    assert_close(spectrum, torch.ones_like(spectrum))


def test_gaussian_keys_are_gaussian():
    """Variance 1/dim and the fourth moment of a Gaussian, 3/dim^2, each within 5 standard errors."""
    entries = hrr.random_keys(100, 1000, dtype=torch.float64).flatten() * 1000**0.5
    assert abs(entries.mean()) < 5 / 1e5**0.5
    assert abs(entries.pow(4).mean() - 3) < 5 * (96 / 1e5) ** 0.5


def test_orthogonal_keys_are_orthonormal():
    keys = hrr.orthogonal_keys(16, 16, dtype=torch.float64)
    assert_close(keys @ keys.T, torch.eye(16, dtype=torch.float64))
