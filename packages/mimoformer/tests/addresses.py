"""A fixture that holds kernels, in Triton's interpreter, to the tensors they are given and to numbers that were written."""

import os

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=os.environ.get("TRITON_INTERPRET") == "1")
def no_number_outside(monkeypatch):
    """Raise IndexError where a kernel reads or writes outside the tensors it was called with; new tensors are full of NaN."""
    from triton.runtime import interpreter

    spans = []

    def remember(executor, arguments, options):
        found = host(executor, arguments, options)
        tensors = [x for x in (*found[0], *found[1].values()) if hasattr(x, "untyped_storage")]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        spans[:] = [(start, start + size) for start, size in storages.items()]
        return found

    def checked(method, number):
        def call(pointers, *others):
            places = pointers.data[others[number].data.astype(bool)]
            size = pointers.get_element_ty().primitive_bitwidth // 8
            known = np.zeros(places.shape, dtype=bool)
            for start, end in spans:
                known |= (places >= start) & (places + size <= end)
            if not known.all():
                raise IndexError(f"{(~known).sum()} of {known.size} numbers lie outside all tensors")
            return method(pointers, *others)

        return call

    host, builder = interpreter.GridExecutor._init_args_hst, interpreter.interpreter_builder
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", remember)
    monkeypatch.setattr(builder, "create_masked_load", checked(builder.create_masked_load, 0))
    monkeypatch.setattr(builder, "create_masked_store", checked(builder.create_masked_store, 1))
    torch.use_deterministic_algorithms(True)  # torch.empty fills tensors with NaN
    yield
    torch.use_deterministic_algorithms(False)
