"""Types that do not fit, wrappers, torch's defaults, traces, memory: the right answer, or an error in our words."""

import copy
from itertools import product

import pytest
import torch
from live_memory import LiveMemory
from test_autocast import AUTOCASTS, DTYPES, OTHERS, autocast
from test_mimoconv import small
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.testing import assert_close

from mimoconv import Superposed, WideResNet, WideResNetConfig, count_macs, isometry_penalty, normalize, predict, recalibrate


def assembled():
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    return Superposed(nn.Conv2d(2, 8, 3, padding=1), body, nn.Linear(8, 3), 2, 8)


def plain():
    return WideResNet(WideResNetConfig(depth=10, width=0.5, in_channels=2, num_classes=3))


NETWORKS = {
    "conv-norm": lambda: small(2).float(),
    "conv-norm-relu": lambda: small(2, stem="conv-norm-relu").float(),
    "wide ResNet": plain,
    "assembled": assembled,
}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)


@pytest.mark.unchecked
@pytest.mark.parametrize("weights", DTYPES)
@pytest.mark.parametrize("training", [pytest.param(True, marks=pytest.mark.torture), False])
@every_network
def test_types_of_images_and_weights(make, training, weights):
    """Those that torch's convolution and BatchNorm take, others are named."""
    model = make().to(weights).train(training)
    for images, by in product(DTYPES, AUTOCASTS):
        x = torch.randn(2, 1, 2, 4, 4).to(images)
        alike = by is None or torch.float64 in (images, weights)
        fits = images == weights if alike else weights in (by, torch.float32)
        with autocast(by):
            if fits:
                assert model(x).isfinite().all()
                continue
            for call in (model, lambda x: predict(model, x[:, 0], 1)):
                with pytest.raises(TypeError, match=r"convert either|do not mix"):
                    call(x)


@pytest.mark.parametrize("by", AUTOCASTS)
@pytest.mark.parametrize("weights", DTYPES)
def test_a_penalty_of_any_type_is_the_same_under_autocast(weights, by):
    model = small(2).to(weights)
    expected = isometry_penalty(model)
    with autocast(by):
        assert torch.equal(isometry_penalty(model), expected)


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", OTHERS)
@every_network
def test_images_of_other_types(make, dtype):
    x = torch.ones(4, 1, 2, 8, 8).to(dtype)
    with pytest.raises(TypeError, match=f"{dtype}; scale and normalise them"):
        make()(x)
    with pytest.raises(TypeError, match=f"images have dtype {dtype}"):
        predict(make(), x[:, 0], 1)


def test_half_precision_without_norms_takes_either_half_type():
    model = Superposed(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3), 2, 8).half()
    with autocast(torch.bfloat16):
        assert model(torch.ones(4, 2, 2, 8, 8)).dtype == torch.bfloat16


@pytest.mark.unchecked
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_what_is_no_image_is_not_normalised(dtype):
    with pytest.raises(TypeError, match=f"images have dtype {dtype}; expected integers, or floating point of 16 bits or more"):
        normalize(torch.ones(1, 2, 1, 1).to(dtype), (0.5, 0.5), (0.5, 0.5))


def averaged(model):
    wrapper = AveragedModel(model)
    for _ in range(2):
        model.train()(torch.randn(4, model.capacity, 2, 8, 8))
        wrapper.update_parameters(model)
    update_bn([torch.randn(4, model.capacity, 2, 8, 8)], wrapper)
    other = copy.deepcopy(wrapper)
    other.load_state_dict(wrapper.state_dict())
    return other


