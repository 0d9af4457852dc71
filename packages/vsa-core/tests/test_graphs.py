"""Which passes are replayed, and that replays compute what the network would."""

import gc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from frozen_graphs import frozen_graphs
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from vsa_core import graphs


@pytest.fixture
def made():
    """The graphs made so far."""
    with frozen_graphs() as found:
        yield found


def network():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 4))]
    return nn.Sequential(*layers).eval()


def images(count=2):
    return torch.randn(count, 3, 6, 6)


@torch.no_grad()
def replay_thrice(model, x):
    """With a graph at the second time, if there is one at all."""
    expected = model(x)
    for _ in range(3):
        assert_close(graphs.replay(model, x), expected)


def test_a_graph_is_made_when_a_kind_of_pass_comes_again(made):
    model = network()
    graphs.replay(model, images())
    assert made == []
    replay_thrice(model, images())
    replay_thrice(model, images(5))
    replay_thrice(model, images())
    assert [graph.shape[0] for graph in made] == [2, 5]
    assert [graph.shared for graph in made] == [None, "pool"]
    assert made[0].replays == 6


@torch.no_grad()
def change_in_place(model):
    model[0].weight.add_(1)


def change_data(model):
    model[0].weight.data = model[0].weight.data + 1


def transpose_data(model):
    model[3][0].weight.data = model[3][0].weight.data.transpose(0, 1)


def slice_data(model):
    for parameter in model[3][2].parameters():
        parameter.data = parameter.data[:2]


def assign(model):
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)


def change_layout(model):
    model.to(memory_format=torch.channels_last)
    change_in_place(model)


def change_statistics(model):
    model[1].running_mean += 1


def replace_a_buffer(model):
    model[1].running_mean = model[1].running_mean + 1


def replace_a_layer(model):
    model[2] = nn.Softplus()


def replace_a_deep_layer(model):
    model[3][2] = nn.Linear(16, 4)


def take_a_layer_out(model):
    model[2] = None
    del model[2]


def change_an_attribute(model):
    model[1].eps = 10.0


def change_a_class(model):
    model[2].__class__ = nn.Identity


def change_mode(model):
    model[1].train()


def add_a_hook(model):
    model[2].register_forward_hook(lambda layer, inputs, out: out + 1)


def add_a_hook_before(model):
    model[2].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 1,))


def put_a_forward_in_place(model):
    model[2].forward = torch.tanh


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_data,
        transpose_data,
        slice_data,
        assign,
        change_layout,
        change_statistics,
        replace_a_buffer,
        replace_a_layer,
        replace_a_deep_layer,
        take_a_layer_out,
        change_an_attribute,
        change_a_class,
        change_mode,
        add_a_hook,
        add_a_hook_before,
        put_a_forward_in_place,
    ],
)
def test_any_change_of_the_network_is_noticed(change, made):
    model, x = network(), images()
    replay_thrice(model, x)
    before = model(x)
    change(model)
    assert model(x).shape != before.shape or not torch.allclose(model(x), before)
    replay_thrice(model, x)


def test_a_seen_pass_of_a_changed_network_is_new(made):
    """So a network that is trained between its passes is not captured each time."""
    model, x = network(), images()
    for _ in range(5):
        change_in_place(model)
        assert_close(graphs.replay(model, x), model(x))
    assert made == []


class Own(nn.Module):
    """May do anything, such as count its passes."""

    def forward(self, x):
        return x


def parametrized():
    layer = nn.Conv2d(3, 3, 1)
    nn.utils.parametrize.register_parametrization(layer, "weight", Own())
    return layer


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(nn.ReLU())


def hooked():
    return nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("layer", [Own, parametrized, scripted, hooked])
def test_layers_that_may_do_anything_are_not_captured(layer, made):
    model = nn.Sequential(layer(), network()).eval()
    replay_thrice(model, images())
    assert made == []


@pytest.mark.unchecked
def test_compiled_networks_are_not_captured(made):
    whole, inner = torch.compile(network(), backend="eager"), network()
    inner[2].compile(backend="eager")
    for model in (whole, inner):
        replay_thrice(model, images())
    assert made == []


