"""Compute the loss and the gradients of a training step; on a GPU each kind of step is recorded as a CUDA graph and replayed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from mimo_benchmarks.data.batching import seed_sequence
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.memory import ran_out_of_memory
from mimo_benchmarks.settings import OptimConfig
from mimo_benchmarks.training.feed import Drawn, Feed
from mimo_benchmarks.training.state import Training


class CudaGraphs:
    """Records operations as CUDA graphs, on two streams of their own; all graphs share their memory."""

    def __init__(self, device: torch.device) -> None:
        self.first, self.second = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Run what is inside on the stream of the graphs, after what came before and before what comes after."""
        self.first.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.first):
            yield
        torch.cuda.current_stream().wait_stream(self.first)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run what is inside on a second stream, beside what comes after, until `join`."""
        self.second.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.second):
            yield

    def join(self) -> None:
        """Let what comes after wait for the second stream."""
        torch.cuda.current_stream().wait_stream(self.second)

    def record(self, operations: Callable[[], None]) -> Callable[[], None]:
        """Record operations without computing anything, and return a function that computes them.

        Raises:
            ConfigError: they wait for the device, or cannot be recorded for another reason.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may ask for events meanwhile, as that which watches over transfers between GPUs does
            with torch.cuda.graph(graph, pool=self.pool, stream=self.first, capture_error_mode="thread_local"):
                operations()
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            raise ConfigError(f"a training step cannot be recorded as a CUDA graph ({error}): give --no-cuda-graphs") from error
        replay: Callable[[], None] = graph.replay
        return replay


