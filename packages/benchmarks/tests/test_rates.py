"""Speed is computed from durations; these tests bring their own, and no clock."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import mimoconv
from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.evaluation import rates
from mimo_benchmarks.networks.datamux import DataMUXConfig
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.result import Spread
from mimoconv import MIMOConv, MIMOConvConfig
from mimoformer import MIMOFormer, MIMOFormerConfig

CPU = torch.device("cpu")
CONV = MIMOConvConfig(capacity=4, depth=10, width=0.25, stem_channels=8, in_channels=2, image_size=8)
FORMER = MIMOFormerConfig(vocab_size=7, max_length=6, layers=1, embed_dim=8, heads=2, mlp_dim=8, features=4)


class Sleeper(MIMOConv):
    """A network whose pass takes a fixed time on a clock of its own, but twice that as warm-up."""

    def __init__(self, clock, seconds):
        super().__init__(CONV)
        self.clock, self.seconds, self.shapes = clock, seconds, []

    def forward(self, x):
        warm_up = len(self.shapes) % 2 == 0
        outlier = 50 if len(self.shapes) == 3 else 1
        self.shapes.append(tuple(x.shape))
        self.clock[0] += self.seconds * (1 + warm_up) * outlier
        return super().forward(x)


def test_rate_is_inputs_over_the_median_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(rates.time, "perf_counter", lambda: clock[0])
    one, four = Sleeper(clock, 0.5).eval(), Sleeper(clock, 0.25).eval()
    candidates = [(describe(CONV), one, 1), (describe(CONV), four, 4)]
    found = rates.inputs_per_second(candidates, torch.zeros(8, 2, 8, 8), rounds=3)
    assert [rate.value for rate in found] == [16, 32]
    assert one.shapes == [(8, 1, 2, 8, 8)] * 6  # each of 3 rounds, warm-up
    assert four.shapes == [(2, 4, 2, 8, 8)] * 6


def test_a_grid_of_sequences(monkeypatch):
    seen = []

    def durations(call, device, rounds, warmup):
        seen.append((tuple(call().shape), rounds, warmup))
        return [0.5]

    monkeypatch.setattr(rates, "durations", durations)
    network = MIMOFormer(FORMER).eval()
    candidates = [(describe(FORMER), network, 2), (describe(FORMER), network, 1)]
    found = rates.inputs_per_second(candidates, torch.zeros(10, 6, dtype=torch.long), rounds=2)
    assert found == [Spread(value=20, low=20, high=20)] * 2
    assert seen == [((3, 2, 2, 10), 1, 1), ((10, 1, 1, 10), 1, 1)] * 2


def test_quartiles_of_a_rate_are_those_of_the_rounds(monkeypatch):
    """Of five rounds, the second and the fourth by their time."""
    record = iter([4.0, 1.0, 16.0, 2.0, 8.0])
    monkeypatch.setattr(rates, "durations", lambda *_: [next(record)])
    candidates = [(describe(CONV), MIMOConv(CONV).eval(), 1)]
    (found,) = rates.inputs_per_second(candidates, torch.zeros(8, 2, 8, 8), rounds=5)
    assert found == Spread(value=8 / 4, low=8 / 8, high=8 / 2)


def test_rounds_have_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr(rates, "durations", lambda *_: [1.0])
    rates.inputs_per_second([(describe(CONV), MIMOConv(CONV).eval(), 1)], torch.zeros(8, 2, 8, 8), rounds=7)
    assert capsys.readouterr().err.startswith("measuring throughput: 0 of 7 rounds")


def test_measure_says_after_each_timed_call_that_it_was_made(monkeypatch):
    canned(monkeypatch, [1.0, 2.0, 3.0])
    calls = []
    rates.measure(describe(CONV), MIMOConv(CONV).eval(), 2, 5, peak=1, rounds=3, after_call=lambda: calls.append(1))
    assert len(calls) == 3 * 2  # rounds, of one pass and of all


def test_durations_are_those_of_the_calls_after_the_warm_up(monkeypatch):
    clock, calls = [0.0], []

    def call():
        calls.append(torch.is_inference_mode_enabled())
        clock[0] += len(calls)

    monkeypatch.setattr(rates.time, "perf_counter", lambda: clock[0])
    assert list(rates.durations(call, CPU, rounds=3, warmup=2)) == [3, 4, 5]
    assert calls == [True] * 5


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (CONV, (5, 2, 8, 8)),
        (FORMER, (5, 6)),
        (MIMOFormerConfig(head="pair", vocab_size=7, max_length=6), (5, 2, 6)),
        (DataMUXConfig(vocab_size=7, max_length=6), (5, 6)),
    ],
)
def test_example_has_the_shape_that_a_network_takes(config, shape):
    inputs = describe(config).example(5, CPU)
    assert inputs.shape == shape
    assert inputs.is_floating_point() == (config is CONV)
    if config is not CONV:
        assert set(inputs.unique().tolist()) <= set(range(7))
        assert len(inputs.unique()) > 1


def test_device_peak_is_the_operations_of_the_product_over_its_best_time(monkeypatch):
    counted = []

    def durations(call, device, rounds, warmup):
        with FlopCounterMode(display=False) as counter:
            assert call().dtype == torch.bfloat16
        counted.append(counter.get_total_flops())
        return [4.0, 2.0, 8.0]

    monkeypatch.setattr(rates, "durations", durations)
    assert rates.device_peak(torch.device("meta"), torch.bfloat16) == counted[0] / 2
    assert counted == [2 * 1024**3]


def canned(monkeypatch, *records):
    """Durations in the order that they are asked for, over again; returns what each is asked of."""
    asked = []

    def durations(call, device, rounds, warmup):
        asked.append((tuple(call().shape), rounds, warmup))
        return records[(len(asked) - 1) % len(records)]

    monkeypatch.setattr(rates, "durations", durations)
    return asked


def test_measure_tells_quartiles_rate_and_share(monkeypatch):
    slow, fast = [float(second) for second in range(100, 0, -5)], [float(second) for second in range(41)]
    asked = canned(monkeypatch, slow, fast)
    network = MIMOConv(CONV).eval()
    found = rates.measure(describe(CONV), network, 2, 5, peak=1000, rounds=7)
    assert asked == [((2, 10), 7, rates.WARMUP), ((10, 10), 7, rates.WARMUP)]
    assert (found.latency.low, found.latency.median, found.latency.high) == (28.75, 52.5, 76.25)
    assert found.inputs_per_second == 10 / 20
    assert found.inputs_per_second_quartiles == (10 / 30, 10 / 10)
    assert found.macs == mimoconv.count_macs(network, 2)
    assert_close(found.share, 2 * found.macs * 0.5 / 1000)
    assert (found.n, found.latency.peak_bytes, found.batch.peak_bytes) == (2, None, None)


def test_measure_fills_a_grid(monkeypatch):
    asked = canned(monkeypatch, [2.0])
    found = rates.measure(describe(FORMER), MIMOFormer(FORMER).eval(), 2, 3, peak=1, rounds=1)
    assert [shape for shape, *_ in asked] == [(4, 10), (12, 10)]
    assert found.inputs_per_second == 12 / 2


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_pass(precision, dtype, monkeypatch):
    seen = []

    def durations(call, device, rounds, warmup):
        seen.append(call().dtype)
        return [1.0]

    monkeypatch.setattr(rates, "durations", durations)
    rates.measure(describe(CONV), MIMOConv(CONV).eval(), 2, 3, peak=1, precision=precision)
    assert seen == [dtype] * 2


def test_each_shape_is_compiled_afresh(monkeypatch):
    done = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: done.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: done.append(dynamic) or network)
    canned(monkeypatch, [1.0])
    rates.measure(describe(CONV), MIMOConv(CONV).eval(), 2, 3, peak=1, compiled=True)
    assert done == ["reset", False] * 2


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), NotEnoughMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), NotEnoughMemory),
        (RuntimeError("another"), RuntimeError),
    ],
)
def test_passes_that_do_not_fit_are_refused(error, refused, monkeypatch):
    def durations(call, device, rounds, warmup):
        if call().shape[0] == 18:
            raise error
        return [1.0]

    monkeypatch.setattr(rates, "durations", durations)
    told = "not enough memory for 9 passes with n = 2: give fewer --passes" if refused is NotEnoughMemory else "another"
    with pytest.raises(refused, match=told):
        rates.measure(describe(CONV), MIMOConv(CONV).eval(), 2, 9, peak=1)


@pytest.mark.unchecked
def test_other_devices_have_a_budget_and_are_waited_for(monkeypatch):
    """Such as MPS, whose calls return before it is done."""
    device, events = torch.device("mps"), []
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(synchronize=lambda: events.append("wait")))
    assert len(list(rates.durations(lambda: events.append("call"), device, 2, 0))) == 2
    assert events == ["wait", "call", "wait"] * 2
    network = SimpleNamespace(inputs_per_pass=int, count_macs=lambda *_: 1e9, example=lambda count, _: count)
    monkeypatch.setattr(rates, "inputs_per_second", lambda _, inputs: inputs)
    assert rates.measure_throughput([(network, None, 2)], device) == 20
