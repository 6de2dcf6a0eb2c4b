import numpy as np
import pytest
from retrieval_cases import clustered

from dmlkd.errors import UserError
from dmlkd.retrieval import Index, evaluate

METRICS = ["recall@1", "recall@10", "map@r", "map@5"]
Z, Y = clustered(2000, 16, 100, seed=2)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "inner"])
def test_an_index_that_searches_everything_gives_the_exact_scores(distance):
    exact = evaluate(Z, Y, metrics=METRICS, distance=distance)
    found = evaluate(Z, Y, metrics=METRICS, distance=distance, index=Index("IVF8,Flat", "nprobe=8"))
    assert dict(found) == dict(exact)
    assert found.search_recall == 1
    assert exact.search_recall is None


def test_a_poor_index_says_so():
    good = evaluate(Z, Y, metrics=METRICS, index=Index("HNSW16", "efSearch=200"))
    poor = evaluate(Z, Y, metrics=METRICS, index=Index("IVF64,Flat", "nprobe=1"))
    exact = evaluate(Z, Y, metrics=METRICS)
    assert good.search_recall > 0.99 > 0.8 > poor.search_recall
    assert abs(good["map@r"] - exact["map@r"]) < 0.005
    assert abs(poor["map@r"] - exact["map@r"]) > 0.01  # in either direction: an index also misses what is irrelevant


def test_the_recall_of_the_index_is_that_of_the_double_loop():
    import faiss

    scores = evaluate(Z, Y, metrics=["recall@10"], index=Index("IVF64,Flat", "nprobe=2", check=5000))
    unit = (Z / np.linalg.norm(Z.astype(float), axis=1, keepdims=True)).astype(np.float32)
    index = faiss.index_factory(16, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(unit)
    index.add(unit)
    index.nprobe = 2
    _, ids = index.search(unit, 10)
    nearest = np.argsort(-(unit.astype(float) @ unit.T.astype(float)), axis=1)[:, :10]
    found = [len(set(a) & set(b)) / 10 for a, b in zip(ids, nearest, strict=True)]
    assert scores.search_recall == pytest.approx(np.mean(found), abs=2e-4)


def test_the_codes_of_an_index_decide_candidates_but_not_their_order():
    pq = evaluate(Z, Y, metrics=["recall@1"], index="PQ4x4")
    assert evaluate(Z, Y, metrics=["recall@1"])["recall@1"] - pq["recall@1"] < 0.5
    assert pq.search_recall < 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"index": "HNWS32"}, "FAISS cannot build or set up the index 'HNWS32'"),
        ({"index": Index("HNSW16", "nprobes=3")}, "nprobes"),
        ({"index": "IVF4096,Flat"}, "IVF4096"),
        ({"index": "HNSW16", "metrics": ["map"]}, "map ranks the whole gallery"),
        ({"index": "HNSW16", "backend": "torch"}, "an approximate index is FAISS's"),
        ({"sample": 0}, "sample must be at least 1, got 0"),
    ],
)
def test_what_the_user_can_mend_is_said(arguments, said):
    with pytest.raises(UserError, match=said):
        evaluate(Z, Y, **{"metrics": ["recall@1"], **arguments})


def test_check_must_be_positive():
    with pytest.raises(UserError, match="check must be at least 1, got 0"):
        Index("HNSW16", check=0)


def test_a_sample_of_queries_has_the_values_of_all_and_an_interval_that_holds_their_mean():
    every = evaluate(Z, Y, metrics=METRICS)
    drawn = evaluate(Z, Y, metrics=METRICS, sample=600, seed=1)
    chosen = ~np.isnan(drawn.per_query["map@r"])
    assert (drawn.queries, drawn.left_out, chosen.sum()) == (600, every.left_out, 600)
    np.testing.assert_array_equal(drawn.per_query["map@r"][chosen], every.per_query["map@r"][chosen])
    low, high = drawn.interval("map@r")
    assert low < every["map@r"] < high
    assert dict(evaluate(Z, Y, metrics=METRICS, sample=10**6)) == dict(every)
