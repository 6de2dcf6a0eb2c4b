"""Which labels their images' nearest neighbours contradict."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError
from dmlkd.retrieval.arrays import class_ids, numpy_array, rows32
from dmlkd.retrieval.lists import candidates

_ROWS = 4096  # images whose votes are counted at a time


class LabelAudit(NamedTuple):
    """What the neighbours of each image say of its label.

    Attributes:
        score: (N,) from -1, all for the label, to 1, all against it; above 0 another label is likelier. NaN where no
            other image has the label, so that none could speak for it.
        likelier: (N,) the other label that the neighbours favour; the image's own where they have no other.
        own_share: (N,) share of the vote that the image's own label has.
        likelier_share: (N,) share that the likelier label has; 0 where there is none.
    """

    score: NDArray[np.float64]
    likelier: NDArray[np.int64]
    own_share: NDArray[np.float64]
    likelier_share: NDArray[np.float64]

    def order(self) -> NDArray[np.int64]:
        """Rows by falling score, equal ones by falling share of the likelier label; those without a score last."""
        return np.lexsort((-self.likelier_share, -self.score))


class Detection(NamedTuple):
    """How well scores find labels that are known to be wrong.

    Attributes:
        wrong: n, how many labels are wrong.
        precision: share of wrong labels among the first n of :meth:`LabelAudit.order`.
        auroc: probability that a wrong label scores higher than a right one, ties counting half.
    """

    wrong: int
    precision: float
    auroc: float


def audit_labels(embeddings: Any, labels: Any, *, k: int = 100, temperature: float = 0.05) -> LabelAudit:
    """Ask the nearest neighbours of each image, itself left out by its row, which label it should have.

    The k nearest j of image i vote with w_ij = softmax_j(cosine_ij / temperature), and v_i(c), the votes for label c
    divided by how many images other than i have it, is what one of them gives on average. With y the image's label and
    c the other label with the largest v_i(c), score_i = (v_i(c) - v_i(y)) / (v_i(c) + v_i(y)). A set in which every
    image is at least as similar to all of its class as to any other image has no score above 0.

    Args:
        embeddings: (N, D) NumPy array or torch tensor, N at least 2.
        labels: (N,) integer class ids.
        k: how many neighbours vote; at most N - 1 do.
        temperature: of the softmax.

    Raises:
        UserError: as :func:`dmlkd.retrieval.evaluate` does for embeddings and labels, or for a number out of range.

    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0], [0.1, 0.9], [0.95, 0.05]])
    >>> found = audit_labels(z, np.array([0, 0, 0, 1, 1, 1]))
    >>> found.score.argmax(), found.likelier[5]
    (np.int64(5), np.int64(0))
    """
    for name, number in (("k", k), ("temperature", temperature)):
        if not number > 0:
            raise UserError(f"{name} must be above 0, got {number}")
    points = rows32("embeddings", embeddings, "cosine")
    classes, own, sizes = np.unique(class_ids("labels", labels, len(points)), return_inverse=True, return_counts=True)
    if len(points) < 2:
        raise UserError("a single embedding has no neighbours")
    near = candidates(points, 0, k)
    score, own_share, likelier_share = np.empty((3, len(points)))
    found = LabelAudit(score, np.empty(len(points), np.int64), own_share, likelier_share)
    for start in range(0, len(points), _ROWS):
        rows = slice(start, start + _ROWS)
        weights = np.exp((near.scores[rows] - near.scores[rows].max(axis=1, keepdims=True)) / temperature)
        weights /= weights.sum(axis=1, keepdims=True)
        part = _judged(own[near.ids[rows]], weights, own[rows], sizes)
        for whole, values in zip(found, part, strict=True):
            whole[rows] = values
    return found._replace(likelier=classes[found.likelier])


def _judged(
    codes: NDArray[np.int64], weights: NDArray[np.float64], own: NDArray[np.int64], sizes: NDArray[np.int64]
) -> LabelAudit:
    """The audit of b images, labels as codes.

    Args:
        codes: (b, k) labels of the neighbours.
        weights: (b, k) their votes; each row sums to 1.
        own: (b,) labels of the images.
        sizes: how many images have each label.
    """
    pairs = np.arange(len(own))[:, None] * len(sizes) + codes
    voted, place = np.unique(pairs.ravel(), return_inverse=True)
    image, code = np.divmod(voted, len(sizes))
    votes = np.bincount(place, weights.ravel())
    is_own = code == own[image]
    each = votes / (sizes[code] - is_own)
    own_share, own_vote, likelier_share, likelier_vote = np.zeros((4, len(own)))
    own_share[image[is_own]] = votes[is_own]
    own_vote[image[is_own]] = each[is_own]
    image, code, votes, each = image[~is_own], code[~is_own], votes[~is_own], each[~is_own]
    rising = np.lexsort((-code, each, image))  # of several assignments to one place the last holds
    likelier = own.copy()
    likelier[image[rising]] = code[rising]
    likelier_share[image[rising]] = votes[rising]
    likelier_vote[image[rising]] = each[rising]
    score = (likelier_vote - own_vote) / (likelier_vote + own_vote)
    score[sizes[own] == 1] = np.nan
    return LabelAudit(score, likelier, own_share, likelier_share)


def detection(audit: LabelAudit, wrong: Any) -> Detection:
    """How well an audit finds labels that are known to be wrong; images without a score are left out.

    Args:
        audit: of :func:`audit_labels`.
        wrong: (N,) true where the label is wrong.

    Raises:
        UserError: if of the images with a score all or none are wrong.

    >>> z = np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0], [0.1, 0.9], [0.95, 0.05]])
    >>> detection(audit_labels(z, np.array([0, 0, 0, 1, 1, 1])), [False] * 5 + [True])
    Detection(wrong=1, precision=1.0, auroc=1.0)
    """
    from sklearn.metrics import roc_auc_score

    order = audit.order()
    order = order[~np.isnan(audit.score[order])]
    truth = numpy_array(wrong).astype(bool)[order]
    count = int(truth.sum())
    if count in (0, len(truth)):
        raise UserError(f"of {len(truth)} images with a score {count} have a wrong label: nothing to tell apart")
    return Detection(count, float(truth[:count].mean()), float(roc_auc_score(truth, audit.score[order])))
