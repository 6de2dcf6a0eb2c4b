"""Remembered embeddings: what is read is what was written, in memory or mapped, and only what is known teaches."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dmlkd import Batch, Objective, Signals
from dmlkd.distill import Constant, ListwiseSelfDistillation, RememberedTeacher, RowMemory, listwise_divergence
from dmlkd.training import Term

ROWS, DIM = 10, 4
storage = pytest.mark.parametrize("limit", [0, 2**20], ids=["mapped", "in memory"])


def said(rows: list[int], z: torch.Tensor | None = None) -> tuple[Batch, Signals]:
    z = F.normalize(torch.randn(len(rows), DIM), dim=1) if z is None else z
    return Batch(torch.zeros(len(rows), 1, 1, 1), torch.zeros(len(rows)).long(), torch.tensor(rows)), Signals(z)


def half(z: torch.Tensor) -> torch.Tensor:
    return F.normalize(z.half().float(), dim=1)


@storage
@given(st.lists(st.tuples(st.integers(0, ROWS - 1), st.floats(-1, 1)), max_size=30))
def test_reading_gives_what_was_written_last(limit, visits):
    memory = RowMemory(rows=ROWS, width=2, mapped_above=limit)
    expected: dict[int, float] = {}
    for row, value in visits:
        memory.write(torch.tensor([row]), torch.tensor([[value, -value]]))
        expected[row] = value
    values, known = memory.read(torch.arange(ROWS))
    assert known.tolist() == [row in expected for row in range(ROWS)]
    kept = torch.tensor([expected.get(row, 0.0) for row in range(ROWS)]).half().float()
    assert torch.equal(values, torch.stack([kept, -kept], dim=1))


@storage
def test_the_state_holds_all_of_it(limit):
    memory = RowMemory(rows=ROWS, width=DIM, mapped_above=limit)
    memory.write(torch.arange(3), torch.rand(3, DIM))
    other = RowMemory(rows=ROWS, width=DIM, mapped_above=limit)
    other.load_state_dict(memory.state_dict())
    for a, b in zip(memory.read(torch.arange(ROWS)), other.read(torch.arange(ROWS)), strict=True):
        assert torch.equal(a, b)
    assert memory.values.dtype == torch.half


def test_a_mapped_memory_is_a_file_that_stays_on_the_cpu(tmp_path):
    memory = RowMemory(rows=ROWS, width=DIM, mapped_above=2 * ROWS * DIM - 1, folder=tmp_path)
    assert memory.mapped
    assert not RowMemory(rows=ROWS, width=DIM, mapped_above=2 * ROWS * DIM).mapped
    memory.to("meta")
    assert memory.values.device.type == "cpu"
    assert memory.known.device.type == "meta"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        RowMemory(rows=ROWS, width=DIM, mapped_above=0, folder=tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0, "width": 2}, "rows must be a whole number of at least 1, got 0"),
        ({"rows": 2, "width": 1.5}, "width must be a whole number of at least 1, got 1.5"),
        ({"rows": 2, "width": 2, "mapped_above": -1}, "mapped_above must be at least 0 bytes, got -1"),
    ],
)
def test_a_bad_number_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RowMemory(**arguments)


@storage
def test_each_epoch_is_taught_by_what_was_said_in_the_one_before(limit):
    teacher = RememberedTeacher(rows=ROWS, dim=DIM, mapped_above=limit)
    student = torch.nn.Identity()
    earlier = {}
    for epoch in range(3):
        teacher.start_epoch(student, epoch)
        assert teacher.ready == (epoch > 0)
        for rows in ([3, 1, 7, 0, 5], [9, 2, 8, 4, 6]):
            batch, signals = said(rows)
            lesson = teacher.teach(batch=batch, student=signals, needs={"embeddings"})
            if epoch:
                assert lesson.positions is None
                torch.testing.assert_close(lesson.signals[0].embeddings, half(earlier[tuple(rows)]))
            else:
                assert len(lesson.positions) == 0
            earlier[tuple(rows)] = signals.embeddings


def test_only_images_seen_before_are_in_the_lists():
    teacher = RememberedTeacher(rows=ROWS, dim=DIM)
    lsd = ListwiseSelfDistillation()
    term = Term(lsd, teacher, weight=1.0, schedule=Constant(), name="lsd")
    objective = Objective(lambda z, y, i: z.sum() * 0, [term])
    objective.start_epoch(torch.nn.Identity(), 0, 2)
    batch, first = said([1, 2, 5])
    assert objective(first, batch).distill == {}
    objective.start_epoch(torch.nn.Identity(), 1, 2)
    batch, now = said([0, 1, 5, 9])
    loss = objective(now, batch).distill["lsd"]
    expected = lsd(student=now.embeddings[[1, 2]], teacher=half(first.embeddings)[[0, 2]])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("seen", [[], [0]])
def test_a_batch_with_fewer_than_two_known_images_teaches_nothing(seen):
    teacher = RememberedTeacher(rows=ROWS, dim=DIM)
    lsd = ListwiseSelfDistillation(include_self=False)
    objective = Objective(lambda z, y, i: z.sum() * 0, [Term(lsd, teacher, weight=1.0, name="lsd")])
    if seen:
        objective(*reversed(said(seen)))
    objective.start_epoch(torch.nn.Identity(), 1, 2)
    batch, now = said([0, 1, 2])
    now.embeddings.requires_grad_()
    losses = objective(now, batch)
    assert losses.distill["lsd"] == 0
    losses.total.backward()


def test_no_gradient_reaches_the_student_through_the_memory():
    teacher = RememberedTeacher(rows=ROWS, dim=DIM)
    batch, first = said([0, 1, 2])
    first.embeddings.requires_grad_()
    teacher.teach(batch=batch, student=first, needs=())
    now = F.normalize(torch.randn(3, DIM), dim=1).requires_grad_()
    (taught,) = teacher.teach(batch=batch, student=Signals(now), needs=()).signals
    listwise_divergence(student=now, teacher=taught.embeddings).backward()
    assert first.embeddings.grad is None
    assert now.grad.abs().sum() > 0


@storage
def test_a_restored_teacher_goes_on_the_same(limit):
    teacher = RememberedTeacher(rows=ROWS, dim=DIM, mapped_above=limit)
    student = torch.nn.Identity()
    teacher.start_epoch(student, 0)
    teacher.teach(**dict(zip(("batch", "student"), said([1, 2, 3]), strict=True)), needs=())
    teacher.start_epoch(student, 1)
    restored = RememberedTeacher(rows=ROWS, dim=DIM, mapped_above=limit)
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert restored.ready
    batch, now = said([2, 3, 4])
    lessons = [one.teach(batch=batch, student=now, needs=()) for one in (teacher, restored)]
    assert torch.equal(lessons[0].signals[0].embeddings, lessons[1].signals[0].embeddings)
    assert torch.equal(lessons[0].positions, lessons[1].positions)


def test_a_method_that_reads_more_than_embeddings_is_refused():
    class Logits(ListwiseSelfDistillation):
        teacher_needs = frozenset({"logits"})

    with pytest.raises(ValueError, match="Logits needs its teacher's logits, got RememberedTeacher"):
        Term(Logits(), RememberedTeacher(rows=ROWS, dim=DIM), weight=1.0)
