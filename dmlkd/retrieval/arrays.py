"""What callers hand in, as checked NumPy arrays."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError, suggestion

Distance = Literal["cosine", "euclidean", "inner"]

_ROWS = 8192  # converted at a time, so that no second copy of the embeddings is made
_LONGEST = 1e18  # the square of a longer row does not fit into float32


def checked_distance(name: str) -> Distance:
    """The name of a distance.

    Raises:
        UserError: for another one, naming those there are.
    """
    for known in get_args(Distance):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UserError(f"unknown distance {name!r}{suggestion(name, get_args(Distance))}")


def rows32(name: str, embeddings: Any, distance: Distance) -> NDArray[np.float32]:
    """The embeddings as float32 rows; those of "cosine" scaled to unit length in float64 first.

    What is compared from here on are these rounded rows, so equal embeddings are equal rows.

    Args:
        name: for messages.
        embeddings: (N, D) NumPy array or torch tensor of any float type, on any device.
        distance: "cosine", "euclidean" or "inner".

    Raises:
        UserError: if it is not (N, D) with N and D at least 1, or a row is not finite, too long for float32, or zero
            where a direction is needed; names the first such row.
    """
    if not hasattr(embeddings, "shape"):
        embeddings = np.asarray(embeddings)
    shape = tuple(embeddings.shape)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{name} must have shape (N, D) with N, D >= 1, got {shape}")
    out = np.empty(shape, np.float32)
    unit = distance == "cosine"
    for start in range(0, len(out), _ROWS):
        part = numpy_array(embeddings[start : start + _ROWS])
        if part.dtype.kind not in "fiu":
            raise UserError(f"{name} must be real numbers, got {part.dtype}")
        part = np.ascontiguousarray(part, dtype=np.float64)
        largest = np.abs(part).max(axis=1)
        _refuse(name, ~np.isfinite(largest), "is not finite", start)
        if unit:
            _refuse(name, largest == 0, "is zero and has no direction", start)
            part = part / largest[:, None]
            part /= np.sqrt((part * part).sum(axis=1))[:, None]
        else:
            lengths = largest * np.sqrt(((part / np.where(largest == 0, 1, largest)[:, None]) ** 2).sum(axis=1))
            _refuse(name, lengths > _LONGEST, f"is longer than {_LONGEST:.0e}, too long for float32", start)
        out[start : start + _ROWS] = part
    return out


def _refuse(name: str, wrong: NDArray[np.bool_], what: str, start: int) -> None:
    if wrong.any():
        raise UserError(f"{name}: row {start + int(wrong.argmax())} {what}")


def class_ids(name: str, labels: Any, rows: int) -> NDArray[np.int64]:
    """The labels as int64.

    Raises:
        UserError: if there is not one a row, or they are not integers (a float label collides above 2^24).
    """
    array = numpy_array(labels)
    if array.shape != (rows,):
        raise UserError(f"{name} must have shape ({rows},), one for each embedding, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.int64)


def codes(
    first_name: str, first: Any, second_name: str, second: Any, rows: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two columns of identifiers, integers or strings, as integers that are equal where the identifiers are.

    Raises:
        UserError: if there is not one a row, or they are neither integers nor strings, or one is of each.
    """
    arrays = []
    for name, values, count in ((first_name, first, rows[0]), (second_name, second, rows[1])):
        array = numpy_array(values)
        if array.shape != (count,):
            raise UserError(f"{name} must have shape ({count},), one for each embedding, got {array.shape}")
        array = array.astype(str) if array.dtype.kind == "O" else array
        if array.dtype.kind not in "iuU":
            raise UserError(f"{name} must be integers or strings, got {array.dtype}")
        arrays.append(array)
    if (arrays[0].dtype.kind == "U") != (arrays[1].dtype.kind == "U"):
        raise UserError(f"{first_name} and {second_name} must both be integers or both strings")
    inverse = np.unique(np.concatenate(arrays), return_inverse=True)[1].astype(np.int64)
    return inverse[: rows[0]], inverse[rows[0] :]


def numpy_array(values: Any) -> NDArray[Any]:
    """A NumPy array of a tensor, array or list; bfloat16 as float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy() if str(values.dtype) == "torch.bfloat16" else values.numpy()
    return np.asarray(values)


def in_parts(count: int, size: int, work: Callable[[slice], None]) -> None:
    """Do something for consecutive slices of at most ``size``."""
    for start in range(0, count, max(1, size)):
        work(slice(start, min(start + max(1, size), count)))
