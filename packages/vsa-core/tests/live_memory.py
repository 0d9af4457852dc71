"""The memory of tensors, counted exactly: bytes of what operators make and nobody has dropped yet."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts `now` and at `most` the bytes in memory that was made meanwhile, views and tensors of before aside."""

    def __init__(self, *given):
        super().__init__()
        self.known, self.now, self.most = {tensor.untyped_storage()._cdata for tensor in given}, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self.count(tensor.untyped_storage())
        return made

    def count(self, storage):
        place, size = storage._cdata, storage.nbytes()
        self.known.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, place, size)

    def drop(self, place, size):
        self.known.remove(place)
        self.now -= size
