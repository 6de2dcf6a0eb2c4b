"""Embedding a data set."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dmlkd.data import ImageDataset


@torch.no_grad()
def embed(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Embed every image of a data set, in row order.

    The model runs in eval mode and is left in the mode it was in.

    Args:
        model: images (B, C, H, W) in, embeddings (B, D) out.
        dataset: with the transform of testing.
        batch_size: images at a time.
        workers: processes that load images; 0: this one.
        device: where to run; None: where the model's parameters are.

    Returns:
        (N, D) embeddings on the CPU, those of ``dataset.labels``.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    try:
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers)
        return torch.cat([model(images.to(device)).cpu() for images, _, _ in loader])
    finally:
        model.train(was_training)
