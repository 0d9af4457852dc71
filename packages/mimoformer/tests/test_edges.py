"""Types that do not fit, wrappers, torch's defaults, traces, memory: the right answer, or an error in our words."""

import copy
from itertools import product

import pytest
import torch
from live_memory import LiveMemory
from test_autocast import AUTOCASTS, DTYPES, OTHERS, autocast
from test_model import small, some_tokens
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

from mimoformer import SuperposedAttention, count_macs, predict, tokenize
from mimoformer.attention import linear_attention, softmax_attention
from mimoformer.features import DPFPFeatures, PositiveFeatures, ReLUFeatures
from mimoformer.layers import SoftmaxAttention

LAYERS = {
    "relu": lambda: SuperposedAttention(8, 2, 2, 2, features=8),
    "positive, causal": lambda: SuperposedAttention(8, 2, 2, 2, features=8, feature_map="positive", causal=True),
    "dpfp": lambda: SuperposedAttention(8, 2, 2, 2, feature_map="dpfp"),
    "softmax": lambda: SoftmaxAttention(8, 2),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
FUNCTIONS = {
    "softmax": softmax_attention,
    "relu": lambda q, k, v, mask: linear_attention(q, k, v, ReLUFeatures(4, 8), mask),
    "dpfp": lambda q, k, v, mask: linear_attention(q, k, v, DPFPFeatures(), mask),
}
KINDS = [
    {},
    {"variant": "att+mlp"},
    {"variant": "blurry", "head": "last"},
    {"attention": "positive"},
    {"m": 1, "n": 1, "attention": "softmax"},
]


@pytest.mark.unchecked
@pytest.mark.parametrize("weights", DTYPES)
@every_layer
def test_types_of_embeddings_and_weights(make, weights):
    layer, mask = make().to(weights), torch.rand(2, 2, 2, 5) < 0.8
    for own, by in product(DTYPES, AUTOCASTS):
        x = torch.randn(2, 2, 2, 5, 8).to(own)
        with autocast(by):
            if own == weights or (by and torch.float64 not in (own, weights)):
                assert layer(x, mask)[mask].isfinite().all()
                continue
            with pytest.raises(TypeError, match=f"embeddings of {own} meet weights of {weights}: convert either"):
                layer(x, mask)


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", OTHERS)
@every_layer
def test_embeddings_of_other_types(make, dtype):
    with pytest.raises(TypeError, match=f"x is {dtype}; it must be a tensor of floating-point embeddings"):
        make()(torch.ones(2, 2, 2, 5, 8).to(dtype))


@pytest.mark.parametrize("by", AUTOCASTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_queries_keys_and_values_of_several_types(name, by):
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    mask = torch.rand(2, 5) < 0.8
    torch.manual_seed(0)
    expected = FUNCTIONS[name](q, k, v, mask)
    for types in [*product(DTYPES[1:3], repeat=3), DTYPES[:3], DTYPES[1:]]:
        torch.manual_seed(0)
        with autocast(by):
            found = FUNCTIONS[name](*(x.to(dtype) for x, dtype in zip((q, k, v), types, strict=True)), mask)
        assert (found.float() - expected).abs().max() < 0.1


@pytest.mark.parametrize("by", AUTOCASTS)
@pytest.mark.parametrize("make", [lambda: ReLUFeatures(8), lambda: PositiveFeatures(8), DPFPFeatures])
def test_features_of_any_type(make, by):
    phi = make()
    for dtype in DTYPES:
        x = torch.randn(3, 8)
        with autocast(by):
            assert (phi(x.to(dtype)).float() - phi(x).float()).abs().max() < 0.1


@pytest.mark.unchecked
@pytest.mark.parametrize("by", AUTOCASTS)
@pytest.mark.parametrize("weights", DTYPES)
def test_weights_of_any_type(weights, by):
    """Tokens may have any type of whole numbers; the CPU's LayerNorm does not mix half types."""
    model = small(layers=1).to(weights)
    tokens, mask = some_tokens(model)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        with autocast(by):
            if by and weights not in (by, torch.float32, torch.float64):
                with pytest.raises(TypeError, match=f"weights have {weights} but autocast computes in {by}"):
                    model(tokens.to(dtype), mask)
            else:
                assert model(tokens.to(dtype), mask).isfinite().all()


def averaged(model):
    wrapper = AveragedModel(model)
    for _ in range(2):
        nn.init.normal_(model.embedding.weight)
        wrapper.update_parameters(model)
    other = copy.deepcopy(wrapper)
    other.load_state_dict(wrapper.state_dict())
    return other


@pytest.mark.unchecked
@pytest.mark.parametrize("wrap", [averaged, lambda model: DataParallel(averaged(model))], ids=["averaged", "in parallel"])
def test_a_network_answers_from_inside_a_wrapper(wrap):
    wrapper = wrap(small(tokenizer="bytes", vocab_size=257))
    inside = getattr(wrapper.module, "module", wrapper.module)
    tokens, mask = tokenize(wrapper, ["one", "three", "two"])
    assert torch.equal(predict(wrapper, tokens, 1, mask), predict(inside, tokens, 1, mask))
    assert count_macs(wrapper) == count_macs(inside)


@pytest.mark.unchecked
@pytest.mark.parametrize("call", [predict, lambda model, _: count_macs(model), lambda model, _: tokenize(model, ["a"])])
@pytest.mark.parametrize("model", [nn.Linear(2, 3), DataParallel(nn.Linear(2, 3))], ids=["other", "wrapped"])
def test_another_module_is_named(model, call):
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}; expected a MIMOFormer"):
        call(model, torch.ones(5, 7, dtype=torch.long))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_a_traced_network_is_named():
    model, tokens = small(), torch.ones(4, 7, dtype=torch.long)
    with pytest.raises(TypeError, match="model is a TopLevelTracedModule; expected a MIMOFormer"):
        predict(torch.jit.trace(model, tokens.view(1, 2, 2, 7)), tokens)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_torchs_defaults_count_where_a_network_is_made_and_nowhere_else(options):
    model = small(**options).float()
    tokens, mask = some_tokens(model)
    expected, macs = model(tokens, mask), count_macs(model)
    torch.set_default_dtype(torch.float64)
    try:
        found = model(tokens, mask)
        assert count_macs(model) == macs
        assert small(**options)(tokens, mask).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    with torch.device("meta"):
        assert torch.equal(model(tokens, mask), expected)


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_trace_takes_other_batches_lengths_and_grids(options):
    model = small(layers=1, **options)
    traced = torch.jit.trace(model, some_tokens(model), check_trace=False)
    for b, length, m, n in ((5, 7, None, None), (2, 20, None, None), (2, 5, 1, 1), (2, 7, 1, model.config.n)):
        tokens, mask = some_tokens(model, b=b, length=length, m=m, n=n)
        assert_close(traced(tokens, mask), model(tokens, mask))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_causal_attention_is_not_traced():
    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.trace fixes the number of chunks of causal attention: use torch\.export"
    ):
        torch.jit.trace(LAYERS["positive, causal"](), torch.randn(2, 2, 2, 5, 8), check_trace=False)


def test_predict_takes_no_memory_for_the_tokens_of_other_parts():
    """Also where the last pass is filled; only the logits of more sequences take more."""
    model, most = small(layers=1, max_length=64).float(), []
    for count in (9, 257):
        tokens, mask = torch.randint(11, (count, 64)), torch.ones(count, 64, dtype=torch.bool)
        with LiveMemory(tokens, mask) as memory:
            logits = predict(model, tokens, 2, mask, tokens_at_once=512)
        most.append(memory.most - 2 * logits.nbytes)
    assert most[1] < most[0] + 4096
