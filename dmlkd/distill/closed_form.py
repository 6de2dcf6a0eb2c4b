"""Kernel ridge regression fitted to its own outputs, round after round, in closed form; NumPy and SciPy alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.distill.checks import positive, whole, within

_NOT_NEGATIVE = 1e-8  # share of the largest eigenvalue by which rounding may make one negative


class Spectrum(NamedTuple):
    """The eigenbasis of a Gram matrix.

    Attributes:
        values: (n,) eigenvalues, ascending; those that are not told from 0 are 0.
        vectors: (n, n) eigenvectors, a column each.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]

    def project(self, labels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Labels (n, C) in the eigenbasis."""
        projected: NDArray[np.float64] = self.vectors.T @ labels
        return projected


class Rounds(NamedTuple):
    """Each round as factors of the labels in the eigenbasis: what it was fitted to and what came out.

    Attributes:
        penalties: (T,) the c of each round, 0 or more; infinite where the round's output is 0.
        targets: (T, n) factors of what the round was fitted to; 1 in the first.
        outputs: (T, n) factors of its outputs on the training points.
    """

    penalties: NDArray[np.float64]
    targets: NDArray[np.float64]
    outputs: NDArray[np.float64]

    @property
    def collapsed(self) -> int | None:
        """The first round, counted from 1, whose output is 0 everywhere; None: there is none."""
        zero = np.flatnonzero(np.isinf(self.penalties))
        return int(zero[0]) + 1 if len(zero) else None


def spectrum(gram: Any) -> Spectrum:
    """Decompose a Gram matrix.

    Args:
        gram: (n, n) symmetric and positive semi-definite.

    Raises:
        ValueError: if it is not.
    """
    matrix = np.asarray(gram, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"a Gram matrix must be (n, n) with n >= 1, got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("the Gram matrix is not finite")
    size = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > _NOT_NEGATIVE * size:
        raise ValueError("the Gram matrix is not symmetric")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -_NOT_NEGATIVE * size:
        raise ValueError(f"the kernel is not positive semi-definite: an eigenvalue is {values[0]:.3g}")
    values[values <= values[-1] * len(values) * np.finfo(np.float64).eps] = 0
    return Spectrum(values, vectors)


def closed_form_rounds(
    values: NDArray[np.float64],
    projected: NDArray[np.float64],
    *,
    rounds: int,
    ridge: float | None = None,
    tolerance: float | None = None,
    label_weight: float | Sequence[float] = 0.0,
) -> Rounds:
    r"""Self-distillation of kernel ridge regression, each round in the eigenbasis of the Gram matrix.

    The targets are :math:`\tau_1 = y` and :math:`\tau_t = a_t y + (1 - a_t) f_{t-1}`, the outputs
    :math:`f_t = K (K + c_t I)^{-1} \tau_t`, so that each eigenvalue d has a factor d / (d + c_t) a round. With
    ``ridge`` every c_t is that number; for one 0 < a <= 1 the outputs then converge to ridge regression with ridge / a
    (Borup and Andersen 2021, https://arxiv.org/abs/2102.13088). With ``tolerance`` c_t is the root of the constraint
    that the mean squared residual of round t equals it; without labels (a = 0) small eigenvalues are shrunk most until
    the output is 0 (Mobahi et al. 2020, https://arxiv.org/abs/2002.05715). Where there are C outputs the residual of a
    point is the length of its row, which is our reading: the paper has one output.

    Args:
        values: (n,) eigenvalues, none negative.
        projected: (n, C) labels in the eigenbasis, of :meth:`Spectrum.project`.
        rounds: T, at least 1.
        ridge: c of every round, above 0; either this or ``tolerance``.
        tolerance: mean squared residual of every round, above 0.
        label_weight: a, from 0 to 1: of each round from the second on, or one for all.

    Returns:
        What each round was fitted to and what came out.

    Raises:
        ValueError: for a bad number, or a residual that cannot be as small as ``tolerance``.

    >>> closed_form_rounds(np.array([1.0, 3.0]), np.ones((2, 1)), rounds=2, ridge=1.0).outputs
    array([[0.5   , 0.75  ],
           [0.25  , 0.5625]])
    """
    if (ridge is None) == (tolerance is None):
        raise ValueError(f"give either ridge or tolerance, got ridge {ridge!r} and tolerance {tolerance!r}")
    if ridge is not None:
        ridge = positive("ridge", ridge)
    if tolerance is not None:
        tolerance = positive("tolerance", tolerance)
    weights = label_weights(label_weight, whole("rounds", rounds))
    energy = (projected * projected).sum(axis=1)
    penalties = np.empty(rounds)
    targets, outputs = np.empty((rounds, len(values))), np.empty((rounds, len(values)))
    target = np.ones(len(values))
    for t in range(rounds):
        if t:
            target = weights[t - 1] + (1 - weights[t - 1]) * outputs[t - 1]
        if tolerance is None:
            assert ridge is not None
            penalties[t] = ridge
        else:
            penalties[t] = penalty(values, energy * target**2, tolerance)
        targets[t] = target
        outputs[t] = 0.0 if np.isinf(penalties[t]) else values / (values + penalties[t]) * target
    return Rounds(penalties, targets, outputs)


def label_weights(given: float | Sequence[float], rounds: int) -> list[float]:
    """The label weight of each round from the second on.

    Args:
        given: one for all, or ``rounds - 1`` of them.
        rounds: T.

    Raises:
        ValueError: for another number of them, or one outside 0 to 1.
    """
    if isinstance(given, list | tuple | np.ndarray):
        if len(given) != rounds - 1:
            raise ValueError(f"label_weight must be one number or one for each of rounds 2 to {rounds}, got {given!r}")
        return [within("label_weight", weight, 0, 1) for weight in given]
    return [within("label_weight", given, 0, 1)] * (rounds - 1)


def penalty(values: NDArray[np.float64], energy: NDArray[np.float64], tolerance: float) -> float:
    r"""The c with :math:`\frac1n \sum_k (c / (c + d_k))^2 e_k` equal to a tolerance.

    Args:
        values: (n,) eigenvalues d.
        energy: (n,) e, squared length of the target along each eigenvector.
        tolerance: above 0.

    Returns:
        c; infinite if the target itself is no larger than the tolerance, so that 0 satisfies the constraint.

    Raises:
        ValueError: if even c = 0 leaves more, because the kernel cannot represent the target.
    """
    from scipy.optimize import brentq

    count = len(values)
    length, allowed = float(np.sqrt(energy.sum() / count)), float(np.sqrt(tolerance))
    if length <= allowed:
        return float("inf")
    beyond = float(energy[values == 0].sum() / count)
    if beyond >= tolerance:
        raise ValueError(
            f"tolerance must be above {beyond:.6g}, the mean squared residual that this kernel leaves, got {tolerance}"
        )

    seen = values > 0

    def excess(c: float) -> float:
        left = (c / (c + values[seen])) ** 2 * energy[seen]
        return float(left.sum()) / count + beyond - tolerance

    # All eigenvalues as large as the largest would need this c (Mobahi et al. 2020), smaller ones need less.
    high = float(values[-1]) * allowed / (length - allowed) * (1 + 1e-9)
    return float(brentq(excess, 0.0, high, xtol=1e-300, rtol=1e-15, maxiter=5000))


def coefficients(basis: Spectrum, projected: NDArray[np.float64], rounds: Rounds) -> NDArray[np.float64]:
    """Weights (n, C) of the training points in the last round's outputs: those at x are k(x, training points) @ them.

    Args:
        basis: of the Gram matrix.
        projected: (n, C) labels in it.
        rounds: of :func:`closed_form_rounds`.
    """
    scale = np.zeros(len(basis.values))
    seen = basis.values > 0
    if np.isfinite(rounds.penalties[-1]):
        scale[seen] = rounds.targets[-1][seen] / (basis.values[seen] + rounds.penalties[-1])
    found: NDArray[np.float64] = basis.vectors @ (scale[:, None] * projected)
    return found


def rounds_before_collapse(values: NDArray[np.float64], projected: NDArray[np.float64], tolerance: float) -> float:
    r"""A number of rounds that constrained self-distillation without labels has at least before its output is 0.

    :math:`(\|y_0\| / \sqrt{n \epsilon} - 1) / (d_{max} / d_{min})` (Mobahi et al. 2020,
    https://arxiv.org/abs/2002.05715); 0, which says nothing, where an eigenvalue is 0.

    Args:
        values: (n,) eigenvalues.
        projected: (n, C) labels in the eigenbasis.
        tolerance: epsilon, above 0.
    """
    allowed = np.sqrt(len(values) * positive("tolerance", tolerance))
    low, high = float(values.min()), float(values.max())
    return max(0.0, float(np.linalg.norm(projected) / allowed - 1) * low / high) if high > 0 else 0.0
