"""CUDA graphs without a GPU: a frozen copy of the network plays a graph, and reads the same memory."""

import copy
from contextlib import contextmanager

import pytest
from torch import nn

from vsa_core import graphs


class Frozen:
    """A graph: all attributes stay as they were, and tensors are read where they were."""

    def __init__(self, model, inputs, pool):
        self.graph, self.pool, self.shared, self.replays = self, lambda: "pool", pool, 0
        self.shape = tuple(inputs[0].shape)
        tensors = {id(tensor): tensor.detach() for tensor in model.buffers()}
        tensors |= {id(tensor): nn.Parameter(tensor.detach(), tensor.requires_grad) for tensor in model.parameters()}
        self.model = copy.deepcopy(model, tensors)

    def replay(self, inputs):
        assert graphs.LOCK._is_owned()
        self.replays += 1
        return self.model(*inputs)


@contextmanager
def frozen_graphs():
    """Let everything count as being on a GPU; yield the list of the graphs that are made."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "Graph", lambda *arguments: made.append(Frozen(*arguments)) or made[-1])
        patch.setattr(graphs, "on_gpu", lambda inputs: True)
        yield made
