import naive_retrieval as naive
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from retrieval_cases import clustered, labelled

from dmlkd.errors import UserError
from dmlkd.retrieval import arrays, backends, evaluate, evaluation, ranking

RANKED = [
    "recall@1",
    "recall@3",
    "cmc@2",
    "recall@100",
    "precision@1",
    "precision@4",
    "map@r",
    "map@3",
    "map@1000",
    "map",
    "mrr",
    "r_precision",
]
SHALLOW = ["recall@1", "recall@3", "precision@4", "map@3", "map@r"]  # a search decides these, not a full ranking


def expected(metrics, hits):
    each = {name: [naive.metric(name, h) for h in hits] for name in metrics}
    scored = {name: [v for v in values if v is not None] for name, values in each.items()}
    return {name: sum(values) / len(values) for name, values in scored.items()}, each


def check(scores, metrics, hits):
    means, each = expected(metrics, hits)
    for name in metrics:
        assert scores[name] == pytest.approx(means[name], abs=1e-12), name
        own = [np.nan if v is None else v for v in each[name]]
        np.testing.assert_allclose(scores.per_query[name], own, atol=1e-12)
    assert scores.left_out == sum(v is None for v in each[metrics[0]])
    assert scores.queries + scores.left_out == len(hits)


@given(labelled(), st.sampled_from(["cosine", "euclidean", "inner"]), st.sampled_from(["faiss", "torch"]))
@settings(max_examples=150, deadline=None)
def test_every_ranked_metric_equals_the_double_loop(case, distance, backend):
    z, y = case
    assume(len(np.unique(y)) < len(y))
    hits = naive.ranked(z, z, lambda q, i: y[q] == y[i], lambda q, i: q == i, distance)
    check(evaluate(z, y, metrics=RANKED, distance=distance, backend=backend, block=3), RANKED, hits)


