"""The objective: sums, weights, and each thing computed once."""

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, ProxyAnchorLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import Tensor, nn

from dmlkd import Batch, EmbeddingModel, Objective, Signals
from dmlkd.distill import Constant, DistillationMethod, LinearRamp, ListwiseSelfDistillation, PreviousEpochTeacher
from dmlkd.training import Term


class StageDifference(DistillationMethod):
    """Asks for more than embeddings, and keeps what it was given."""

    student_needs = frozenset({"stages"})
    teacher_needs = frozenset({"stages"})

    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        self.given = student, teacher
        return (student.stages[-1] - teacher.stages[-1]).square().mean()


class CountingTeacher(PreviousEpochTeacher):
    """Counts its forward passes and what they were asked for."""

    def teach(self, *, batch, student, needs):
        self.asked = [*getattr(self, "asked", []), frozenset(needs)]
        return super().teach(batch=batch, student=student, needs=needs)


class Supervised(DistillationMethod):
    """Keeps which epochs it was told of, and what its teacher said."""

    supervises = True
    epochs = ()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epochs = (*self.epochs, (epoch, epochs))

    def from_signals(self, *, batch: Batch, student: Signals, teacher: Signals | None) -> Tensor:
        self.given = teacher
        return student.embeddings.square().sum()


@pytest.fixture
def student() -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})


