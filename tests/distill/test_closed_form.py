"""Facts of Mobahi et al. 2020 and Borup and Andersen 2021, and the estimator over them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.utils.estimator_checks import check_estimator

from dmlkd.distill.closed_form import (
    Spectrum,
    closed_form_rounds,
    coefficients,
    label_weights,
    penalty,
    rounds_before_collapse,
    spectrum,
)
from dmlkd.distill.kernel import KernelSelfDistiller


def problem(seed=0, count=30, outputs=3, gamma=0.3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 4))
    return rbf_kernel(x, gamma=gamma), rng.standard_normal((count, outputs))


def naive(gram, y, penalties, weights):
    """The outputs of every round, each by solving the linear system."""
    found, target = [], y
    for t, c in enumerate(penalties):
        if t:
            target = weights[t - 1] * y + (1 - weights[t - 1]) * found[-1]
        found.append(gram @ np.linalg.solve(gram + c * np.eye(len(y)), target))
    return found


@given(
    seed=st.integers(0, 99),
    rounds=st.integers(1, 6),
    ridge=st.floats(1e-2, 1e2),
    weight=st.floats(0, 1),
)
def test_rounds_in_the_eigenbasis_are_the_rounds_of_the_linear_systems(seed, rounds, ridge, weight):
    gram, y = problem(seed)
    basis = spectrum(gram)
    z = basis.project(y)
    done = closed_form_rounds(basis.values, z, rounds=rounds, ridge=ridge, label_weight=weight)
    expected = naive(gram, y, [ridge] * rounds, [weight] * (rounds - 1))
    for factors, f in zip(done.outputs, expected, strict=True):
        np.testing.assert_allclose(basis.vectors @ (factors[:, None] * z), f, atol=1e-8)
    np.testing.assert_allclose(gram @ coefficients(basis, z, done), expected[-1], atol=1e-8)


def test_each_round_has_its_own_label_weight():
    gram, y = problem()
    basis = spectrum(gram)
    z = basis.project(y)
    done = closed_form_rounds(basis.values, z, rounds=4, ridge=0.5, label_weight=[0.1, 0.9, 0.4])
    expected = naive(gram, y, [0.5] * 4, [0.1, 0.9, 0.4])
    np.testing.assert_allclose(basis.vectors @ (done.outputs[-1][:, None] * z), expected[-1], atol=1e-10)


@pytest.mark.parametrize("weight", [0.05, 0.3, 1.0])
def test_with_labels_kept_the_limit_is_ridge_regression_with_lambda_over_a(weight):
    gram, y = problem()
    basis = spectrum(gram)
    z = basis.project(y)
    done = closed_form_rounds(basis.values, z, rounds=800, ridge=0.7, label_weight=weight)
    ridge = gram @ np.linalg.solve(gram + 0.7 / weight * np.eye(len(y)), y)
    np.testing.assert_allclose(basis.vectors @ (done.outputs[-1][:, None] * z), ridge, atol=1e-10)


def test_without_labels_every_round_shrinks_each_eigenvalue_by_its_factor():
    gram, y = problem()
    basis = spectrum(gram)
    done = closed_form_rounds(basis.values, basis.project(y), rounds=5, ridge=0.7)
    factor = basis.values / (basis.values + 0.7)
    np.testing.assert_allclose(done.outputs, [factor**t for t in range(1, 6)], rtol=1e-12)


@given(seed=st.integers(0, 99), share=st.floats(0.01, 0.9))
def test_the_residual_of_every_round_is_the_tolerance_until_the_collapse(seed, share):
    gram, y = problem(seed)
    basis = spectrum(gram + 0.01 * np.eye(len(gram)))
    z = basis.project(y)
    tolerance = share * float((y * y).sum()) / len(y)
    done = closed_form_rounds(basis.values, z, rounds=40, tolerance=tolerance)
    for t in range((done.collapsed or 41) - 1):
        residual = ((done.targets[t] - done.outputs[t])[:, None] * z) ** 2
        assert residual.sum() / len(y) == pytest.approx(tolerance, rel=1e-9)
    if done.collapsed:
        last = (done.targets[done.collapsed - 1][:, None] * z) ** 2
        assert last.sum() / len(y) <= tolerance
        assert not done.outputs[done.collapsed - 1 :].any()


@given(seed=st.integers(0, 99), share=st.floats(0.001, 0.5), jitter=st.floats(0.1, 10))
def test_the_collapse_comes_no_earlier_than_the_bound(seed, share, jitter):
    gram, y = problem(seed)
    basis = spectrum(gram + jitter * np.eye(len(gram)))
    z = basis.project(y)
    tolerance = share * float((y * y).sum()) / len(y)
    bound = rounds_before_collapse(basis.values, z, tolerance)
    collapsed = closed_form_rounds(basis.values, z, rounds=int(bound) + 50, tolerance=tolerance).collapsed
    # The round that collapses is no solved one.
    assert collapsed is None or collapsed - 1 >= bound - 1e-9


def test_the_bound_is_that_of_the_paper():
    y = np.array([[3.0], [4.0]])
    assert rounds_before_collapse(np.array([1.0, 2.0]), y, 0.5) == pytest.approx((5 / np.sqrt(2 * 0.5) - 1) / 2)
    assert rounds_before_collapse(np.array([0.0, 2.0]), y, 0.5) == 0


def test_the_constraint_shrinks_small_eigenvalues_most():
    gram, y = problem()
    basis = spectrum(gram)
    done = closed_form_rounds(basis.values, basis.project(y), rounds=3, tolerance=0.3)
    assert (np.diff(done.outputs[-1]) >= 0).all()
    relative = done.outputs / done.outputs[:, -1:]
    assert (relative[1:, :-1] < relative[:-1, :-1]).all()


def test_a_target_within_the_tolerance_gives_zero():
    assert penalty(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 0.5) == np.inf
    assert penalty(np.array([1.0, 2.0]), np.array([0.5, 0.5]), 0.49) < np.inf


def test_what_the_kernel_cannot_represent_counts_towards_the_residual():
    c = penalty(np.array([0.0, 2.0]), np.array([0.1, 1.0]), 0.2)
    assert (0.1 + (c / (c + 2)) ** 2) / 2 == pytest.approx(0.2, rel=1e-12)
    with pytest.raises(ValueError, match=r"tolerance must be above 0.05, .* got 0.04"):
        penalty(np.array([0.0, 2.0]), np.array([0.1, 1.0]), 0.04)


BAD = {
    "rounds": ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
    "fraction of a round": ({"rounds": 1.5}, "rounds must be a whole number of at least 1, got 1.5"),
    "ridge": ({"ridge": 0}, "ridge must be a finite number above 0, got 0"),
    "ridge not finite": ({"ridge": float("inf")}, "ridge must be a finite number above 0, got inf"),
    "tolerance": ({"tolerance": -1.0}, "tolerance must be a finite number above 0, got -1.0"),
    "label weight": ({"label_weight": 1.1}, "label_weight must be a number from 0 to 1, got 1.1"),
    "one label weight of several": ({"label_weight": [0.5, -1]}, "label_weight must be a number from 0 to 1, got -1"),
    "number of label weights": ({"label_weight": [0.5]}, "one for each of rounds 2 to 3, got [0.5]"),
    "tolerance too small": ({"kernel": "linear", "tolerance": 1e-9}, "mean squared residual that this kernel leaves"),
    "kernel": ({"kernel": "sigmoid"}, "the kernel is not positive semi-definite"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD)
def test_a_bad_number_is_refused_by_name_when_fitting(arguments, said):
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is looked at
        KernelSelfDistiller(**arguments).fit(x, y)
    assert said in str(refused.value)


def test_both_or_neither_of_ridge_and_tolerance_are_refused():
    for given_ in ({}, {"ridge": 1.0, "tolerance": 0.1}):
        with pytest.raises(ValueError, match="give either ridge or tolerance"):
            closed_form_rounds(np.ones(2), np.ones((2, 1)), rounds=1, **given_)


@pytest.mark.parametrize(
    ("gram", "said"),
    [
        (np.ones((2, 3)), "must be"),
        (np.array([[1, 2], [0, 1]]), "not symmetric"),
        (np.array([[1, np.nan], [np.nan, 1]]), "not finite"),
        (np.array([[0, 1], [1, 0]]), "not positive semi-definite"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram, said):
    with pytest.raises(ValueError, match=said):
        spectrum(gram)


def test_one_label_weight_stands_for_all_rounds_but_the_first():
    assert label_weights(0.3, 1) == []
    assert label_weights(0.3, 3) == [0.3, 0.3]
    assert label_weights(np.array([0.1, 0.2]), 3) == [0.1, 0.2]


def test_one_round_is_kernel_ridge_regression():
    x, y = load_iris(return_X_y=True)
    ours = KernelSelfDistiller(rounds=1, ridge=0.3, gamma=0.2).fit(x, y)
    theirs = KernelRidge(alpha=0.3, kernel="rbf", gamma=0.2).fit(x, np.eye(3)[y])
    np.testing.assert_allclose(ours.transform(x), theirs.predict(x), atol=1e-10)


def test_kernels_by_name_by_function_and_given_are_the_same():
    x, y = load_iris(return_X_y=True)
    new = x[::7] + 0.1
    named = KernelSelfDistiller(gamma=0.2).fit(x, y).transform(new)
    function = KernelSelfDistiller(
        kernel=lambda a, b, scale: float(np.exp(-scale * ((a - b) ** 2).sum())), kernel_params={"scale": 0.2}
    )
    np.testing.assert_allclose(function.fit(x, y).transform(new), named, atol=1e-10)
    own = KernelSelfDistiller(kernel="precomputed").fit(rbf_kernel(x, gamma=0.2), y)
    np.testing.assert_allclose(own.transform(rbf_kernel(new, x, gamma=0.2)), named, atol=1e-10)


def test_a_linear_kernel_of_few_dimensions_is_ridge_regression_too():
    x, y = load_iris(return_X_y=True)
    new = x[::7] + 0.1
    ours = KernelSelfDistiller(rounds=1, kernel="linear", ridge=2.0).fit(x, y)
    expected = new @ np.linalg.solve(x.T @ x + 2.0 * np.eye(4), x.T @ np.eye(3)[y])
    np.testing.assert_allclose(ours.transform(new), expected, atol=1e-9)


def test_scores_classes_and_names_agree():
    x, y = load_iris(return_X_y=True)
    names = np.array(["c", "a", "b"])[y]
    model = KernelSelfDistiller(gamma=0.2).fit(x, names)
    assert model.transform(x).shape == (150, 3)
    np.testing.assert_array_equal(model.predict(x), model.classes_[model.decision_function(x).argmax(axis=1)])
    assert model.get_feature_names_out().tolist() == [f"kernelselfdistiller{n}" for n in range(3)]
    two = KernelSelfDistiller(gamma=0.2).fit(x[y > 0], y[y > 0])
    np.testing.assert_array_equal(two.predict(x), np.where(two.decision_function(x) > 0, 2, 1))


def test_a_collapse_is_said_and_scores_nothing():
    x, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="collapsed to 0"):
        model = KernelSelfDistiller(rounds=50, tolerance=0.2, label_weight=0).fit(x, y)
    assert 1 < model.collapsed_ < 50
    assert not model.transform(x).any()


def test_a_spectrum_sets_eigenvalues_of_rounding_to_zero():
    x = np.random.default_rng(0).standard_normal((20, 3))
    found: Spectrum = spectrum(x @ x.T)
    assert (found.values[:17] == 0).all()
    assert (found.values[17:] > 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", [{}, {"tolerance": 0.1, "label_weight": 0.0}, {"kernel": "linear", "rounds": 1}])
def test_it_is_an_estimator_of_scikit_learn(arguments):
    check_estimator(KernelSelfDistiller(**arguments))
