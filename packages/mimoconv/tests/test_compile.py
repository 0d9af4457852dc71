"""One graph for each n, and an export with a dynamic batch."""

import pytest
import torch
from test_mimoconv import small
from torch.testing import assert_close

pytestmark = pytest.mark.unchecked


def test_compiles_whole_and_at_most_once_per_n():
    model = small(4).eval()
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(2):
        for n in (1, 2, 4):
            x = torch.randn(3, n, 2, 8, 8, dtype=torch.float64)
            assert_close(compiled(x), model(x))
    assert len(graphs) <= 3


@pytest.mark.parametrize("n", [1, 3, 4])
def test_exports_with_a_dynamic_batch(n):
    model = small(4).eval()
    x = torch.randn(3, n, 2, 8, 8, dtype=torch.float64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    x = torch.randn(7, n, 2, 8, 8, dtype=torch.float64)
    assert_close(exported(x), model(x))
