import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dmlkd.errors import UserError
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.files import read_embeddings, read_labels, read_per_query, write_per_query

Z = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
Y = np.arange(12) % 3


def written(folder, kind):
    path = folder / f"e.{kind}"
    if kind == "safetensors":
        save_file({"embeddings": torch.from_numpy(Z), "labels": torch.from_numpy(Y)}, path)
    elif kind == "npz":
        np.savez(path, embeddings=Z, labels=Y, ids=np.arange(12))
    elif kind == "npy":
        np.save(path, Z)
    else:
        pq.write_table(pa.table({"embedding": list(Z), "label": Y, "id": [f"i{n}" for n in range(12)]}), path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy", "parquet"])
def test_what_was_written_is_read(tmp_path, kind):
    found = read_embeddings(written(tmp_path, kind))
    np.testing.assert_array_equal(found.embeddings, Z)
    assert found.embeddings.dtype == np.float32
    if kind != "npy":
        np.testing.assert_array_equal(found.labels, Y)
        np.testing.assert_array_equal(read_labels(tmp_path / f"e.{kind}"), Y)
    assert (found.ids is not None) == (kind in ("npz", "parquet"))


def test_bfloat16_is_read(tmp_path):
    save_file({"embeddings": torch.from_numpy(Z).bfloat16()}, tmp_path / "e.safetensors")
    np.testing.assert_allclose(read_embeddings(tmp_path / "e.safetensors").embeddings, Z, rtol=1e-2)


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_embeddings(tmp_path / "e.npy")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "npy", "parquet"])
def test_a_damaged_file_is_one_line(tmp_path, kind):
    path = written(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read") as caught:
        read_embeddings(path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    written(tmp_path, "npz")
    with pytest.raises(UserError, match=r"does not exist; did you mean 'e\.npz'"):
        read_embeddings(tmp_path / "f.npz")
    with pytest.raises(UserError, match=r"must end in one of \.safetensors"):
        read_embeddings(tmp_path / "e.pkl")
    np.savez(tmp_path / "x.npz", vectors=Z)
    with pytest.raises(UserError, match="has no 'embeddings'; it has vectors"):
        read_embeddings(tmp_path / "x.npz")
    with pytest.raises(UserError, match="has no 'labels'; it has vectors"):
        read_labels(tmp_path / "x.npz")
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="lists have different lengths"):
        read_embeddings(tmp_path / "ragged.parquet")


def test_values_per_query_come_back(tmp_path):
    scores = evaluate(Z, Y, metrics=["recall@1", "map@r"])
    write_per_query(tmp_path / "q.parquet", scores)
    values, classes = read_per_query(tmp_path / "q.parquet")
    np.testing.assert_array_equal(classes, Y)
    for name in scores:
        np.testing.assert_array_equal(values[name], scores.per_query[name])
    assert [p.name for p in tmp_path.iterdir()] == ["q.parquet"]


def test_values_per_query_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    scores = evaluate(Z, Y, metrics=["recall@1"])
    path = tmp_path / "q.parquet"
    path.write_text("old")

    def fails(_, where):
        where.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        write_per_query(path, scores)
    assert [p.name for p in tmp_path.iterdir()] == ["q.parquet"]
    assert path.read_text() == "old"


def test_where_values_per_query_cannot_be_written_is_said(tmp_path):
    scores = evaluate(Z, Y, metrics=["recall@1"])
    with pytest.raises(UserError, match=r"must end in \.parquet"):
        write_per_query(tmp_path / "q.csv", scores)
    with pytest.raises(UserError, match="does not exist"):
        write_per_query(tmp_path / "no" / "q.parquet", scores)
    with pytest.raises(UserError, match="no values per query"):
        write_per_query(tmp_path / "q.parquet", evaluate(Z, Y, metrics=["nmi"]))
