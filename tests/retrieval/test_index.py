"""Index folders: what they find, what they refuse, rows added and removed, shards searched as one."""

import json
from itertools import pairwise

import numpy as np
import pytest

from dmlkd.errors import UserError
from dmlkd.retrieval.index import Nearest, SearchIndex
from dmlkd.retrieval.indexing import add_rows, build_index, remove_rows
from dmlkd.retrieval.sharded import ShardedIndex, merge_nearest

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((600, 16)).astype(np.float32)
Z /= np.linalg.norm(Z, axis=1, keepdims=True)
QUERIES = RNG.standard_normal((40, 16)).astype(np.float32)
IDS = np.array([f"r{n}" for n in range(600)])


def embeddings(folder, rows=slice(None), name="e", model=None):
    path = folder / f"{name}.npz"
    np.savez(path, embeddings=Z[rows], ids=IDS[rows])
    if model is not None:
        (folder / f"{name}.npz.manifest.json").write_text(json.dumps({"model": model}))
    return path


def built(tmp_path, rows=slice(None), name="index", **arguments):
    folder = tmp_path / name
    model = arguments.pop("model", None)
    build_index(embeddings(tmp_path, rows, f"{name}-e", model), folder, **arguments)
    return folder


def nearest_by_loop(queries, rows, k, distance):
    """Ids of the nearest, in float64."""
    found = []
    for query in queries.astype(np.float64):
        if distance == "cosine":
            query = query / np.linalg.norm(query)
        scores = -((rows - query) ** 2).sum(axis=1) if distance == "euclidean" else rows.astype(np.float64) @ query
        found.append(np.argsort(-scores, kind="stable")[:k])
    return np.array(found)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "inner"])
def test_a_flat_index_finds_the_true_nearest(tmp_path, distance):
    found = SearchIndex(built(tmp_path, distance=distance)).search(QUERIES, 7)
    assert (found.ids == IDS[nearest_by_loop(QUERIES, Z, 7, distance)]).all()
    assert (np.diff(found.similarities, axis=1) <= 0).all()


@pytest.mark.parametrize("factory", ["HNSW16", "IVF8,Flat", "IVF8,PQ4x4", "PQ4x4", "SQ8"])
def test_approximate_kinds_are_built_read_and_searched(tmp_path, factory):
    search = {"HNSW16": "efSearch=200", "IVF8,Flat": "nprobe=8"}.get(factory, "")
    index = SearchIndex(built(tmp_path, factory=factory, search=search))
    found = index.search(QUERIES, 5).ids
    exact = IDS[nearest_by_loop(QUERIES, Z, 5, "cosine")]
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    assert recall > (0.95 if search else 0.2)
    assert index.ids.tolist() == IDS.tolist()


