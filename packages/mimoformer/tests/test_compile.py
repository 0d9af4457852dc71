"""One graph for each grid, exports with a dynamic batch, ONNX, and half precision."""

import onnxruntime
import pytest
import torch
from test_model import HEADS, every_variant, small, some_tokens
from torch.testing import assert_close

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(onnxscript|onnx_ir|copyreg|torch).*"),
]
GRIDS = [(1, 1), (1, 3), (2, 3)]


KINDS = [
    ("att", "classes", "relu"),
    ("att+mlp", "pair", "positive"),
    ("att+mlp", "tokens", "positive"),
    ("blurry", "last", "dpfp"),
]
"""Every variant, head and feature map at least once."""
every_kind = pytest.mark.parametrize(("variant", "head", "attention"), KINDS)


class CountedBackend:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self):
        torch.compiler.reset()
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@every_kind
def test_compiles_whole_and_at_most_once_per_grid(variant, head, attention):
    """Also where causal attention takes two chunks."""
    grids = GRIDS if variant == "att" else GRIDS[1:]
    model = small(variant=variant, head=head, attention=attention, layers=1, dropout=0.0, max_length=70).train()
    backend = CountedBackend()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for m, n in [*grids, grids[0]]:
        tokens, mask = some_tokens(model, m=m, n=n, length=70 if head == "tokens" else 7)
        assert_close(compiled(tokens, mask), model(tokens, mask))
    assert backend.graphs <= len(grids)


@torch.no_grad()
@pytest.mark.parametrize(("variant", "attention"), [("att+mlp", "positive"), ("blurry", "relu")])
def test_steps_compile_whole(variant, attention):
    """At most three graphs, for the first step, the second, and all after them."""
    model = small(variant=variant, head="tokens", attention=attention, layers=1)
    backend = CountedBackend()
    compiled = torch.compile(model.step, fullgraph=True, backend=backend)
    tokens, mask = some_tokens(model)
    state = kept = None
    for place in range(5):
        expected, kept = model.step(tokens[..., place], kept, mask[..., place])
        logits, state = compiled(tokens[..., place], state, mask[..., place])
        assert_close(logits, expected)
    assert backend.graphs <= 3


def exported(model, m, n, *, masked=True):
    tokens, mask = some_tokens(model, m=m, n=n)
    batch = {0: torch.export.Dim("b")}
    if not masked:
        return torch.export.export(model, (tokens,), dynamic_shapes=(batch,))
    return torch.export.export(model, (tokens, mask), dynamic_shapes=(batch, batch))


@every_kind
def test_exports_with_a_dynamic_batch_also_to_onnx(variant, head, attention, tmp_path):
    """The exported program, and for heads that are not causal the ONNX file made of it, give the same logits."""
    model = small(variant=variant, head=head, attention=attention, layers=1).float()
    program = exported(model, 2, 3)
    tokens, mask = some_tokens(model, b=5)
    expected = model(tokens, mask)
    assert_close(program.module()(tokens, mask), expected)
    if head != "tokens":
        torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        (logits,) = session.run(None, dict(zip(names, (tokens.numpy(), mask.numpy()), strict=True)))
        assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_exports_a_smaller_grid_without_a_mask():
    model = small(layers=1)
    tokens, _ = some_tokens(model, b=5, m=1, n=3)
    assert_close(exported(model, 1, 3, masked=False).module()(tokens), model(tokens))


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
