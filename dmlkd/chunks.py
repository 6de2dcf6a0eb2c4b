"""A large batch through a network chunk by chunk: the gradient of the whole batch in the memory of one chunk."""

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmlkd.signals import Need, Signals


def signals_in_chunks(network: nn.Module, images: Tensor, needs: Collection[Need] = (), *, size: int | None) -> Signals:
    """The network's signals of a batch, of which only the signals themselves are kept for the backward pass.

    A loss over all embeddings of the batch, a list loss say, is then exactly that of the whole batch, and so is its
    gradient (Gao et al. 2021, https://arxiv.org/abs/2101.06983). In the backward pass the activations of each chunk are
    computed again, with the same random numbers: one more forward pass in all. A network that looks at other images of
    its batch sees those of its chunk: live batch norm normalises by the chunk, and its running statistics move once a
    chunk.

    Args:
        network: a module with ``signals`` (:class:`~dmlkd.signals.SignalNetwork`).
        images: (B, C, H, W) float images.
        needs: the fields that are kept; embeddings always are.
        size: at most so many images are a chunk; chunks differ by at most one image. None: all are one chunk.

    Raises:
        ValueError: if ``size`` is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size!r}")
    if size is None or len(images) <= size:
        signals: Signals = network.signals(images, needs)  # type: ignore[operator]
        return signals

    def kept(part: Tensor) -> Signals:
        signals: Signals = network.signals(part, needs)  # type: ignore[operator]
        return signals.only(needs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), held_statistics(network)

    parts = images.tensor_split(math.ceil(len(images) / size))
    if not torch.is_grad_enabled():
        return Signals.joined([kept(part) for part in parts])
    return Signals.joined([checkpoint(kept, part, use_reentrant=False, context_fn=contexts) for part in parts])


@contextmanager
def held_statistics(network: nn.Module) -> Iterator[None]:
    """Hold batch norm's running statistics: computing activations again is no new look at the images."""
    moving = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.training and module.track_running_stats
    ]
    before = [(module.momentum, None if (n := module.num_batches_tracked) is None else n.clone()) for module in moving]
    for module in moving:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, count) in zip(moving, before, strict=True):
            module.momentum = momentum
            if count is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(count)
