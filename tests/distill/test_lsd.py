"""Listwise self-distillation against a double loop written from its formula, and the facts that follow from it."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dmlkd.distill import ListwiseSelfDistillation, divergence_from_lists, listwise_divergence
from dmlkd.distill.functional import Comparison, ListComparison
from dmlkd.signals import Batch, Signals


def naive(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    include_self: bool = True,
    negative_scale: float = 1.0,
    comparison: str = "kl",
    rows: Tensor | None = None,
) -> Tensor:
    """Row by row, entry by entry, from the formulas; a row without entries adds nothing."""
    size = len(student)
    total = student.new_zeros(())
    for i in range(size):
        kept = [j for j in range(size) if (include_self if i == j else rows is None or rows[i] != rows[j])]
        if not kept:
            continue

        def similarity(z: Tensor, i: int, j: int) -> Tensor:
            return (1.0 if labels[i] == labels[j] else negative_scale) * (z[i] * z[j]).sum()

        if comparison == "squared":
            total = total + sum((similarity(student, i, j) - similarity(teacher, i, j)) ** 2 for j in kept) / len(kept)
            continue
        student_norm = torch.log(sum(torch.exp(similarity(student, i, j) / temperature) for j in kept))
        teacher_norm = torch.log(sum(torch.exp(similarity(teacher, i, j) / temperature) for j in kept))
        for j in kept:
            log_s = similarity(student, i, j) / temperature - student_norm
            log_t = similarity(teacher, i, j) / temperature - teacher_norm
            total = total + temperature**2 * pointwise(comparison, log_s, log_t)
    return total / size


def pointwise(comparison: str, log_s: Tensor, log_t: Tensor) -> Tensor:
    """One entry's part of the divergence."""
    s, t = torch.exp(log_s), torch.exp(log_t)
    if comparison == "kl":
        return t * (log_t - log_s)
    if comparison == "reverse_kl":
        return s * (log_s - log_t)
    log_m = torch.log((s + t) / 2)
    return (t * (log_t - log_m) + s * (log_s - log_m)) / 2


def unit(size: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=1)


COMPARISONS = get_args(Comparison)

options = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.1, 5),
        "include_self": st.booleans(),
        "negative_scale": st.sampled_from([1.0, 0.0, 0.3, 2.0]),
        "comparison": st.sampled_from(COMPARISONS),
    }
)


