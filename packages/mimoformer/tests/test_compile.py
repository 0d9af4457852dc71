"""One graph for each grid, exports with a dynamic batch, ONNX, and half precision."""

import onnxruntime
import pytest
import torch
from test_model import HEADS, every_variant, small, some_tokens
from torch.testing import assert_close

from mimoformer import causal

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(onnxscript|onnx_ir|copyreg|torch).*"),
]
GRIDS = [(1, 1), (1, 3), (2, 3)]


KINDS = [("att", "classes", "relu"), ("att+mlp", "pair", "positive"), ("att", "last", "dpfp"), ("att+mlp", "tokens", "positive")]
"""Every variant, head and feature map at least once."""


@pytest.mark.parametrize(("variant", "head", "attention"), KINDS)
def test_compiles_whole_and_at_most_once_per_grid(variant, head, attention, monkeypatch):
    monkeypatch.setattr(causal, "CHUNK", 4)
    model = small(variant=variant, head=head, attention=attention, layers=1, dropout=0.0).train()
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for _ in range(2):
        for m, n in GRIDS:
            tokens, mask = some_tokens(model, m=m, n=n)
            assert_close(compiled(tokens, mask), model(tokens, mask))
    assert len(graphs) <= len(GRIDS)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "attention"), [("att", "positive"), ("att+mlp", "relu")])
def test_steps_compile_whole(variant, attention):
    """At most three graphs, for the first step, the second, and all after them."""
    model = small(variant=variant, head="tokens", attention=attention, layers=1)
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.step, fullgraph=True, backend=backend)
    tokens, mask = some_tokens(model)
    state = kept = None
    for place in range(7):
        expected, kept = model.step(tokens[..., place], kept, mask[..., place])
        logits, state = compiled(tokens[..., place], state, mask[..., place])
        assert_close(logits, expected)
    assert len(graphs) <= 3


def exported(model, m, n, *, masked=True):
    tokens, mask = some_tokens(model, m=m, n=n)
    batch = {0: torch.export.Dim("b")}
    if not masked:
        return torch.export.export(model, (tokens,), dynamic_shapes=(batch,))
    return torch.export.export(model, (tokens, mask), dynamic_shapes=(batch, batch))


@pytest.mark.parametrize(("variant", "head", "attention"), KINDS)
def test_exports_with_a_dynamic_batch(variant, head, attention):
    model = small(variant=variant, head=head, attention=attention)
    for m, n in GRIDS[1:]:
        tokens, mask = some_tokens(model, b=5, m=m, n=n)
        assert_close(exported(model, m, n).module()(tokens, mask), model(tokens, mask))


def test_exports_without_a_mask():
    model = small()
    tokens, _ = some_tokens(model, b=5)
    assert_close(exported(model, 2, 3, masked=False).module()(tokens), model(tokens))


@pytest.mark.parametrize(("variant", "head", "attention"), KINDS[:3])
def test_onnx_gives_the_same_logits(variant, head, attention, tmp_path):
    model = small(variant=variant, head=head, attention=attention).float()
    torch.onnx.export(exported(model, 2, 3), (), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for b in (2, 5):
        tokens, mask = some_tokens(model, b=b)
        names = [entry.name for entry in session.get_inputs()]
        (logits,) = session.run(None, dict(zip(names, (tokens.numpy(), mask.numpy()), strict=True)))
        assert_close(torch.from_numpy(logits), model(tokens, mask), rtol=1e-4, atol=1e-4)


@every_variant
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast(variant, head, training):
    """Logits near the exact ones, and finite gradients for every parameter."""
    model = small(variant=variant, head=head, dropout=0.0).float().train(training)
    tokens, mask = some_tokens(model)
    exact = model(tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, mask)
    assert logits.dtype == torch.bfloat16
    keep = mask if head == "tokens" else slice(None)
    assert (logits.float() - exact)[keep].norm() < 2e-2 * exact[keep].norm()
    logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@every_variant
def test_a_model_in_bf16(variant):
    """All weights in bf16, as for inference in half the memory."""
    model = small(variant=variant).float()
    tokens, mask = some_tokens(model)
    exact = model(tokens, mask)
    logits = model.bfloat16()(tokens, mask)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).std() < 0.1 * exact.std()
