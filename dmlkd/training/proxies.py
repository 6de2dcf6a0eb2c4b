"""The class weights that metric losses of pytorch-metric-learning have, as class scores."""

from collections.abc import Callable
from typing import Any, NamedTuple

from pytorch_metric_learning import distances, losses
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from dmlkd.models.classes import ClassScores, Combination


class ProxyScores(ClassScores):
    """Class scores by a metric loss's own class weights, as its softmax has them, without margins.

    The weights stay the loss's, which trains them; the gradient of the scores reaches them too. For a loss whose logits
    are squared distances (ProxyNCA) the scores lack what is the same for all classes of an image.

    Args:
        loss: one for which :func:`has_proxies` holds.

    Raises:
        ValueError: if it has no class weights, or they are compared by a distance without a linear score.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        proxies = _proxies(loss)
        if proxies is None:
            raise ValueError(f"{type(loss).__name__} has no class weights that give class scores")
        self.loss = loss
        self._scale = float(proxies.scale)
        self._centres = proxies.centres
        self.combination = proxies.combination
        self.gamma = float(proxies.gamma)

    @property
    @override
    def scale(self) -> float:
        return self._scale

    @override
    def centres(self) -> Tensor:
        return self._centres(self.loss)


def has_proxies(loss: nn.Module) -> bool:
    """Whether a metric loss has class weights that give class scores."""
    return _proxies(loss) is not None


class _Proxies(NamedTuple):
    centres: Callable[[Any], Tensor]  # of the loss, not of this object: a copy of the scores has a copy of the loss
    scale: float
    combination: Combination = "logsumexp"
    gamma: float = 1.0


def _proxies(loss: Any) -> _Proxies | None:
    match loss:
        case losses.NormalizedSoftmaxLoss(distance=distances.DotProductSimilarity() | distances.CosineSimilarity()):
            return _Proxies(_columns, 1 / loss.temperature)
        case losses.SubCenterArcFaceLoss():
            return _Proxies(_centres_of_columns, loss.scale, "max")
        case losses.ArcFaceLoss() | losses.CosFaceLoss() | losses.SphereFaceLoss():
            return _Proxies(_columns, loss.scale)
        case losses.LargeMarginSoftmaxLoss():
            return _Proxies(_raw_columns, loss.scale)
        case losses.SoftTripleLoss(distance=distances.CosineSimilarity()):
            return _Proxies(_soft_triple, loss.la, "softmax", loss.gamma)
        case losses.ProxyAnchorLoss():
            return _Proxies(_rows, loss.alpha)
        case losses.ProxyNCALoss(distance=distances.CosineSimilarity()):
            return _Proxies(_rows, loss.softmax_scale)
        case losses.ProxyNCALoss(distance=distances.LpDistance(p=2, power=2, normalize_embeddings=True)):
            return _Proxies(_rows, 2 * loss.softmax_scale)
    return None


def _rows(loss: Any) -> Tensor:
    return F.normalize(loss.proxies, dim=1)[:, None]


def _columns(loss: Any) -> Tensor:
    return F.normalize(loss.W, dim=0).t()[:, None]


def _raw_columns(loss: Any) -> Tensor:
    weights: Tensor = loss.W.t()[:, None]
    return weights


def _centres_of_columns(loss: Any) -> Tensor:
    return _columns(loss).reshape(loss.num_classes, loss.sub_centers, -1)


def _soft_triple(loss: Any) -> Tensor:
    return F.normalize(loss.fc, dim=0).t().reshape(loss.num_classes, loss.centers_per_class, -1)
