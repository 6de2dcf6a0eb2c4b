"""Two methods compared on the same queries: difference, paired interval, classes won and lost."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlkd.errors import UserError

_DRAWS = 2**21  # drawn classes held at a time


class Comparison(NamedTuple):
    """How a second method compares with a first.

    Attributes:
        first: mean of the first, over its runs.
        second: mean of the second.
        difference: second minus first.
        low: lower end of the interval of the difference.
        high: upper end.
        wins: classes in which the second is better.
        ties: classes in which both are equal.
        losses: classes in which the second is worse.
        runs: how many runs there are of each.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    runs: tuple[int, int]


def compare(
    first: Sequence[NDArray[np.float64]],
    second: Sequence[NDArray[np.float64]],
    classes: NDArray[np.int64],
    *,
    average: Literal["micro", "macro"] = "micro",
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on the same queries, with a paired bootstrap interval of the difference.

    Each resample draws classes with replacement, the same for both methods, since the queries of a class depend on each
    other and both methods face the same ones; with several runs (seeds) of a method it draws its runs as well (the
    two-level bootstrap of Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

    Args:
        first: one (Q,) array of values per query for each run; NaN where a query was not scored.
        second: the same queries.
        classes: (Q,) their class ids.
        average: "micro", over queries, or "macro", over classes.
        level: the share of resampled differences inside the interval, between 0 and 1.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        Means, difference, interval, and classes won, tied and lost.

    Raises:
        UserError: if there is no run, the arrays differ in length or in which queries were scored, or a number is out
            of range.

    >>> better = compare([np.array([0.0, 1, 0, 1])], [np.array([1.0, 1, 1, 1])], np.array([0, 0, 1, 1]))
    >>> better.difference, better.wins, better.ties, better.losses
    (0.5, 2, 0, 0)
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise UserError(f"resamples must be at least 1, got {resamples}")
    scored = _same_queries([*first, *second], classes, len(first), len(second))
    known, place = np.unique(classes[scored], return_inverse=True)
    sizes = np.bincount(place).astype(np.float64)
    sums = [_by_class(runs, scored, place) for runs in (first, second)]
    by_class = [part.mean(axis=0) / sizes for part in sums]
    won = np.sign(np.where(np.isclose(by_class[1], by_class[0], rtol=0, atol=1e-12), 0.0, by_class[1] - by_class[0]))
    if average == "macro":
        sums = [part / sizes for part in sums]
        sizes = np.ones(len(known))
    one, two = (float(part.sum() / (sizes.sum() * len(part))) for part in sums)
    drawn = _differences(sums[0], sums[1], sizes, resamples, seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    counts = (int((won > 0).sum()), int((won == 0).sum()), int((won < 0).sum()))
    return Comparison(one, two, two - one, float(low), float(high), *counts, (len(first), len(second)))


def _by_class(
    runs: Sequence[NDArray[np.float64]], scored: NDArray[np.bool_], place: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums over the scored queries of each class, a row for each run."""
    return np.stack([np.bincount(place, weights=run[scored]) for run in runs]).astype(np.float64)


def _same_queries(
    runs: list[NDArray[np.float64]], classes: NDArray[np.int64], first: int, second: int
) -> NDArray[np.bool_]:
    if not first or not second:
        raise UserError("a comparison needs at least one run of each method")
    for run in runs:
        if run.shape != classes.shape:
            raise UserError(f"the runs have different queries: {run.shape[0]} values and {len(classes)} classes")
    scored = ~np.isnan(runs[0])
    if any((np.isnan(run) == scored).any() for run in runs) or not scored.any():
        raise UserError("the runs were scored on different queries")
    return scored


def _differences(
    first: NDArray[np.float64], second: NDArray[np.float64], sizes: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Differences of means in resamples of the classes, and of the runs of each method."""
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    step = max(1, _DRAWS // len(sizes))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = rng.integers(len(sizes), size=(count, len(sizes)))
        whole = sizes[drawn].sum(axis=1)
        means = []
        for sums in (first, second):
            by_run = np.stack([run[drawn].sum(axis=1) for run in sums], axis=1) / whole[:, None]
            runs = rng.integers(len(sums), size=(count, len(sums)))
            means.append(np.take_along_axis(by_run, runs, axis=1).mean(axis=1))
        out[start : start + count] = means[1] - means[0]
    return out


def in_words(metric: str, names: tuple[str, str], result: Comparison) -> str:
    """What can be said about a comparison, in a sentence.

    Args:
        metric: its name.
        names: of the first and the second method.
        result: of :func:`compare`.

    >>> in_words("recall@1", ("a", "b"), Comparison(0.5, 0.6, 0.1, 0.05, 0.15, 3, 0, 1, (1, 1)))
    'recall@1: b scores higher than a by 10.00 points (95 % interval +5.00 to +15.00).'
    """
    interval = f"(95 % interval {100 * result.low:+.2f} to {100 * result.high:+.2f})"
    if result.low > 0 or result.high < 0:
        better, worse = names if result.high < 0 else names[::-1]
        return f"{metric}: {better} scores higher than {worse} by {100 * abs(result.difference):.2f} points {interval}."
    return f"{metric}: whether {names[0]} or {names[1]} scores higher cannot be said: 0 is in the interval {interval}."


def caveats(runs: Sequence[int], comparisons: int) -> list[str]:
    """What a comparison does not say.

    Args:
        runs: of each method.
        comparisons: how many intervals are shown.
    """
    said = ["The intervals draw other classes like these: they say nothing about images of another kind."]
    if min(runs) == 1:
        said.append("One run of a method says nothing about its spread over seeds: train more to claim a better one.")
    elif min(runs) < 5:
        said.append(f"The spread over seeds is taken from only {min(runs)} runs: intervals are likely too narrow.")
    if comparisons > 1:
        said.append(f"Of {comparisons} intervals of 95 %, {comparisons * 0.05:.2g} are expected to miss by chance.")
    return said
