"""A short name for what a network computes."""

import hashlib
import json

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 of a network's configuration and weights: equal for equal networks, on any device.

    Args:
        model: any; of an :class:`~dmlkd.models.EmbeddingModel` the constructor's arguments count too, but not the
            weights it started from.

    Returns:
        64 hexadecimal digits.

    >>> from dmlkd.models import EmbeddingModel
    >>> model = EmbeddingModel("convnet4", dim=4)
    >>> fingerprint(model) == fingerprint(model.train()), len(fingerprint(model))
    (True, 64)
    """
    config = getattr(model, "_hub_mixin_config", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
