"""Class posteriors measured: accuracy, calibration, confidence and its order. Logits and labels in, scores out."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PosteriorScores(NamedTuple):
    """What :func:`measure_posteriors` finds; errors are better the lower they are.

    Attributes:
        top1: share of the images whose label has the highest score.
        top5: share whose label is among the 5 highest, or among all if there are fewer classes.
        ece: expected calibration error, bins of equal width.
        adaptive_ece: the same with bins of equally many images (:func:`adaptive_calibration_error`).
        nll: mean negative log-likelihood of the label, in nats.
        brier: mean squared distance of posterior and one-hot label, from 0 to 2.
        aurc: area under the risk-coverage curve (:func:`area_under_risk_coverage`).
        confidence: mean confidence; above ``top1`` the posteriors are too sure, below it not sure enough.
        entropy: mean entropy of the posteriors, in nats: predictive uncertainty.
        spread: standard deviation of the confidence over the images.
        label_spread: standard deviation of the label's probability over the images: predictive diversity.
    """

    top1: float
    top5: float
    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    aurc: float
    confidence: float
    entropy: float
    spread: float
    label_spread: float


def measure_posteriors(*, logits: Tensor, labels: Tensor, bins: int = 15) -> PosteriorScores:
    r"""Measure class posteriors :math:`p_i = \mathrm{softmax}(o_i)`, in float64.

    An image's confidence :math:`c_i` is its largest probability. Accuracy and ECE (Naeini et al. 2015,
    https://doi.org/10.1609/aaai.v29i1.9602; Guo et al. 2017, https://arxiv.org/abs/1706.04599) are torchmetrics':
    :math:`\sum_b \frac{|B_b|}{N} \left|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\right|` over bins of equal width, closed
    below, a confidence of exactly 1 in a bin of its own. The Brier score is :math:`\frac{1}{N} \sum_i \lVert p_i -
    \mathrm{onehot}(y_i) \rVert^2` (Brier 1950, as he wrote it: not halved, not divided by C).

    Entropy, :math:`\frac{1}{N} \sum_i -\sum_c p_{ic} \log p_{ic}`, and the spread of confidence are what Zhang and
    Sabuncu 2020 (https://arxiv.org/abs/2006.05065) follow over generations. They report diversity as the differential
    entropy of the confidence, which has to be estimated; a standard deviation says as much of one generation against
    another, and does not.

    Args:
        logits: (N, C) class scores, N and C at least 1.
        labels: (N,) class labels, 0 to C - 1.
        bins: of both calibration errors.

    Raises:
        ValueError: if the shapes do not fit, a logit is not finite, a label is no class, or for a bad number of bins.

    >>> scores = measure_posteriors(logits=torch.zeros(4, 4), labels=torch.arange(4))
    >>> scores.brier, round(scores.ece, 6), round(scores.nll, 4)
    (0.75, 0.0, 1.3863)
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    _check(logits, labels, bins)
    scores, classes = logits.detach().double(), logits.shape[1]
    posteriors = scores.softmax(dim=1)
    of_labels = posteriors.gather(1, labels[:, None]).squeeze(1)
    confidences, predictions = posteriors.max(dim=1)
    correct = predictions == labels

    def top(k: int) -> float:
        k = min(k, classes)
        return float(multiclass_accuracy(scores, labels, num_classes=classes, average="micro", top_k=k))

    return PosteriorScores(
        top1=top(1),
        top5=top(5),
        ece=float(multiclass_calibration_error(posteriors, labels, num_classes=classes, n_bins=bins, norm="l1")),
        adaptive_ece=adaptive_calibration_error(confidences=confidences, correct=correct, bins=bins),
        nll=float(F.cross_entropy(scores, labels)),
        brier=float((posteriors - F.one_hot(labels, classes)).square().sum(dim=1).mean()),
        aurc=area_under_risk_coverage(confidences=confidences, correct=correct),
        confidence=float(confidences.mean()),
        entropy=float(torch.special.entr(posteriors).sum(dim=1).mean()),
        spread=float(confidences.std(correction=0)),
        label_spread=float(of_labels.std(correction=0)),
    )


def adaptive_calibration_error(*, confidences: Tensor, correct: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error with bins of equally many images.

    :math:`\sum_b \frac{|B_b|}{N} \left|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\right|`, of the predicted class, as in
    Mukhoti et al. 2020 (https://arxiv.org/abs/2002.09437, after Nguyen and O'Connor 2015,
    https://arxiv.org/abs/1508.05154). An image is in bin :math:`\lfloor \text{bins} \cdot n / N \rfloor`, n being how
    many images have a lower confidence: bins differ by at most one image, and images of one confidence, whose order
    means nothing, share a bin.

    Args:
        confidences: (N,) from 0 to 1.
        correct: (N,) whether the prediction is right.
        bins: at least 1.

    >>> adaptive_calibration_error(confidences=torch.tensor([0.5, 0.5]), correct=torch.tensor([True, False]))
    0.0
    """
    ranked, order = confidences.detach().double().sort()
    lower = torch.searchsorted(ranked, ranked, right=False)
    place = lower * bins // len(ranked)
    gaps = torch.zeros(bins, dtype=torch.float64, device=ranked.device)
    gaps.index_add_(0, place, correct[order].double() - ranked)
    return float(gaps.abs().sum() / len(ranked))


def area_under_risk_coverage(*, confidences: Tensor, correct: Tensor) -> float:
    r"""Area under the risk-coverage curve, AURC: how well confidence ranks right predictions before wrong ones.

    :math:`\frac{1}{N} \sum_i r_i` with :math:`r_i` the share of wrong predictions among the images that are at least as
    confident as image i (Geifman, Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206). So it depends on the
    order of the confidences alone, and images of one confidence are all accepted together. Where all are, it is the
    error rate.

    Args:
        confidences: (N,), any numbers.
        correct: (N,) whether the prediction is right.

    >>> area_under_risk_coverage(confidences=torch.tensor([0.9, 0.6]), correct=torch.tensor([True, False]))
    0.25
    """
    ranked, order = (-confidences.detach().double()).sort()
    wrong = (~correct[order].bool()).double().cumsum(dim=0)
    accepted = torch.searchsorted(ranked, ranked, right=True)
    return float((wrong[accepted - 1] / accepted).mean())


def _check(logits: Tensor, labels: Tensor, bins: int) -> None:
    if logits.ndim != 2 or not logits.numel() or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (N, C) and labels (N,) of the same images, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not logits.isfinite().all():
        raise ValueError("logits must be finite")
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must be whole numbers from 0 to {logits.shape[1] - 1}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
