"""``dmlkd embed``, ``dmlkd export`` and ``dmlkd index`` as a user meets them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dmlkd.data.transforms import plain
from dmlkd.models import EmbeddingModel, prepared_by
from dmlkd.retrieval.files import read_embeddings


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a run of digits and some pictures, to be in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    config = "data: {name: digits, image_size: 8, channels: 1, transform: plain}\nmetric_loss: ContrastiveLoss\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    model = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})
    model.preparation = prepared_by(plain, image_size=8, channels=1)
    model.save_pretrained(tmp_path / "run" / "model")
    torch.manual_seed(1)
    other = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4})
    other.save_pretrained(tmp_path / "other")
    rng = np.random.default_rng(0)
    for n in range(12):
        path = tmp_path / "pictures" / f"c{n % 3}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)).save(path)
    return tmp_path


def test_a_run_embeds_its_test_images_and_eval_measures_them_the_same(dmlkd, work):
    code, out, err = dmlkd("embed", "--run", "run", "--out", "e", "--shard-rows", 300)
    assert (code, err) == (0, "")
    assert "896 embeddings" in out
    assert len(list((work / "e").glob("*.parquet"))) == 3
    folder = json.loads(dmlkd("eval", "--embeddings", "e", "--metric", "recall@1", "--json")[1])
    run = json.loads(dmlkd("eval", "--run", "run", "--metric", "recall@1", "--json")[1])
    assert folder == run
    dmlkd("embed", "--run", "run", "--out", "e.safetensors", "--dtype", "int8", "--dim", 6)
    assert read_embeddings(work / "e.safetensors").embeddings.shape == (896, 6)
    assert dmlkd("eval", "--embeddings", "e.safetensors")[0] == 0


def test_pictures_are_embedded_indexed_found_added_and_removed(dmlkd, work):
    assert dmlkd("embed", "--run", "run", "--data", "pictures", "--out", "e.parquet")[0] == 0
    assert dmlkd("index", "build", "--embeddings", "e.parquet", "--out", "i")[1] == "12 rows: i\n"
    picture = "pictures/c1/4.png"
    code, out, err = dmlkd("index", "search", "i", "--image", picture, "--run", "run", "-k", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [row["rank"] for row in found] == [1, 2, 3]
    assert found[0]["id"] == "c1/4.png"
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-5)
    code, out, _ = dmlkd(
        "index", "search", "i", "--data", "pictures", "--run", "run", "-k", 2, "--out", "found.parquet"
    )
    assert code == 0
    table = pq.read_table("found.parquet").to_pydict()
    assert table["query"][::2] == table["id"][::2]
    assert dmlkd("index", "remove", "i", "--id", "c1/4.png")[0] == 0
    assert (
        "c1/4.png" not in dmlkd("index", "search", "i", "--embeddings", "e.parquet", "-k", 12, "--out", "f.parquet")[1]
    )
    assert "c1/4.png" not in pq.read_table("f.parquet")["id"].to_pylist()
    code, _, err = dmlkd("index", "add", "i", "--embeddings", "e.parquet")
    assert code == 2
    assert "is in the index already" in err


def test_a_query_of_another_model_is_refused(dmlkd, work):
    dmlkd("embed", "--run", "run", "--data", "pictures", "--out", "e.parquet")
    dmlkd("index", "build", "--embeddings", "e.parquet", "--out", "i")
    arguments = ("index", "search", "i", "--image", "pictures/c1/4.png", "--model", "other", "--image-size", 8)
    code, out, err = dmlkd(*arguments)
    assert (code, out) == (2, "")
    assert "the queries are of another model" in err


@pytest.mark.parametrize(("kind", "name"), [("onnx", "m.onnx"), ("torch", "m.pt2"), ("int8", "m.onnx")])
def test_a_model_is_exported_and_the_difference_said(dmlkd, work, kind, name):
    if kind != "torch":
        pytest.importorskip("onnx")
    code, out, _ = dmlkd("export", "--run", "run", "--format", kind, "--out", name)
    assert code == 0
    assert "largest difference from PyTorch on 256 images" in out
    assert ("opset 18" in out) == (kind != "torch")
    assert ("points lost" in out) == (kind == "int8")
    assert (work / name).is_file()


WRONG = {
    "no model": (["embed", "--out", "e"], "give either --run or --model"),
    "no run": (["embed", "--run", "nowhere", "--out", "e"], "run folder nowhere does not exist"),
    "no such model": (["embed", "--model", "a/b/c", "--out", "e", "--data", "pictures"], "model folder a/b/c does not"),
    "model that does not say": (["embed", "--model", "other", "--data", "pictures", "--out", "e"], "give --image-size"),
    "no such transform": (
        ["embed", "--model", "other", "--data", "pictures", "--image-size", "8", "--transform", "plane", "--out", "e"],
        "unknown transform 'plane'; did you mean 'plain'",
    ),
    "no data": (["embed", "--model", "other", "--image-size", "8", "--out", "e"], "--model needs --data"),
    "size of a run": (["embed", "--run", "run", "--image-size", "8", "--out", "e"], "leave out --image-size"),
    "bad engine": (["embed", "--run", "run", "--out", "e", "--engine", "rai"], "did you mean 'ray'"),
    "bad dtype": (["embed", "--run", "run", "--out", "e", "--dtype", "int4"], "unknown dtype 'int4'"),
    "bad table": (["embed", "--run", "run", "--out", "e", "--data", "x.csv"], "x.csv does not exist"),
    "two formats": (["embed", "--run", "run", "--out", "e.npy", "--format", "npz"], "names a npy file"),
    "bad format": (["export", "--run", "run", "--format", "onx", "--out", "m.onnx"], "did you mean 'onnx'"),
    "bad ending": (["export", "--run", "run", "--out", "m.pt2"], "must end in .onnx"),
    "no index": (["index", "search", "pictures", "--embeddings", "e.npz"], "pictures is no index folder"),
    "two queries": (["index", "search", "i", "--image", "a", "--data", "b"], "got --image and --data"),
    "nothing to remove": (["index", "remove", "i"], "give --id or --ids"),
    "no embeddings": (["index", "build", "--embeddings", "pictures", "--out", "i"], "holds no finished embeddings"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_with_exit_code_2(dmlkd, work, arguments, said):
    before = sorted(work.rglob("*"))
    code, out, err = dmlkd(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(work.rglob("*")) == before
