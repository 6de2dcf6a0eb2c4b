import faiss
import naive_retrieval as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_cases import clustered

from dmlkd.retrieval import evaluate
from dmlkd.retrieval.clustering import compared, kmeans

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


@given(LABELS)
@settings(deadline=None)
def test_f1_and_nmi_equal_their_definitions(pairs):
    labels, assigned = ([a for a, _ in pairs], [b for _, b in pairs])
    for kind, definition in (("f1", naive.pair_f1), ("nmi", naive.nmi)):
        got = compared(kind, np.array(labels), np.array(assigned))
        assert got == pytest.approx(definition(labels, assigned), abs=1e-9)


def test_ami_of_random_clusters_is_about_zero_and_of_equal_ones_is_one():
    rng = np.random.default_rng(0)
    labels, assigned = rng.integers(20, size=(2, 2000))
    assert abs(compared("ami", labels, assigned)) < 0.02
    assert compared("ami", labels, labels) == pytest.approx(1)


def test_trap_5_k_means_takes_as_many_clusters_as_there_are_classes_and_all_points(monkeypatch):
    seen = []

    class Spy(faiss.Kmeans):
        def train(self, points):
            super().train(points)
            seen.append((self.k, len(points), self.cp.max_points_per_centroid, self.cp.niter))

    monkeypatch.setattr(faiss, "Kmeans", Spy)
    z, y = clustered(900, 4, 3)
    evaluate(z, y, metrics=["nmi", "ami", "f1"])
    assert seen == [(3, 900, 900, 20)]  # FAISS by default takes 256 a centroid, 768 here


def test_clusters_do_not_depend_on_the_order_of_the_rows():
    z, y = clustered(300, 6, 10)
    order = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(kmeans(z, 10, seed=3)[order], kmeans(z[order], 10, seed=3))
    metrics = ["nmi", "ami", "f1"]
    assert dict(evaluate(z, y, metrics=metrics)) == pytest.approx(dict(evaluate(z[order], y[order], metrics=metrics)))


def test_separated_classes_are_found():
    y = np.repeat([7, 9], 50)
    z = np.eye(2)[y // 2 % 2] + 1e-3 * np.random.default_rng(0).standard_normal((100, 2))
    z[y == 9] = -z[y == 9]
    assert dict(evaluate(z, y, metrics=["nmi", "ami", "f1"])) == pytest.approx({"nmi": 1, "ami": 1, "f1": 1})


def test_the_seed_decides_the_clusters():
    z, _ = clustered(200, 8, 20, noise=3)
    assert (kmeans(z, 20, seed=0) == kmeans(z, 20, seed=0)).all()
    assert not (kmeans(z, 20, seed=0) == kmeans(z, 20, seed=1)).all()
