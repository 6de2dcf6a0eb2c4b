"""How far a student sees images as its teacher does: neighbours, similarities, class scores where there are any."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import Distance, checked_distance, numpy_array, rows32
from dmlkd.retrieval.backends import FaissSearch
from dmlkd.retrieval.similarity import pair_similarities

PAIRS = 1_000_000
_ROWS = 4096  # rows handled at a time


class Fidelity(NamedTuple):
    """Agreement of two models on the same images (https://arxiv.org/abs/2106.05945); of equal models 1, KL 0.

    Attributes:
        nearest: share of the images whose nearest other image is the same in both.
        neighbours: mean share of the k nearest others that are the same.
        spearman: rank correlation of the similarities of pairs of images; NaN if one model's are all equal.
        cka: linear centred kernel alignment; NaN if one model's embeddings are all equal.
        top1: share of the images whose best class is the same; None without class scores.
        kl: mean KL(teacher || student) of the class posteriors, in nats; None without class scores.
    """

    nearest: float
    neighbours: float
    spearman: float
    cka: float
    top1: float | None = None
    kl: float | None = None


def fidelity(
    *,
    teacher: Any,
    student: Any,
    neighbours: int = 10,
    distance: str = "cosine",
    pairs: int | None = PAIRS,
    seed: int = 0,
    teacher_logits: Any = None,
    student_logits: Any = None,
) -> Fidelity:
    """Measure how far a student agrees with its teacher (Stanton et al. 2021, https://arxiv.org/abs/2106.05945).

    The paper measures class posteriors (``top1``, ``kl``); what is measured of the embeddings is ours.

    Args:
        teacher: (N, D) embeddings.
        student: (N, E) embeddings of the same images in the same order.
        neighbours: k, at least 1 and less than N.
        distance: "cosine", "euclidean" or "inner", between embeddings of one model.
        pairs: draw so many pairs of images for the rank correlation, where there are more; None: take all.
        seed: of the draw.
        teacher_logits: (N, C) class scores before the softmax; with the student's, or neither.
        student_logits: (N, C).

    Returns:
        Each measure by its field.

    Raises:
        UserError: if the two do not fit together, or a number is out of range.

    >>> z = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.1]])
    >>> fidelity(teacher=z, student=-z, neighbours=2)
    Fidelity(nearest=1.0, neighbours=1.0, spearman=1.0, cka=1.0, top1=None, kl=None)
    """
    kind = checked_distance(distance)
    a, b = rows32("teacher", teacher, kind), rows32("student", student, kind)
    if len(a) != len(b):
        raise UserError(f"teacher and student must have embedded the same images, got {len(a)} and {len(b)} rows")
    if len(a) < 3:
        raise UserError(f"fidelity needs at least 3 images, got {len(a)}")
    if not 1 <= neighbours < len(a):
        raise UserError(f"neighbours must be at least 1 and less than the {len(a)} images, got {neighbours}")
    if pairs is not None and pairs < 2:
        raise UserError(f"pairs must be at least 2, got {pairs}")
    if (teacher_logits is None) != (student_logits is None):
        raise UserError("class scores must be given of both models or of neither")
    same = neighbours_in_common(a, b, neighbours, kind)
    found = Fidelity(
        nearest=float(neighbours_in_common(a, b, 1, kind).mean()),
        neighbours=float(same.mean()),
        spearman=rank_correlation(a, b, distance=kind, pairs=pairs, seed=seed),
        cka=centred_alignment(a, b),
    )
    if teacher_logits is None:
        return found
    top1, kl = posterior_agreement(teacher_logits, student_logits, len(a))
    return found._replace(top1=top1, kl=kl)


def neighbours_in_common(
    teacher: NDArray[np.float32], student: NDArray[np.float32], k: int, distance: Distance
) -> NDArray[np.float64]:
    """The share of each image's k nearest others that are the same in both.

    Args:
        teacher: (N, D).
        student: (N, E).
        k: less than N; which of equally near ones count among the k nearest is up to FAISS.
        distance: between rows.

    Returns:
        (N,) from 0 to 1.
    """
    searches = [FaissSearch(z, distance) for z in (teacher, student)]
    shares = np.empty(len(teacher))
    for start in range(0, len(teacher), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(teacher)))
        near = [
            _others(search.top(z[rows], k + 1)[1], rows) for search, z in zip(searches, (teacher, student), strict=True)
        ]
        # In a sorted row of both lists an item that both have stands twice.
        both = np.sort(np.concatenate(near, axis=1), axis=1)
        shares[rows] = (both[:, 1:] == both[:, :-1]).sum(axis=1) / k
    return shares


def _others(ids: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first k of k + 1 neighbours (b, k + 1) that are not the row (b,) itself."""
    own = ids == rows[:, None]
    own[~own.any(axis=1), -1] = True
    others: NDArray[np.int64] = ids[~own].reshape(len(ids), -1)
    return others


