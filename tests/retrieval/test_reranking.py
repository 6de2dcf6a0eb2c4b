import numpy as np
import pytest
from retrieval_cases import clustered

from dmlkd.errors import UserError
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.diffusion import diffusion
from dmlkd.retrieval.expansion import augment_database, expand_queries
from dmlkd.retrieval.lists import Ranking, evaluate_ranking
from dmlkd.retrieval.reranking import k_reciprocal

Z, Y = clustered(160, 8, 10, noise=0.9, seed=3)
UNIT = (Z / np.linalg.norm(Z.astype(float), axis=1, keepdims=True)).astype(np.float32).astype(float)
METRICS = ["recall@1", "map@r", "precision@5", "map@20"]


def naive_k_reciprocal(points, k1, k2, weight):
    """Distances of all to all, from the definitions."""
    n = len(points)
    distance = 2 - 2 * points @ points.T
    order = np.argsort(distance, axis=1)

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    weights = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        members = set(own)
        for j in own:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & own) >= 2 / 3 * len(theirs):
                members |= theirs
        for j in members:
            weights[i, j] = np.exp(-distance[i, j])
        weights[i] /= weights[i].sum()
    averaged = np.stack([weights[order[i, :k2]].mean(axis=0) for i in range(n)])
    jaccard = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            jaccard[i, j] = 1 - np.minimum(averaged[i], averaged[j]).sum() / np.maximum(averaged[i], averaged[j]).sum()
    return (1 - weight) * jaccard + weight * distance


@pytest.mark.parametrize("separate", [False, True])
def test_k_reciprocal_equals_the_double_loop(separate):
    got = k_reciprocal(Z[:40] if separate else Z, Z[40:] if separate else None, k1=8, k2=3, depth=30)
    distance = naive_k_reciprocal(UNIT, 8, 3, 0.3)
    first = 40 if separate else 0
    for row, ids in enumerate(got.ids):
        original = [j - first for j in np.argsort(-UNIT[row] @ UNIT[first:].T) + first if j != row][:30]
        assert set(ids) == set(original)
        np.testing.assert_allclose(-got.scores[row], distance[row, ids + first], atol=1e-5)
        assert (np.diff(got.scores[row]) <= 0).all()


def test_diffusion_solves_its_equation():
    k, power, alpha = 6, 2.0, 0.9
    cosine = UNIT @ UNIT.T
    np.fill_diagonal(cosine, -np.inf)
    neighbours = cosine >= np.sort(cosine, axis=1)[:, -k][:, None]
    affinity = np.where(neighbours & neighbours.T, np.maximum(cosine, 0) ** power, 0)
    degree = np.where(affinity.any(axis=1), affinity.sum(axis=1), 1)
    affinity = affinity / np.sqrt(degree[:, None] * degree)
    sources = np.where(neighbours, np.maximum(cosine, 0) ** power, 0)
    exact = np.linalg.solve(np.eye(len(UNIT)) - alpha * affinity, sources.T).T
    np.fill_diagonal(exact, -np.inf)
    got = diffusion(Z, k=k, power=power, alpha=alpha, depth=20)
    np.testing.assert_allclose(got.scores, -np.sort(-exact, axis=1)[:, :20], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.scores, np.take_along_axis(exact, got.ids, axis=1), rtol=1e-4, atol=1e-6)


def test_query_expansion_equals_the_loop_and_works_in_blocks(monkeypatch):
    got = expand_queries(Z[:9], Z[9:], k=4, alpha=2)
    for row in range(9):
        cosine = UNIT[9:] @ UNIT[row]
        moved = UNIT[row] + sum(max(cosine[j], 0) ** 2 * UNIT[9 + j] for j in np.argsort(-cosine)[:4])
        np.testing.assert_allclose(got[row], moved / np.linalg.norm(moved), atol=1e-6)
    monkeypatch.setattr("dmlkd.retrieval.expansion._ROWS", 4)
    np.testing.assert_array_equal(expand_queries(Z[:9], Z[9:], k=4, alpha=2), got)
    np.testing.assert_array_equal(augment_database(Z, k=3), expand_queries(Z, k=3))


def test_without_re_ranking_the_lists_score_as_the_embeddings_do():
    lists = k_reciprocal(Z, weight=1, depth=40)
    assert dict(evaluate_ranking(lists, Y, metrics=METRICS)) == dict(evaluate(Z, Y, metrics=METRICS))
    separate = k_reciprocal(Z[:40], Z[40:], weight=1, depth=40)
    expected = evaluate(Z[:40], Y[:40], gallery=Z[40:], gallery_labels=Y[40:], metrics=METRICS)
    got = evaluate_ranking(separate, Y[:40], Y[40:], metrics=METRICS)
    assert dict(got) == dict(expected)
    assert (got.queries, got.left_out) == (expected.queries, expected.left_out)


def test_each_of_them_improves_the_map_of_noisy_classes():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 30)
    z = rng.standard_normal((20, 16))[y] + 1.5 * rng.standard_normal((600, 16))
    plain = evaluate(z, y, metrics=["map@r"])["map@r"]
    assert evaluate_ranking(k_reciprocal(z), y, metrics=["map@r"])["map@r"] > plain + 0.02
    assert evaluate_ranking(diffusion(z, k=15), y, metrics=["map@r"])["map@r"] > plain + 0.02
    ids = np.arange(600)
    both = {"gallery": augment_database(z), "gallery_labels": y, "query_ids": ids, "gallery_ids": ids}
    assert evaluate(expand_queries(z), y, metrics=["map@r"], **both)["map@r"] > plain + 0.02


def test_equal_scores_in_a_list_count_against_the_query():
    lists = Ranking(np.array([[1, 2], [0, 2], [0, 1]]), np.zeros((3, 2)))
    scores = evaluate_ranking(lists, [0, 0, 1], metrics=["recall@1", "recall@2"])
    assert dict(scores) == {"recall@1": 0, "recall@2": 1}
    assert scores.left_out == 1


def test_duplicates_are_no_neighbours_of_themselves():
    z = np.repeat(np.eye(4), 5, axis=0)
    for lists in (k_reciprocal(z, k1=3, k2=2, depth=4), diffusion(z, k=3, depth=4)):
        assert not (lists.ids == np.arange(20)[:, None]).any()
    assert np.isfinite(k_reciprocal(z, k1=3, k2=2, depth=4).scores).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: k_reciprocal(Z, k1=0), "k1 must be above 0, got 0"),
        (lambda: k_reciprocal(Z, weight=2), "weight must lie between 0 and 1, got 2"),
        (lambda: diffusion(Z, alpha=1), "alpha must be at least 0 and below 1, got 1"),
        (lambda: expand_queries(Z, alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: expand_queries(Z, Z[:, :3]), "8 dimensions, the gallery has 3"),
        (lambda: expand_queries(Z[:1]), "has no neighbours"),
        (lambda: evaluate_ranking(k_reciprocal(Z, depth=3), Y, metrics=["map@r"]), "neighbours, the lists have 3"),
        (lambda: evaluate_ranking(k_reciprocal(Z, depth=3), Y, metrics=["nmi"]), "no metric of ranked lists"),
    ],
)
def test_bad_numbers_are_refused(call, said):
    with pytest.raises(UserError, match=said):
        call()
