"""Embedding a data set."""

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from dmlkd.data import ImageDataset
from dmlkd.data.loading import clear_errors, loader

BATCH_SIZE = 256


@torch.no_grad()
def embed(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int = BATCH_SIZE,
    batches: Sampler[list[int]] | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embed every image of a data set, in row order, or those of some batches.

    The model runs in eval mode and is left in the mode it was in.

    Args:
        model: images (B, C, H, W) in, embeddings (B, D) out.
        dataset: with the transform of testing.
        batch_size: images at a time.
        batches: the rows of each batch; None: all rows in order.
        workers: processes that load images; 0: this one.
        device: where to run; None: where the model's parameters are.

    Returns:
        (N, D) embeddings on the CPU, those of ``dataset.labels``, or of the rows of ``batches``.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        loaded = loader(dataset, batch_size=batch_size, batch_sampler=batches, workers=workers)
        with clear_errors():
            return torch.cat([model(images.to(device)).cpu() for images, _, _ in loaded])
    finally:
        model.train(was_training)
