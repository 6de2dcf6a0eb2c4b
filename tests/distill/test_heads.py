"""S2SD: wider heads that are trained with the metric loss and teach the narrow one."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, ProxyAnchorLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch.nn import functional as F

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import Constant, ListwiseSelfDistillation, WiderHeadsTeacher
from dmlkd.training import Term


@pytest.fixture
def student() -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=4, in_channels=1, backbone_args={"width": 8})


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(6, 1, 8, 8), torch.arange(6) // 2, torch.arange(6))


def heads(**kwargs) -> WiderHeadsTeacher:
    return WiderHeadsTeacher(
        **{"features": 8, "metric_loss": lambda dim: ContrastiveLoss(), "dims": (16, 32), **kwargs}
    )


def s2sd(teacher: WiderHeadsTeacher, weight: float = 50.0, **kwargs) -> Objective:
    term = Term(ListwiseSelfDistillation(), teacher, weight=weight, schedule=Constant(), name="s2sd")
    return Objective(ContrastiveLoss(), [term], **kwargs)


def naive_list_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL from the teacher's to the student's lists, pair by pair."""
    loss = torch.zeros(())
    size = len(student)
    for i in range(size):
        theirs = torch.stack([(teacher[i] * teacher[j]).sum() for j in range(size)]).softmax(0)
        ours = torch.stack([(student[i] * student[j]).sum() for j in range(size)]).softmax(0)
        loss = loss + sum(t * (t.log() - s.log()) for t, s in zip(theirs, ours, strict=True)) / size
    return loss


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("miner", [None, MultiSimilarityMiner()])
def test_value_and_gradient_are_the_formulas(student, batch, steps, miner):
    teacher = heads(features_after=3, miner=miner)
    objective = s2sd(teacher, miner=miner)
    for _ in range(steps):
        objective.after_step(student)
    signals = student.signals(batch.images, objective.student_needs)
    losses = objective(signals, batch)
    z, h, labels = signals.embeddings, signals.features, batch.labels

    def mined(v):
        return ContrastiveLoss()(v, labels, miner(v, labels) if miner else None)

    wide = [F.normalize(head(h), dim=1) for head in teacher.heads]
    lists = sum(naive_list_loss(z, g.detach()) for g in wide) / 2
    if steps == 3:
        lists = lists + naive_list_loss(z, F.normalize(h, dim=1).detach())
    expected = mined(z) + sum(mined(g) for g in wide) / 2 + 50 * lists
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.distill["s2sd"], lists, rtol=1e-5, atol=1e-6)
    parameters = [*student.parameters(), *teacher.heads.parameters()]
    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (losses.total, expected)]
    for ours, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)


def test_the_lists_pull_the_student_and_not_the_heads(student, batch):
    teacher = heads()
    objective = s2sd(teacher)
    losses = objective(student.signals(batch.images, objective.student_needs), batch)
    losses.distill["s2sd"].backward(retain_graph=True)
    assert all(p.grad is None for p in teacher.parameters())
    assert student.head.weight.grad.abs().sum() > 0
    losses.teachers["s2sd"].backward()
    assert all(p.grad is not None for p in teacher.heads.parameters())


def test_the_heads_learn_while_the_term_weighs_nothing(student, batch):
    objective = s2sd(heads(), weight=0.0)
    losses = objective(student.signals(batch.images, objective.student_needs), batch)
    assert losses.distill == {}
    assert losses.total == losses.metric + losses.teachers["s2sd"]


def test_each_head_has_a_metric_loss_of_its_dimension_whose_weights_are_named(student):
    teacher = heads(metric_loss=lambda dim: ProxyAnchorLoss(num_classes=3, embedding_size=dim))
    assert [tuple(p.shape) for p in teacher.loss_parameters()] == [(3, 16), (3, 32)]
    assert [tuple(p.shape) for p in s2sd(teacher).loss_parameters()] == [(3, 16), (3, 32)]


def test_the_step_count_is_restored(student):
    teacher = heads()
    for _ in range(5):
        teacher.after_step(student)
    restored = heads()
    restored.load_state_dict(teacher.state_dict())
    assert restored.state_dict()["_steps._extra_state"] == 5


def test_embeddings_are_of_unit_length_in_float32_under_autocast(student, batch):
    teacher = heads(features_after=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        signals = student.signals(batch.images)
        lesson = teacher.teach(batch=batch, student=signals, needs={"embeddings"})
    for taught in lesson.signals:
        assert taught.embeddings.dtype == torch.float32
        torch.testing.assert_close(taught.embeddings.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": ()}, "dims must name at least one dimension, got none"),
        ({"dims": (8, 0)}, "dims must be a whole number of at least 1, got 0"),
        ({"features_after": -1}, "features_after must be at least 0 steps, got -1"),
    ],
)
def test_a_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        heads(**arguments)
