import pytest
import torch
from torch.testing import assert_close

from vsa_core import hrr
from vsa_core.penalties import key_orthonormality


def loops(keys):
    n = len(keys)
    cosines = [float(keys[i] @ keys[j] / keys[i].norm() / keys[j].norm()) ** 2 for i in range(n) for j in range(n) if i != j]
    deviations = [(float(key.norm()) - 1) ** 2 for key in keys]
    return (sum(cosines) / len(cosines) if cosines else 0) + sum(deviations) / n


@pytest.mark.parametrize(("n", "dim"), [(1, 1), (1, 8), (2, 8), (5, 3)])
def test_equals_the_loops(n, dim):
    keys = torch.randn(n, dim, dtype=torch.float64)
    assert_close(key_orthonormality(keys).item(), loops(keys))


def test_zero_for_orthonormal_keys_only():
    keys = hrr.orthogonal_keys(4, 8, dtype=torch.float64)
    assert key_orthonormality(keys) < 1e-24
    assert key_orthonormality(1.1 * keys) > 1e-3
    assert key_orthonormality(keys[[0, 0, 1, 2]]) > 1e-3


def test_descent_orthonormalises():
    keys = hrr.random_keys(4, 8, dtype=torch.float64).mul_(3).requires_grad_()
    optimizer = torch.optim.SGD([keys], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        key_orthonormality(keys).backward()
        optimizer.step()
    assert_close((keys @ keys.T).detach(), torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-3)


def test_gradient_is_finite_at_zero_keys():
    keys = torch.zeros(2, 4, requires_grad=True)
    key_orthonormality(keys).backward()
    assert keys.grad.isfinite().all()


def test_half_types_do_not_overflow():
    keys = torch.randn(4, 4096) * 10
    assert_close(key_orthonormality(keys.half()), key_orthonormality(keys.half().double()).float(), rtol=1e-3, atol=0)