@given(labelled(), labelled(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_gallery_set_equals_the_double_loop(queries, gallery, with_ids):
    (z, y), (g, h) = queries, gallery
    width = min(z.shape[1], g.shape[1])
    z, g = z[:, :width], g[:, :width]
    assume(z.any(axis=1).all() and g.any(axis=1).all())
    h = y[np.arange(len(h)) % len(y)]
    own, theirs = np.arange(len(z)) // 2, np.arange(len(g)) // 3
    excluded = (lambda q, i: own[q] == theirs[i]) if with_ids else (lambda q, i: False)
    hits = naive.ranked(z, g, lambda q, i: y[q] == h[i], excluded)
    assume(any(any(row) for row in hits))
    ids = {"query_ids": own, "gallery_ids": theirs} if with_ids else {}
    check(evaluate(z, y, gallery=g, gallery_labels=h, metrics=RANKED, **ids), RANKED, hits)


@given(labelled(), st.sampled_from(["int", "str"]))
@settings(max_examples=40, deadline=None)
def test_items_with_the_identity_of_the_query_are_not_compared_with_it(case, kind):
    z, y = case
    ids = np.arange(len(z)) // 2
    hits = naive.ranked(z, z, lambda q, i: y[q] == y[i], lambda q, i: ids[q] == ids[i])
    assume(any(any(row) for row in hits))
    check(evaluate(z, y, query_ids=ids.astype(kind), metrics=RANKED), RANKED, hits)


@given(labelled(), st.integers(0, 2**32 - 1), st.sampled_from(["sets", "array", "function"]))
@settings(max_examples=80, deadline=None)
def test_several_labels_an_image_equal_the_double_loop(case, seed, form):
    z, _ = case
    owned = np.random.default_rng(seed).random((len(z), 4)) < 0.3
    related = (owned.astype(int) @ owned.T.astype(int)) > 0
    hits = naive.ranked(z, z, lambda q, i: related[q, i], lambda q, i: q == i)
    assume(any(any(row) for row in hits))
    if form == "function":
        scores = evaluate(z, relevant=lambda q, i: related[q, i], metrics=RANKED)
    else:
        labels = owned if form == "array" else [set(np.flatnonzero(row).tolist()) for row in owned]
        scores = evaluate(z, labels, metrics=RANKED)
    check(scores, RANKED, hits)


@given(labelled())
@settings(max_examples=40, deadline=None)
def test_the_macro_average_is_the_mean_over_classes(case):
    z, y = case
    assume(len(np.unique(y)) < len(y))
    scores = evaluate(z, y, metrics=RANKED, average="macro")
    hits = naive.ranked(z, z, lambda q, i: y[q] == y[i], lambda q, i: q == i)
    for name in RANKED:
        assert scores[name] == pytest.approx(naive.macro([naive.metric(name, h) for h in hits], y.tolist()), abs=1e-12)


CLOSE = ["duplicates", "many duplicates", "collapsed", "clustered", "near ties"]


def close_embeddings(kind):
    z, y = clustered(1100, 16, 45, noise=0.7, seed=1)
    rng = np.random.default_rng(0)
    if kind == "duplicates":
        z = z[rng.integers(len(z), size=len(z))]
    elif kind == "many duplicates":  # more than a search fetches are as near as the k-th
        z = z[rng.integers(15, size=len(z))]
        y = rng.permutation(len(z)) // 4
    elif kind == "collapsed":
        z = np.ones_like(z) + 1e-7 * z
    elif kind == "near ties":  # float32 products cannot tell these apart, float64 ones can
        z = np.round(z * 2) + 3e-7 * rng.standard_normal(z.shape).astype(np.float32)
    return z, y


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.parametrize("distance", ["cosine", "euclidean", "inner"])
def test_scores_depend_neither_on_block_nor_back_end_nor_row_order(kind, distance):
    z, y = close_embeddings(kind)
    first = evaluate(z, y, metrics=RANKED, distance=distance)
    order = np.random.default_rng(5).permutation(len(z))
    moved = evaluate(z[order], y[order], metrics=RANKED, distance=distance, block=97)
    other = evaluate(
        torch.from_numpy(z), torch.from_numpy(y), metrics=RANKED, distance=distance, backend="torch", block=700
    )
    assert dict(first) == dict(moved) == dict(other)
    for name in RANKED:
        np.testing.assert_array_equal(first.per_query[name][order], moved.per_query[name])
        np.testing.assert_array_equal(first.per_query[name], other.per_query[name])


@pytest.mark.parametrize("kind", CLOSE)
def test_searching_and_ranking_in_full_agree(kind):
    z, y = close_embeddings(kind)
    in_full = evaluate(z, y, metrics=RANKED)
    searched = evaluate(z, y, metrics=SHALLOW)
    for name in SHALLOW:
        np.testing.assert_array_equal(searched.per_query[name], in_full.per_query[name])


@pytest.mark.parametrize("kind", CLOSE)
def test_searches_depend_neither_on_block_nor_back_end_nor_row_order(kind):
    z, y = close_embeddings(kind)
    first = evaluate(z, y, metrics=SHALLOW)
    order = np.random.default_rng(5).permutation(len(z))
    assert dict(evaluate(z[order], y[order], metrics=SHALLOW, block=97)) == dict(first)
    assert dict(evaluate(z, y, metrics=SHALLOW, block=500, backend="torch")) == dict(first)


def test_near_ties_are_ordered_as_in_exact_arithmetic():
    z, y = close_embeddings("near ties")
    z, y = z[:200], y[:200] % 5
    hits = naive.ranked(z, z, lambda q, i: y[q] == y[i], lambda q, i: q == i)
    check(evaluate(z, y, metrics=RANKED), RANKED, hits)


def test_queries_of_classes_of_very_different_sizes_are_scored_in_their_rows():
    z, _ = clustered(400, 8, 10)
    y = np.repeat([0, 1, 2, 3], [2, 8, 90, 300])[np.random.default_rng(0).permutation(400)]
    hits = naive.ranked(z, z, lambda q, i: y[q] == y[i], lambda q, i: q == i)
    check(evaluate(z, y, metrics=["map@r", "r_precision"], block=32), ["map@r", "r_precision"], hits)


def test_bounds_on_what_is_held_at_a_time_do_not_matter(monkeypatch):
    z, y = clustered(1200, 6, 20)
    first = evaluate(z, y, metrics=RANKED)
    monkeypatch.setattr(evaluation, "_NEIGHBOURS", 500)
    monkeypatch.setattr(ranking, "_FULL_BLOCK", 5000)
    monkeypatch.setattr(backends, "_CHUNK", 77)
    monkeypatch.setattr(backends, "_TILE", 1000)
    monkeypatch.setattr(arrays, "_ROWS", 100)
    for backend in ("faiss", "torch"):
        assert dict(evaluate(z, y, metrics=RANKED, backend=backend)) == dict(first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_scores_of_the_cpu():
    z, y = close_embeddings("near ties")
    on_gpu = evaluate(torch.from_numpy(z).cuda(), torch.from_numpy(y).cuda(), metrics=RANKED)
    assert dict(on_gpu) == dict(evaluate(z, y, metrics=RANKED))


def test_the_embeddings_are_left_as_they_were():
    for distance in ("cosine", "euclidean"):
        z, y = clustered(30, 4, 3)
        before = z.copy()
        evaluate(z, y, metrics=RANKED, distance=distance)
        np.testing.assert_array_equal(z, before)


# The traps of other implementations, by their number in the list of protocols.


def test_trap_1_a_perfect_model_scores_one():
    y = np.repeat(np.arange(6), [2, 2, 3, 5, 8, 2])
    scores = evaluate(np.eye(6)[y], y, metrics=[*RANKED, "auroc", "eer", "fnmr@fmr=0"])
    assert scores["eer"] == scores["fnmr@fmr=0"] == 0
    assert all(scores[name] == 1 for name in scores if name not in ("precision@4", "eer", "fnmr@fmr=0"))


def test_trap_2_one_hit_at_rank_one_is_not_a_perfect_map():
    z = np.array([[1.0, 0], [0.99, 0.1], [0.9, 0.5], [0, 1], [-1, 0]])
    scores = evaluate(z[:1], [0], gallery=z[1:], gallery_labels=[0, 1, 0, 0], metrics=["map@2", "map@r", "map@1"])
    assert scores["map@2"] == 0.5
    assert scores["map@1"] == 1
    assert scores["map@r"] == pytest.approx((1 + 2 / 3) / 3)


def test_trap_3_the_query_is_removed_by_its_row_and_not_as_the_first_column():
    z = np.array([[1.0, 0]] * 6 + [[0, 1.0]])
    y = np.array([0, 1, 1, 1, 1, 1, 0])
    # Image 0 has five duplicates of another class; dropping the first column would often drop one of those instead.
    scores = evaluate(z, y, metrics=["recall@5", "recall@6"])
    assert scores.per_query["recall@5"][0] == 0
    assert scores.per_query["recall@6"][0] == 1


def test_trap_4_queries_without_positives_are_left_out_and_counted():
    scores = evaluate(np.eye(5), [0, 0, 1, 2, 3], metrics=["recall@4"])
    assert scores["recall@4"] == 1
    assert (scores.queries, scores.left_out) == (2, 3)
    assert np.isnan(scores.per_query["recall@4"][2:]).all()


def test_trap_6_fewer_items_than_k_do_not_wrap_around_to_the_last_label():
    z, y = np.array([[1.0, 0], [0.9, 0.1], [0, 1.0]]), np.array([0, 1, 0])
    scores = evaluate(z[:1], y[:1], gallery=z[1:2], gallery_labels=y[:1], metrics=["precision@5", "recall@5", "map@9"])
    assert dict(scores) == {"precision@5": 0.2, "recall@5": 1.0, "map@9": 1.0}


def test_trap_7_cosine_takes_no_notice_of_lengths():
    z, y = clustered(80, 6, 8)
    powers = 2.0 ** np.random.default_rng(0).integers(-30, 30, size=(80, 1))
    assert dict(evaluate(z * powers, y, metrics=RANKED)) == dict(evaluate(z, y, metrics=RANKED))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64])
def test_trap_11_labels_of_any_integer_type_stay_integers(dtype):
    y = np.array([0, 0, 1, 1]) if dtype == np.int8 else np.array([2**24, 2**24, 2**24 + 1, 2**24 + 1])
    z = np.array([[1.0, 0], [0, 1.0], [1, 0.1], [0.1, 1]])
    assert evaluate(z, y.astype(dtype), metrics=["recall@1"])["recall@1"] == 0


# What the user can mend.

Z, Y = np.eye(4), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"embeddings": np.eye(4) * [[1], [0], [1], [1]]}, "embeddings: row 1 is zero"),
        ({"embeddings": np.where(np.eye(4) > 0, [1, 1, np.nan, 1], 0)}, "embeddings: row 2 is not finite"),
        ({"embeddings": np.full((4, 2), 1e300), "distance": "euclidean"}, "too long for float32"),
        ({"embeddings": np.ones(4)}, "must have shape"),
        ({"embeddings": np.ones((0, 3))}, "must have shape"),
        ({"embeddings": np.array([["a"]] * 4)}, "must be real numbers"),
        ({"labels": Y[:3]}, r"labels must have shape \(4,\)"),
        ({"labels": Y.astype(np.float32)}, "labels must be integers, got float32"),
        ({"labels": np.arange(4)}, "nothing|none of the 4 queries"),
        ({"labels": None}, "labels are missing"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["recal@1"]}, "unknown metric 'recal@1'; did you mean 'recall@1'"),
        ({"metrics": ["recall@0"]}, "unknown metric"),
        ({"metrics": ["fnmr@fmr=2"]}, "between 0 and 1"),
        ({"distance": "cos"}, "unknown distance 'cos'"),
        ({"backend": "fais"}, "unknown backend 'fais'; did you mean 'faiss'"),
        ({"average": "makro"}, "unknown average 'makro'; did you mean 'macro'"),
        ({"block": 0}, "block must be at least 1, got 0"),
        ({"gallery": Z}, "must be given together"),
        ({"gallery": np.ones((4, 3)), "gallery_labels": Y}, "4 dimensions, the gallery has 3"),
        ({"gallery": Z, "gallery_labels": Y, "metrics": ["nmi"]}, "nmi clusters one set"),
        ({"gallery": Z, "gallery_labels": Y, "query_ids": Y}, "query_ids and gallery_ids"),
        ({"gallery_ids": Y}, "gallery_ids without a gallery"),
        ({"query_ids": Y.astype(float)}, "query_ids must be integers or strings"),
        ({"labels": [{0}, {1}, {0}, {1.5}]}, "labels of row 3 must be integers"),
        ({"labels": [{0}, {1}, {0}, {1}], "average": "macro"}, "one integer class id"),
        ({"labels": [{0}, {1}, {0}, {1}], "metrics": ["nmi"]}, "one integer class id"),
        ({"labels": None, "relevant": lambda q, i: q}, "one boolean for each"),
        ({"relevant": lambda q, i: q == i}, "either labels or relevant"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(arguments, said):
    given = {"embeddings": Z, "labels": Y, "metrics": ["recall@1"], **arguments}
    with pytest.raises(UserError, match=said) as caught:
        evaluate(given.pop("embeddings"), given.pop("labels"), **given)
    assert "\n" not in str(caught.value)


def test_the_row_that_is_not_finite_is_named_beyond_the_first_part():
    z = np.ones((9000, 2), np.float32)
    z[8500, 1] = np.inf
    with pytest.raises(UserError, match="row 8500 is not finite"):
        evaluate(z, np.zeros(9000, int), metrics=["recall@1"])


def test_bfloat16_and_tensors_with_gradients_are_read():
    z = torch.randn(20, 4, requires_grad=True)
    y = torch.arange(20) % 4
    assert dict(evaluate(z, y, metrics=RANKED)) == dict(evaluate(z.detach().numpy(), y.numpy(), metrics=RANKED))
    half = z.detach().bfloat16()
    assert dict(evaluate(half, y, metrics=RANKED)) == dict(evaluate(half.float(), y, metrics=RANKED))


def test_values_per_query_are_kept_only_if_asked_for():
    scores = evaluate(Z, Y, metrics=["recall@1"], per_query=False)
    assert scores.per_query == {}
    with pytest.raises(UserError, match="no values per query"):
        scores.interval("recall@1")
