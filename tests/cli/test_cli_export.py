"""``dmlkd embed``, ``dmlkd export`` and ``dmlkd index`` as a user meets them."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dmlkd.data.transforms import plain
from dmlkd.models import EmbeddingModel, Preparation, prepared_by
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


def test_a_data_set_is_embedded_by_name_and_split(dmlkd, work):
    counts = {"train": 901, "test": 896, "all": 1797}
    for split, count in counts.items():
        assert dmlkd("embed", "--run", "run", "--data", "digits", "--split", split, "--out", f"{split}.parquet")[0] == 0
        assert pq.read_metadata(f"{split}.parquet").num_rows == count
    dmlkd("embed", "--run", "run", "--data", "digits", "--out", "named.parquet")
    dmlkd("embed", "--run", "run", "--out", "own.parquet")
    own = (work / "own.parquet").read_bytes()
    assert own == (work / "named.parquet").read_bytes() == (work / "test.parquet").read_bytes()
    rows = pq.read_table("test.parquet").to_pydict()
    assert rows["class_name"] == [str(label) for label in rows["label"]]
    assert set(rows["class_name"]) == set("56789")
    assert rows["id"] == rows["path"]
    dmlkd("embed", "--run", "run", "--split", "train", "--out", "trained.parquet")
    assert (work / "trained.parquet").read_bytes() == (work / "train.parquet").read_bytes()


def test_a_registered_table_inside_a_zip_is_cropped_to_its_boxes(dmlkd, work):
    run = EmbeddingModel.from_pretrained(work / "run" / "model")
    preprocessing = run.preparation.preprocessing
    cropping = replace(preprocessing, preparation=replace(preprocessing.preparation, crop=True))
    run.preparation = Preparation(cropping)
    run.save_pretrained(work / "cropping")
    boxes = [(0, 0, 4, 5), (2, 1, 6, 6), (1, 3, 8, 4)]
    rows = ["path,label,split,x,y,w,h"]
    with zipfile.ZipFile(work / "pictures.zip", "w") as archive:
        for n, box in enumerate(boxes):
            archive.write(work / "pictures" / f"c{n}" / f"{n}.png", f"{n}.png")
            rows.append(",".join(map(str, (f"{n}.png", "zyz"[n], ("test", "train", "train")[n], *box))))
    (work / "t.csv").write_text("\n".join(rows) + "\n")
    options = ("--set", "file=t.csv", "--set", "archive=pictures.zip")
    given = ("--model", "cropping", "--data", "table", "--root", ".", *options, "--split", "all", "--out", "e.parquet")
    assert dmlkd("embed", *given) == (0, "3 embeddings: e.parquet\n", "")
    found = pq.read_table("e.parquet").to_pydict()
    pictures = [Image.open(work / "pictures" / f"c{n}" / f"{n}.png") for n in range(3)]
    cut = [p.crop((x, y, x + w, y + h)) for p, (x, y, w, h) in zip(pictures, boxes, strict=True)]
    run.preparation = Preparation(preprocessing)
    np.testing.assert_allclose(np.array(found["embedding"]), run.embed(cut).numpy(), atol=1e-6)
    assert found["path"] == [f"pictures.zip::{n}.png" for n in range(3)]
    assert (found["class_name"], found["label"]) == (list("zyz"), [1, 0, 1])
    # The same table as a file, whose paths name the zip.
    lines = [rows[0], *(f"pictures.zip::{row}" for row in rows[1:])]
    (work / "whole.csv").write_text("\n".join(lines) + "\n")
    assert dmlkd("embed", "--model", "cropping", "--data", "whole.csv", "--out", "w.parquet")[0] == 0
    assert (work / "w.parquet").read_bytes() == (work / "e.parquet").read_bytes()
    assert dmlkd("embed", "--model", "cropping", "--data", "whole.csv", "--split", "test", "--out", "p.parquet")[0] == 0
    assert pq.read_table("p.parquet")["class_name"].to_pylist() == ["z"]
    code, _, err = dmlkd("embed", "--model", "cropping", "--data", "pictures", "--out", "f.parquet")
    assert (code, err) == (2, "error: the images have no boxes to crop to\n")


def test_a_data_set_says_how_images_are_prepared_where_the_model_does_not(dmlkd, work):
    sized = ("--set", "image_size=8", "--set", "transform=plain")
    assert dmlkd("embed", "--model", "other", "--data", "digits", *sized, "--out", "a.parquet")[0] == 0
    sized = ("--image-size", "8")
    assert dmlkd("embed", "--model", "other", "--data", "digits", *sized, "--out", "b.parquet")[0] == 0
    assert (work / "a.parquet").read_bytes() == (work / "b.parquet").read_bytes()


def test_a_model_is_exported_and_an_index_searched_with_a_data_set_by_name(dmlkd, work):
    code, out, _ = dmlkd("export", "--run", "run", "--format", "torch", "--data", "digits", "--out", "m.pt2")
    assert code == 0
    assert "on 256 images" in out
    dmlkd("embed", "--run", "run", "--data", "digits", "--out", "e.parquet")
    dmlkd("index", "build", "--embeddings", "e.parquet", "--out", "i")
    assert dmlkd("index", "search", "i", "--data", "digits", "--run", "run", "-k", 1, "--out", "f.parquet")[0] == 0
    assert pq.read_metadata("f.parquet").num_rows == 896


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
    "no such data": (["embed", "--run", "run", "--out", "e", "--data", "digts"], "did you mean 'digits'"),
    "no such split": (
        ["embed", "--run", "run", "--out", "e", "--data", "digits", "--split", "tset"],
        "unknown split 'tset'; did you mean 'test'",
    ),
    "empty split": (
        ["embed", "--run", "run", "--out", "e", "--data", "digits", "--split", "val"],
        "digits has no images of the split 'val'",
    ),
    "split of a folder": (
        ["embed", "--run", "run", "--out", "e", "--data", "pictures", "--split", "test"],
        "images of a folder are of no split",
    ),
    "key of no data set": (
        ["embed", "--run", "run", "--out", "e", "--data", "pictures", "--set", "crop=true"],
        "--set goes with a data set by name, got pictures",
    ),
    "unknown key of a data set": (
        ["embed", "--run", "run", "--out", "e", "--data", "table", "--root", ".", "--set", "fiel=a.csv"],
        "unknown key 'fiel'; did you mean 'file'",
    ),
    "data set without its folder": (["embed", "--run", "run", "--out", "e", "--data", "cub200"], "needs a folder"),
    "preparation said twice": (
        ["embed", "--run", "run", "--out", "e", "--data", "digits", "--set", "transform=published"],
        "says how its images are prepared: leave out --set transform",
    ),
    "other channels": (
        ["embed", "--model", "other", "--out", "e", "--data", "digits", "--set", "channels=3"],
        "takes images of 1 channels, digits has 3",
    ),
    "root of nothing": (["embed", "--run", "run", "--out", "e", "--root", "."], "--root needs --data"),
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
def test_what_is_wrong_is_one_line_with_exit_code_2(dmlkd, work, monkeypatch, arguments, said):
    monkeypatch.delenv("DMLKD_DATA", raising=False)
    before = sorted(work.rglob("*"))
    code, out, err = dmlkd(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(work.rglob("*")) == before