class CastTogether(torch.autograd.Function):
    """Casts many weights at once, and their gradients back: two launches in place of two for each weight."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return weights in another dtype."""
        return cast_together(weights, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients in float32."""
        return None, *cast_together(gradients, torch.float32)


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Cast tensors of one dtype to another."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


class Recorded(NamedTuple):
    """A recorded step: where it reads what chance decides, what computes it, and where it writes the gradients."""

    static: Drawn
    replay: Callable[[], None]
    gradients: Sequence[Tensor | None]


class Gradients:
    """Computes the gradients of a step, averaged over all processes.

    Steps of one n and one length run the same operations on tensors of the same shapes. On a GPU the first step of each such
    kind runs as usual, the second is recorded as a CUDA graph, and it and all later ones are replayed, which takes one launch in
    place of thousands. A replay writes into the same tensors each time.

    Args:
        training: state of the run.
        feed: gives the batches.
        accelerator: the accelerator that prepared the state.
    """

    def __init__(self, training: Training, feed: Feed, accelerator: Accelerator) -> None:
        self.training, self.feed, self.accelerator = training, feed, accelerator
        config, device = training.config, accelerator.device
        recording = config.cuda_graphs and not config.sync_batch_norm and device.type == "cuda"
        self.recorder = CudaGraphs(device) if recording else None
        self.parameters = [parameter for parameter in training.network.parameters() if parameter.requires_grad]
        weighted = ((getattr(training.config.optim, name), measure) for name, measure in feed.network.penalties.items())
        self.penalties = [(factor, measure) for factor, measure in weighted if factor]
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
        own_kernels = self.recorder and self.dtype and not feed.network.compiled
        layers = training.network.named_modules() if own_kernels else ()
        self.cast = {f"{path}.weight": layer.weight for path, layer in layers if type(layer) is nn.Conv2d}
        self.recorded: dict[tuple[int, int | None, int], Recorded | None] = {}
        self.measured = torch.zeros(2, device=accelerator.device)

    def __call__(self, step: int) -> Float[Tensor, "2"]:
        """Set the gradients of a step; return its loss, without penalties, and the share of right answers."""
        seed = seed_sequence(self.training.config.seed, step, "dropout", self.feed.rank).generate_state(1)[0]
        torch.manual_seed(int(seed))
        if self.recorder is None:
            self.compute(self.feed.draw(step))
        else:
            with self.recorder.stream():
                self.run_or_replay(self.feed.draw(step, few_lengths=True), self.recorder)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        average_over_processes([*gradients, *self.training.statistics], self.accelerator)
        return self.measured

    def run_or_replay(self, drawn: Drawn, recorder: CudaGraphs) -> None:
        """Compute the gradients of a step: by a replay, if steps of its kind have come before."""
        kind, drawn = shapes(drawn), on_gpu(drawn, self.accelerator.device)
        if kind not in self.recorded:
            self.recorded[kind] = None
            self.compute(drawn)
            return
        recorded = self.recorded[kind]
        if recorded is None:
            replay = recorder.record(lambda: self.compute(drawn))
            recorded = self.recorded[kind] = Recorded(drawn, replay, [parameter.grad for parameter in self.parameters])
        recorded.static.items.copy_(drawn.items)
        recorded.static.key.copy_(drawn.key)
        recorded.replay()
        for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
            parameter.grad = gradient

    def compute(self, drawn: Drawn) -> None:
        """Compute the gradients of a step of this process and, in `measured`, its loss and accuracy."""
        config = self.training.config.optim
        with self.recorder.beside() if self.recorder else nullcontext():
            penalties = self.penalty_gradients()
        self.measured.zero_()
        for part in range(config.accumulate):
            x, mask, y = self.feed.batch(drawn, part)
            logits = self.logits((x,) if mask is None else (x, mask))
            loss = objective(logits, y, config)
            self.accelerator.backward(loss / config.accumulate)
            self.measured += torch.stack([loss.detach(), batch_accuracy(logits, y)]) / config.accumulate
        if self.recorder:
            self.recorder.join()
        for parameter, gradient in penalties.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(gradient)
        if penalties:
            summed, added = [parameter.grad for parameter in penalties], tuple(penalties.values())
            torch._foreach_add_(summed, added)  # type: ignore[arg-type]

    def logits(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Run the network; with `cast`, weights of convolutions are cast together before, not one by one by autocast."""
        logits: Tensor
        if self.cast:
            together = CastTogether.apply(self.dtype, *self.cast.values())
            logits = functional_call(self.training.model, dict(zip(self.cast, together, strict=True)), inputs)
        else:
            logits = self.training.model(*inputs)
        return logits

    def penalty_gradients(self) -> dict[nn.Parameter, Tensor]:
        """Compute the gradients of the penalties, of the parameters that have any."""
        if not self.penalties:
            return {}
        penalty = sum(factor * measure(self.training.network) for factor, measure in self.penalties)
        if not (isinstance(penalty, Tensor) and penalty.requires_grad):
            return {}
        scaler = self.training.scaler  # as for the loss
        gradients = torch.autograd.grad(scaler.scale(penalty) if scaler else penalty, self.parameters, allow_unused=True)
        return {parameter: found for parameter, found in zip(self.parameters, gradients, strict=True) if found is not None}


def shapes(drawn: Drawn) -> tuple[int, int | None, int]:
    """Return what all shapes of a step follow from, so that a step can be replayed in place of another."""
    return drawn.n, drawn.length, len(drawn.items)


def on_gpu(drawn: Drawn, device: torch.device) -> Drawn:
    """Return what was drawn on the CPU with its tensors on a GPU, without waiting for it."""
    items, key = (values.pin_memory() if device.type == "cuda" else values for values in (drawn.items, drawn.key))
    return drawn._replace(items=items.to(device, non_blocking=True), key=key.to(device, non_blocking=True))


def average_over_processes(tensors: Sequence[Tensor], accelerator: Accelerator) -> None:
    """Replace tensors by their means over all processes, in one transfer."""
    if accelerator.num_processes > 1:
        flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in tensors]  # as they lie in memory
        mean = accelerator.reduce(torch.cat(flat), "mean")
        torch._foreach_copy_(flat, mean.split([len(part) for part in flat]))


def objective(logits: Float[Tensor, "*b classes"], targets: Tensor, optim: OptimConfig) -> Float[Tensor, ""]:
    """Return the mean loss over all scored answers; targets are classes (*b) or shares of classes (*b classes)."""
    logits = logits.float().flatten(0, -2)
    if targets.is_floating_point():
        targets = targets.flatten(0, -2)
        if optim.loss == "squared":
            return F.mse_loss(logits, 2 * targets - 1)
    else:
        targets = targets.flatten()
    return F.cross_entropy(logits, targets, label_smoothing=optim.label_smoothing, ignore_index=UNSCORED)


def batch_accuracy(logits: Float[Tensor, "*b classes"], targets: Tensor) -> Float[Tensor, ""]:
    """Return the share of right answers among the scored ones; targets are those of `objective`."""
    classes = targets.argmax(-1) if targets.is_floating_point() else targets
    right, scored = logits.argmax(-1) == classes, classes != UNSCORED
    return (right & scored).sum() / scored.sum()
