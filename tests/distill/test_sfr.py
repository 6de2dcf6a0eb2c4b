"""SFR against loops over images, places and iterations; what is known of transport, and of bad arguments."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlkd import Batch, Signals
from dmlkd.distill import SelfFeatureRegularization, local_descriptors, sfr, transport_cost
from dmlkd.errors import UserError

pytest.importorskip("ot", reason="POT is not installed: pip install 'dmlkd[ot]'")

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**20))
EXACT = {"iterations": 20_000, "tolerance": 1e-13}


def drawn(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


pairs = partial(zip, strict=True)


def naive_costs(x, y):
    """A list of lists, of lists of descriptors."""
    return [[sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one) for other in y] for one in x]


def naive_plan(costs, weight):
    """Sinkhorn's scaling until nothing changes."""
    n, m = len(costs), len(costs[0])
    kernel = [[math.exp(-c / weight) for c in row] for row in costs]
    v = [1.0] * m
    for _ in range(20_000):
        u = [1 / n / sum(kernel[j][k] * v[k] for k in range(m)) for j in range(n)]
        earlier, v = v, [1 / m / sum(kernel[j][k] * u[j] for j in range(n)) for k in range(m)]
        if max(abs(new - old) / new for new, old in zip(v, earlier, strict=True)) < 1e-14:
            break
    return [[u[j] * kernel[j][k] * v[k] for k in range(m)] for j in range(n)]


@given(SIZES, st.sampled_from([0.1, 0.3, 2.0]))
def test_value_and_gradient_are_those_of_loops(sizes, epsilon):
    images, n, m, groups, seed = sizes
    x, y = drawn(images, n, groups, seed=seed).requires_grad_(), drawn(images, m, groups, seed=seed + 1)
    found = transport_cost(shallow=x, deep=y.requires_grad_(), epsilon=epsilon, **EXACT)
    found.backward()
    expected = 0.0
    for image in range(images):
        here, there = x[image].tolist(), y[image].tolist()
        costs = naive_costs(here, there)
        plan = naive_plan(costs, epsilon * sum(map(sum, costs)) / (n * m))
        expected += sum(plan[j][k] * costs[j][k] for j in range(n) for k in range(m)) / images
        for j in range(n):
            slope = [
                sum(plan[j][k] * 2 * (here[j][g] - there[k][g]) for k in range(m)) / groups / images
                for g in range(groups)
            ]
            assert x.grad[image, j].tolist() == pytest.approx(slope, abs=1e-8)
    assert found.item() == pytest.approx(expected, rel=1e-7, abs=1e-10)
    assert y.grad is None


def test_the_gradient_is_that_of_the_minimum_that_the_plan_solves():
    """Central differences of min <P, C> - w H(P), w held, solved anew at each point."""
    x, y, epsilon = drawn(1, 4, 3, seed=0), drawn(1, 3, 3, seed=1), 0.4
    costs = naive_costs(x[0].tolist(), y[0].tolist())
    weight = epsilon * sum(map(sum, costs)) / 12

    def minimum(points):
        costs = naive_costs(points.tolist(), y[0].tolist())
        plan = naive_plan(costs, weight)
        return sum(p * c + weight * p * math.log(p) for ps, cs in pairs(plan, costs) for p, c in pairs(ps, cs))

    leaf = x.clone().requires_grad_()
    transport_cost(shallow=leaf, deep=y, epsilon=epsilon, **EXACT).backward()
    for j in range(4):
        for g in range(3):
            step = torch.zeros(4, 3, dtype=torch.float64)
            step[j, g] = 1e-5
            slope = (minimum(x[0] + step) - minimum(x[0] - step)) / 2e-5
            assert leaf.grad[0, j, g].item() == pytest.approx(slope, abs=1e-7)


def test_the_same_descriptors_in_another_order_cost_next_to_nothing_at_small_epsilon():
    x = drawn(2, 6, 5, seed=3)
    assert transport_cost(shallow=x, deep=x.flip(1), epsilon=0.005, iterations=2000).item() < 1e-3
    assert transport_cost(shallow=x, deep=x.flip(1), epsilon=50, iterations=2000).item() > 0.5


@given(SIZES, st.floats(0.01, 100))
def test_scaled_features_cost_the_square_of_the_scale(sizes, scale):
    images, n, m, groups, seed = sizes
    x, y = drawn(images, n, groups, seed=seed), drawn(images, m, groups, seed=seed + 1)
    costs = [transport_cost(shallow=s * x, deep=s * y).item() for s in (1, scale)]
    assert costs[1] == pytest.approx(scale**2 * costs[0], rel=1e-6)


def test_one_deep_place_is_the_mean_squared_distance_to_it():
    x, y = drawn(3, 5, 4, seed=0), drawn(3, 1, 4, seed=1)
    assert transport_cost(shallow=x, deep=y).item() == pytest.approx((x - y).square().mean().item())


def test_places_have_no_order():
    x, y = drawn(2, 5, 3, seed=0), drawn(2, 4, 3, seed=1)
    moved = transport_cost(shallow=x[:, [4, 2, 0, 1, 3]], deep=y.flip(1))
    assert moved.item() == pytest.approx(transport_cost(shallow=x, deep=y).item())