def test_the_same_seed_gives_the_same_file(tmp_path):
    folders = [built(tmp_path, name=f"i{n}", factory="IVF8,Flat", train_rows=300, seed=n // 2) for n in range(3)]
    files = [(folder / "index-1.faiss").read_bytes() for folder in folders]
    assert files[0] == files[1] != files[2]


def test_rows_added_are_found_and_rows_removed_are_not(tmp_path):
    folder = built(tmp_path, slice(0, 500), model="a" * 64)
    assert add_rows(folder, embeddings(tmp_path, slice(500, 600), model="a" * 64)) == 100
    everything = SearchIndex(folder).search(QUERIES, 5)
    assert (everything.ids == IDS[nearest_by_loop(QUERIES, Z, 5, "cosine")]).all()
    gone = sorted(set(everything.ids[:, :4].ravel().tolist()))
    assert remove_rows(folder, gone) == len(gone)
    index = SearchIndex(folder)
    kept = ~np.isin(IDS, gone)
    assert (index.search(QUERIES, 5).ids == IDS[kept][nearest_by_loop(QUERIES, Z[kept], 5, "cosine")]).all()
    assert len(index) == kept.sum()
    assert sorted(path.name for path in folder.iterdir()) == ["index-2.faiss", "manifest.json", "rows-3.parquet"]
    # What was removed may come again.
    again = np.flatnonzero(~kept)
    assert add_rows(folder, embeddings(tmp_path, again, model="a" * 64)) == len(gone)
    assert (SearchIndex(folder).search(QUERIES, 5).ids == everything.ids).all()


def test_removing_nearly_all_leaves_the_rest_to_be_found(tmp_path):
    folder = built(tmp_path, factory="PQ4x4")  # a kind that cannot skip rows by itself
    remove_rows(folder, IDS[3:].tolist())
    found = SearchIndex(folder).search(QUERIES, 5)
    assert {tuple(sorted(row)) for row in found.ids.tolist()} == {("", "", "r0", "r1", "r2")}
    assert np.isneginf(found.similarities[:, 3:]).all()


def test_another_model_is_refused(tmp_path):
    folder = built(tmp_path, model="a" * 64)
    index = SearchIndex(folder)
    index.search(QUERIES, 1, model="a" * 64)
    with pytest.raises(UserError, match=r"queries are of another model \(bbbbbbbbbbbb\) than the index"):
        index.search(QUERIES, 1, model="b" * 64)
    with pytest.raises(UserError, match="of another model"):
        add_rows(folder, embeddings(tmp_path, slice(0, 1), model="b" * 64))
    assert len(SearchIndex(folder)) == 600


def test_a_file_cut_short_or_altered_never_reaches_faiss(tmp_path, monkeypatch):
    import faiss

    folder = built(tmp_path, factory="IVF8,Flat")
    file = folder / "index-1.faiss"
    whole = file.read_bytes()
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS was fed a damaged file"))
    for damaged in (whole[:-1], whole[:100], b"", whole[:50] + bytes([whole[50] ^ 1]) + whole[51:], whole + b"x"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"index-1\.faiss is missing, cut short or altered"):
            SearchIndex(folder)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        SearchIndex(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["files"]["index"].update(name="../x.faiss"), "names a file outside its folder"),
        (lambda m: m.update(kind="embeddings"), "is not the manifest of an index"),
        (lambda m: m.pop("files"), "cannot be read"),
        (lambda m: m.update(dim=17), "does not fit its manifest"),
        (lambda m: m.update(distance="cos"), "unknown distance"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused(tmp_path, change, said):
    folder = built(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=said):
        SearchIndex(folder)


def test_what_cannot_be_built_is_refused_and_leaves_nothing(tmp_path):
    path = embeddings(tmp_path)
    with pytest.raises(UserError, match="FAISS refuses 'HNSV32'"):
        build_index(path, tmp_path / "i", factory="HNSV32")
    with pytest.raises(UserError, match="FAISS refuses 'nprob=3'"):
        build_index(path, tmp_path / "i", search="nprob=3")
    with pytest.raises(UserError, match="train_rows must be at least 1, got 0"):
        build_index(path, tmp_path / "i", train_rows=0)
    np.savez(tmp_path / "none.npz", embeddings=Z)
    with pytest.raises(UserError, match="has no ids, which an index needs"):
        build_index(tmp_path / "none.npz", tmp_path / "i")
    np.savez(tmp_path / "twice.npz", embeddings=Z[:3], ids=np.array(["a", "b", "a"]))
    with pytest.raises(UserError, match="id 'a' comes more than once"):
        build_index(tmp_path / "twice.npz", tmp_path / "i")
    assert not (tmp_path / "i").exists()
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "mine").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        build_index(path, tmp_path / "i")


def test_rows_and_queries_that_do_not_fit_are_refused(tmp_path):
    folder = built(tmp_path)
    index = SearchIndex(folder)
    with pytest.raises(UserError, match="k must be at least 1, got 0"):
        index.search(QUERIES, 0)
    with pytest.raises(UserError, match="queries have 3 dimensions, the index 16"):
        index.search(QUERIES[:, :3], 1)
    with pytest.raises(UserError, match="id 'r0' is in the index already"):
        add_rows(folder, embeddings(tmp_path, slice(0, 2)))
    with pytest.raises(UserError, match="no row with the id 'nobody'"):
        remove_rows(folder, ["r0", "nobody"])
    assert len(SearchIndex(folder)) == 600


def test_a_change_that_fails_half_way_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    folder = built(tmp_path, slice(0, 500))
    before = SearchIndex(folder).search(QUERIES, 3).ids
    monkeypatch.setattr("dmlkd.retrieval.indexing.write_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        add_rows(folder, embeddings(tmp_path, slice(500, 600)))
    assert (SearchIndex(folder).search(QUERIES, 3).ids == before).all()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,PQ4x4"])
def test_shards_with_one_training_find_what_the_single_index_finds(tmp_path, factory):
    single = built(tmp_path, factory=factory, search="nprobe=3" if "IVF" in factory else "")
    bounds = [0, 10, 350, 600]
    folders = [built(tmp_path, slice(a, b), name=f"s{a}", like=single) for a, b in pairwise(bounds)]
    together = ShardedIndex(folders)
    one, many = SearchIndex(single).search(QUERIES, 20), together.search(QUERIES, 20)
    np.testing.assert_allclose(many.similarities, one.similarities, atol=1e-6)
    if factory != "IVF8,PQ4x4":  # there rows of equal codes are equally near, and come in any order
        assert (one.ids == many.ids).all()
    assert len(together) == 600


def test_equally_near_rows_come_in_the_order_of_the_shards():
    parts = [
        Nearest(np.array([[0.9, 0.5]], np.float32), np.array([["a", "b"]])),
        Nearest(np.array([[0.9, 0.8]], np.float32), np.array([["c", "d"]])),
    ]
    assert merge_nearest(parts, 3).ids.tolist() == [["a", "c", "d"]]


def test_shards_of_different_indexes_are_refused(tmp_path):
    first, second = built(tmp_path, name="a"), built(tmp_path, name="b", distance="inner")
    with pytest.raises(UserError, match="no shards of one index: distance differs"):
        ShardedIndex([first, second])
    with pytest.raises(UserError, match="no shards to search"):
        ShardedIndex([])
