"""predict, recalibrate and count_macs."""

import copy

import pytest
import torch
from frozen_graphs import frozen_graphs
from test_mimoconv import small
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig, count_macs, inference, predict, recalibrate
from vsa_core import graphs


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("count", range(10))
def test_every_image_gets_its_row_in_order(n, count):
    model, images = small(4), torch.randn(count, 2, 8, 8, dtype=torch.float64)
    logits = predict(model, images, n)
    assert logits.shape == (count, 3)
    model.eval()
    for start in range(0, count - n + 1, n):  # the full groups, one by one
        assert_close(logits[start : start + n], model(images[None, start : start + n])[0])


def test_predict_leaves_the_model_as_it_was():
    model, images = small(4).train(), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, images, 2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not predict(model, images, 2).requires_grad


@pytest.mark.parametrize("n", [1, 2])
def test_uint8_images_go_through_the_models_own_normalisation(n):
    mean, std = (0.5, 0.25), (0.2, 0.3)
    model = small(2, mean=mean, std=std)
    raw = torch.randint(256, (5, 2, 8, 8), dtype=torch.uint8)
    images = torch.stack([(raw[:, c].double() / 255 - mean[c]) / std[c] for c in (0, 1)], 1)
    assert_close(predict(model, raw, n), predict(model, images, n))
    recalibrate(model, [images], n)
    expected = predict(model, images, n)
    recalibrate(model, [raw], n)
    assert_close(predict(model, raw, n), expected)


def test_statistics_that_were_broken_are_estimated_afresh():
    model, images = small(2), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    recalibrate(model, [images], 1)
    expected = predict(model, images, 1)
    norm = model.body.norms()[2]
    norm.running_mean[0], norm.running_var[0] = torch.nan, torch.inf
    recalibrate(model, [images], 1)
    assert_close(predict(model, images, 1), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_statistics_that_would_not_be_finite_are_refused(value):
    """Those of before stay."""
    model, images = small(2), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    images[3, 0, 0, 0] = value
    with pytest.raises(FloatingPointError, match="statistics for n = 2 are not finite"):
        recalibrate(model, [images], 2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.state_dict().items())


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 5])
def test_an_image_that_is_not_finite_reaches_its_own_passes_alone(n, value, place):
    """The first images are repeated to fill the last pass."""
    model, images = small(4), torch.randn(10, 2, 8, 8, dtype=torch.float64)
    expected = predict(model, images, n)
    images[place, 1, 2, 3] = value
    found = predict(model, images, n)
    shared = torch.arange(10) // n == place // n
    if place < -10 % n:
        shared |= torch.arange(10) // n == 9 // n
    assert found[shared].isnan().all()
    assert torch.equal(found[~shared], expected[~shared])


def test_a_layer_frozen_in_training_needs_no_statistics():
    model = small(2).train()
    model.body.module.stage1[0].norm1.eval()
    model(torch.randn(4, 2, 2, 8, 8, dtype=torch.float64))
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    assert predict(model, images, 2).isfinite().all()
    with pytest.raises(RuntimeError, match="never with 1 images per pass"):
        predict(model, images, 1)


def test_predict_in_parts():
    model, images = small(4), torch.randn(9, 2, 8, 8, dtype=torch.float64)
    whole = predict(model, images, 2)
    sizes = []
    model.body.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    assert_close(predict(model, images, 2, passes_at_once=2), whole)
    assert sizes == [2, 2, 1]


def test_the_whole_capacity_is_the_default():
    model, images = small(3), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(predict(model, images), predict(model, images, 3))
    assert not torch.equal(predict(model, images), predict(model, images, 1))
    assert count_macs(model) == count_macs(model, 3) < count_macs(model, 1)
    plain = WideResNet(WideResNetConfig(depth=10, width=0.5)).eval()
    assert torch.equal(predict(plain, torch.ones(2, 3, 8, 8)), plain(torch.ones(2, 3, 8, 8)))


def test_frozen_layers_stay_in_their_mode():
    model, images = small(4).train(), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    model.stem.eval()
    model.body.module.stage1[0].norm1.eval()
    modes = [module.training for module in model.modules()]
    recalibrate(model, [images], 2)
    predict(model, images, 2)
    assert [module.training for module in model.modules()] == modes


