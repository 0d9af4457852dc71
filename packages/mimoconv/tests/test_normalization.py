"""Images are normalised by one rule, wherever that happens."""

import pytest
import torch
from test_mimoconv import small
from torch.testing import assert_close

from mimoconv import normalization_gain_offset, normalize, predict

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@pytest.mark.parametrize("scale", [255, 15.0])
def test_equals_the_definition(scale):
    images = torch.randint(int(scale) + 1, (4, 3, 5, 6), dtype=torch.uint8)
    out = normalize(images, MEAN, STD, scale=scale)
    assert out.dtype == torch.float32
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    assert_close(out, ((images.double() / scale - mean) / std).float(), rtol=0, atol=1e-6)


def test_one_multiplication_and_one_addition_in_float32():
    means, stds = torch.rand(2, 100, dtype=torch.float64).tolist()
    gain, offset = normalization_gain_offset(tuple(means), tuple(stds))
    assert gain.dtype == offset.dtype == torch.float32
    assert gain.flatten().tolist() == torch.tensor([1 / (255 * std) for std in stds]).tolist()  # from float64, rounded once
    offsets = [-torch.tensor(mean).double().item() / std for mean, std in zip(means, stds, strict=True)]
    assert offset.flatten().tolist() == torch.tensor(offsets).tolist()
    gain, offset = normalization_gain_offset(MEAN, STD)
    images = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8)
    assert torch.equal(normalize(images, list(MEAN), torch.tensor(STD, dtype=torch.float64).tolist()), images * gain + offset)
    assert normalization_gain_offset(MEAN, STD)[0] is gain  # cached
    assert not torch.equal(normalization_gain_offset(MEAN, STD, scale=1)[0], gain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_predict_normalises_alike(dtype):
    mean, std = MEAN[:2], STD[:2]
    model = small(2, mean=mean, std=std).to(dtype)
    images = torch.randint(256, (5, 2, 8, 8), dtype=torch.uint8)
    assert torch.equal(predict(model, images), predict(model, normalize(images, mean, std).to(dtype)))