def test_tensors_of_inference_mode_are_not_captured(made):
    with torch.inference_mode():
        model = network()
        replay_thrice(model, images())
    assert made == []


class Plain(TorchDispatchMode):
    """Sees every operation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_nothing_that_looks_at_single_operations_misses_them(made):
    model, x = network(), images()
    replay_thrice(model, x)
    (first,) = made
    replays = first.replays
    with Plain():
        graphs.replay(model, x)
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: calls.append(layer))
    graphs.replay(model, x)
    handle.remove()
    assert model in calls
    with graphs.disabled():
        graphs.replay(model, x)
    assert first.replays == replays
    graphs.replay(model, x)
    assert first.replays == replays + 1


def test_settings_of_torch_are_part_of_the_kind_of_pass(made, monkeypatch):
    model, x = network(), images()
    replay_thrice(model, x)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
        replay_thrice(model, x)
        patch.setattr(torch, "is_autocast_enabled", lambda device: True)
        replay_thrice(model, x)
    replay_thrice(model.double(), x.double())
    replay_thrice(model, x.double().to(memory_format=torch.channels_last))
    torch.use_deterministic_algorithms(True)
    try:
        replay_thrice(model, x.double())
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(made) == 6
    model = nn.Sequential(nn.ReLU()).eval()
    replay_thrice(model, x.float())
    replay_thrice(model, x.double())
    assert len(made) == 8


@pytest.mark.parametrize("name", ["high", "fp32_precision"])
def test_precision_is_part_of_the_kind_of_pass(name, made, monkeypatch):
    model, x = network(), images()
    replay_thrice(model, x)
    if name == "high":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    else:

        def refuse():
            raise RuntimeError("mix of the legacy and new APIs")

        monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    replay_thrice(model, x)
    assert len(made) == 2


def test_kinds_of_passes_are_bounded_and_those_that_come_once_are_forgotten_first(made):
    model = network()
    for count in range(1, 100):
        graphs.replay(model, images(count))
    assert len(graphs.PASSES[model].graphs) == graphs.KINDS
    for count in range(1, 100):
        replay_thrice(model, images(count))
    assert [graph.shape[0] for graph in made] == list(range(1, graphs.KINDS + 1))


def test_a_capture_that_fails_is_told_once(made, monkeypatch):
    class Failing:
        def __init__(self, *_):
            try:
                raise ValueError("this layer looks at numbers")
            finally:
                raise RuntimeError("operation failed due to a previous error")

    monkeypatch.setattr(graphs, "Graph", Failing)
    model, x = network(), images()
    graphs.replay(model, x)
    with pytest.warns(UserWarning, match="no CUDA graph can be made of this Sequential.*: this layer looks at numbers"):
        assert_close(graphs.replay(model, x), model(x))
    replay_thrice(model, x)
    assert model not in graphs.PASSES


def test_a_mask_may_be_missing(made):
    class Masked(nn.Module):
        def forward(self, x, mask=None):
            return x if mask is None else x * mask

    Masked.__module__ = "torch.nn.own"
    model, x, mask = Masked().eval(), images(), torch.zeros(2, 3, 6, 6)
    for _ in range(3):
        assert_close(graphs.replay(model, x, None), x)
        assert_close(graphs.replay(model, x, mask), x * 0)
    assert len(made) == 2


def test_graphs_do_not_keep_a_network_alive(made):
    model = network()
    replay_thrice(model, images())
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


def test_answers_of_many_threads(made):
    models = [network(), network()]
    asked = [(model, images(count)) for count in (1, 2, 3) for model in models] * 10
    expected = [model(x) for model, x in asked]
    with ThreadPoolExecutor(8) as pool:
        for found, right in zip(pool.map(lambda pair: graphs.replay(*pair), asked), expected, strict=True):
            assert_close(found, right)
    assert len(made) == 6


def test_nothing_is_captured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(graphs, "Graph", lambda *_: pytest.fail("it was captured"))
    replay_thrice(network(), images())
