"""The operations as their definitions read, in loops too plain to be wrong."""

import torch
from torch import Tensor


def circular_convolution(x: Tensor, key: Tensor) -> Tensor:
    dim = len(x)
    return torch.stack([sum(x[j] * key[(i - j) % dim] for j in range(dim)) for i in range(dim)])


def circular_correlation(x: Tensor, key: Tensor) -> Tensor:
    dim = len(x)
    return torch.stack([sum(x[j] * key[(j - i) % dim] for j in range(dim)) for i in range(dim)])


def elementwise_product(x: Tensor, key: Tensor) -> Tensor:
    return torch.stack([x[i] * key[i] for i in range(len(x))])


def matrix_product(x: Tensor, key: Tensor) -> Tensor:
    return torch.stack([sum(key[i, j] * x[j] for j in range(len(x))) for i in range(len(key))])


def transposed_product(x: Tensor, key: Tensor) -> Tensor:
    return torch.stack([sum(key[j, i] * x[j] for j in range(len(x))) for i in range(key.shape[1])])
