"""Re-ranking and expansion as options: the same as doing each step by hand, self left out."""

import functools

import numpy as np
import pytest
from retrieval_cases import clustered

from dmlkd.errors import UserError
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.diffusion import diffusion
from dmlkd.retrieval.expansion import augment_database, expand_queries
from dmlkd.retrieval.lists import evaluate_ranking
from dmlkd.retrieval.postprocessing import evaluate_postprocessed
from dmlkd.retrieval.reranking import k_reciprocal

Z, Y = clustered(160, 8, 10, noise=0.9, seed=3)
METRICS = ["recall@1", "map@r", "precision@5"]


@pytest.mark.parametrize("rerank", ["k_reciprocal", functools.partial(diffusion, k=8, alpha=0.8)], ids=["name", "made"])
@pytest.mark.parametrize("separate", [False, True])
def test_reranking_raises_map_at_r_of_noisy_clusters(rerank, separate):
    sets = (Z[:60], Y[:60], Z[60:], Y[60:]) if separate else (Z, Y, None, None)
    if separate:  # the rows are ordered by class
        order = np.random.default_rng(0).permutation(len(Z))
        sets = (Z[order[:60]], Y[order[:60]], Z[order[60:]], Y[order[60:]])
    given = {"gallery": sets[2], "gallery_labels": sets[3], "metrics": METRICS}
    plain = evaluate(sets[0], sets[1], **given)
    reranked = evaluate_postprocessed(sets[0], sets[1], rerank=rerank, **given)
    assert reranked["map@r"] > plain["map@r"] + 0.02
    assert (reranked.queries, reranked.left_out) == (plain.queries, plain.left_out)


def test_reranking_is_what_the_reranker_and_the_score_of_lists_give():
    for name, function in (("k_reciprocal", k_reciprocal), ("diffusion", diffusion)):
        by_hand = evaluate_ranking(function(Z, depth=100), Y, metrics=METRICS)
        assert dict(evaluate_postprocessed(Z, Y, rerank=name, metrics=METRICS)) == dict(by_hand)


@pytest.mark.parametrize("expand", ["queries", "database", "both"])
def test_expansion_of_a_gallery_of_its_own(expand):
    rng = np.random.default_rng(1)
    order = rng.permutation(len(Z))
    q, g, yq, yg = Z[order[:60]], Z[order[60:]], Y[order[:60]], Y[order[60:]]
    items = g if expand == "queries" else augment_database(g, k=5)
    moved = q if expand == "database" else expand_queries(q, items, k=5)
    by_hand = evaluate(moved, yq, gallery=items, gallery_labels=yg, metrics=METRICS)
    got = evaluate_postprocessed(q, yq, gallery=g, gallery_labels=yg, metrics=METRICS, expand=expand, k=5)
    assert dict(got) == dict(by_hand)


@pytest.mark.parametrize("expand", ["queries", "database", "both"])
def test_in_one_set_no_image_finds_itself(expand):
    # Every class has one image: nobody may find anything but others.
    lone = np.concatenate([np.arange(158), [200, 200]])
    scores = evaluate_postprocessed(Z, lone, metrics=["recall@1", "recall@159"], expand=expand, k=3)
    assert (scores.queries, scores.left_out, scores["recall@159"]) == (2, 158, 1.0)
    better = evaluate_postprocessed(Z, Y, metrics=METRICS, expand=expand, k=5)
    assert better["map@r"] > evaluate(Z, Y, metrics=METRICS)["map@r"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of expand and rerank"),
        ({"expand": "both", "rerank": "diffusion"}, "give one of expand and rerank"),
        ({"expand": "query"}, "unknown expansion 'query'; did you mean 'queries'"),
        ({"rerank": "k-reciprocal"}, "unknown re-ranking 'k-reciprocal'; did you mean 'k_reciprocal'"),
        ({"rerank": "diffusion", "metrics": ["nmi"]}, "nmi is no metric of ranked retrieval"),
        ({"rerank": "diffusion", "gallery": Z}, "gallery and gallery_labels must be given together"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        evaluate_postprocessed(Z, Y, **options)


def test_without_two_of_a_class_there_is_nothing_to_rerank():
    with pytest.raises(UserError, match="none of the 160 queries has anything to find"):
        evaluate_postprocessed(Z, np.arange(160), rerank="diffusion")
