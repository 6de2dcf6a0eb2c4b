"""Listwise self-distillation against a double loop written from its formula, and the facts that follow from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dmlkd.distill import ListwiseSelfDistillation, listwise_kl
from dmlkd.signals import Batch, Signals


def naive(
    student: Tensor, teacher: Tensor, labels: Tensor, tau: float, include_self: bool, negative_scale: float
) -> Tensor:
    """Row by row, entry by entry: mean over i of tau^2 sum_j t_ij (log t_ij - log s_ij)."""
    size = len(student)
    total = student.new_zeros(())
    for i in range(size):
        others = [j for j in range(size) if include_self or j != i]

        def entry(z: Tensor, i: int, j: int) -> Tensor:
            scale = 1.0 if labels[i] == labels[j] else negative_scale
            return scale * (z[i] * z[j]).sum() / tau

        student_norm = torch.log(sum(torch.exp(entry(student, i, j)) for j in others))
        teacher_norm = torch.log(sum(torch.exp(entry(teacher, i, j)) for j in others))
        for j in others:
            log_s = entry(student, i, j) - student_norm
            log_t = entry(teacher, i, j) - teacher_norm
            total = total + torch.exp(log_t) * (log_t - log_s)
    return tau**2 * total / size


def unit(size: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=1)


options = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.1, 5),
        "include_self": st.booleans(),
        "negative_scale": st.sampled_from([1.0, 0.0, 0.3, 2.0]),
    }
)


@settings(max_examples=40)
@given(
    size=st.one_of(st.integers(2, 12), st.sampled_from([17, 33, 64])),
    dim=st.integers(1, 16),
    teacher_dim=st.integers(1, 16),
    seed=st.integers(0, 2**31),
    options=options,
)
def test_value_and_gradient_equal_the_double_loop(size, dim, teacher_dim, seed, options):
    student, teacher = unit(size, dim, seed).requires_grad_(), unit(size, teacher_dim, seed + 1)
    labels = torch.arange(size) % 3
    ours = listwise_kl(student=student, teacher=teacher, labels=labels, **options)
    (our_gradient,) = torch.autograd.grad(ours, student)
    loop = naive(student, teacher, labels, options["temperature"], options["include_self"], options["negative_scale"])
    (loop_gradient,) = torch.autograd.grad(loop, student, allow_unused=True)
    assert math.isclose(ours.item(), loop.item(), rel_tol=1e-10, abs_tol=1e-10)
    torch.testing.assert_close(our_gradient, loop_gradient, rtol=1e-10, atol=1e-10)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_zero_loss_and_gradient_when_student_equals_teacher(size, seed, options):
    student = unit(size, 8, seed).requires_grad_()
    loss = listwise_kl(student=student, teacher=student.detach(), labels=torch.arange(size) % 3, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert gradient.abs().max() < 1e-12


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_a_permutation_of_the_batch_changes_nothing(size, seed, options):
    student, teacher, labels = unit(size, 8, seed), unit(size, 8, seed + 1), torch.arange(size) % 3
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    before = listwise_kl(student=student, teacher=teacher, labels=labels, **options)
    after = listwise_kl(student=student[order], teacher=teacher[order], labels=labels[order], **options)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_a_rotation_of_the_teacher_changes_nothing(size, seed, options):
    student, teacher, labels = unit(size, 8, seed), unit(size, 8, seed + 1), torch.arange(size) % 3
    rotation, _ = torch.linalg.qr(unit(8, 8, seed + 2))
    before = listwise_kl(student=student, teacher=teacher, labels=labels, **options)
    after = listwise_kl(student=student, teacher=teacher @ rotation, labels=labels, **options)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_never_negative(size, seed, options):
    student, teacher = unit(size, 4, seed), unit(size, 4, seed + 1)
    assert listwise_kl(student=student, teacher=teacher, labels=torch.arange(size) % 3, **options) >= -1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_gradient_is_finite_for_identical_embeddings(dtype, temperature):
    collapsed = F.normalize(torch.ones(16, 8, dtype=dtype), dim=1).requires_grad_()
    teacher = unit(16, 8, 0).to(dtype)
    loss = listwise_kl(student=collapsed, teacher=teacher, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss, collapsed)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_the_gradient_keeps_its_size_at_high_temperature():
    # tau^2 undoes the 1 / tau^2 of the softened softmax: without it the second norm would be 10,000 times smaller.
    student, teacher = unit(32, 8, 0).requires_grad_(), unit(32, 8, 1)
    norms = [
        torch.autograd.grad(listwise_kl(student=student, teacher=teacher, temperature=t), student)[0].norm().item()
        for t in (10.0, 1000.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_nothing_flows_back_to_the_teacher():
    student, teacher = unit(8, 4, 0).requires_grad_(), unit(8, 4, 1).requires_grad_()
    listwise_kl(student=student, teacher=teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype):
    student, teacher = unit(32, 16, 0).float(), unit(32, 16, 1).float()
    outside = listwise_kl(student=student, teacher=teacher, temperature=0.05)
    with torch.autocast("cpu", dtype=dtype):
        inside = listwise_kl(student=student, teacher=teacher, temperature=0.05)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_the_method_reads_embeddings_and_labels_from_signals():
    student, teacher, labels = unit(8, 4, 0), unit(8, 6, 1), torch.arange(8) % 2
    lsd = ListwiseSelfDistillation(temperature=0.5, include_self=False, negative_scale=0.5)
    batch = Batch(torch.empty(8, 1, 1, 1), labels, torch.arange(8))
    taken = lsd.from_signals(batch=batch, student=Signals(student), teacher=Signals(teacher))
    assert taken.item() == pytest.approx(naive(student, teacher, labels, 0.5, False, 0.5).item(), rel=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number above 0, got -1.0"),
        ({"temperature": math.inf}, "temperature must be a finite number above 0, got inf"),
        ({"temperature": math.nan}, "temperature must be a finite number above 0, got nan"),
        ({"temperature": "1"}, "temperature must be a finite number above 0, got '1'"),
        ({"temperature": True}, "temperature must be a finite number above 0, got True"),
        ({"negative_scale": -0.1}, "negative_scale must be a finite number of at least 0, got -0.1"),
        ({"negative_scale": None}, "negative_scale must be a finite number of at least 0, got None"),
    ],
)
def test_a_bad_number_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ListwiseSelfDistillation(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": torch.ones(3, 2), "teacher": torch.ones(4, 2)}, r"got \(3, 2\) and \(4, 2\)"),
        ({"student": torch.ones(3), "teacher": torch.ones(3, 2)}, r"got \(3,\) and \(3, 2\)"),
        (
            {"student": torch.ones(1, 2), "teacher": torch.ones(1, 2), "include_self": False},
            "needs a batch of at least 2, got 1",
        ),
        (
            {"student": torch.ones(3, 2), "teacher": torch.ones(3, 2), "negative_scale": 0.5},
            "negative_scale = 0.5 needs labels",
        ),
        (
            {"student": torch.ones(3, 2), "teacher": torch.ones(3, 2), "labels": torch.ones(2)},
            r"labels must have shape \(3,\), got \(2,\)",
        ),
    ],
)
def test_a_wrong_shape_is_refused_with_the_shape(arguments, message):
    with pytest.raises(ValueError, match=message):
        listwise_kl(**arguments)