def test_equal_descriptors_everywhere_cost_nothing_and_have_a_finite_gradient():
    x = torch.ones(2, 3, 4, requires_grad=True)
    loss = transport_cost(shallow=x, deep=torch.ones(2, 2, 4))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_half_precision_is_compared_in_single_precision():
    x, y = (drawn(2, 4, 3, seed=seed).bfloat16() for seed in (0, 1))
    assert transport_cost(shallow=x, deep=y).dtype == torch.float32


def test_no_random_numbers_are_drawn():
    generator = torch.get_rng_state()
    transport_cost(shallow=drawn(2, 4, 3, seed=0), deep=drawn(2, 4, 3, seed=1))
    assert torch.equal(torch.get_rng_state(), generator)


@given(st.integers(1, 3), st.sampled_from([1, 2, 3, 6]), st.integers(1, 4), st.integers(1, 4))
def test_a_descriptor_is_the_mean_of_each_group_of_channels_at_a_place(images, groups, height, width):
    maps = drawn(images, 6, height, width, seed=0)
    found, size = local_descriptors(maps, groups=groups), 6 // groups
    assert found.shape == (images, height * width, groups)
    for i in range(images):
        for h in range(height):
            for w in range(width):
                for g in range(groups):
                    expected = sum(maps[i, g * size + c, h, w].item() for c in range(size)) / size
                    assert found[i, h * width + w, g].item() == pytest.approx(expected)


def test_large_maps_are_averaged_to_a_side_and_small_ones_left():
    maps = drawn(1, 2, 8, 8, seed=0)
    found = local_descriptors(maps, groups=2, side=4)
    assert found[0, 5, 1].item() == pytest.approx(maps[0, 1, 2:4, 2:4].mean().item())
    assert torch.equal(local_descriptors(maps, groups=2, side=8), local_descriptors(maps, groups=2))
    assert local_descriptors(maps[:, :, :3], groups=2, side=4).shape == (1, 12, 2)


@pytest.mark.parametrize(("stages", "groups"), [((4, 8, 8), 8), ((4, 16, 8), 8), ((4, 6, 8), 2)])
def test_channels_are_brought_to_as_many_as_can_be(stages, groups):
    assert SelfFeatureRegularization(stages=stages).groups == groups


def test_as_a_method_it_pulls_one_stage_and_holds_the_deepest():
    maps = tuple(drawn(3, c, s, s, seed=c).requires_grad_() for c, s in ((2, 6), (12, 4), (6, 2)))
    method = SelfFeatureRegularization(stages=(2, 12, 6), stage=1, groups=3, side=3, epsilon=0.2)
    batch = Batch(torch.zeros(3, 1, 1, 1), torch.arange(3), torch.arange(3))
    loss = method.from_signals(batch=batch, student=Signals(torch.ones(3, 1), stages=maps), teacher=None)
    loss.backward()
    small, target = (local_descriptors(m.detach(), groups=3, side=3) for m in maps[1:])
    assert loss.item() == pytest.approx(transport_cost(shallow=small, deep=target, epsilon=0.2).item())
    assert maps[0].grad is None
    assert maps[1].grad.abs().min() > 0
    assert maps[2].grad is None


def test_without_pot_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sfr, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sfr needs POT for optimal transport: pip install 'dmlkd\[ot\]'"):
        SelfFeatureRegularization(stages=(2, 2, 2))


STAGES = (4, 8, 8)
BAD = {
    "no such stage": (lambda: SelfFeatureRegularization(stages=STAGES, stage=2), "stage must be an inner one, 0 to 1"),
    "one stage": (
        lambda: SelfFeatureRegularization(stages=(4,), stage=0),
        "a backbone of one stage has no inner stage",
    ),
    "groups that do not divide": (
        lambda: SelfFeatureRegularization(stages=STAGES, groups=3),
        "groups must divide the 8 channels that both stages can have, got 3",
    ),
    "no groups": (
        lambda: SelfFeatureRegularization(stages=STAGES, groups=0),
        "groups must be a whole number of at least 1, got 0",
    ),
    "no side": (
        lambda: SelfFeatureRegularization(stages=STAGES, side=0),
        "side must be a whole number of at least 1, got 0",
    ),
    "no epsilon": (
        lambda: SelfFeatureRegularization(stages=STAGES, epsilon=0),
        "epsilon must be a finite number above 0, got 0",
    ),
    "no iterations": (
        lambda: SelfFeatureRegularization(stages=STAGES, iterations=0),
        "iterations must be a whole number of at least 1, got 0",
    ),
    "other images": (
        lambda: transport_cost(shallow=torch.zeros(2, 3, 4), deep=torch.zeros(3, 3, 4)),
        r"of the same images, got \(2, 3, 4\)\s+and \(3, 3, 4\)",
    ),
    "no places": (
        lambda: transport_cost(shallow=torch.zeros(2, 0, 4), deep=torch.zeros(2, 3, 4)),
        r"got \(2, 0, 4\)",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
