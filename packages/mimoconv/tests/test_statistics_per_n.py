"""Statistics for each n without changing the module: threads, tracing, recomputation, layers used twice, every kind of layer."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from test_mimoconv import small
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from mimoconv import Superposed, predict, recalibrate
from mimoconv.statistics_per_n import StatisticsPerN


def trained(**options):
    """A network whose statistics differ from n to n."""
    model = small(4, **options)
    for n in (1, 2, 3, 4):
        recalibrate(model, [n * torch.randn(24, 2, 8, 8, dtype=torch.float64)], n)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_predict_from_many_threads_with_every_n(training):
    model, images = trained().train(training), torch.randn(12, 2, 8, 8, dtype=torch.float64)
    expected = {n: predict(model, images, n) for n in (1, 2, 3, 4)}
    before = copy.deepcopy(model.state_dict())
    with ThreadPoolExecutor(8) as pool:
        ns = [1 + place % 4 for place in range(80)]
        answers = list(pool.map(lambda n: predict(model, images, n), ns))
    assert all(torch.equal(answer, expected[n]) for n, answer in zip(ns, answers, strict=True))
    assert all(layer.training is training for layer in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_plain_calls_from_many_threads_with_every_n():
    model = trained().eval()
    inputs = [torch.randn(2, 1 + place % 4, 2, 8, 8, dtype=torch.float64) for place in range(80)]
    with torch.no_grad(), ThreadPoolExecutor(8) as pool:
        expected = [model(x) for x in inputs]
        answers = list(pool.map(torch.no_grad()(model), inputs))
    assert all(map(torch.equal, answers, expected))


def test_training_in_the_midst_of_predict():
    """What another thread may run between two layers of a call has a mode and an n of its own."""
    model, images = trained().train(), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    expected, x = predict(model, images, 1), torch.randn(6, 3, 2, 8, 8, dtype=torch.float64)
    alone = copy.deepcopy(model)
    loss = alone(x).square().sum()
    meanwhile = []

    def interrupt(layer, _):
        if not meanwhile:
            meanwhile.append(None)
            meanwhile[0] = model(x).square().sum()

    model.body.module.stage2[0].conv1.register_forward_pre_hook(interrupt)
    assert torch.equal(predict(model, images, 1), expected)
    assert torch.equal(meanwhile[0], loss)
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.unchecked
def test_a_layer_that_is_used_twice_counts_twice():
    """Compiled too."""

    class Twice(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm, self.same = norm, norm

        def forward(self, x):
            return self.same(2 * self.norm(x) + 1)

    reference = Twice(nn.BatchNorm2d(3))
    per_n = StatisticsPerN(copy.deepcopy(reference), 2)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5)
        assert_close(per_n(x, 2), reference(x))
    assert_close(per_n.module.norm.running_mean[1], reference.norm.running_mean)
    assert per_n.module.norm.num_batches_tracked.tolist() == [0, 6]
    fast = torch.compile(per_n, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5)
    assert_close(fast(x, 2), reference(x))
    assert_close(per_n.module.norm.running_var[1], reference.norm.running_var)


class Recomputed(nn.Sequential):
    """Layers whose activations are computed again in the backward pass."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("used", [(2,), (1, 2), (2, 1, 2)])
def test_layers_may_be_recomputed_in_the_backward_pass(used):
    """Passes with several n may wait for one backward pass."""

    def build(block):
        torch.manual_seed(0)
        body = nn.Sequential(
            block(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), block(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5))
        )
        return Superposed(nn.Conv2d(3, 8, 3), body, nn.Linear(5, 4), 2, 8)

    plain, recomputed = build(nn.Sequential), build(Recomputed)
    inputs = [torch.randn(4, n, 3, 9, 9) for n in used]
    for model in (plain, recomputed):
        sum(model(x).square().sum() for x in inputs).backward()
    for expected, parameter in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert_close(parameter.grad, expected.grad)
    norms = recomputed.body.norms()
    assert [norm.num_batches_tracked.tolist() for norm in norms] == [[2 * used.count(1), 2 * used.count(2)]] * 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:FutureWarning")
@pytest.mark.unchecked
@pytest.mark.parametrize("n", [1, 3])
def test_traces(n):
    model = trained(stem="conv-norm-relu").eval()
    x = torch.randn(2, n, 2, 8, 8, dtype=torch.float64)
    traced = torch.jit.trace(model, x)
    other = torch.randn(2, n, 2, 8, 8, dtype=torch.float64)
    assert_close(traced(other), model(other))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, 4, 7)),
        (nn.BatchNorm2d, (6, 4, 5, 5)),
        (partial(nn.BatchNorm2d, momentum=None), (6, 4, 5, 5)),
        (partial(nn.InstanceNorm1d, track_running_stats=True), (6, 4, 7)),
        (partial(nn.InstanceNorm2d, track_running_stats=True, affine=True), (6, 4, 5, 5)),
    ],
    ids=["BatchNorm1d", "BatchNorm2d", "cumulative", "InstanceNorm1d", "InstanceNorm2d"],
)
def test_every_layer_with_running_statistics(kind, shape):
    per_n, references = StatisticsPerN(nn.Sequential(kind(4)), 3), {n: kind(4) for n in (1, 3)}
    for n in (1, 3, 3, 1, 3):
        x = n * torch.randn(shape) + n
        assert_close(per_n(x, n), references[n](x))
    for n, reference in references.items():
        for name, buffer in reference.named_buffers():
            assert_close(per_n.module[0].get_buffer(name)[n - 1], buffer)
        x = torch.randn(shape)
        assert_close(per_n.eval()(x, n), reference.eval()(x))
    assert_close(per_n.module[0].running_var[1], torch.ones(4))


