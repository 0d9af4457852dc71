"""Which passes are replayed, and that replays compute what the network would."""

import gc
import warnings
import weakref
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from frozen_graphs import frozen_graphs
from torch import nn
from torch.autograd import forward_ad
from torch.backends import cuda
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
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


def load(model):
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


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
    model[3][2] = nn.Linear(16, 4, device=model[0].weight.device)


def reorder_layers(model):
    """ReLU first, all by their old names."""
    for name in ("0", "1", "3"):
        model._modules[name] = model._modules.pop(name)


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


CHANGES = [
    change_in_place,
    change_data,
    transpose_data,
    slice_data,
    assign,
    load,
    change_layout,
    change_statistics,
    replace_a_buffer,
    replace_a_layer,
    replace_a_deep_layer,
    reorder_layers,
    take_a_layer_out,
    change_an_attribute,
    change_a_class,
    change_mode,
    add_a_hook,
    add_a_hook_before,
    put_a_forward_in_place,
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_network_is_noticed(change, made):
    model, x = network(), images()
    replay_thrice(model, x)
    before = model(x)
    change(model)
    assert model(x).shape != before.shape or not torch.allclose(model(x), before)
    replay_thrice(model, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_network_on_a_gpu_is_noticed(change):
    """Also of weights whose memory a graph still reads."""
    model, x = network().cuda(), images().cuda()
    replay_thrice(model, x)
    assert any(graphs.PASSES[model].graphs.values())
    change(model)
    torch.cuda.empty_cache()
    replay_thrice(model, x)


def test_a_replay_does_not_wait_until_the_network_has_been_looked_at(made, monkeypatch):
    model, x = network(), images()
    replay_thrice(model, x)
    looked, fits = [], graphs.BuiltIn.fits
    monkeypatch.setattr(graphs.BuiltIn, "fits", lambda *of: looked.append(made[0].replays) or fits(*of))
    replays = made[0].replays
    graphs.replay(model, x)
    assert looked == [replays + 1] == [made[0].replays]


def test_layers_are_followed_where_a_dict_was_replaced(made):
    model, x = network(), images()
    replay_thrice(model, x)
    model._modules = dict(model._modules)
    replay_thrice(model, x)
    reorder_layers(model)
    replay_thrice(model, x)


def test_a_layer_that_moves_to_the_next_group_is_noticed(made):
    """Names and layers are the same, and so is their order."""
    first = nn.Sequential(OrderedDict(one=nn.Linear(4, 4), two=nn.Linear(4, 4)))
    last = nn.Sequential(OrderedDict(three=nn.Linear(4, 4)))
    model, x = nn.Sequential(first, nn.ReLU(), last).eval(), torch.randn(2, 4)
    replay_thrice(model, x)
    two, three = first._modules.pop("two"), last._modules.pop("three")
    last.two, last.three = two, three
    replay_thrice(model, x)


@pytest.mark.parametrize("value", [np.ones(2), torch.ones(2)])
def test_attributes_that_cannot_be_compared_count_as_changed(value, made):
    model = network()
    model[1].note = np.zeros(2)
    replay_thrice(model, images())
    model[1].note = value
    replay_thrice(model, images())
    assert len(made) == (2 if isinstance(value, np.ndarray) else 1)  # a tensor would not be followed


def test_a_tensor_of_one_number_is_another_one_though_it_is_equal(made):
    model, x = nn.Sequential(nn.PReLU(init=0.5)).eval(), images()
    replay_thrice(model, x)
    old, model[0].weight = model[0].weight, nn.Parameter(model[0].weight.detach().clone())
    replay_thrice(model, x)
    with torch.no_grad():
        old.fill_(2)
    replay_thrice(model, x)
    assert len(made) == 2


def test_only_a_known_graph_is_replayed_at_once(made):
    model, x = network(), images()
    for _ in range(3):
        assert graphs.replay_known(model, x) is None
    replay_thrice(model, x)
    assert_close(graphs.replay_known(model, x), model(x))
    assert graphs.replay_known(model, images(3)) is None
    assert graphs.replay_known(model.train(), x) is None
    assert model not in graphs.PASSES
    assert len(made) == 1


def test_names_of_parameters_are_part_of_a_network(made):
    """LayerNorm multiplies by a weight and adds a bias."""
    model = nn.Sequential(nn.LayerNorm(6, bias=False)).eval()
    nn.init.normal_(model[0].weight)
    replay_thrice(model, images())
    model[0].weight, model[0].bias = None, model[0].weight
    replay_thrice(model, images())
    only = model[0].bias
    del model[0].weight, model[0].bias
    for name, value in (("bias", None), ("weight", only)):  # as before, but for the names
        model[0].register_parameter(name, value)
    replay_thrice(model, images())
    assert len(made) == 3


def test_a_tensor_of_another_type_in_the_same_memory_is_another_one(made):
    model = network()
    replay_thrice(model, images())
    model[1].num_batches_tracked.data = model[1].num_batches_tracked.data.view(torch.float64)
    replay_thrice(model, images())
    assert len(made) == 2


def is_small(x):
    return len(x) < 5


def test_an_answer_in_eval_mode_is_no_replay_of_another_mode(made):
    model, x = network(), images()
    expected = model(x)
    model[1].train()
    model[1].momentum = 0.0
    replay_thrice(model, x)
    ((out, _),) = graphs.answer(model, [(x,)], is_small)
    assert_close(out, expected)
    assert (len(made), made[0].replays) == (1, 2)


def test_modes_are_looked_at_where_nothing_is_replayed(made, monkeypatch):
    looked, in_eval_mode = [], graphs.in_eval_mode
    monkeypatch.setattr(graphs, "in_eval_mode", lambda model: looked.append(model) or in_eval_mode(model))
    model, batches = network(), [(images(),), (images(),), (images(5),), (images(),)]
    for count in (1, 2):
        for (out, _), (x,) in zip(graphs.answer(model, batches, is_small), batches, strict=True):
            assert_close(out, model(x))
        assert looked == [model] * count
    list(graphs.answer(model, batches[:2], is_small))
    assert looked == [model] * 2


@torch.no_grad()
def test_what_is_known_of_a_network_lasts_until_it_changes_other_than_in_its_numbers(made):
    model, x = network(), images()

    def known(batch=x):
        ((_, found),) = graphs.answer(model, [(batch,)], is_small)
        return found

    for _ in range(2):
        known()["n"] = 1  # nothing was replayed that had been captured before
    known()["n"] = 2
    change_in_place(model)
    assert known() == {"n": 2}
    replace_a_buffer(model)
    assert known(images(5)) == {}  # too many to be replayed, so it was not looked at
    assert [known() for _ in range(4)] == [{}] * 4
    assert len(made) == 2


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("register_forward_hook", lambda layer, inputs, out: out + 1),
        ("register_forward_pre_hook", lambda layer, inputs: (inputs[0] + 1,)),
    ],
)
def test_a_hook_ends_replays(kind, own, made):
    model, x = network(), images()
    replay_thrice(model, x)
    before = made[0].replays
    hook = getattr(model[2], kind)(own)
    for _ in range(3):
        assert_close(graphs.replay(model, x), model(x))
    assert made[0].replays == before + 1
    hook.remove()
    replay_thrice(model, x)
    assert len(made) == 2


