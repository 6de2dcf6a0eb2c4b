"""Self-distillation in closed form as an estimator of scikit-learn, which ``import dmlkd.distill`` does not load."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dmlkd.distill.closed_form import closed_form_rounds, coefficients, spectrum


class KernelSelfDistiller(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A kernel classifier that is fitted to its own outputs again and again, solved in closed form.

    The equations are those of :func:`~dmlkd.distill.closed_form.closed_form_rounds`, on one-hot labels without an
    intercept. Takes time with the cube and memory with the square of the number of training points.

    Args:
        rounds: how often it is fitted, at least 1; 1 is kernel ridge regression.
        label_weight: share of the labels in the targets, from 0 to 1: of each round from the second on, or one for all.
        ridge: what is added to the Gram matrix's diagonal, above 0; used where ``tolerance`` is None.
        tolerance: mean squared residual of every round, above 0, from which each round's ridge follows; or None.
        kernel: a name that :func:`sklearn.metrics.pairwise.pairwise_kernels` knows, "precomputed", or a function of two
            rows; positive semi-definite.
        gamma: of the kernels that have it; None: their default.
        degree: of the polynomial kernel.
        coef0: of the polynomial and sigmoid kernels.
        kernel_params: further arguments of a kernel that is a function.

    Attributes:
        classes_: (C,) the class labels.
        dual_coef_: (n, C) weights of the training points.
        X_fit_: (n, D) the training points, or their Gram matrix where that was given.
        penalties_: (T,) what was added to the diagonal in each round.
        collapsed_: the first round, counted from 1, whose output is 0 everywhere; None: there is none.
        n_features_in_: D.

    >>> from sklearn.datasets import load_iris
    >>> x, y = load_iris(return_X_y=True)
    >>> float(KernelSelfDistiller(rounds=3, gamma=0.5).fit(x, y).score(x, y)) > 0.95
    True
    """

    def __init__(
        self,
        *,
        rounds: int = 3,
        label_weight: float | Sequence[float] = 0.5,
        ridge: float = 1.0,
        tolerance: float | None = None,
        kernel: str | Callable[..., float] = "rbf",
        gamma: float | None = None,
        degree: float = 3,
        coef0: float = 1,
        kernel_params: dict[str, Any] | None = None,
    ) -> None:
        self.rounds = rounds
        self.label_weight = label_weight
        self.ridge = ridge
        self.tolerance = tolerance
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.kernel_params = kernel_params

    def fit(self, X: Any, y: Any) -> "KernelSelfDistiller":  # noqa: N803 - scikit-learn's names
        """Fit all rounds.

        Args:
            X: (n, D) features, such as frozen embeddings; (n, n) the Gram matrix where the kernel is "precomputed".
            y: (n,) class labels.

        Raises:
            ValueError: for a bad number, fewer than two classes, or a kernel that is not positive semi-definite.
        """
        x, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"at least two classes are needed, the data have 1 class: {self.classes_[0]!r}")
        basis = spectrum(self._kernel(x, x))
        projected = basis.project(np.eye(len(self.classes_))[labels])
        done = closed_form_rounds(
            basis.values,
            projected,
            rounds=self.rounds,
            ridge=self.ridge if self.tolerance is None else None,
            tolerance=self.tolerance,
            label_weight=self.label_weight,
        )
        self.X_fit_ = x
        self.dual_coef_ = coefficients(basis, projected, done)
        self.penalties_ = done.penalties
        self.collapsed_ = done.collapsed
        self._n_features_out = len(self.classes_)
        if self.collapsed_ is not None:
            warnings.warn(
                f"round {self.collapsed_} of {self.rounds} collapsed to 0: its target is within the tolerance",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Embed again: the scores (m, C) of all classes, to be compared by cosine, of classes never seen too.

        Args:
            X: (m, D) features; (m, n) kernels with the training points where the kernel is "precomputed".
        """
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, reset=False)
        scores: NDArray[np.float64] = self._kernel(x, self.X_fit_) @ self.dual_coef_
        return scores

    def decision_function(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Scores (m, C) of the classes; of two classes (m,), how much more the second scores than the first.

        Args:
            X: as of :meth:`transform`.
        """
        scores = self.transform(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The class (m,) of the highest score.

        Args:
            X: as of :meth:`transform`.
        """
        scores = self.transform(X)
        best: NDArray[Any] = self.classes_[scores.argmax(axis=1)]
        return best

    def _kernel(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kernel == "precomputed":
            return left
        if callable(self.kernel):
            options, known = dict(self.kernel_params or {}), False
        else:
            options, known = {"gamma": self.gamma, "degree": self.degree, "coef0": self.coef0}, True
        gram: NDArray[np.float64] = pairwise_kernels(left, right, metric=self.kernel, filter_params=known, **options)
        return gram

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.kernel == "precomputed"
        return tags
