"""Estimate what training takes from memory, without taking any."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mimo_benchmarks.errors import NotEnoughMemory
from mimo_benchmarks.memory import free_memory, gigabytes, module_bytes
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.training.state import is_compiled

SMALLER_STEPS = "raise --optim.accumulate, which splits a step into smaller batches, or lower --optim.groups or the --model sizes"
"""What to do where a training step does not fit into memory."""

MOMENTS = {"adamw": 2, "sgd": 1, "muon": 1}
"""Copies of the weights that an optimizer keeps."""
META = torch.device("meta")


def training_bytes(config: RunConfig, device: torch.device, *, processes: int = 1, longest: int | None = None) -> int:
    """Return how many bytes a process needs at the same time, at least, to train; operations need more for a while.

    These are the network, its copy for evaluations and its average; and either what a step keeps from its forward pass, or
    gradients and moments, whichever is more.

    Args:
        config: settings of the run.
        device: where it trains; a compiled network keeps less for its backward pass, of which a quarter is counted.
        processes: number of processes that share the superpositions of a step.
        longest: most tokens of a sequence of the task; the most that the network takes unless given.
    """
    with META:
        module = describe(config.model).build().train()
    weights = module_bytes(module)
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    copies = 3 if config.optim.average else 2
    kept = activation_bytes(module, config, processes, longest) // (4 if is_compiled(config, device) else 1)
    return copies * weights + max(kept, trained * (1 + MOMENTS[config.optim.optimizer]))


def check_memory(config: RunConfig, device: torch.device, *, processes: int = 1, longest: int | None = None) -> None:
    """Raise NotEnoughMemory if training surely does not fit into the free memory; see `training_bytes` for the arguments.

    A system that promises more memory than it has would end the program without a word.
    """
    need, room = training_bytes(config, device, processes=processes, longest=longest), free_memory(device)
    if room is not None and need > room:
        label = config.model.label
        raise NotEnoughMemory(
            f"training {label} takes at least {gigabytes(need)} of memory, and {gigabytes(room)} are free: {SMALLER_STEPS}"
        )


def activation_bytes(module: nn.Module, config: RunConfig, processes: int, longest: int | None) -> int:
    """Return how many bytes a step keeps from its forward pass for its backward pass, if it is not compiled."""
    network, parts = describe(config.model), config.optim.accumulate * processes
    own = {tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())}
    most = 0
    for n in config.n:
        saved: dict[int, Tensor] = {}

        inputs = network.example(config.optim.groups // parts * network.inputs(n), META)
        inputs = inputs[..., :longest] if network.takes == "tokens" else inputs
        attention = (inputs.shape[-1],) * 2 if network.takes == "tokens" else ()

        def keep(tensor: Tensor, saved: dict[int, Tensor] = saved, attention: tuple[int, ...] = attention) -> Tensor:
            if not attention or tensor.shape[-2:] != attention:  # fused kernels do without the matrix of exact attention
                saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = module(inputs.unflatten(0, (-1, *network.axes(n))))
        answers = 2 * output.nbytes  # the loss keeps the logits, and their logarithms of shares
        most = max(most, answers + sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own))
    return most // 2 if config.precision in ("bf16", "fp16") else most
