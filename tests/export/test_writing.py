"""Embeddings on disk: every row once and in order, in every format, the same after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from export_cases import image_tree, saved, small_model
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.errors import DataError, UserError
from dmlkd.export import ImageRows, embed_to, read_table
from dmlkd.export.rows import Identities
from dmlkd.export.shards import encode, write_shard
from dmlkd.models import fingerprint
from dmlkd.retrieval.files import read_embeddings, read_shards


@pytest.fixture
def tree(tmp_path):
    """A model, its rows and what the embeddings should be."""
    listed = image_tree(tmp_path / "images")
    model = small_model()
    table, ids, _ = read_table(tmp_path / "images" / "table.csv")
    rows = ImageRows(model.preparation.dataset(table), ids=ids)
    z = model.embed([tmp_path / "images" / row["path"] for row in listed]).numpy()
    return model, rows, z, listed


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("files", ["parquet", "safetensors", "npy", "npz"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_every_row_comes_once_in_the_order_of_the_table(tmp_path, tree, files, dtype):
    model, rows, z, listed = tree
    assert embed_to(model, rows, tmp_path / "out", files=files, dtype=dtype, shard_rows=5, batch_size=3)
    found = read_embeddings(tmp_path / "out")
    assert found.ids.tolist() == [row["id"] for row in listed]
    assert found.labels.tolist() == [row["label"] for row in listed]
    np.testing.assert_allclose(found.embeddings, z, atol={"float32": 1e-6, "float16": 1e-3, "int8": 5e-3}[dtype])
    assert found.model == fingerprint(model)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert [(s["start"], s["stop"]) for s in manifest["shards"]] == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]
    named = {name for shard in manifest["shards"] for name in shard["files"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == named | {"_manifest.json"}


@pytest.mark.parametrize("suffix", ["parquet", "safetensors", "npy", "npz"])
def test_one_file_holds_all_rows(tmp_path, tree, suffix):
    model, rows, z, listed = tree
    out = tmp_path / f"e.{suffix}"
    assert embed_to(model, rows, out, shard_rows=5)
    found = read_embeddings(out)
    np.testing.assert_allclose(found.embeddings, z, atol=1e-6)
    assert found.ids.tolist() == [row["id"] for row in listed]
    assert found.labels.tolist() == [row["label"] for row in listed]
    assert found.model == fingerprint(model)


def test_parquet_has_the_columns_that_databases_take(tmp_path, tree):
    model, rows, _, listed = tree
    embed_to(model, rows, tmp_path / "e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["id", "path", "label", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[8]"
    assert table["path"].to_pylist() == [row["path"] for row in listed]


@pytest.mark.parametrize("files", ["parquet", "safetensors", "npy", "npz"])
def test_names_of_classes_stand_beside_their_labels(tmp_path, tree, files):
    model, _, _, listed = tree
    table = read_table(tmp_path / "images").rows(model.preparation.dataset)
    embed_to(model, table, tmp_path / f"e.{files}")
    if files == "npz":
        found = np.load(tmp_path / "e.npz")
        labels, names = found["labels"].tolist(), found["class_names"].tolist()
    else:
        rows = pq.read_table(tmp_path / ("e.parquet" if files == "parquet" else f"e.{files}.rows.parquet"))
        labels, names = rows["label"].to_pylist(), rows["class_name"].to_pylist()
    assert labels == sorted(row["label"] for row in listed)
    assert names == [f"class{label}" for label in labels]


def test_parquet_holds_8_bits_in_about_8(tmp_path):
    z = np.random.default_rng(0).standard_normal((5000, 64)).astype(np.float32)
    encoded = encode(z, "int8")
    names = [str(n) for n in range(len(z))]
    (file,) = write_shard(tmp_path / "e", "parquet", encoded, Identities(names, names, None))
    np.testing.assert_array_equal(read_embeddings(file).embeddings, encoded.embeddings * encoded.scale[:, None])
    assert file.stat().st_size < 1.2 * z.size + 20 * len(z)


def test_a_table_is_read_by_its_split_with_what_the_other_columns_say(tmp_path):
    lines = ["path,id,label,class_name,split,x,y,w,h", "a.png,A,7,seven,test,0,0,2,2", "b.png,B,3,three,train,1,1,2,3"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert len(read_table(tmp_path / "t.csv").table) == 2
    table, ids, labelled = read_table(tmp_path / "t.csv", split="train")
    assert (table.paths.tolist(), ids.tolist(), table.labels.tolist()) == (["b.png"], ["B"], [3])
    assert (table.class_names.tolist(), table.boxes.tolist(), labelled) == (["three"], [[1, 1, 2, 3]], True)
    with pytest.raises(DataError, match="has no rows of the split 'val'"):
        read_table(tmp_path / "t.csv", split="val")
    (tmp_path / "t.csv").write_text("path\na.png\n")
    with pytest.raises(DataError, match="has no column split"):
        read_table(tmp_path / "t.csv", split="test")


def test_pyarrow_reads_a_folder_of_shards_in_order(tmp_path, tree):
    model, rows, _, listed = tree
    embed_to(model, rows, tmp_path / "out", shard_rows=4)
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [row["id"] for row in listed]


def test_rows_without_labels_have_no_label_column(tmp_path):
    image_tree(tmp_path / "images", count=4, labelled=False)
    model = small_model()
    rows = read_table(tmp_path / "images" / "table.csv").rows(model.preparation.dataset)
    embed_to(model, rows, tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet").column_names == ["id", "path", "embedding"]


def test_a_folder_is_read_in_sorted_order_with_its_folders_as_labels(tmp_path):
    image_tree(tmp_path / "images", count=7)
    table, ids, labelled = read_table(tmp_path / "images")
    assert table.paths.tolist() == sorted(table.paths.tolist())
    assert table.class_names.tolist() == [f"class{n}" for n in range(5)]
    assert (ids, labelled) == (None, True)


@given(dim=st.integers(1, 6), dtype=st.sampled_from(["float32", "float16", "int8"]))
def test_fewer_dimensions_are_scaled_to_unit_length(dim, dtype):
    z = np.random.default_rng(0).standard_normal((9, 6)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    got = encode(z, dtype, dim)
    back = got.embeddings.astype(np.float64) * (1 if got.scale is None else got.scale[:, None])
    expected = z[:, :dim] / np.linalg.norm(z[:, :dim], axis=1, keepdims=True)
    limit = {"float32": 1e-6, "float16": 1e-3, "int8": np.abs(expected).max() / 254 + 1e-6}[dtype]
    assert np.abs(back - expected).max() <= limit


def test_int8_keeps_a_row_of_zeros_and_the_largest_value():
    got = encode(np.array([[0, 0], [-1, 0.5]], np.float32), "int8")
    np.testing.assert_array_equal(got.embeddings, [[0, 0], [-127, 64]])
    np.testing.assert_allclose(got.scale, [1, 1 / 127])


def test_processes_that_share_the_work_give_the_files_of_one(tmp_path, tree):
    model, rows, _, _ = tree
    embed_to(model, rows, tmp_path / "one", shard_rows=4)
    assert not embed_to(model, rows, tmp_path / "two", shard_rows=4, share=(1, 2))
    assert not (tmp_path / "two" / "_manifest.json").exists()
    assert embed_to(model, rows, tmp_path / "two", shard_rows=4, share=(0, 2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_finished_shard_is_kept_and_a_damaged_one_made_again(tmp_path, tree):
    model, rows, _, _ = tree
    embed_to(model, rows, tmp_path / "out", shard_rows=4)
    whole = contents(tmp_path / "out")
    kept = (tmp_path / "out" / "part-000000.parquet").stat().st_ino
    with (tmp_path / "out" / "part-000002.parquet").open("r+b") as opened:
        opened.seek(20)
        opened.write(b"damage")
    with pytest.raises(UserError, match=r"part-000002\.parquet is missing or not what its manifest says"):
        list(read_shards(tmp_path / "out"))
    assert embed_to(model, rows, tmp_path / "out", shard_rows=4)
    assert contents(tmp_path / "out") == whole
    assert (tmp_path / "out" / "part-000000.parquet").stat().st_ino == kept


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path, tree):
    model, rows, _, _ = tree
    embed_to(model, rows, tmp_path / "out", shard_rows=4, share=(1, 2))
    (tmp_path / "out" / ".part-000000.77.tmp.parquet").write_text("half")
    (tmp_path / "out" / "._part-000000.done.77.tmp.json").write_text("half")
    (tmp_path / "out" / ".mine").write_text("mine")
    assert embed_to(model, rows, tmp_path / "out", shard_rows=4)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".mine"]
    (tmp_path / ".e.77.tmp.parquet").write_text("half")
    (tmp_path / ".e.npy.rows.77.tmp.parquet").write_text("another job's")
    assert embed_to(model, rows, tmp_path / "e.parquet")
    assert [path.name for path in tmp_path.glob(".*")] == [".e.npy.rows.77.tmp.parquet"]


def test_a_process_that_comes_while_another_begins_the_job_joins_it(tmp_path, tree, monkeypatch):
    from dmlkd.export.job import Place

    model, rows, _, _ = tree
    looked = Place._begun

    def first_look_was_too_early(self, asked, seen=[]):  # noqa: B006
        if seen:
            return looked(self, asked)
        seen.append(1)
        embed_to(model, rows, tmp_path / "out", shard_rows=4, share=(1, 2))
        return False

    monkeypatch.setattr(Place, "_begun", first_look_was_too_early)
    assert embed_to(model, rows, tmp_path / "out", shard_rows=4, share=(0, 2))


def test_another_job_is_refused(tmp_path, tree):
    model, rows, _, _ = tree
    embed_to(model, rows, tmp_path / "out", shard_rows=4)
    before = contents(tmp_path / "out")
    for given_, said in (
        ({"model": small_model(seed=1)}, "another model"),
        ({"dtype": "int8"}, "dtype 'float32', not 'int8'"),
        ({"shard_rows": 5}, "shard_rows 4, not 5"),
        ({"rows": ImageRows(rows.dataset)}, "other rows"),
    ):
        arguments = {"model": model, "rows": rows, "out": tmp_path / "out", "shard_rows": 4} | given_
        with pytest.raises(UserError, match=said):
            embed_to(**arguments)
    (tmp_path / "mine.parquet").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        embed_to(model, rows, tmp_path / "mine.parquet")
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"dtype": "bfloat16"}, "unknown dtype 'bfloat16'"),
        ({"dim": 9}, "dim must be from 1 to 8, which the model gives, got 9"),
        ({"dim": 0}, "got 0"),
        ({"shard_rows": 0}, "shard_rows must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"files": "csv"}, "unknown format 'csv'"),
        ({"share": (2, 2)}, r"share must be \(i, n\)"),
    ],
)
def test_bad_numbers_are_refused(tmp_path, tree, arguments, said):
    model, rows, _, _ = tree
    with pytest.raises(UserError, match=said):
        embed_to(model, rows, tmp_path / "out", **arguments)


def test_an_embedding_that_is_not_finite_is_refused_by_row(tmp_path, tree):
    model, rows, _, _ = tree
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(UserError, match="embedding of row 0 is not finite"):
        embed_to(model, rows, tmp_path / "out")


def command(run: Path, tree: Path, out: Path) -> list[str]:
    table = str(tree / "table.csv")
    options = ["--model", str(run), "--data", table, "--out", str(out), "--shard-rows", "4", "--batch-size", "2"]
    return [sys.executable, "-m", "dmlkd", "embed", *options]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    image_tree(tmp_path / "images", count=400)
    run = saved(tmp_path)
    subprocess.run(command(run, tmp_path / "images", tmp_path / "whole"), check=True, timeout=300)
    out = tmp_path / "out"
    for shards in (0, 1, 20, 60, 90):  # killed as soon as so many are there
        process = subprocess.Popen(command(run, tmp_path / "images", out), stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("*.done.json"))) <= shards:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(run, tmp_path / "images", out), check=True, timeout=300)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_gives_the_files_of_one_process(tmp_path):
    image_tree(tmp_path / "images")
    run = saved(tmp_path)
    subprocess.run(command(run, tmp_path / "images", tmp_path / "one"), check=True, timeout=300)
    _, *rest = command(run, tmp_path / "images", tmp_path / "two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, *rest], check=True, timeout=300, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
