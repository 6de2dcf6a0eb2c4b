"""SelfDistilled in the loops of others: called as a metric loss, and inside pytorch-metric-learning's own trainer."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, NTXentLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dmlkd import EmbeddingModel, SelfDistilled
from dmlkd.distill import FrozenTeacher, LinearRamp, ListwiseSelfDistillation, PreviousEpochTeacher
from dmlkd.training import Term


def lsd(**kwargs) -> Term:
    return Term(ListwiseSelfDistillation(), **{"weight": 10.0, **kwargs})


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(8, 4)


LABELS = torch.arange(8) // 2


def test_the_call_is_the_metric_losss_plus_the_teacher(z):
    loss = SelfDistilled(ContrastiveLoss(), [lsd()])
    teacher = torch.randn(8, 6)
    indices = MultiSimilarityMiner()(z, LABELS)
    expected = ContrastiveLoss()(z, LABELS, indices) + 10 * ListwiseSelfDistillation()(
        student=F.normalize(z, dim=1), teacher=F.normalize(teacher, dim=1)
    )
    torch.testing.assert_close(loss(z, LABELS, indices, teacher=teacher), expected)


def test_reference_embeddings_reach_the_metric_loss(z):
    reference, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    loss = SelfDistilled(NTXentLoss(), [lsd(weight=0.0)])
    given = loss(z, LABELS, ref_emb=reference, ref_labels=labels)
    assert given == NTXentLoss()(z, LABELS, ref_emb=reference, ref_labels=labels)
    assert given != loss(z, LABELS)


def test_while_the_ramp_is_at_zero_no_teacher_is_needed_and_then_one_is(z):
    loss = SelfDistilled(ContrastiveLoss(), [lsd(schedule=LinearRamp())])
    loss.start_epoch(0, 2)
    assert loss(z, LABELS) == ContrastiveLoss()(z, LABELS)
    loss.start_epoch(1, 2)
    with pytest.raises(ValueError, match=r"need the teacher's embeddings: pass teacher= or call watch\(\)"):
        loss(z, LABELS)


def test_a_teachers_embeddings_are_used_once(z):
    loss = SelfDistilled(ContrastiveLoss(), [lsd()])
    loss(z, LABELS, teacher=z)
    with pytest.raises(ValueError, match="need the teacher's embeddings"):
        loss(z, LABELS)


def test_embeddings_of_another_number_of_images_are_refused(z):
    with pytest.raises(ValueError, match="embeddings of the same B images"):
        SelfDistilled(ContrastiveLoss(), [lsd()])(z, LABELS, teacher=z[:7])


def test_a_watched_network_has_its_teacher_run_in_training_alone():
    student = EmbeddingModel("convnet4", dim=4, in_channels=1)
    teacher = FrozenTeacher(EmbeddingModel("convnet4", dim=4, in_channels=1))
    loss = SelfDistilled(ContrastiveLoss(), [lsd()])
    handle = loss.watch(student, teacher)
    images = torch.rand(8, 1, 8, 8)
    z = student(images)
    with torch.no_grad():
        student(torch.zeros_like(images))
    student.eval()(torch.zeros_like(images))
    assert loss(z, LABELS) == loss(z, LABELS, teacher=teacher(images))
    handle.remove()
    student.train()(images)
    with pytest.raises(ValueError, match="need the teacher's embeddings"):
        loss(z, LABELS)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda: lsd(teacher=FrozenTeacher(nn.Identity())), "must come without a teacher, got FrozenTeacher"),
        (lambda: Term(_Stages(), weight=1.0), "term _Stages reads stages, there are only embeddings"),
    ],
)
def test_a_term_that_cannot_be_served_is_refused(term, message):
    with pytest.raises(ValueError, match=message):
        SelfDistilled(ContrastiveLoss(), [term()])


class _Stages(ListwiseSelfDistillation):
    student_needs = frozenset({"stages"})


class Counting(PreviousEpochTeacher):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


# The trainer's own progress bar turns the loss into a number.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_it_trains_inside_pytorch_metric_learnings_trainer():
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU())
    embedder = nn.Linear(16, 4)
    models = {"trunk": trunk, "embedder": embedder}
    student = nn.Sequential(trunk, embedder)
    teacher = Counting(student)
    loss = SelfDistilled(ContrastiveLoss(), [lsd(schedule=LinearRamp(), name="lsd")])
    loss.watch(trunk, teacher)
    seen: list[tuple[int, float, float]] = []
    epochs = 3
    loss.start_epoch(0, epochs)

    def after_iteration(trainer: MetricLossOnly) -> None:
        total = trainer.losses["metric_loss"].detach().item()
        seen.append((trainer.epoch, loss.objective.weights["lsd"], total))

    def after_epoch(trainer: MetricLossOnly) -> None:
        teacher.update(student)
        if trainer.epoch < epochs:
            loss.start_epoch(trainer.epoch, epochs)

    images = torch.rand(16, 1, 4, 4)
    MetricLossOnly(
        models=models,
        optimizers={f"{name}_optimizer": torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()},
        batch_size=8,
        loss_funcs={"metric_loss": loss},
        mining_funcs={},
        dataset=TensorDataset(images, torch.arange(16) // 4),
        data_device="cpu",
        dataloader_num_workers=0,
        end_of_iteration_hook=after_iteration,
        end_of_epoch_hook=after_epoch,
    ).train(num_epochs=epochs)
    assert [weight for _, weight, _ in seen] == pytest.approx([0, 0, 10 / 3, 10 / 3, 20 / 3, 20 / 3])
    assert all(torch.isfinite(torch.tensor(total)) for *_, total in seen)
    assert teacher.calls == 4  # two steps in each epoch but the first
