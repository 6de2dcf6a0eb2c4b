"""Class scores by the class weights of metric losses are the losses' own logits."""

import copy

import pytest
import torch
from pytorch_metric_learning import distances, losses

from dmlkd.models import ClassHead, load_classes, save_classes
from dmlkd.training.proxies import ProxyScores, has_proxies

SIZES = {"num_classes": 5, "embedding_size": 8}
KINDS = {
    "softmax": (losses.NormalizedSoftmaxLoss, {}, 1),
    "arcface": (losses.ArcFaceLoss, {}, 1),
    "cosface": (losses.CosFaceLoss, {}, 1),
    "sphereface": (losses.SphereFaceLoss, {"scale": 3}, 1),
    "large margin": (losses.LargeMarginSoftmaxLoss, {"scale": 3}, 1),
    "subcenters": (losses.SubCenterArcFaceLoss, {"sub_centers": 3}, 1),
    "soft triple": (losses.SoftTripleLoss, {"centers_per_class": 4}, 20),
    "proxy anchor": (losses.ProxyAnchorLoss, {}, 32),
    "proxy nca": (losses.ProxyNCALoss, {"softmax_scale": 9}, -9),
    "proxy nca, cosine": (losses.ProxyNCALoss, {"softmax_scale": 9, "distance": distances.CosineSimilarity()}, 9),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of the library, at margins that are whole numbers
@pytest.mark.parametrize(("kind", "arguments", "factor"), KINDS.values(), ids=KINDS)
def test_posteriors_are_those_of_the_loss(kind, arguments, factor, tmp_path):
    loss = kind(**SIZES, **arguments)
    scores = ProxyScores(loss)
    z = torch.nn.functional.normalize(torch.randn(7, 8), dim=1)
    expected = (factor * loss.get_logits(z)).softmax(1)
    logits, subclasses = scores(z)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)
    assert subclasses.shape[:2] == (7, 5)
    assert torch.allclose(scores.class_weights().norm(dim=1), torch.ones(5))
    save_classes(scores, tmp_path / "classes.safetensors")
    assert torch.equal(load_classes(tmp_path / "classes.safetensors")(z)[0], logits)
    logits.sum().backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_a_copy_of_the_scores_has_weights_of_its_own():
    loss = losses.NormalizedSoftmaxLoss(**SIZES)
    scores = ProxyScores(loss)
    copied, z = copy.deepcopy(scores), torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    before = copied(z)[0].detach()
    with torch.no_grad():
        loss.W.add_(torch.randn_like(loss.W))
    assert torch.equal(copied(z)[0], before)
    assert not torch.allclose(scores(z)[0], before)


@pytest.mark.parametrize(
    "loss",
    [
        losses.ContrastiveLoss(),
        losses.P2SGradLoss(descriptors_dim=8, num_classes=5),
        losses.ProxyNCALoss(**SIZES, distance=distances.LpDistance(p=1)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_without_linear_class_scores_are_told_apart(loss):
    assert not has_proxies(loss)
    with pytest.raises(ValueError, match="has no class weights that give class scores"):
        ProxyScores(loss)


def test_subclass_probabilities_sum_to_that_of_the_class():
    head = ClassHead(dim=8, classes=5, subclasses=3, scale=4)
    z = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    logits, subclasses = head(z)
    assert torch.allclose(logits.softmax(1), subclasses.flatten(1).softmax(1).unflatten(1, (5, 3)).sum(2), atol=1e-6)
