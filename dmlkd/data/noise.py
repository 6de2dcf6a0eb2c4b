"""Label noise: training labels made wrong on purpose, to measure what a method makes of them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import ConfigError, DataError

NoiseKind = Literal["symmetric", "pair"]


def noisy_labels(labels: NDArray[np.int64], fraction: float, *, kind: NoiseKind, seed: int) -> NDArray[np.int64]:
    """Give a share of the images a wrong label.

    "symmetric" draws the wrong label evenly from all other classes; "pair" takes the next class in ascending order, the
    first after the last (B. Han et al. 2018, https://arxiv.org/abs/1804.06872, has both).

    Args:
        labels: (N,) class ids.
        fraction: of the images whose label becomes wrong, 0 <= fraction < 1, rounded to whole images.
        kind: "symmetric" or "pair".
        seed: which images, and which labels.

    Returns:
        (N,) labels, round(fraction * N) of them wrong.

    Raises:
        ConfigError: if ``fraction`` or ``kind`` is not one of these.
        DataError: if there is but one class.

    >>> noisy_labels(np.array([3, 3, 5, 8]), 0.5, kind="pair", seed=0)
    array([5, 3, 5, 3])
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"noise must be at least 0 and below 1, got {fraction}")
    if kind not in ("symmetric", "pair"):
        raise ConfigError(f"noise_kind must be 'symmetric' or 'pair', got {kind!r}")
    classes, positions = np.unique(labels, return_inverse=True)
    chosen = round(fraction * len(labels))
    if chosen and len(classes) < 2:
        raise DataError("labels can be made wrong only where there are at least 2 classes")
    rng = np.random.default_rng([seed, 7])
    rows = rng.permutation(len(labels))[:chosen]
    shift = rng.integers(1, len(classes), size=chosen) if kind == "symmetric" and chosen else 1
    noisy = labels.copy()
    noisy[rows] = classes[(positions[rows] + shift) % len(classes)]
    return noisy