def trained_toy(n: int) -> tuple[MIMOConv, torch.Tensor, torch.Tensor]:
    """A network that tells apart eight noisy patterns, trained with n images per pass only."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(8, (512,), generator=generator)
    patterns = torch.randn(8, 2, 8, 8, generator=generator)
    images = patterns[labels] + 2 * torch.randn(512, 2, 8, 8, generator=generator)
    model = small(2, width=1, depth=16, num_classes=8).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        index = torch.arange(64) * 8 + step % 8
        loss = F.cross_entropy(model(images[index].unflatten(0, (-1, n))).flatten(0, 1), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, images, labels


def test_recalibrate_repairs_a_mode_never_trained():
    model, images, labels = trained_toy(n=2)

    with pytest.raises(RuntimeError, match=r"never with 1 images per pass.*recalibrate\(model, batches, n=1\)"):
        predict(model, images, 1)
    unrepaired = F.cross_entropy(model.eval()(images[:, None])[:, 0], labels)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    recalibrate(model, images.split(64), n=1)
    repaired = predict(model, images, 1)
    assert unrepaired > 3
    assert F.cross_entropy(repaired, labels) < 0.3
    assert (repaired.argmax(-1) == labels).double().mean() > 0.9
    for name, value in model.state_dict().items():
        if "running" in name and name.startswith("body"):
            assert torch.equal(value[1], kept[name][1])  # statistics for n = 2
            assert not torch.equal(value[0], kept[name][0])
        elif not (name.startswith("body") and "num_batches_tracked" in name):
            assert torch.equal(value, kept[name])  # weights, and the stem's own statistics
    assert not model.training


def test_recalibrate_averages_over_batches():
    model = small(2)
    batches = [torch.randn(count, 2, 8, 8, dtype=torch.float64) for count in (8, 8, 4)]
    first = model.body.module.stage1[0].norm1
    means = []
    for images in batches:
        recalibrate(model, [images], n=2)
        means.append(first.running_mean[1].clone())
    recalibrate(model, [batches[0], torch.zeros(0, 2, 8, 8, dtype=torch.float64), *batches[1:]], n=2)  # empty: passed over
    assert_close(first.running_mean[1], (2 * means[0] + 2 * means[1] + means[2]) / 5)
    assert first.num_batches_tracked.tolist() == [0, 3]
    assert first.momentum == 0.1
    assert model.stem.norm.num_batches_tracked == 0  # the stem has statistics of its own, also where the model is in training


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (WideResNetConfig(), 5.243),
        (WideResNetConfig(width=7), 2.575),
        (WideResNetConfig(width=5), 1.318),
        (WideResNetConfig(depth=16, width=8), 1.548),
        (MIMOConvConfig(capacity=1), 5.328),
        (MIMOConvConfig(capacity=2), 2.667),
        (MIMOConvConfig(capacity=4), 1.337),
        (MIMOConvConfig(capacity=8), 0.672),
    ],
    ids=["WRN-28-10", "WRN-28-7", "WRN-28-5", "WRN-16-8", "N=1", "N=2", "N=4", "N=8"],
)
def test_multiply_adds_per_image_in_billions(config, expected):
    """The published sizes, counted by hand; ours do without the key's convolution, 64^2 a pixel, which the stem absorbs."""
    superposed = isinstance(config, MIMOConvConfig)
    with torch.device("meta"):
        model = MIMOConv(config) if superposed else WideResNet(config)
    folded = 64**2 * 32**2 / 1e9 if superposed else 0
    assert count_macs(model, model.capacity) / 1e9 == pytest.approx(expected - folded, rel=0.001)


def test_counting_leaves_the_model_alone():
    model = small(2).train()
    count_macs(model, 2)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("training", [True, False])
def test_predict_replays_batches_of_few_passes(training, monkeypatch):
    """From the second time on, for each n; not those of the copy that answers for a network in training mode."""
    monkeypatch.setattr(inference, "REPLAYED_PASSES", 64)
    model = small(4).train(training)
    few, many = torch.randn(12, 2, 8, 8, dtype=torch.float64), torch.randn(260, 2, 8, 8, dtype=torch.float64)
    with frozen_graphs() as made:
        for n in (1, 4):
            for images in (few, many):
                expected = [predict(model, images, n) for _ in range(4)]
                with graphs.disabled():
                    assert_close(expected, [predict(model, images, n)] * 4)
        predict(model, few, 1, passes_at_once=2)
    assert [graph.shape[:2] for graph in made] == ([] if training else [(12, 1), (3, 4), (2, 1)])


