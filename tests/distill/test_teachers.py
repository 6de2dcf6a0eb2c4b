"""What holds for the previous-epoch teacher: frozen, in its mode, restored, one copy an epoch."""

import pytest
import torch
from torch import nn

from dmlkd import Batch, EmbeddingModel, Objective
from dmlkd.distill import LinearRamp, ListwiseSelfDistillation, PreviousEpochTeacher
from dmlkd.training import Term


@pytest.fixture
def student() -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})


def images(count: int = 6) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8)


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and "var" not in name:
                buffer.add_(1.0)


def objective(student: EmbeddingModel, teacher: PreviousEpochTeacher) -> Objective:
    term = Term(ListwiseSelfDistillation(), teacher, weight=1.0, schedule=LinearRamp(), name="lsd")
    return Objective(lambda z, y, i: z.sum() * 0 + z[:, 0].mean(), [term])


def test_no_parameter_asks_for_a_gradient_and_none_gets_one(student):
    teacher = PreviousEpochTeacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    z = student(images()).sum() + teacher(images()).sum()
    z.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_stays_in_eval_mode_after_train_on_what_holds_it(student):
    held = objective(student, PreviousEpochTeacher(student)).train()
    assert held.training
    assert not any(module.training for module in held.teachers.modules() if module is not held.teachers)


def test_train_mode_can_be_chosen_and_stays_after_eval(student):
    held = objective(student, PreviousEpochTeacher(student, mode="train")).eval()
    assert all(module.training for module in held.teachers[0].modules())


def test_teaches_in_eval_mode_with_its_running_statistics(student):
    teacher = PreviousEpochTeacher(student)
    x = images()
    before = {k: v.clone() for k, v in teacher.state_dict().items() if isinstance(v, torch.Tensor)}
    first, second = teacher(x)[:3], teacher(x[:3])
    torch.testing.assert_close(first, second)  # an image's embedding does not depend on its batch
    assert all(torch.equal(teacher.state_dict()[k], v) for k, v in before.items())


def test_keeps_the_old_weights_and_buffers_until_updated(student):
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
        ends.append(student(x).detach())


def test_starting_an_epoch_a_second_time_keeps_its_teacher(student):
    # What happens when a run is resumed in the middle of an epoch.
    teacher = PreviousEpochTeacher(student)
    x = images()
    teacher.start_epoch(student, 1)
    before = teacher(x)
    change(student)
    teacher.start_epoch(student, 1)
    assert torch.equal(teacher(x), before)


def test_state_is_restored_exactly(student):
    teacher = PreviousEpochTeacher(student)
    teacher.start_epoch(student, 1)
    saved = teacher.state_dict()
    change(student)
    restored = PreviousEpochTeacher(student)
    assert not restored.ready
    restored.load_state_dict(saved)
    x = images()
    assert restored.ready
    assert torch.equal(restored(x), teacher(x))
    restored.start_epoch(student, 1)
    assert torch.equal(restored(x), teacher(x))


def test_the_copy_is_in_the_state_of_the_objective(student):
    held = objective(student, PreviousEpochTeacher(student))
    assert "teachers.0.network.head.weight" in held.state_dict()


def test_gives_signals_without_gradient(student):
    teacher = PreviousEpochTeacher(student)
    batch = Batch(images(), torch.arange(6), torch.arange(6))
    signals = teacher.signals(batch, frozenset({"embeddings", "stages"}))
    assert signals.stages is not None
    assert len(signals.stages) == 4
    assert not signals.embeddings.requires_grad


def test_an_unknown_mode_is_refused(student):
    with pytest.raises(ValueError, match="mode must be one of 'eval', 'train', got 'evil'"):
        PreviousEpochTeacher(student, mode="evil")