def test_a_dropped_graph_is_gone_when_the_network_runs_again(made):
    model, x = network(), images()
    replay_thrice(model, x)
    dead = weakref.ref(made.pop())
    model[1].eps = 10.0
    seen = []
    run = model.forward
    model.forward = lambda x: (gc.collect() and seen.append(dead())) or run(x)
    graphs.replay(model, x)
    assert seen == [None]


def test_changes_in_place_need_no_new_graph(made):
    """A graph reads the weights where they are, so a network that is trained between its passes is captured once."""
    model, x = network(), images()
    for _ in range(5):
        change_in_place(model)
        change_statistics(model)
        assert_close(graphs.replay(model, x), model(x))
    assert len(made) == 1


def test_a_changed_network_is_captured_when_its_pass_comes_again(made):
    model, x = network(), images()
    for _ in range(5):
        change_data(model)
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


class Transformer(nn.Module):
    """A layer of torch with an activation of choice."""

    def __init__(self, activation):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, activation=activation)

    def forward(self, x):
        return self.layer(x)


Transformer.__module__ = "torch.nn.own"


def of_the_user(x):
    return x + 1


@wraps(F.relu)
def in_the_name_of_torch(x):
    return x + 1


class Callable:
    def __call__(self, x):
        return x + 1


@pytest.mark.parametrize(
    ("activation", "known"),
    [
        (F.relu, True),
        (F.gelu, True),
        (torch.tanh, True),
        (of_the_user, False),
        (in_the_name_of_torch, False),
        (partial(F.gelu), False),
        (Callable(), False),
        (Callable().__call__, False),
    ],
)
def test_only_functions_of_torch_and_these_packages_are_captured(activation, known, made):
    model = Transformer(activation).eval()
    replay_thrice(model, torch.randn(3, 2, 4))
    assert len(made) == known


def test_attributes_that_a_graph_would_not_follow_are_not_captured(made):
    """A method that was replaced, a tensor, a layer that is not registered, and a tensor on another device."""
    models = [network() for _ in range(4)]
    models[0][0]._conv_forward = lambda x, weight, bias: x[:, :1, 1:-1, 1:-1].repeat(1, 4, 1, 1)
    models[1][0].scale = torch.ones(1)
    object.__setattr__(models[2], "helper", nn.ReLU())
    models[3].register_buffer("elsewhere", torch.empty(1, device="meta"))
    for model in models:
        replay_thrice(model, images())
    assert made == []


