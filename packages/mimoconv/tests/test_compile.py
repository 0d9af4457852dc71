"""One graph for each n, exports with a dynamic batch, ONNX, and half precision."""

import onnxruntime
import pytest
import torch
from test_mimoconv import small
from torch.testing import assert_close

from mimoconv import WideResNet, WideResNetConfig, count_macs, predict

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(onnxscript|onnx_ir|copyreg|torch).*"),
]


def compiled(model):
    """A compiled model, and the list of graphs that it was compiled to."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend=backend), graphs


def test_compiles_whole_and_at_most_once_per_n_in_training():
    model = small(4)
    fast, graphs = compiled(model)
    for _ in range(2):
        for n in (1, 2, 4):
            x = torch.randn(3, n, 2, 8, 8, dtype=torch.float64)
            assert_close(fast(x), model(x))
    assert 1 <= len(graphs) <= 3


def test_compiles_whole_and_at_most_once_per_n_in_predict():
    """The compiled network also keeps its configuration, which normalises uint8 images."""
    model = small(4, mean=(0.5, 0.5), std=(0.25, 0.25)).eval()
    fast, graphs = compiled(model)
    for _ in range(2):
        for n in (1, 2, 4):
            images = torch.randint(256, (3 * n, 2, 8, 8), dtype=torch.uint8)
            assert_close(predict(fast, images, n), predict(model, images, n))
    assert 1 <= len(graphs) <= 3
    assert count_macs(fast, 2) == count_macs(model, 2)


@pytest.mark.parametrize(
    ("options", "n", "to_onnx"),
    [
        ({"stem": "conv-norm"}, 1, False),
        ({"stem": "conv-norm"}, 3, True),
        ({"stem": "conv-norm"}, 4, True),
        ({"stem": "conv-norm-relu"}, 3, False),
        (None, 1, True),
    ],
    ids=["one image", "three in four slots", "four images", "a stem with ReLU", "wide ResNet"],
)
def test_exports_with_a_dynamic_batch(options, n, to_onnx, tmp_path):
    plain = WideResNet(WideResNetConfig(depth=10, width=0.5, in_channels=2))
    model = (plain if options is None else small(4, **options).float()).eval()
    batch = torch.export.Dim("b")
    exported = torch.export.export(model, (torch.randn(3, n, 2, 8, 8),), dynamic_shapes=({0: batch},))
    inputs = [torch.randn(b, n, 2, 8, 8) for b in (2, 7)]
    for x in inputs:
        assert_close(exported.module()(x), model(x))
    if to_onnx:
        torch.onnx.export(exported, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        for x in inputs:
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
