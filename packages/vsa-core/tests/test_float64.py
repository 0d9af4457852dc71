"""On a device without float64, such as MPS, float64 is drawn and summed on the CPU; the meta device stands in for it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vsa_core import float64, hadamard, hrr, interference, mbat

DRAWS = [hrr.random_keys, hrr.unitary_keys, hrr.orthogonal_keys, hadamard.random_keys, mbat.random_keys]


class WithoutFloat64(TorchDispatchMode):
    """Raises an error, as MPS does, where an operation makes float64 on the meta device."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor) and each.is_meta and each.dtype == torch.float64:
                raise TypeError("the device has no float64")
        return made


@pytest.fixture(autouse=True)
def without_float64(monkeypatch):
    monkeypatch.setattr(float64, "DEVICES", ("cpu",))
    with WithoutFloat64():
        yield


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: f"{draw.__module__}.{draw.__name__}")
def test_keys_arrive_where_they_were_asked_for(draw):
    assert draw(2, 4, device="meta").is_meta
    assert not draw(2, 4).is_meta
    with torch.device("meta"):
        assert draw(2, 4).is_meta
        assert not draw(2, 4, device="cpu").is_meta


def test_interference_is_summed_on_the_cpu():
    """What fails is the copy to the CPU, which the meta device alone cannot do."""
    outputs, reference = torch.zeros(2, 3, 4, device="meta"), torch.zeros(3, 4, device="meta")
    for measure, arguments in ((interference.crosstalk, (outputs, reference)), (interference.retrieval_snr, (reference,) * 2)):
        with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
            measure(*arguments)
