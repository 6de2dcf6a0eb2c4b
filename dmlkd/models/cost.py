"""What a model costs to run: parameters, multiply-adds, images a second."""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from dmlkd.models.embedding import EmbeddingModel


class Cost(NamedTuple):
    """What one image costs.

    Attributes:
        parameters: numbers that are trained.
        multiply_adds: of convolutions and matrix products.
    """

    parameters: int
    multiply_adds: int


@torch.no_grad()
def cost(model: EmbeddingModel, *, shape: Sequence[int]) -> Cost:
    """Count a model's parameters, and the multiply-adds of one image; nothing is computed.

    Args:
        model: in whatever mode, on whatever device.
        shape: (C, H, W) of an image as the model takes it.

    >>> model = EmbeddingModel("convnet4", dim=8, in_channels=1, exit_stage=0)
    >>> cost(model, shape=(1, 28, 28)) < cost(EmbeddingModel("convnet4", dim=8, in_channels=1), shape=(1, 28, 28))
    True
    """
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    state = {name: tensor.detach().to("meta") for name, tensor in named}
    images = torch.empty(2, *shape, device="meta")
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        functional_call(model, state, (images,))
    model.train(training)
    operations = counter.get_total_flops()  # an addition and a multiplication count as two, and there are two images
    return Cost(sum(parameter.numel() for parameter in model.parameters()), operations // 4)


@torch.inference_mode()
def images_per_second(
    models: Mapping[str, EmbeddingModel], *, shape: Sequence[int], batch_size: int, seconds: float = 1.0
) -> dict[str, float]:
    """Measure how many images each model embeds a second, on the device and with the threads it has now.

    The models take turns, a batch of noise at a time, so that a change in the machine's load falls on all of them.

    Args:
        models: by name.
        shape: (C, H, W) of an image as the models take it.
        batch_size: images at a time.
        seconds: at least so long in all for each model, after a first batch that is not counted.

    Returns:
        By name, the median over the turns.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    turn = 0
    while turn < 2 or min(sum(times) for times in taken.values()) < seconds:
        for name, model in models.items():
            device = next(model.parameters()).device
            images = torch.rand(batch_size, *shape, device=device)
            _wait(device)
            begun = time.perf_counter()
            model(images)
            _wait(device)
            if turn:
                taken[name].append(time.perf_counter() - begun)
        turn += 1
    for name, model in models.items():
        model.train(modes[name])
    return {name: batch_size / statistics.median(times) for name, times in taken.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