def test_predict_replays_nothing_of_a_network_that_went_into_training_mode():
    model, images = small(2).eval(), torch.randn(8, 2, 8, 8, dtype=torch.float64)
    with frozen_graphs() as made:
        expected = predict(model, images, 2)
        for _ in range(2):
            assert_close(predict(model, images, 2), expected)
        assert (len(made), made[0].replays) == (1, 2)
        for changed in (model.train(), model.eval()):
            assert_close(predict(changed, images, 2), expected)
        model.body.module.stage1[0].norm1.train()
        before = copy.deepcopy(model.state_dict())
        assert_close(predict(model, images, 2), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Synchronisations(TorchDispatchMode):
    """Counts numbers that Python asks for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_predict_asks_for_no_number_of_a_single_layer():
    model = small(2).train()
    images = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    model(images.unflatten(0, (2, 2)))
    with Synchronisations() as asked:
        predict(model.eval(), images, 2)
    assert asked.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_statistics_are_asked_after_what_a_gpu_was_given_before():
    model, images = small(2).cuda().eval(), torch.randn(4, 2, 8, 8, dtype=torch.float64, device="cuda")
    for _ in range(3):
        predict(model, images, 2)
    torch.cuda._sleep(10**9)
    for norm in model.body.norms():
        norm.num_batches_tracked[0] += 1
    with pytest.raises(RuntimeError, match="never with 2 images per pass"):
        predict(model, images, 2)


def test_statistics_of_several_n_are_told_apart():
    model = small(3).train()
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    predict(model, images, 1)  # nothing is trained
    for n in (1, 3):
        model(images.unflatten(0, (-1, n)))
        predict(model, images, n)
    with pytest.raises(RuntimeError, match="never with 2 images per pass"):
        predict(model, images, 2)


def trained_and_replayed(*trained):
    """A network that was trained with these n, and images of which batches are replayed with one and two per pass."""
    model, images = small(2).train(), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    for n in trained:
        model(images.unflatten(0, (-1, n)))
    model.eval()
    for _ in range(4):
        for n in trained or (1, 2):
            predict(model, images, n)
    return model, images


def train_by_a_graph(model, n, norms=slice(None)):
    """Count a batch in the memory of the counters, as the replay of a captured training step does."""
    for norm in model.body.norms()[norms]:
        norm.num_batches_tracked.data[n - 1] += 1


def load_one_n(model):
    other = small(2).train()
    other(torch.randn(4, 1, 2, 8, 8, dtype=torch.float64))
    model.load_state_dict(other.state_dict())


def replace_a_counter(model):
    norm = model.body.norms()[-1]
    norm.num_batches_tracked = norm.num_batches_tracked * torch.tensor([1, 0])


LOSSES = [
    lambda model: model.body.norms()[1].num_batches_tracked[1].zero_(),
    lambda model: model.body.norms()[1].num_batches_tracked[1:].sub_(1),
    load_one_n,
    replace_a_counter,
]


@pytest.mark.parametrize("inference_mode", [False, True])
@pytest.mark.parametrize("lose", LOSSES, ids=["in place", "of a view", "load_state_dict", "replaced"])
def test_statistics_that_were_seen_before_are_missed_when_they_are_lost(lose, inference_mode):
    with frozen_graphs() as made:
        model, images = trained_and_replayed(1, 2)
        with torch.inference_mode(inference_mode):
            lose(model)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="never with 2 images per pass"):
                predict(model, images, 2)
        predict(model, images, 1)
        assert len(made) >= 2


def test_statistics_are_asked_for_once_while_nothing_is_written_to_the_counters(monkeypatch):
    asked, norms_per_n = [], inference.norms_per_n
    monkeypatch.setattr(inference, "norms_per_n", lambda model: asked.append(model) or norms_per_n(model))
    with frozen_graphs():
        for trained in ((1, 2), ()):
            model, images = trained_and_replayed(*trained)
            asked.clear()
            for n in (1, 2) * 3:
                predict(model, images, n)
            assert asked == [] if trained else asked  # counters of a new network were set to 0
        model._apply(torch.clone)  # as if it was moved, so that nothing was written to its tensors
        for _ in range(4):
            predict(model, images, 2)
        asked.clear()
        predict(model, images, 2)
        assert asked == []


@pytest.mark.parametrize("moved", [False, True])
def test_a_new_network_may_be_trained_by_a_graph(moved):
    """Its capture writes to the counters, its replays write to their memory."""
    with frozen_graphs():
        model, images = trained_and_replayed()
        if moved:
            model._apply(torch.clone)
        for _ in range(4):
            predict(model, images, 2)
        for norm in model.body.norms():
            norm.num_batches_tracked[0] += 0
        predict(model, images, 2)
        train_by_a_graph(model, 1)
        with pytest.raises(RuntimeError, match="never with 2 images per pass"):
            predict(model, images, 2)


def test_a_frozen_layer_may_be_trained_by_a_graph_later():
    with frozen_graphs():
        model, images = trained_and_replayed()
        train_by_a_graph(model, 2, slice(1, None))
        for _ in range(4):
            predict(model, images, 2)
        train_by_a_graph(model, 1)
        with pytest.raises(RuntimeError, match="never with 2 images per pass"):
            predict(model, images, 2)


def test_statistics_that_do_not_count_their_changes_are_asked_for_each_time():
    with frozen_graphs(), torch.inference_mode():
        model, images = small(2).eval().requires_grad_(False), torch.randn(4, 2, 8, 8, dtype=torch.float64)
        for _ in range(4):
            predict(model, images, 2)
        for norm in model.body.norms():
            norm.num_batches_tracked[0] += 1
        with pytest.raises(RuntimeError, match="never with 2 images per pass"):
            predict(model, images, 2)


def test_statistics_for_one_n_are_none_for_another():
    with frozen_graphs():
        model, images = trained_and_replayed(1)
        model._apply(torch.clone)  # as if it was moved, so that nothing was written to its tensors
        for _ in range(4):
            with pytest.raises(RuntimeError, match="never with 2 images per pass"):
                predict(model, images, 2)
            predict(model, images, 1)
