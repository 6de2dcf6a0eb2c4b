"""What holds for every teacher (frozen, in its mode, restored exactly), and when each takes over the student."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dmlkd import Batch, EmbeddingModel, Objective, Signals
from dmlkd.distill import (
    Constant,
    FrozenTeacher,
    ListwiseSelfDistillation,
    MovingAverageTeacher,
    PreviousEpochTeacher,
    SnapshotTeacher,
    Teacher,
)
from dmlkd.training import Term

Make = Callable[..., Teacher]


def small() -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})


MAKERS: dict[str, Make] = {
    "frozen": lambda student, **kw: FrozenTeacher(small(), **kw),
    "previous epoch": lambda student, **kw: PreviousEpochTeacher(student, **kw),
    "snapshot": lambda student, **kw: SnapshotTeacher(student, every=2, **kw),
    "moving average": lambda student, **kw: MovingAverageTeacher(student, decay=0.5, **kw),
}
every_teacher = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def student() -> EmbeddingModel:
    return small()


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8)


def change(model: nn.Module) -> None:
    """Move every weight and running statistic, as a step of training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            buffer.add_(1) if "tracked" in name else buffer.add_(torch.rand_like(buffer))


def live(teacher: Teacher, student: nn.Module, epochs: int = 3, steps: int = 3) -> None:
    """Take a teacher through training as the objective does."""
    for epoch in range(epochs):
        teacher.start_epoch(student, epoch)
        for _ in range(steps):
            change(student)
            teacher.after_step(student)


@every_teacher
def test_no_parameter_asks_for_a_gradient_and_none_gets_one(student, make):
    teacher = make(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    (student(images()).sum() + teacher(images()).sum()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


@every_teacher
def test_stays_in_its_mode_whatever_holds_it(student, make):
    for mode in ("eval", "train"):
        teacher = make(student, mode=mode)
        term = Term(ListwiseSelfDistillation(), teacher, weight=1.0)
        for held in (
            Objective(lambda z, y, i: z.sum(), [term]).train(),
            Objective(lambda z, y, i: z.sum(), [term]).eval(),
        ):
            assert all(module.training == (mode == "train") for module in held.teachers[0].modules())


@every_teacher
def test_in_eval_mode_an_embedding_depends_neither_on_the_batch_nor_on_the_call(student, make):
    teacher = make(student)
    live(teacher, student)
    x = images()
    before = {k: v.clone() for k, v in teacher.state_dict().items() if isinstance(v, torch.Tensor)}
    torch.testing.assert_close(teacher(x)[:3], teacher(x[:3]))
    assert all(torch.equal(teacher.state_dict()[k], v) for k, v in before.items())


@every_teacher
def test_state_is_restored_exactly_and_training_goes_on_the_same(student, make):
    teacher = make(student)
    live(teacher, student)
    restored = make(small())
    restored.load_state_dict(teacher.state_dict())
    x = images()
    assert restored.ready
    assert torch.equal(restored(x), teacher(x))
    for one in (teacher, restored):
        torch.manual_seed(1)
        follower = small()
        one.start_epoch(follower, 2)  # again, as when a run is resumed within the epoch
        for _ in range(3):
            one.after_step(follower)
        one.start_epoch(follower, 3)
    assert torch.equal(restored(x), teacher(x))


@every_teacher
def test_gives_signals_without_gradient(student, make):
    batch = Batch(images(), torch.arange(6), torch.arange(6))
    (signals,) = make(student).teach(batch=batch, student=Signals(torch.zeros(6, 8)), needs={"stages"}).signals
    assert len(signals.stages) == 4
    assert not signals.embeddings.requires_grad


@every_teacher
def test_an_unknown_mode_is_refused(student, make):
    with pytest.raises(ValueError, match="mode must be one of 'eval', 'train', got 'evil'"):
        make(student, mode="evil")


@every_teacher
def test_its_weights_are_in_the_state_of_the_objective(student, make):
    held = Objective(lambda z, y, i: z.sum(), [Term(ListwiseSelfDistillation(), make(student), weight=1.0)])
    assert any(key.startswith("teachers.0.network") for key in held.state_dict())


def test_previous_epoch_keeps_the_old_weights_and_buffers_until_updated(student):
    teacher = PreviousEpochTeacher(student)
    x = images()
    student.eval()
    old = student(x).detach()
    change(student)
    assert torch.equal(teacher(x), old)
    assert not torch.allclose(student(x), old, atol=1e-3)
    teacher.update(student)
    assert torch.equal(teacher(x), student(x))


def test_each_epoch_is_taught_by_the_weights_the_one_before_ended_with(student):
    teacher = PreviousEpochTeacher(student)
    x = images()
    student.eval()
    ends = []
    for epoch in range(3):
        teacher.start_epoch(student, epoch)
        assert teacher.ready == (epoch > 0)
        if ends:
            assert torch.equal(teacher(x), ends[-1])
        change(student)
        teacher.after_step(student)
        ends.append(student(x).detach())


def test_an_update_at_the_end_of_an_epoch_stands_at_the_start_of_the_next(student):
    teacher = PreviousEpochTeacher(student)
    x = images()
    teacher.update(student)
    before = teacher(x)
    change(student)
    teacher.start_epoch(student, 1)
    assert torch.equal(teacher(x), before)


def test_starting_an_epoch_a_second_time_keeps_its_teacher(student):
    # What happens when a run is resumed in the middle of an epoch.
    teacher = PreviousEpochTeacher(student)
    x = images()
    teacher.start_epoch(student, 3)
    before = teacher(x)
    change(student)
    teacher.start_epoch(student, 3)
    assert torch.equal(teacher(x), before)


def test_snapshot_is_taken_every_few_steps(student):
    teacher = SnapshotTeacher(student, every=3)
    x = images()
    student.eval()
    states = [student(x).detach()]
    for step in range(1, 8):
        change(student)
        teacher.after_step(student)
        states.append(student(x).detach())
        assert teacher.ready == (step >= 3)
        assert torch.equal(teacher(x), states[step // 3 * 3])


def test_moving_average_is_the_average_of_weights_and_buffers(student):
    teacher = MovingAverageTeacher(student, decay=0.9)
    assert not teacher.ready
    expected: dict[str, torch.Tensor] = {}
    for _ in range(4):
        change(student)
        teacher.after_step(student)
        for name, value in student.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if name in expected else value.clone()
    averaged = teacher.network.module.state_dict()
    assert teacher.ready
    for name, value in expected.items():
        if value.is_floating_point() and "tracked" not in name:
            torch.testing.assert_close(averaged[name], value)


def test_a_finished_network_of_another_dimension_teaches_from_the_first_epoch(student):
    other = EmbeddingModel("convnet4", dim=3, in_channels=1)
    term = Term(ListwiseSelfDistillation(), FrozenTeacher(other), weight=2.0, schedule=Constant(), name="lsd")
    objective = Objective(lambda z, y, i: z.sum() * 0, [term])
    objective.start_epoch(student, 0, 1)
    batch = Batch(images(), torch.arange(6), torch.arange(6))
    losses = objective(student.signals(batch.images), batch)
    assert losses.weights == {"lsd": 2.0}
    assert losses.distill["lsd"] > 0


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_a_bad_interval_is_refused(student, every):
    with pytest.raises(ValueError, match="every must be a whole number of at least 1, got"):
        SnapshotTeacher(student, every=every)


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan"), "0.9", None])
def test_a_bad_decay_is_refused(student, decay):
    with pytest.raises(ValueError, match="decay must be a number from 0 to 1, got"):
        MovingAverageTeacher(student, decay=decay)
