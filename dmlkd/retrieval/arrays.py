"""What callers hand in, as checked NumPy arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError


def unit_rows(name: str, embeddings: Any) -> NDArray[np.float64]:
    """The embeddings as float64 rows of unit length.

    Args:
        name: for messages.
        embeddings: (N, D) NumPy array or torch tensor of any float type, on any device.

    Raises:
        UserError: if it is not (N, D) with N and D at least 1, or a row is zero or not finite, naming the row.
    """
    array = _numpy(embeddings)
    if array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{name} must have shape (N, D) with N, D >= 1, got {array.shape}")
    array = array.astype(np.float64)
    lengths = np.linalg.norm(array, axis=1)
    for wrong, what in ((~np.isfinite(lengths), "is not finite"), (lengths == 0, "is zero and has no direction")):
        if wrong.any():
            raise UserError(f"{name}: row {int(wrong.argmax())} {what} ({int(wrong.sum())} such rows in all)")
    unit: NDArray[np.float64] = array / lengths[:, None]
    return unit


def class_ids(name: str, labels: Any, rows: int) -> NDArray[np.int64]:
    """The labels as int64.

    Raises:
        UserError: if there is not one a row, or they are not integers (a float label collides above 2^24).
    """
    array = _numpy(labels)
    if array.shape != (rows,):
        raise UserError(f"{name} must have shape ({rows},), one for each embedding, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)


def _numpy(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if str(values.dtype) == "torch.bfloat16" else values.numpy()
    return np.asarray(values)