def rank_correlation(
    teacher: NDArray[np.float32],
    student: NDArray[np.float32],
    *,
    distance: Distance,
    pairs: int | None = PAIRS,
    seed: int = 0,
) -> float:
    """Spearman's correlation of the similarities of pairs of images; equal similarities share their mean rank.

    Args:
        teacher: (N, D).
        student: (N, E).
        distance: between rows.
        pairs: draw so many of the N (N - 1) / 2, with replacement, if there are more; None: take all. Memory grows with
            them.
        seed: of the draw.

    Returns:
        From -1 to 1; NaN if all similarities of one model are equal.
    """
    from scipy.stats import rankdata

    count = len(teacher)
    total = count * (count - 1) // 2
    if pairs is None or total <= pairs:
        left, right = np.triu_indices(count, k=1)
    else:
        rng = np.random.default_rng(seed)
        left = rng.integers(count, size=pairs)
        right = (left + rng.integers(1, count, size=pairs)) % count
    ranks = []
    for z in (teacher, student):
        rank = rankdata(pair_similarities(z, z, left, right, distance))
        rank -= rank.mean()
        ranks.append(rank)
    lengths = [float(np.sqrt(rank @ rank)) for rank in ranks]
    if min(lengths) == 0:
        return float("nan")
    return float(np.clip(ranks[0] @ ranks[1] / (lengths[0] * lengths[1]), -1, 1))


def centred_alignment(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> float:
    r"""Linear centred kernel alignment (https://arxiv.org/abs/1905.00414).

    :math:`\|Y^\top X\|_F^2 / (\|X^\top X\|_F \|Y^\top Y\|_F)` of columns with mean 0; rotations and one scale do not
    matter.

    Args:
        teacher: X (N, D).
        student: Y (N, E).

    Returns:
        From 0 to 1; NaN if all rows of one are equal.
    """
    means = [z.mean(axis=0, dtype=np.float64) for z in (teacher, student)]
    products = [
        np.zeros((a.shape[1], b.shape[1])) for a, b in ((teacher, student), (teacher, teacher), (student, student))
    ]
    for start in range(0, len(teacher), _ROWS):
        x, y = (z[start : start + _ROWS] - mean for z, mean in zip((teacher, student), means, strict=True))
        for product, (left, right) in zip(products, ((x, y), (x, x), (y, y)), strict=True):
            product += left.T @ right
    cross, own, other = (float(np.linalg.norm(product)) for product in products)
    for mean, length in zip(means, (own, other), strict=True):
        if length <= np.finfo(np.float32).eps ** 2 * len(teacher) * float(mean @ mean):  # rounding of equal rows
            return float("nan")
    return min(1.0, cross**2 / (own * other))


def posterior_agreement(teacher: Any, student: Any, rows: int) -> tuple[float, float]:
    """Agreement of the best class, and mean KL(teacher || student) in nats (https://arxiv.org/abs/2106.05945).

    Args:
        teacher: (N, C) class scores before the softmax.
        student: (N, C).
        rows: N.

    Raises:
        UserError: if they are not both (N, C), or not finite.
    """
    from scipy.special import log_softmax

    logits = [numpy_array(scores) for scores in (teacher, student)]
    if any(scores.ndim != 2 or len(scores) != rows for scores in logits) or logits[0].shape != logits[1].shape:
        raise UserError(
            f"class scores must be ({rows}, C) of both models, got {logits[0].shape} of the teacher and "
            f"{logits[1].shape} of the student"
        )
    agree, divergence = 0, 0.0
    for start in range(0, rows, _ROWS):
        t, s = (scores[start : start + _ROWS].astype(np.float64) for scores in logits)
        if not (np.isfinite(t).all() and np.isfinite(s).all()):
            raise UserError("class scores are not finite")
        agree += int((t.argmax(axis=1) == s.argmax(axis=1)).sum())
        log_t, log_s = log_softmax(t, axis=1), log_softmax(s, axis=1)
        divergence += float((np.exp(log_t) * (log_t - log_s)).sum())
    return agree / rows, max(0.0, divergence / rows)
