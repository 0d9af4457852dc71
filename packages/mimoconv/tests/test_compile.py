"""One graph for each n, exports with a dynamic batch, ONNX, and half precision."""

import onnxruntime
import pytest
import torch
from test_mimoconv import small
from torch.testing import assert_close

from mimoconv import create_model

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(onnxscript|onnx_ir|copyreg|torch).*"),
]


@pytest.mark.parametrize("training", [True, False])
def test_compiles_whole_and_at_most_once_per_n(training):
    model = small(4).train(training)
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


def exported(model, n, **options):
    example = torch.randn(3, n, 2, 8, 8, dtype=next(model.parameters()).dtype)
    return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("b")},), **options)


@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("stem", ["conv-norm", "conv-norm-relu"])
def test_exports_with_a_dynamic_batch(n, stem):
    model = small(4, stem=stem).eval()
    x = torch.randn(7, n, 2, 8, 8, dtype=torch.float64)
    assert_close(exported(model, n).module()(x), model(x))


@pytest.mark.parametrize(("name", "n"), [("mimoconv_10_1", 2), ("mimoconv_10_1", 4), ("wide_resnet_10_1", 1)])
def test_onnx_gives_the_same_logits(name, n, tmp_path):
    options = {"capacity": 4, "stem_channels": 16} if name.startswith("mimoconv") else {}
    model = create_model(name, in_channels=2, **options).eval()
    torch.onnx.export(exported(model, n), (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for b in (2, 5):
        x = torch.randn(b, n, 2, 8, 8)
        (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(logits), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem", ["conv-norm", "conv-norm-relu"])
def test_bf16_autocast(training, stem):
    """Logits within a few hundredths of the spread of the exact ones, and gradients for every parameter."""
    model = small(4, width=1, stem=stem).float().train(training)
    x = torch.randn(8, 4, 2, 8, 8)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).std() < 0.1 * exact.std()
    logits.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