WRAPPERS = {
    "averaged": averaged,
    "averaged, in parallel": lambda model: DataParallel(averaged(model)),
    "averaged, compiled": lambda model: torch.compile(averaged(model).module, backend="eager"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("make", [NETWORKS["conv-norm"], assembled], ids=["MIMOConv", "assembled"])
def test_a_network_answers_from_inside_a_wrapper(make, wrap):
    model = make()
    wrapper = wrap(model)
    inside = wrapper
    while not isinstance(inside, type(model)):
        inside = inside.module if hasattr(inside, "module") and not hasattr(inside, "_orig_mod") else inside._orig_mod
    images, n = torch.randn(5, 2, 8, 8), model.capacity
    assert torch.equal(predict(wrapper, images), predict(inside, images, n))
    recalibrate(wrapper, [images], n)
    assert torch.equal(predict(wrapper, images), predict(inside, images, n))
    assert count_macs(wrapper, shape=(2, 8, 8)) == count_macs(inside, shape=(2, 8, 8))
    assert_close(isometry_penalty(wrapper), isometry_penalty(inside))


@pytest.mark.unchecked
def test_a_network_answers_from_inside_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, images = assembled(), torch.randn(5, 2, 8, 8)
        wrapper = DistributedDataParallel(model)
        wrapper(images[:4].unflatten(0, (2, 2))).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert torch.equal(predict(wrapper, images), predict(model, images))
        recalibrate(wrapper, [images], 1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.unchecked
@pytest.mark.parametrize(
    "call", [predict, lambda m, x: recalibrate(m, [x], 1), lambda m, _: count_macs(m), lambda m, _: isometry_penalty(m)]
)
@pytest.mark.parametrize("model", [nn.Linear(2, 3), DataParallel(nn.Linear(2, 3))], ids=["other", "wrapped"])
def test_another_module_is_named(model, call):
    with pytest.raises(TypeError, match=f"model is a {type(model).__name__}; expected a MIMOConv, WideResNet or Superposed"):
        call(model, torch.randn(5, 2, 8, 8))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
def test_a_traced_network_is_named():
    model, images = assembled(), torch.randn(4, 2, 8, 8)
    with pytest.raises(TypeError, match=r"model is a TopLevelTracedModule; expected a MIMOConv, WideResNet or Superposed"):
        predict(torch.jit.trace(model, images.unflatten(0, (2, 2))), images)


@pytest.mark.parametrize("last", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [1, 8])
def test_a_batch_of_one_value_per_channel_is_averaged_with_its_neighbour(first, last):
    """The maps of the last stage have one pixel here. Two batches of images give what they give together, if one has one pass."""
    images = torch.randn(first + last, 2, 4, 4, dtype=torch.float64)
    model, whole = small(1), small(1)
    whole.load_state_dict(model.state_dict())
    recalibrate(model, images.split([first, last]), 1)
    recalibrate(whole, [images] if 1 in (first, last) else images.split([first, last]), 1)
    for name, value in model.state_dict().items():
        assert_close(value, whole.state_dict()[name])


@pytest.mark.unchecked
def test_one_value_per_channel_alone_has_no_variance():
    model = small(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="one value per channel: give more images"):
        recalibrate(model, [torch.randn(2, 2, 4, 4, dtype=torch.float64)], 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_single_passes_of_two_sizes_stay_apart():
    model = small(1)
    recalibrate(model, [torch.randn(1, 2, size, size, dtype=torch.float64) for size in (8, 12)], 1)
    assert model.body.norms()[0].num_batches_tracked.tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@every_network
def test_the_default_type_counts_where_a_network_is_made_and_nowhere_else(make, dtype):
    model, x = make().eval(), torch.randn(4, 1, 2, 8, 8)
    expected = [model(x), isometry_penalty(model), torch.tensor(count_macs(model, 1, shape=(2, 8, 8)))]
    torch.set_default_dtype(dtype)
    try:
        found = [model(x), isometry_penalty(model), torch.tensor(count_macs(model, 1, shape=(2, 8, 8)), dtype=torch.float32)]
        recalibrate(model, [x[:, 0]], 1)
        assembled()
    finally:
        torch.set_default_dtype(torch.float32)
    assert [value.dtype for value in found] == [torch.float32] * 3
    assert all(map(torch.equal, found, expected))


@every_network
def test_the_default_device_is_not_asked_for(make):
    model, x = make().eval(), torch.randn(4, 1, 2, 8, 8)
    expected = [model(x), predict(model, x[:, 0], 1), isometry_penalty(model)]
    with torch.device("meta"):
        found = [model(x), predict(model, x[:, 0], 1), isometry_penalty(model)]
        recalibrate(model, [x[:, 0]], 1)
    assert all(map(torch.equal, found, expected))


@pytest.mark.unchecked
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit:FutureWarning")
@every_network
def test_a_trace_takes_other_batches_and_sizes(make):
    model = make().eval()
    for n in range(1, model.capacity + 1):
        traced = torch.jit.trace(model, torch.randn(3, n, 2, 8, 8), check_trace=False)
        for b, size in ((5, 8), (1, 12)):
            x = torch.randn(b, n, 2, size, size)
            assert_close(traced(x), model(x))
        for other in range(1, model.capacity + 1):
            if other != n:
                with pytest.raises(RuntimeError):  # of a convolution, whose channels do not fit
                    traced(torch.randn(3, other, 2, 8, 8))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("n", "size", "most"), [(3, 16, 37e6), *(pytest.param(n, 32, 150e6, marks=pytest.mark.torture) for n in (1, 3, 4))]
)
def test_predict_takes_little_memory_beyond_that_of_its_images(n, size, most, dtype):
    """Also where the last pass is filled. A normalised copy of all images alone would take 49 MB, or 197 MB."""
    images = torch.randint(256, (16_000, 3, size, size), dtype=torch.uint8).to(dtype)
    model = small(4, in_channels=3, stem_channels=2, width=0.0625, mean=(0.5,) * 3, std=(0.25,) * 3).float().eval()
    with LiveMemory(images) as memory:
        assert len(predict(model, images, n)) == 16_000
    assert memory.most < most
    assert memory.now < 2e6  # only the logits stay