@pytest.fixture
def batch() -> Batch:
    return Batch(torch.rand(8, 1, 8, 8), torch.arange(8) // 2, torch.arange(8))


def lsd(teacher: PreviousEpochTeacher, weight: float = 2.0, **kwargs) -> Term:
    return Term(ListwiseSelfDistillation(), teacher, weight=weight, **kwargs)


def test_total_is_the_metric_loss_plus_weighted_terms(student, batch):
    teacher = PreviousEpochTeacher(student)
    method = ListwiseSelfDistillation(temperature=0.5)
    objective = Objective(ContrastiveLoss(), [Term(method, teacher, weight=3.0, schedule=LinearRamp(), name="lsd")])
    objective.start_epoch(student, 1, 4)
    signals = student.signals(batch.images)
    losses = objective(signals, batch)
    z = signals.embeddings
    assert losses.weights == {"lsd": 0.75}
    assert losses.metric == ContrastiveLoss()(z, batch.labels)
    assert losses.distill["lsd"] == method(student=z, teacher=teacher(batch.images))
    assert losses.total == losses.metric + 0.75 * losses.distill["lsd"]


def test_the_metric_loss_has_its_weight_and_at_zero_is_not_computed(student, batch):
    signals = student.signals(batch.images)
    weighted = Objective(ContrastiveLoss(), [Term(Supervised(), PreviousEpochTeacher(student))], metric_weight=0.25)
    losses = weighted(signals, batch)
    assert losses.metric == ContrastiveLoss()(signals.embeddings, batch.labels)
    assert losses.total == 0.25 * losses.metric + losses.distill["Supervised"]
    left_out = Objective(None, [Term(Supervised(), PreviousEpochTeacher(student))], metric_weight=0)
    assert left_out(signals, batch).total == losses.distill["Supervised"]


def test_a_method_that_supervises_goes_on_without_a_teacher_that_is_not_ready(student, batch):
    class Eager(PreviousEpochTeacher):
        every_step = True

    method = Supervised()
    objective = Objective(ContrastiveLoss(), [Term(method, Eager(student))])
    objective.start_epoch(student, 0, 2)
    objective(student.signals(batch.images), batch)
    assert method.given is None
    objective.start_epoch(student, 1, 2)
    objective(student.signals(batch.images), batch)
    assert method.given is not None


def test_a_restored_objective_tells_its_methods_the_epoch(student):
    first, second = (
        Objective(ContrastiveLoss(), [Term(Supervised(), PreviousEpochTeacher(student), name="s")]) for _ in range(2)
    )
    first.start_epoch(student, 3, 5)
    second.load_state_dict(first.state_dict())
    assert second.methods["s"].epochs == ((3, 5),)


def test_in_the_first_epoch_the_weight_is_zero_and_the_teacher_does_not_run(student, batch):
    for schedule in (LinearRamp(), Constant()):
        teacher = CountingTeacher(student)
        objective = Objective(ContrastiveLoss(), [lsd(teacher, schedule=schedule, name="lsd")])
        objective.start_epoch(student, 0, 4)
        losses = objective(student.signals(batch.images), batch)
        assert losses.weights == {"lsd": 0.0}
        assert losses.distill == {}
        assert losses.total == losses.metric
        assert not hasattr(teacher, "asked")


def test_a_shared_teacher_runs_once_with_the_union_of_what_its_terms_need(student, batch):
    teacher = CountingTeacher(student)
    difference = StageDifference()
    objective = Objective(ContrastiveLoss(), [lsd(teacher), Term(difference, teacher, weight=1.0, schedule=Constant())])
    assert objective.student_needs == {"embeddings", "stages"}
    assert len(objective.teachers) == 1
    objective.start_epoch(student, 1, 2)
    losses = objective(student.signals(batch.images, objective.student_needs), batch)
    assert teacher.asked == [frozenset({"embeddings", "stages"})]
    assert set(losses.distill) == {"ListwiseSelfDistillation", "StageDifference"}


def test_distinct_teachers_each_run(student, batch):
    first, second = CountingTeacher(student), CountingTeacher(student)
    objective = Objective(ContrastiveLoss(), [lsd(first, name="a"), lsd(second, name="b")])
    objective.start_epoch(student, 1, 2)
    objective(student.signals(batch.images), batch)
    assert len(first.asked) == len(second.asked) == 1


def test_a_term_of_weight_zero_costs_nothing(student, batch):
    teacher = CountingTeacher(student)
    objective = Objective(ContrastiveLoss(), [lsd(teacher, weight=0.0)])
    objective.start_epoch(student, 1, 2)
    assert objective(student.signals(batch.images), batch).distill == {}
    assert not hasattr(teacher, "asked")


def test_the_miner_chooses_the_pairs(student, batch):
    loss, miner = ContrastiveLoss(), MultiSimilarityMiner(epsilon=-0.5)
    z = student(batch.images)
    assert Objective(loss, miner=miner)(Signals(z), batch).total == loss(z, batch.labels, miner(z, batch.labels))
    assert Objective(loss, miner=miner)(Signals(z), batch).total != loss(z, batch.labels)


def test_only_the_trainable_weights_ask_for_gradients(student):
    objective = Objective(ProxyAnchorLoss(num_classes=4, embedding_size=8), [lsd(PreviousEpochTeacher(student))])
    assert [name for name, p in objective.named_parameters() if p.requires_grad] == ["metric_loss.proxies"]


def test_state_restores_teacher_and_loss_weights(student, batch):
    def make() -> Objective:
        model = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})
        return Objective(ProxyAnchorLoss(num_classes=4, embedding_size=8), [lsd(PreviousEpochTeacher(model))])

    first, second = make(), make()
    first.start_epoch(student, 1, 2)
    second.load_state_dict(first.state_dict())
    second.start_epoch(student, 1, 2)
    signals = Signals(student(batch.images))
    assert first(signals, batch).total == second(signals, batch).total


def test_gradient_reaches_the_student_through_every_term(student, batch):
    teacher = PreviousEpochTeacher(student)
    objective = Objective(lambda z, y, i: z.sum() * 0, [lsd(teacher, schedule=Constant())])
    nn.init.normal_(student.head.weight)
    objective.start_epoch(student, 1, 2)
    objective(student.signals(batch.images), batch).total.backward()
    assert student.head.weight.grad.abs().sum() > 0


def test_two_terms_of_one_name_are_refused(student):
    teacher = PreviousEpochTeacher(student)
    with pytest.raises(ValueError, match="terms must have different names, got"):
        Objective(ContrastiveLoss(), [lsd(teacher), lsd(teacher)])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(student, weight):
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got"):
        lsd(PreviousEpochTeacher(student), weight=weight)


def test_a_missing_teacher_is_refused():
    with pytest.raises(ValueError, match="ListwiseSelfDistillation needs a teacher, got None"):
        Objective(ContrastiveLoss(), [Term(ListwiseSelfDistillation(), weight=1.0)])
