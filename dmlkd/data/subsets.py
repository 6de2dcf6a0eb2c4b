"""Parts of the training images, for fits that each see one: folds of the images, tasks of the classes."""

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import DataError


def image_folds(labels: NDArray[np.int64], folds: int, *, seed: int) -> NDArray[np.int64]:
    """Deal images out to folds, those of each class evenly: what cross-fitting leaves out in turn.

    Args:
        labels: (N,) class ids.
        folds: K, at least 2; the sizes of two folds differ by at most one image, in all and within a class.
        seed: for the choice.

    Returns:
        (N,) the fold of each image, 0 to K - 1.

    Raises:
        DataError: if there are fewer images than folds.

    >>> folds = image_folds(np.array([7, 7, 7, 7, 9, 9]), 2, seed=0)
    >>> [sorted(folds[:4].tolist()), sorted(folds[4:].tolist())]
    [[0, 0, 1, 1], [0, 1]]
    """
    if len(labels) < folds:
        raise DataError(f"data.image_folds = {folds} needs as many training images, there are {len(labels)}")
    order = np.lexsort((np.random.default_rng([seed, len(labels), folds]).random(len(labels)), labels))
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) % folds
    return found


def class_tasks(labels: NDArray[np.int64], tasks: int, *, seed: int) -> NDArray[np.int64]:
    """Deal classes out to tasks: classes that arrive over time.

    Args:
        labels: (N,) class ids.
        tasks: T, at least 2; they have as many classes, or one more.
        seed: for the choice.

    Returns:
        (N,) the task of each image, 0 to T - 1.

    Raises:
        DataError: if a task would have fewer than 2 classes.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2 * tasks:
        raise DataError(f"data.tasks = {tasks} needs 2 training classes each, there are {len(classes)}")
    found = np.empty(len(classes), np.int64)
    found[np.random.default_rng([seed, len(classes), tasks]).permutation(len(classes))] = (
        np.arange(len(classes)) * tasks // len(classes)
    )
    return found[targets]