def test_a_network_with_a_function_that_holds_it_is_not_kept_alive(made):
    model = network()
    model.answer = partial(graphs.replay, model)
    replay_thrice(model, images())
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")  # torch uses it itself in forward mode
def test_nothing_is_captured_or_replayed_under_transforms_forward_mode_or_cached_parametrizations(made):
    """There inputs carry more than their numbers, or weights live for a while only."""
    model, x = network(), images()
    parametrizations.orthogonal(model[3][0])

    def dual_level():
        with forward_ad.dual_level():
            out = graphs.replay(model, forward_ad.make_dual(x, torch.ones_like(x)))
            assert forward_ad.unpack_dual(out).tangent is not None

    def cached():
        with parametrize.cached():
            graphs.replay(model, x)

    def everything():
        for _ in range(3):
            dual_level()
            cached()
            torch.func.jvp(partial(graphs.replay, model), (x,), (x,))
            torch.vmap(partial(graphs.replay, model))(x[None])

    everything()
    assert made == []
    replay_thrice(model, x)
    replays = made[0].replays
    everything()
    assert (len(made), made[0].replays) == (1, replays)


@pytest.mark.unchecked
def test_compiled_networks_are_not_captured(made):
    whole, inner = torch.compile(network(), backend="eager"), network()
    inner[2].compile(backend="eager")
    for model in (whole, inner):
        replay_thrice(model, images())
    assert made == []


def test_tensors_of_inference_mode_may_change_in_place(made):
    with torch.inference_mode():
        model = network().requires_grad_(False)
        replay_thrice(model, images())
        change_in_place(model)
        replay_thrice(model, images())
    assert len(made) == 1


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


@pytest.mark.parametrize(
    ("turn", "on", "off"),
    [
        (torch.set_default_dtype, torch.float32, torch.float64),
        (cuda.enable_flash_sdp, True, False),
        (cuda.enable_math_sdp, True, False),
        (cuda.enable_mem_efficient_sdp, True, False),
        (cuda.enable_cudnn_sdp, True, False),
        (cuda.allow_fp16_bf16_reduction_math_sdp, False, True),
        (torch.backends.mha.set_fastpath_enabled, True, False),
        (partial(setattr, cuda.matmul, "allow_fp16_accumulation"), False, True),
        (partial(setattr, cuda.matmul, "allow_fp16_reduced_precision_reduction"), True, False),
        (partial(setattr, cuda.matmul, "allow_bf16_reduced_precision_reduction"), True, False),
    ],
)
def test_switches_are_part_of_the_kind_of_pass(turn, on, off):
    before = graphs.kind_of_pass((None,))
    turn(off)
    try:
        assert graphs.kind_of_pass((None,)) != before
    finally:
        turn(on)
    assert graphs.kind_of_pass((None,)) == before


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


def end_captures_with(reason, monkeypatch):
    """As torch does: an error in a capture becomes the context of a second one."""

    def fail(*_):
        try:
            raise reason
        finally:
            raise RuntimeError("operation failed due to a previous error")

    monkeypatch.setattr(graphs, "Graph", fail)


def test_a_capture_that_fails_is_told_once_and_tried_again_when_forgotten(made, monkeypatch):
    model, x = network(), images()
    with monkeypatch.context() as patch:
        end_captures_with(ValueError("this layer looks at numbers"), patch)
        graphs.replay(model, x)
        with pytest.warns(UserWarning, match="no CUDA graph can be made of this Sequential.*: this layer looks at numbers"):
            assert_close(graphs.replay(model, x), model(x))
        replay_thrice(model, x)
        assert model not in graphs.PASSES
    replay_thrice(model, x)
    assert made == []
    graphs.forget(model)
    replay_thrice(model, x)
    assert len(made) == 1


def test_a_capture_without_enough_memory_is_tried_again(made, monkeypatch):
    model, x = network(), images()
    with monkeypatch.context() as patch:
        end_captures_with(torch.OutOfMemoryError("out of memory"), patch)
        replay_thrice(model, x)
        replay_thrice(model, x)
    replay_thrice(model, x)
    assert len(made) == 1


def test_an_interrupted_capture_ends_the_call(made, monkeypatch):
    end_captures_with(KeyboardInterrupt(), monkeypatch)
    model, x = network(), images()
    graphs.replay(model, x)
    with pytest.raises(KeyboardInterrupt):
        graphs.replay(model, x)
    assert model not in graphs.REFUSED


@pytest.mark.unchecked
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_ends_early_releases_the_generator(error, monkeypatch):
    generator = MagicMock()
    monkeypatch.setattr(torch, "cuda", MagicMock(default_generators={None: generator}))
    with pytest.raises(error):
        graphs.Graph(MagicMock(side_effect=[None, error]), (images(),), None)
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state())


def test_forgotten_graphs_are_dropped(made):
    model, x = network(), images()
    replay_thrice(model, x)
    graphs.forget(model)
    assert model not in graphs.PASSES
    graphs.forget(model)
    replay_thrice(model, x)
    assert len(made) == 2


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
