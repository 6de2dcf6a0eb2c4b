"""Be your own teacher: exits' losses against loops, what reaches what, and the parts that can be left out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ContrastiveLoss, NormalizedSoftmaxLoss
from torch import nn

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import ExitDistillation, PosteriorExitDistillation, hint_loss
from dmlkd.models import ClassHead, ClassifyingModel, ExitingModel
from dmlkd.signals import Signals, unit_length
from dmlkd.training import Term
from dmlkd.training.proxies import ProxyScores


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs_apart(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric loss that is easily written as a loop."""
    same = labels[:, None] == labels[None, :]
    return (z @ z.T - same.double()).square().sum()


class Pairs(nn.Module):
    """The same, called as pytorch-metric-learning's; its scale tells one exit's from another's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, embeddings, labels, indices):
        assert indices is None or indices == "mined"
        return self.scale * pairs_apart(embeddings, labels)


def said_by(exits: int, *, size: int = 6, dim: int = 4, features: int = 5, classes: int | None = None) -> Signals:
    return Signals(
        embeddings=unit_length(drawn(size, dim, seed=1)).requires_grad_(),
        features=drawn(size, features, seed=2).requires_grad_(),
        logits=None if classes is None else drawn(size, classes, seed=3).requires_grad_(),
        exit_embeddings=tuple(unit_length(drawn(size, dim, seed=10 + k)).requires_grad_() for k in range(exits)),
        exit_features=tuple(drawn(size, features, seed=20 + k).requires_grad_() for k in range(exits)),
    )


def batch_of(size: int) -> Batch:
    return Batch(torch.zeros(size, 1), torch.arange(size) // 2, torch.arange(size))


def lists(z: torch.Tensor, temperature: float) -> list[list[float]]:
    rows = (z.detach() @ z.detach().T / temperature).tolist()
    powers = [[math.exp(score) for score in row] for row in rows]
    return [[power / sum(row) for power in row] for row in powers]


@given(st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 100), st.floats(0.5, 3), st.integers(1, 3))
def test_the_loss_is_that_of_loops_over_exits_and_images(share, hint, strength, temperature, exits):
    method = ExitDistillation(
        exits=exits,
        dim=4,
        metric_loss=lambda _: Pairs(),
        share=share,
        hint=hint,
        strength=strength,
        temperature=temperature,
    )
    student, batch, expected = said_by(exits), batch_of(6), 0.0
    for z, features in zip(student.exit_embeddings, student.exit_features, strict=True):
        divergence = 0.0
        for teacher, own in zip(lists(student.embeddings, temperature), lists(z, temperature), strict=True):
            divergence += sum(t * math.log(t / s) for t, s in zip(teacher, own, strict=True)) / 6
        expected += (1 - share) * pairs_apart(z.detach(), batch.labels).item()
        expected += share * strength * temperature**2 * divergence
        for own, deep in zip(features.tolist(), student.features.tolist(), strict=True):
            expected += hint * sum((a - b) ** 2 for a, b in zip(own, deep, strict=True))
    loss = method.from_signals(batch=batch, student=student, teacher=None)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradients_are_those_of_differences_and_none_reaches_what_teaches():
    method = ExitDistillation(exits=2, dim=4, metric_loss=lambda _: Pairs(), share=0.4, hint=0.1, strength=7)
    student, batch = said_by(2), batch_of(6)
    method.from_signals(batch=batch, student=student, teacher=None).backward()
    assert student.embeddings.grad is None
    assert student.features.grad is None
    step = 1e-6
    for tensor in (*student.exit_embeddings, *student.exit_features):
        for row, column in ((0, 0), (3, 2), (5, 3)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    tensor[row, column] += sign * step
                    values.append(method.from_signals(batch=batch, student=student, teacher=None).item())
                    tensor[row, column] -= sign * step
            assert tensor.grad[row, column].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def softmaxed(_: int) -> NormalizedSoftmaxLoss:
    return NormalizedSoftmaxLoss(num_classes=3, embedding_size=4, temperature=0.5).double()


def headed(loss: nn.Module) -> tuple[ClassHead, float]:
    return ClassHead(dim=4, classes=3).double(), 0.7


@pytest.mark.parametrize("own", [True, False])
def test_posteriors_are_compared_as_a_loop_does_and_an_auxiliary_head_learns_from_labels(own):
    scores_of = (lambda loss: (ProxyScores(loss), 0.0)) if own else headed
    metric_loss = softmaxed if own else lambda _: Pairs()
    method = PosteriorExitDistillation(
        exits=2, dim=4, metric_loss=metric_loss, class_scores_of=scores_of, share=0.3, hint=0, temperature=3
    )
    student, batch, expected = said_by(2, classes=3), batch_of(6), 0.0
    for k, z in enumerate(student.exit_embeddings):
        logits = method.classes[k](z.detach())[0]
        expected += 0.7 * method.metric_losses[k](z.detach(), batch.labels, None).item()
        if not own:
            expected += 0.7 * 0.7 * nn.functional.cross_entropy(logits, batch.labels).item()
        for deep, mine in zip(student.logits.tolist(), logits.tolist(), strict=True):
            t, s = ([math.exp(score / 3) for score in row] for row in (deep, mine))
            t, s = [x / sum(t) for x in t], [x / sum(s) for x in s]
            expected += 0.3 * 9 * sum(a * math.log(a / b) for a, b in zip(t, s, strict=True)) / 6
    loss = method.from_signals(batch=batch, student=student, teacher=None)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert student.logits.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_loss_is_zero_without_labels_when_exits_say_what_the_whole_says():
    student = said_by(1)
    same = student._replace(exit_embeddings=(student.embeddings,), exit_features=(student.features,))
    method = ExitDistillation(exits=1, dim=4, metric_loss=lambda _: Pairs(), share=1, hint=1)
    assert abs(method.from_signals(batch=batch_of(6), student=same, teacher=None).item()) < 1e-12


def test_exits_of_share_0_and_hint_0_have_their_metric_losses_alone():
    student, batch = said_by(2), batch_of(6)
    method = ExitDistillation(exits=2, dim=4, metric_loss=lambda _: Pairs(), share=0, hint=0)
    expected = sum(pairs_apart(z, batch.labels) for z in student.exit_embeddings)
    assert method.from_signals(batch=batch, student=student, teacher=None).item() == pytest.approx(expected.item())


def test_each_exit_has_a_metric_loss_of_its_own_and_its_miner_sees_its_embeddings():
    seen = []

    def miner(embeddings, labels):
        seen.append(embeddings)
        return "mined"

    student = said_by(2)
    method = ExitDistillation(exits=2, dim=4, metric_loss=lambda _: Pairs(), miner=miner)
    method.from_signals(batch=batch_of(6), student=student, teacher=None)
    assert method.metric_losses[0] is not method.metric_losses[1]
    assert all(a is b for a, b in zip(seen, student.exit_embeddings, strict=True))


def test_the_hint_is_summed_over_the_batch_so_twice_the_images_are_twice_the_loss():
    student, teacher = drawn(4, 3), drawn(4, 3, seed=1)
    once = hint_loss(student=student, teacher=teacher)
    assert torch.allclose(hint_loss(student=student.repeat(2, 1), teacher=teacher.repeat(2, 1)), 2 * once)


def test_the_trunk_below_an_exit_learns_from_it_and_none_above():
    model = ExitingModel(EmbeddingModel("convnet4", dim=4, in_channels=1, backbone_args={"width": 8}), stages=[1])
    term = Term(ExitDistillation(exits=1, dim=4, metric_loss=lambda _: ContrastiveLoss()), name="byot")
    objective = Objective(ContrastiveLoss(), [term])
    batch = Batch(torch.rand(6, 1, 16, 16), torch.arange(6) // 2, torch.arange(6))
    signals = model.signals(batch.images, objective.student_needs)
    assert signals.stages is None
    losses = objective(signals, batch)
    losses.distill["byot"].backward()
    reached = [any(p.grad is not None for p in stage.parameters()) for stage in model.trunk.stages]
    assert reached == [True, True, False, False]
    assert all(p.grad is not None for p in model.exits.parameters())
    assert model.model.head.weight.grad is None


def test_class_weights_of_exits_are_the_losses_parameters_and_exits_are_the_models():
    exiting = ExitingModel(EmbeddingModel("convnet4", dim=4, in_channels=1, backbone_args={"width": 8}))
    student = ClassifyingModel(exiting, ClassHead(dim=4, classes=3))
    method = PosteriorExitDistillation(
        exits=3,
        dim=4,
        metric_loss=lambda _: NormalizedSoftmaxLoss(num_classes=3, embedding_size=4),
        class_scores_of=lambda loss: (ProxyScores(loss), 0.0),
    )
    objective = Objective(ContrastiveLoss(), [Term(method)])
    assert sorted(tuple(p.shape) for p in objective.loss_parameters()) == [(4, 3)] * 3
    batch = Batch(torch.rand(6, 1, 16, 16), torch.arange(6) // 2, torch.arange(6))
    losses = objective(student.signals(batch.images, objective.student_needs), batch)
    losses.total.backward()
    assert all(p.grad is not None for p in exiting.exits.parameters())


def made(**arguments) -> ExitDistillation:
    return ExitDistillation(**{"exits": 2, "dim": 4, "metric_loss": lambda _: Pairs(), **arguments})


BAD = {
    "no exits": (lambda: made(exits=0), "exits must be a whole number of at least 1, got 0"),
    "share above 1": (lambda: made(share=1.1), "share must be a number from 0 to 1, got 1.1"),
    "share below 0": (lambda: made(share=-0.1), "share must be .*got -0.1"),
    "hint below 0": (lambda: made(hint=-1), "hint must be a finite number of at least 0, got -1"),
    "strength without end": (lambda: made(strength=math.inf), "strength must be .*got inf"),
    "no temperature": (lambda: made(temperature=0), "temperature must be a finite number above 0, got 0"),
    "other features": (
        lambda: hint_loss(student=torch.zeros(2, 3), teacher=torch.zeros(1, 3)),
        r"same images and features, got \(2, 3\) and \(1, 3\)",
    ),
    "maps": (lambda: hint_loss(student=torch.zeros(2, 3, 1), teacher=torch.zeros(2, 3, 1)), r"must be \(B, F\)"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
