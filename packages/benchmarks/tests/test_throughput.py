import pytest
import torch

from mimo_benchmarks import throughput


class Sleeper(torch.nn.Module):
    """A network whose pass takes a fixed time on a clock of its own, but twice that in the usual layout or as warm-up."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds, self.shapes = clock, seconds, []
        self.weight = torch.nn.Parameter(torch.zeros(1, 2, 3, 3))

    def forward(self, x):
        usual = self.weight.stride() == torch.zeros(1, 2, 3, 3).stride()
        warm_up = len(self.shapes) % 2 == 0
        outlier = 50 if len(self.shapes) == 5 else 1
        self.shapes.append(tuple(x.shape[:2]))
        self.clock[0] += self.seconds * (1 + usual) * (1 + warm_up) * outlier


@pytest.mark.unchecked
def test_rate_is_images_over_the_median_time_in_the_faster_layout(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    one, four = Sleeper(clock, 0.5), Sleeper(clock, 0.25)
    rates = throughput.images_per_second([(one, 1), (four, 4)], torch.zeros(8, 1, 2, 2), rounds=3)
    assert rates == [16, 32]
    assert set(one.shapes) == {(8, 1)}
    assert set(four.shapes) == {(2, 4)}
