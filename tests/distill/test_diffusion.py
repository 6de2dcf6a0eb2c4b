"""Diffused lists against loops written from the formula, and the facts that follow from it."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dmlkd.distill import ListwiseSelfDistillation, OnlineBatchDiffusion, diffused_lists
from dmlkd.signals import Batch, Signals


def unit(size: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, dim, generator=generator, dtype=torch.float64), dim=1)


def similarities(size: int, seed: int, *, include_self: bool = True, rows: Tensor | None = None) -> Tensor:
    z = unit(size, 8, seed)
    left_out = torch.zeros(size, size, dtype=torch.bool) if rows is None else rows[:, None] == rows
    return (z @ z.T).masked_fill(left_out.fill_diagonal_(not include_self), -math.inf)


def naive(
    similarity: Tensor,
    *,
    omega: float,
    temperature: float,
    graph_temperature: float | None = None,
    neighbours: int | None = None,
    steps: int | None = None,
    normalisation: str = "symmetric",
) -> Tensor:
    """The formula with loops, explicit inverses and explicit powers."""
    size = len(similarity)
    graph = torch.zeros(size, size, dtype=torch.float64)
    lists = torch.exp(similarity / temperature)
    for i in range(size):
        for j in range(size):
            if i != j and (neighbours is None or is_near(similarity, i, j, neighbours)):
                graph[i, j] = math.exp(similarity[i, j] / (graph_temperature or temperature))
    degrees = [float(graph[i].sum()) for i in range(size)]
    walk = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            if graph[i, j] > 0:
                norm = math.sqrt(degrees[i] * degrees[j]) if normalisation == "symmetric" else degrees[i]
                walk[i, j] = graph[i, j] / norm
    if normalisation == "random_walk":
        lists = (lists / lists.sum(1, keepdim=True)).nan_to_num(0)
    if steps is None:
        spread = (1 - omega) * torch.linalg.inv(torch.eye(size, dtype=torch.float64) - omega * walk)
    else:
        spread = (1 - omega) * sum(torch.linalg.matrix_power(omega * walk, s) for s in range(steps + 1))
    diffused = spread @ lists
    diffused[similarity == -math.inf] = 0
    return (diffused / diffused.sum(1, keepdim=True)).nan_to_num(0)


def is_near(similarity: Tensor, i: int, j: int, neighbours: int) -> bool:
    """Whether j is among i's nearest, or i among j's."""

    def among(a: int, b: int) -> bool:
        others = sorted((float(similarity[a, c]) for c in range(len(similarity)) if c != a), reverse=True)
        return float(similarity[a, b]) >= others[min(neighbours, len(others)) - 1]

    return among(i, j) or among(j, i)


options = st.fixed_dictionaries(
    {
        "omega": st.sampled_from([0.0, 0.3, 0.9, 0.99]),
        "temperature": st.floats(0.1, 5),
        "graph_temperature": st.sampled_from([None, 0.05, 1.0]),
        "neighbours": st.sampled_from([None, 1, 2, 5]),
        "steps": st.sampled_from([None, 1, 4]),
        "normalisation": st.sampled_from(["symmetric", "random_walk"]),
    }
)


@settings(max_examples=80)
@given(
    size=st.integers(2, 16),
    seed=st.integers(0, 2**31),
    options=options,
    include_self=st.booleans(),
    duplicates=st.booleans(),
)
def test_lists_equal_the_loops(size, seed, options, include_self, duplicates):
    rows = torch.arange(size) // 2 if duplicates else None
    similarity = similarities(size, seed, include_self=include_self, rows=rows)
    torch.testing.assert_close(
        diffused_lists(similarity, **options), naive(similarity, **options), rtol=1e-8, atol=1e-10
    )


@settings(max_examples=60)
@given(size=st.integers(2, 40), seed=st.integers(0, 2**31), options=options, include_self=st.booleans())
def test_each_list_is_a_distribution(size, seed, options, include_self):
    lists = diffused_lists(similarities(size, seed, include_self=include_self), **options)
    assert (lists >= 0).all()
    torch.testing.assert_close(lists.sum(1), torch.ones(size, dtype=torch.float64), rtol=1e-10, atol=0)
    assert include_self or not lists.diagonal().any()


@given(size=st.integers(2, 24), seed=st.integers(0, 2**31), options=options, include_self=st.booleans())
def test_without_a_walk_the_lists_are_the_teachers(size, seed, options, include_self):
    similarity = similarities(size, seed, include_self=include_self)
    lists = diffused_lists(similarity, **{**options, "omega": 0.0})
    torch.testing.assert_close(lists, torch.softmax(similarity / options["temperature"], 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["symmetric", "random_walk"])
def test_the_series_converges_to_the_exact_solution(normalisation):
    similarity = similarities(20, 0)
    options = {"omega": 0.8, "temperature": 0.3, "normalisation": normalisation}
    exact = diffused_lists(similarity, **options)
    errors = [(diffused_lists(similarity, steps=t, **options) - exact).abs().max().item() for t in (1, 4, 16, 64, 256)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-12


@settings(max_examples=40)
@given(size=st.integers(2, 24), seed=st.integers(0, 2**31), options=options)
def test_lists_follow_a_permutation_of_the_batch(size, seed, options):
    similarity = similarities(size, seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    permuted = diffused_lists(similarity[order][:, order], **options)
    torch.testing.assert_close(permuted, diffused_lists(similarity, **options)[order][:, order], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("neighbours", [9, 10, 1000])
def test_as_many_neighbours_as_there_are_images_are_no_limit(neighbours):
    similarity = similarities(10, 0)
    limited = diffused_lists(similarity, omega=0.9, neighbours=neighbours)
    assert torch.equal(limited, diffused_lists(similarity, omega=0.9))
    assert not torch.equal(limited, diffused_lists(similarity, omega=0.9, neighbours=8))


@pytest.mark.parametrize("steps", [None, 3])
def test_stacked_batches_are_diffused_each_by_itself(steps):
    stacked = torch.stack([similarities(7, seed) for seed in range(6)]).view(2, 3, 7, 7)
    lists = diffused_lists(stacked, omega=0.7, neighbours=3, steps=steps)
    for a in range(2):
        for b in range(3):
            alone = diffused_lists(stacked[a, b], omega=0.7, neighbours=3, steps=steps)
            torch.testing.assert_close(lists[a, b], alone, rtol=1e-12, atol=0)


def test_with_equal_degrees_the_normalisations_agree():
    # A ring: every image has the same similarities, in another order.
    ring = torch.cos(torch.arange(8)[:, None].sub(torch.arange(8)).double() * math.pi / 4)
    symmetric, walk = (
        diffused_lists(ring, omega=0.9, temperature=0.5, normalisation=n) for n in ("symmetric", "random_walk")
    )
    torch.testing.assert_close(symmetric, walk, rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalisation", ["symmetric", "random_walk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_without_any_pair_have_no_list_and_no_part(normalisation, dtype):
    similarity = similarities(6, 0, include_self=False).to(dtype)
    similarity[2] = similarity[:, 2] = -math.inf
    lists = diffused_lists(similarity, omega=0.9, normalisation=normalisation)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert not lists[2].any()
    assert not lists[:, 2].any()
    alone = diffused_lists(similarity[others][:, others], omega=0.9, normalisation=normalisation)
    torch.testing.assert_close(lists[others][:, others], alone)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 1e3])
@pytest.mark.parametrize("normalisation", ["symmetric", "random_walk"])
@pytest.mark.parametrize("include_self", [True, False])
def test_float32_lists_stay_finite_at_any_temperature(temperature, normalisation, include_self):
    similarity = similarities(32, 0, include_self=include_self).float()
    lists = diffused_lists(similarity, omega=0.99, temperature=temperature, normalisation=normalisation)
    torch.testing.assert_close(lists.sum(1), torch.ones(32), rtol=1e-4, atol=0)


@pytest.mark.parametrize("comparison", ["kl", "reverse_kl", "js"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_for_identical_embeddings(comparison, dtype):
    collapsed = F.normalize(torch.ones(16, 8, dtype=dtype), dim=1)
    for student, teacher in ((collapsed, unit(16, 8, 0).to(dtype)), (collapsed, collapsed)):
        student = student.clone().requires_grad_()
        loss = OnlineBatchDiffusion(comparison=comparison, neighbours=3)(student=student, teacher=teacher)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("comparison", ["kl", "reverse_kl", "js"])
@pytest.mark.parametrize("include_self", [True, False])
def test_without_a_walk_the_loss_is_that_of_lsd(comparison, include_self):
    student, teacher, rows = unit(12, 4, 0).requires_grad_(), unit(12, 6, 1), torch.arange(12) // 2
    options = {"temperature": 0.3, "include_self": include_self, "comparison": comparison}
    ours = OnlineBatchDiffusion(omega=0, **options)(student=student, teacher=teacher, rows=rows)
    lsd = ListwiseSelfDistillation(**options)(student=student, teacher=teacher, rows=rows)
    torch.testing.assert_close(ours, lsd, rtol=1e-10, atol=0)
    gradients = torch.autograd.grad(ours, student)[0], torch.autograd.grad(lsd, student)[0]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_the_method_equals_the_formula_in_value_and_gradient(masked):
    student, teacher = unit(8, 4, 0).requires_grad_(), unit(8, 6, 1).requires_grad_()
    rows = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    obd = OnlineBatchDiffusion(omega=0.7, temperature=0.5, include_self=False, mask_duplicates=masked)
    batch = Batch(torch.empty(8, 1, 1, 1), torch.arange(8) % 2, rows)
    loss = obd.from_signals(batch=batch, student=Signals(student), teacher=Signals(teacher))
    left_out = (rows[:, None] == rows if masked else torch.zeros(8, 8, dtype=torch.bool)).fill_diagonal_(True)
    target = naive((teacher @ teacher.T).detach().masked_fill(left_out, -math.inf), omega=0.7, temperature=0.5)
    log = torch.log_softmax((student @ student.T / 0.5).masked_fill(left_out, -math.inf), 1)
    by_formula = (
        0.5**2
        / 8
        * sum(target[i, j] * (target[i, j].log() - log[i, j]) for i in range(8) for j in range(8) if target[i, j] > 0)
    )
    assert loss.item() == pytest.approx(by_formula.item(), rel=1e-10)
    expected = torch.autograd.grad(by_formula, student)[0]
    loss.backward()
    torch.testing.assert_close(student.grad, expected, rtol=1e-9, atol=1e-12)
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype):
    student, teacher = unit(32, 16, 0).float(), unit(32, 16, 1).float()
    obd = OnlineBatchDiffusion(temperature=0.05)
    outside = obd(student=student, teacher=teacher)
    with torch.autocast("cpu", dtype=dtype):
        inside = obd(student=student, teacher=teacher)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize(
    "options",
    [{}, {"steps": 3, "neighbours": 2}, {"normalisation": "random_walk", "include_self": False, "comparison": "js"}],
)
def test_compiles_without_a_graph_break(options):
    student, teacher = unit(8, 4, 0).requires_grad_(), unit(8, 4, 1)
    obd = OnlineBatchDiffusion(**options)
    torch.compiler.reset()
    compiled = torch.compile(obd, fullgraph=True, backend="aot_eager")
    ours, plain = (f(student=student, teacher=teacher, rows=torch.arange(8) // 2) for f in (compiled, obd))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours, student), torch.autograd.grad(plain, student))


def test_diffusion_reaches_the_neighbours_neighbours():
    # 0 - 1 - 2 is a path: 2 is as far from 0 as 3 is, but one step from 0's neighbour.
    s = torch.tensor([[1.0, 0.9, 0.0, 0.0], [0.9, 1.0, 0.9, 0.0], [0.0, 0.9, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    plain, diffused = (diffused_lists(s, omega=omega, temperature=0.2)[0] for omega in (0.0, 0.5))
    assert plain[2] == plain[3]
    assert diffused[2] > 3 * diffused[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"omega": 1}, "omega must be a number of at least 0 and below 1, got 1"),
        ({"omega": -0.1}, "omega must be a number of at least 0 and below 1, got -0.1"),
        ({"omega": math.nan}, "omega must be a number of at least 0 and below 1, got nan"),
        ({"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        ({"graph_temperature": 0}, "graph_temperature must be a finite number above 0, got 0"),
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1, got 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"normalisation": "rows"}, "normalisation must be one of 'symmetric', 'random_walk', got 'rows'"),
        ({"comparison": "squared"}, "comparison must be one of 'kl', 'reverse_kl', 'js', got 'squared'"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineBatchDiffusion(**arguments)
