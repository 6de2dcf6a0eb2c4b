import itertools
import math

import numpy as np
import pytest
from retrieval_cases import clustered
from scipy.stats import entropy, skew

from dmlkd.errors import UserError
from dmlkd.retrieval import structure as module
from dmlkd.retrieval.structure import structure

Z, Y = clustered(90, 5, 7, noise=0.6)
UNIT = Z.astype(float) / np.linalg.norm(Z.astype(float), axis=1, keepdims=True)


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def test_every_measure_equals_the_double_loop():
    got = structure(Z, Y, neighbours=4)
    pairs = list(itertools.combinations(range(90), 2))
    same = [distance(UNIT[a], UNIT[b]) for a, b in pairs if Y[a] == Y[b]]
    centres = [UNIT[c == Y].mean(axis=0) for c in np.unique(Y)]
    between = [distance(a, b) for a, b in itertools.combinations(centres, 2)]
    assert got.intra == pytest.approx(np.mean(same), abs=1e-6)
    assert got.alignment == pytest.approx(np.mean(np.square(same)), abs=1e-6)
    assert got.inter == pytest.approx(np.mean(between), abs=1e-6)
    assert got.ratio == pytest.approx(np.mean(same) / np.mean(between), abs=1e-6)
    spread = np.mean([math.exp(-2 * distance(UNIT[a], UNIT[b]) ** 2) for a, b in pairs])
    assert got.uniformity == pytest.approx(math.log(spread), abs=1e-6)
    values = np.linalg.svd(UNIT, compute_uv=False)
    assert got.rho_spectrum == pytest.approx(entropy(np.full(5, 0.2), values / values.sum()), abs=1e-6)
    occurrences = np.zeros(90)
    for a in range(90):
        nearest = sorted((distance(UNIT[a], UNIT[b]), b) for b in range(90) if b != a)[:4]
        for _, b in nearest:
            occurrences[b] += 1
    assert got.hubness == pytest.approx(skew(occurrences), abs=1e-6)


def test_blocks_do_not_matter(monkeypatch):
    first = structure(Z, Y)
    monkeypatch.setattr(module, "_PAIRS", 200)
    assert structure(Z, Y) == pytest.approx(first, abs=1e-9)


def test_directions_used_alike_have_no_divergence_and_unused_ones_an_infinite_one():
    y = np.array([0, 0, 1, 1, 2, 2])
    assert structure(np.repeat(np.eye(3), 2, axis=0), y, neighbours=1).rho_spectrum == pytest.approx(0, abs=1e-12)
    assert structure(np.repeat(np.eye(4)[:3], 2, axis=0), y, neighbours=1).rho_spectrum == math.inf


def test_a_collapsed_class_has_no_distance_and_duplicates_are_not_their_own_neighbours():
    got = structure(np.repeat(np.eye(3), 4, axis=0), np.repeat([0, 1, 2], 4), neighbours=3)
    assert (got.intra, got.alignment, got.hubness) == (0, 0, 0)
    assert got.inter == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(
    ("labels", "neighbours", "said"),
    [
        (np.zeros(90, int), 3, "two classes"),
        (np.arange(90), 3, "two images"),
        (Y, 90, "neighbours"),
        (Y, 0, "neighbours"),
    ],
)
def test_what_cannot_be_measured_is_refused(labels, neighbours, said):
    with pytest.raises(UserError, match=said):
        structure(Z, labels, neighbours=neighbours)