@settings(max_examples=40)
@given(
    size=st.one_of(st.integers(2, 12), st.sampled_from([17, 33, 64])),
    dim=st.integers(1, 16),
    teacher_dim=st.integers(1, 16),
    seed=st.integers(0, 2**31),
    options=options,
    drawn=st.sampled_from([None, 1, 2, 100]),
    block=st.sampled_from([None, 1, 5, 64]),
)
def test_value_and_gradient_equal_the_double_loop(size, dim, teacher_dim, seed, options, drawn, block):
    student, teacher = unit(size, dim, seed).requires_grad_(), unit(size, teacher_dim, seed + 1)
    labels = torch.arange(size) % 3
    # Some images drawn twice; one image drawn every time; no image drawn twice.
    rows = None if drawn is None else torch.arange(size) * 3 // 4 % drawn if drawn < 100 else torch.arange(size)
    ours = listwise_divergence(student=student, teacher=teacher, labels=labels, rows=rows, block=block, **options)
    (our_gradient,) = torch.autograd.grad(3 * ours, student)
    loop = 3 * naive(student, teacher, labels, rows=rows, **options)
    ours = 3 * ours
    if not loop.requires_grad:  # every list is empty
        loop = loop + 0 * student.sum()
    (loop_gradient,) = torch.autograd.grad(loop, student, allow_unused=True)
    assert math.isclose(ours.item(), loop.item(), rel_tol=1e-10, abs_tol=1e-10)
    torch.testing.assert_close(our_gradient, loop_gradient, rtol=1e-10, atol=1e-10)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_zero_loss_and_gradient_when_student_equals_teacher(size, seed, options):
    student = unit(size, 8, seed).requires_grad_()
    loss = listwise_divergence(student=student, teacher=student.detach(), labels=torch.arange(size) % 3, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    if options["comparison"] == "js":  # the logarithm of the mean list rounds
        assert abs(loss.item()) < 1e-12 * options["temperature"] ** 2 + 1e-15
    else:
        assert loss.item() == 0
    assert gradient.abs().max() < 1e-12


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_a_permutation_of_the_batch_changes_nothing(size, seed, options):
    student, teacher, labels = unit(size, 8, seed), unit(size, 8, seed + 1), torch.arange(size) % 3
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    before = listwise_divergence(student=student, teacher=teacher, labels=labels, **options)
    after = listwise_divergence(student=student[order], teacher=teacher[order], labels=labels[order], **options)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_a_rotation_of_the_teacher_changes_nothing(size, seed, options):
    student, teacher, labels = unit(size, 8, seed), unit(size, 8, seed + 1), torch.arange(size) % 3
    rotation, _ = torch.linalg.qr(unit(8, 8, seed + 2))
    before = listwise_divergence(student=student, teacher=teacher, labels=labels, **options)
    after = listwise_divergence(student=student, teacher=teacher @ rotation, labels=labels, **options)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


@given(size=st.integers(2, 64), seed=st.integers(0, 2**31), options=options)
def test_never_negative(size, seed, options):
    student, teacher = unit(size, 4, seed), unit(size, 4, seed + 1)
    assert listwise_divergence(student=student, teacher=teacher, labels=torch.arange(size) % 3, **options) >= -1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_gradient_is_finite_for_identical_embeddings(dtype, temperature, comparison):
    collapsed = F.normalize(torch.ones(16, 8, dtype=dtype), dim=1).requires_grad_()
    teacher = unit(16, 8, 0).to(dtype)
    loss = listwise_divergence(student=collapsed, teacher=teacher, temperature=temperature, comparison=comparison)
    (gradient,) = torch.autograd.grad(loss, collapsed)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_the_gradient_keeps_its_size_at_high_temperature():
    # tau^2 undoes the 1 / tau^2 of the softened softmax: without it the second norm would be 10,000 times smaller.
    student, teacher = unit(32, 8, 0).requires_grad_(), unit(32, 8, 1)
    norms = [
        torch.autograd.grad(listwise_divergence(student=student, teacher=teacher, temperature=t), student)[0]
        .norm()
        .item()
        for t in (10.0, 1000.0)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_nothing_flows_back_to_the_teacher():
    student, teacher = unit(8, 4, 0).requires_grad_(), unit(8, 4, 1).requires_grad_()
    listwise_divergence(student=student, teacher=teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_autocast_computes_in_float32(dtype, comparison):
    student, teacher = unit(32, 16, 0).float().requires_grad_(), unit(32, 16, 1).float()

    def value_and_gradient():
        loss = listwise_divergence(student=student, teacher=teacher, temperature=0.05, comparison=comparison)
        return loss, *torch.autograd.grad(loss, student)

    outside = value_and_gradient()
    with torch.autocast("cpu", dtype=dtype):
        inside = value_and_gradient()
    assert inside[0].dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip(inside, outside, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_half_precision_embeddings_are_compared_in_float32(dtype, comparison):
    student, teacher = unit(32, 16, 0).to(dtype).requires_grad_(), unit(32, 16, 1).to(dtype)
    loss = listwise_divergence(student=student, teacher=teacher, temperature=0.01, comparison=comparison)
    wide = student.detach().float().requires_grad_()
    same = listwise_divergence(student=wide, teacher=teacher.float(), temperature=0.01, comparison=comparison)
    assert torch.equal(loss, same)
    (gradient,), (expected,) = torch.autograd.grad(loss, student), torch.autograd.grad(same, wide)
    assert torch.equal(gradient, expected.to(dtype))


ROWS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize(
    "options", [{}, {"include_self": False, "negative_scale": 0.5}, {"rows": ROWS}, {"rows": ROWS, "block": 3}]
)
def test_compiles_without_a_graph_break(options, comparison):
    student, teacher, labels = unit(8, 4, 0).requires_grad_(), unit(8, 4, 1), torch.arange(8) % 2
    torch.compiler.reset()
    compiled = torch.compile(listwise_divergence, fullgraph=True, backend="aot_eager")
    arguments = {"student": student, "teacher": teacher, "labels": labels, "comparison": comparison, **options}
    ours, plain = compiled(**arguments), listwise_divergence(**arguments)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(plain, student))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("block", [1, 7, 96, 97, 500])
@settings(max_examples=10)
@given(options=options, seed=st.integers(0, 2**31), duplicates=st.booleans())
def test_the_size_of_the_blocks_changes_nothing(dtype, tolerance, block, options, seed, duplicates):
    student, teacher = unit(97, 16, seed).to(dtype).requires_grad_(), unit(97, 8, seed + 1).to(dtype)
    labels = torch.arange(97) % 3
    options = {**options, "labels": labels, "rows": torch.arange(97) // 2 if duplicates else None}
    whole = listwise_divergence(student=student, teacher=teacher, block=None, **options)
    parts = listwise_divergence(student=student, teacher=teacher, block=block, **options)
    tolerance *= max(1.0, options["temperature"] ** 2)
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(parts, student)[0], torch.autograd.grad(whole, student)[0]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


@settings(max_examples=40)
@given(size=st.integers(2, 24), seed=st.integers(0, 2**31), options=options)
def test_rows_without_duplicates_change_nothing(size, seed, options):
    student, teacher = unit(size, 8, seed).requires_grad_(), unit(size, 8, seed + 1)
    options = {**options, "labels": torch.arange(size) % 3}
    before = listwise_divergence(student=student, teacher=teacher, **options)
    after = listwise_divergence(student=student, teacher=teacher, rows=torch.arange(size).flip(0), **options)
    exact = {"rtol": 0, "atol": 0} if options["comparison"] != "squared" else {"rtol": 1e-13, "atol": 1e-15}
    torch.testing.assert_close(after, before, **exact)
    gradients = torch.autograd.grad(after, student)[0], torch.autograd.grad(before, student)[0]
    torch.testing.assert_close(*gradients, **exact)


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_an_image_drawn_twice_is_no_neighbour_of_itself(comparison):
    # Only the pair (0, 1) differs between student and teacher, and it is one image.
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    arguments = {"student": student, "teacher": teacher, "include_self": False, "comparison": comparison}
    assert listwise_divergence(**arguments, rows=torch.tensor([7, 7, 8])) == 0
    assert listwise_divergence(**arguments, rows=torch.tensor([7, 6, 8])) > 0.01


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_list_without_any_pair_adds_nothing(comparison, dtype):
    student, teacher = unit(6, 4, 0).to(dtype).requires_grad_(), unit(6, 4, 1).to(dtype)
    rows = torch.zeros(6, dtype=torch.int64)
    loss = listwise_divergence(
        student=student, teacher=teacher, rows=rows, include_self=False, comparison=comparison, temperature=0.01
    )
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert not gradient.any()


def test_the_temperature_has_no_part_in_the_squared_error():
    student, teacher = unit(8, 4, 0), unit(8, 4, 1)
    cold, hot = (
        listwise_divergence(student=student, teacher=teacher, comparison="squared", temperature=t) for t in (0.1, 10)
    )
    assert torch.equal(cold, hot)


def test_at_high_temperature_kl_is_half_the_centred_squared_error():
    student, teacher = unit(8, 4, 0), unit(8, 4, 1)
    kl = listwise_divergence(student=student, teacher=teacher, temperature=1e4)
    difference = student @ student.T - teacher @ teacher.T
    centred = difference - difference.mean(dim=1, keepdim=True)
    assert kl.item() == pytest.approx(centred.square().mean().item() / 2, rel=1e-3)


def test_js_is_symmetric_and_bounded():
    student, teacher = unit(16, 4, 0), unit(16, 4, 1)
    one_way, other_way = (
        listwise_divergence(student=a, teacher=b, comparison="js", temperature=0.01)
        for a, b in ((student, teacher), (teacher, student))
    )
    torch.testing.assert_close(one_way, other_way)
    assert one_way <= 0.01**2 * math.log(2)


@settings(max_examples=40)
@given(
    size=st.integers(2, 24),
    seed=st.integers(0, 2**31),
    options=options,
    block=st.sampled_from([None, 1, 5]),
    duplicates=st.booleans(),
)
def test_given_lists_are_compared_like_the_teachers(size, seed, options, block, duplicates):
    assume(options["comparison"] in get_args(ListComparison))
    student, teacher = unit(size, 8, seed).requires_grad_(), unit(size, 8, seed + 1)
    del options["negative_scale"]
    options["rows"] = torch.arange(size) // 2 if duplicates else None
    similarity = teacher @ teacher.T / options["temperature"]
    same = torch.zeros(size, size, dtype=torch.bool) if not duplicates else options["rows"][:, None] == options["rows"]
    left_out = same.fill_diagonal_(not options["include_self"])
    target = torch.softmax(similarity.masked_fill(left_out, -math.inf), 1).nan_to_num(0)
    ours = divergence_from_lists(student=student, target=target, block=block, **options)
    theirs = listwise_divergence(student=student, teacher=teacher, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(ours, student)[0], torch.autograd.grad(theirs, student)[0]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_a_constant_to_a_second_derivative():
    student = unit(8, 4, 0).requires_grad_()
    loss = listwise_divergence(student=student, teacher=unit(8, 4, 1))
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    assert not gradient.requires_grad


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("masked", [True, False])
def test_the_method_reads_embeddings_labels_and_rows_from_signals(comparison, masked):
    student, teacher, labels = unit(8, 4, 0), unit(8, 6, 1), torch.arange(8) % 2
    rows = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    options = {"temperature": 0.5, "include_self": False, "negative_scale": 0.5, "comparison": comparison}
    lsd = ListwiseSelfDistillation(mask_duplicates=masked, **options)
    loop = naive(student, teacher, labels, rows=rows if masked else None, **options)
    batch = Batch(torch.empty(8, 1, 1, 1), labels, rows)
    taken = lsd.from_signals(batch=batch, student=Signals(student), teacher=Signals(teacher))
    assert taken.item() == pytest.approx(loop.item(), rel=1e-10)


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
        ({"comparison": "cosine"}, "comparison must be one of 'kl', 'reverse_kl', 'js', 'squared', got 'cosine'"),
        ({"block": 0}, "block must be a whole number of at least 1, got 0"),
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
        (
            {"student": torch.ones(3, 2), "teacher": torch.ones(3, 2), "rows": torch.ones(2)},
            r"rows must have shape \(3,\), got \(2,\)",
        ),
        ({"student": torch.ones(3, 2), "teacher": torch.ones(3, 2), "block": 0}, "block must be at least 1, got 0"),
        (
            {"student": torch.ones(3, 2), "teacher": torch.ones(3, 2), "comparison": "cosine"},
            "comparison must be one of .* got 'cosine'",
        ),
    ],
)
def test_a_wrong_shape_is_refused_with_the_shape(arguments, message):
    with pytest.raises(ValueError, match=message):
        listwise_divergence(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": torch.ones(3, 4)}, r"target must have shape \(3, 3\), got \(3, 4\)"),
        ({"target": torch.ones(4, 4)}, r"got \(3, 2\) and \(4, 4\)"),
        ({"target": torch.ones(3, 3), "comparison": "squared"}, "comparison must be one of .* got 'squared'"),
    ],
)
def test_lists_of_a_wrong_shape_or_without_similarities_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        divergence_from_lists(student=torch.ones(3, 2), **arguments)