def test_instance_norm_is_estimated_again():
    body = nn.Sequential(nn.Conv2d(8, 5, 3), nn.InstanceNorm2d(5, track_running_stats=True))
    model, reference = Superposed(nn.Conv2d(3, 8, 3), body, nn.Linear(5, 4), 2, 8), nn.InstanceNorm2d(5, track_running_stats=True)
    images = torch.randn(8, 3, 9, 9)
    recalibrate(model, [images], 2)
    reference.momentum = 1.0
    with torch.no_grad():
        reference(body[0](model.superpose(images.unflatten(0, (4, 2)))))
    assert_close(body[1].running_var, torch.stack([torch.ones(5), reference.running_var]))


class Entangled(nn.Module):
    """Reaches layers by a list, a tuple of methods and a method in place of forward, and notes what it did."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.layers, self.last = [self.conv, self.norm], (self.finish,)
        self.forward = self.run
        self.calls, self.seen = 0, None

    def run(self, x):
        for layer in self.layers:
            x = layer(x)
        self.calls += 1
        self.seen = x.shape
        return self.last[0](x)

    def finish(self, x):
        return self.other(x.relu())


def test_bodies_that_reach_their_layers_by_other_ways():
    reference = Entangled()
    per_n = StatisticsPerN(copy.deepcopy(reference), 2)
    for _ in range(3):
        x = torch.randn(4, 8, 5, 5)
        assert_close(per_n(x, 2), reference(x))
    assert_close(per_n.module.other.running_var[1], reference.other.running_var)
    assert (per_n.module.calls, per_n.module.seen) == (3, (4, 6, 3, 3))
    assert per_n.module.layers[1] is per_n.module.norm
    assert per_n.module.forward.__self__ is per_n.module


class Centred(nn.Module):
    """A layer of one's own with a running mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(5))
        self.momentum = 0.5

    def forward(self, x):
        if self.training:
            self.running_mean.lerp_(x.detach().mean((0, 2, 3)), self.momentum)
        return x - self.running_mean[:, None, None]


def test_layers_of_ones_own_with_running_statistics():
    per_n, references = StatisticsPerN(nn.Sequential(Centred()), 2), [Centred(), Centred()]
    for n in (1, 2, 2, 1):
        x = n + torch.randn(3, 5, 4, 4)
        assert_close(per_n(x, n), references[n - 1](x))
    model = Superposed(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 5, 3), Centred()), nn.Linear(5, 4), 2, 8)
    images = torch.randn(8, 3, 9, 9)
    recalibrate(model, [images], 2)
    expected = model.body.module[0](model.superpose(images.unflatten(0, (4, 2)))).mean((0, 2, 3))
    assert_close(model.body.module[1].running_mean, torch.stack([torch.zeros(5), expected]))


def test_an_error_undoes_the_estimate_for_its_own_n_alone():
    model = trained()

    def batches():
        yield torch.randn(24, 2, 8, 8, dtype=torch.float64)
        recalibrate(model, [3 * torch.randn(24, 2, 8, 8, dtype=torch.float64)], 2)  # as another thread may
        raise KeyError

    before = [buffer.clone() for norm in model.body.norms() for buffer in norm.buffers()]
    with pytest.raises(KeyError):
        recalibrate(model, batches(), 1)
    after = [buffer for norm in model.body.norms() for buffer in norm.buffers()]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 2, 3]], new[[0, 2, 3]])
    assert not torch.equal(before[0][1], after[0][1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.unchecked
def test_what_has_no_place_in_it():
    body = nn.Sequential(torch.compile(nn.Sequential(nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5))))
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5)))
    for part in (body, scripted, nn.Sequential(scripted)):
        with pytest.raises(TypeError, match="is compiled or scripted on its own: compile the whole network instead"):
            Superposed(nn.Conv2d(3, 8, 3), part, nn.Linear(5, 4), 2, 8, features=5)
    per_n = StatisticsPerN(nn.BatchNorm2d(3), 2)
    for n in (0, -1, 3):
        with pytest.raises(ValueError, match=f"{n} superposed inputs, but there are 2 slots"):
            per_n(torch.randn(2, 3, 4, 4), n)
    head = nn.Sequential(nn.InstanceNorm1d(5, track_running_stats=True), nn.Linear(5, 4))
    with pytest.raises(ValueError, match="the head has layers with running statistics"):
        Superposed(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), head, 2, 8)
