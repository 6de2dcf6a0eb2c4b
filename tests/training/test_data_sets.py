"""Runs on data sets in files: queries and galleries, caches, corrupt images, domains, folds, saved transforms."""

import csv
import json
import os
import signal
import sys

import numpy as np
import pytest
import small_trees as trees
import torch

from dmlkd.cli import main
from dmlkd.config import DataConfig, load_config
from dmlkd.data import image_folder
from dmlkd.data.images import Preparation
from dmlkd.data.preprocessing import Preprocessing, load_transforms, save_transforms
from dmlkd.data.transforms import Transforms, plain
from dmlkd.errors import ConfigError, DataError, UserError
from dmlkd.export import embed
from dmlkd.models import EmbeddingModel
from dmlkd.retrieval import evaluate
from dmlkd.training import run
from dmlkd.training.building_data import build_data
from dmlkd.training.measuring import embed_run, embed_saved, evaluate_run

pytestmark = pytest.mark.usefixtures("small_counts")

TEXT = """\
data: {{name: {name}, root: {root}, image_size: 16, transform: plain, validation: 0}}
model: {{backbone: convnet4, dim: 8, backbone_args: {{width: 4}}}}
metric_loss: {{name: ContrastiveLoss, pos_margin: 0, neg_margin: 1}}
train: {{epochs: 1, batch_size: 4, per_class: 2, accelerator: cpu}}
"""


def configured(tmp_path, name, root, *overrides):
    file = tmp_path / "run.yaml"
    file.write_text(TEXT.format(name=name, root=root))
    return load_config(file, overrides)[0]


@pytest.fixture
def dmlkd(monkeypatch, capsys):
    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dmlkd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


def test_a_run_on_clothes_looks_for_queries_in_their_gallery(tmp_path, dmlkd):
    root = trees.inshop(tmp_path / "inshop")
    result = run(configured(tmp_path, "inshop", root), tmp_path / "run")
    found = embed_run(tmp_path / "run")
    assert (len(found.labels), len(found.gallery_labels)) == (8, 8)
    assert "nmi" not in result.metrics["test"]
    by_hand = evaluate(
        found.embeddings,
        found.labels,
        gallery=found.gallery,
        gallery_labels=found.gallery_labels,
        metrics=list(result.metrics["test"]),
    )
    assert result.metrics["test"] == dict(by_hand)
    assert dict(evaluate_run(tmp_path / "run")) == result.metrics["test"]
    for arguments in (
        ("--run", tmp_path / "run"),
        ("--model", tmp_path / "run/model", "--data", "inshop", "--root", root),
    ):
        code, out, err = dmlkd("eval", *arguments, "--metric", "recall@1", "--metric", "map@r", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["recall@1"] == by_hand["recall@1"]
        assert json.loads(out)["queries"] == 8
    code, out, _ = dmlkd("eval", *arguments)
    assert "queries in their gallery" in out
    assert "nmi" not in out


@pytest.mark.parametrize("name", ["cub200", "cars196", "sop"])
def test_a_saved_model_is_measured_by_the_protocol_of_a_data_set(tmp_path, dmlkd, name):
    run(configured(tmp_path, "cub200", trees.cub(tmp_path / "cub")), tmp_path / "run")
    root = trees.TREES[name](tmp_path / "other") if name != "cub200" else tmp_path / "cub"
    arguments = ("--model", tmp_path / "run" / "model", "--data", name, "--root", root)
    code, out, err = dmlkd("eval", *arguments, "--metric", "recall@1", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["queries"] == 12


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    (tmp_path / "other").mkdir()


def test_queries_without_a_gallery_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split,role\na.jpg,1,train,\nb.jpg,2,test,query\nc.jpg,2,test,query\n")
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(trees.picture(1))
    run(configured(tmp_path, "cub200", trees.cub(tmp_path / "cub")), tmp_path / "run")
    data = DataConfig(name="table", root=str(tmp_path), file="t.csv")
    with pytest.raises(DataError, match="there are 2 queries and 0 to find"):
        embed_saved(tmp_path / "run" / "model", data)
    (tmp_path / "t.csv").write_text("path,label,split,role\na.jpg,1,train,\nb.jpg,2,test,query\nc.jpg,2,test,\n")
    with pytest.raises(DataError, match="some test images have a role and some have none"):
        embed_saved(tmp_path / "run" / "model", data)


def test_a_model_folder_says_how_its_images_are_prepared(tmp_path):
    root = trees.cub(tmp_path / "cub")
    result = run(configured(tmp_path, "cub200", root, "data.crop=true"), tmp_path / "run")
    saved = load_transforms(tmp_path / "run" / "model")
    assert saved.preparation == Preparation(3, crop=True, square=16)
    assert saved.transforms.test.steps == plain(image_size=16, channels=3).test.steps
    assert dict(evaluate_run(tmp_path / "run")) == result.metrics["test"]
    table = image_folder(root / "CUB_200_2011" / "images", train_fraction=0)
    with pytest.raises(DataError, match="the images have no boxes to crop to"):
        saved.dataset(table)


def test_the_saved_transform_and_not_the_default_of_the_data_is_applied(tmp_path):
    root = trees.cub(tmp_path / "cub")
    run(configured(tmp_path, "cub200", root), tmp_path / "run")
    model, saved = (
        EmbeddingModel.from_pretrained(tmp_path / "run" / "model"),
        load_transforms(tmp_path / "run" / "model"),
    )
    found = embed_saved(tmp_path / "run" / "model", DataConfig(name="cub200", root=str(root)))
    (tmp_path / "run" / "model" / "preprocessing.json").unlink()
    default = embed_saved(tmp_path / "run" / "model", DataConfig(name="cub200", root=str(root)))
    assert not torch.equal(found.embeddings, default.embeddings)
    table = image_folder(
        root / "CUB_200_2011" / "images", train_classes=tuple(f"{c:03d}.Bird_{c}" for c in (1, 2, 99, 100))
    )
    assert torch.equal(embed(model, saved.dataset(table.of_split("test"))), found.embeddings)


def test_a_transform_that_cannot_be_written_down_is_refused(tmp_path):
    with pytest.raises(UserError, match="the train transform is no"):
        save_transforms(tmp_path, Preprocessing(Preparation(3), Transforms(lambda x: x, lambda x: x)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 9}', "format 9 is not 1"),
        ('{"format": 1}', "key 'preparation' is missing"),
        (
            '{"format": 1, "preparation": {"channels": 3}, "train": [{"op": "exec"}], "test": []}',
            "unknown operation 'exec'",
        ),
        (
            '{"format": 1, "preparation": {"channels": 3}, "train": [{"op": "flip", "q": 1}], "test": []}',
            "operation flip",
        ),
    ],
)
def test_a_damaged_preprocessing_file_is_refused(tmp_path, content, message):
    (tmp_path / "preprocessing.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_transforms(tmp_path)


@pytest.mark.parametrize("overrides", [["data.workers=0"], ["data.workers=2"], ["data.in_memory=true"]])
def test_a_run_from_the_cache_gives_the_figures_of_a_run_without(tmp_path, overrides):
    root = trees.cub(tmp_path / "cub")
    plain_run = run(configured(tmp_path, "cub200", root), tmp_path / "plain")
    cached = configured(tmp_path, "cub200", root, f"data.cache={tmp_path / 'cache'}", *overrides)
    for number in range(2):
        result = run(cached, tmp_path / f"run{number}")
        assert result.metrics["test"] == plain_run.metrics["test"]
        assert result.fit.history == plain_run.fit.history


@pytest.mark.parametrize("cache", [True, False])
def test_corrupt_images_are_left_out_and_listed_if_asked(tmp_path, cache):
    root = trees.cub(tmp_path / "cub")
    bad = root / "CUB_200_2011" / "images" / "001.Bird_1" / "Bird_1_0001_2.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    extra = [f"data.cache={tmp_path / 'cache'}"] if cache else []
    result = run(configured(tmp_path, "cub200", root, "data.corrupt=skip", *extra), tmp_path / "run")
    with (tmp_path / "run" / "skipped.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["row"], row["path"], row["split"]) == ("1", "images/001.Bird_1/Bird_1_0001_2.jpg", "train")
    assert "runcated" in row["reason"]
    assert result.metrics["data"]["skipped"] == {"images": 1}
    assert result.metrics["data"]["train"]["images"] == 11


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_a_run_in_one_line_naming_file_and_row(tmp_path, workers):
    root = trees.cub(tmp_path / "cub")
    bad = root / "CUB_200_2011" / "images" / "001.Bird_1" / "Bird_1_0001_2.jpg"
    bad.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        run(configured(tmp_path, "cub200", root, f"data.workers={workers}", "train.epochs=9"), tmp_path / "run")
    assert str(caught.value) == f"row 1: {bad}: cannot be read as an image: the file is empty"


def test_a_worker_that_is_killed_is_a_clear_error(tmp_path, monkeypatch):
    from dmlkd.data.dataset import ImageDataset

    main_process = os.getpid()

    def killed(self, row):
        if os.getpid() != main_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((3, 16, 16), np.uint8)

    monkeypatch.setattr(ImageDataset, "decoded", killed)
    root = trees.cub(tmp_path / "cub")
    with pytest.raises(
        DataError, match=r"the process \d+ that loads images .*: often the memory is not enough; lower data"
    ):
        run(configured(tmp_path, "cub200", root, "data.workers=1"), tmp_path / "run")


DOMAINS = "path,label,domain\n" + "".join(
    f"{domain}{label}{view}.jpg,{label},{domain}\n"
    for domain in ("photo", "sketch")
    for label in (1, 2)
    for view in (0, 1)
)


def test_one_domain_is_left_out_for_the_test(tmp_path):
    (tmp_path / "t.csv").write_text(DOMAINS)
    for line in DOMAINS.splitlines()[1:]:
        (tmp_path / line.split(",")[0]).write_bytes(trees.picture(1))
    data = build_data(
        DataConfig(name="table", root=str(tmp_path), file="t.csv", test_domain="sketch", validation=0), seed=0
    )
    assert {str(path)[:5] for path in data.train.paths} == {"photo"}
    assert {str(path)[:5] for path in data.test.paths} == {"sketc"}
    assert set(data.train.labels) == set(data.test.labels) == {1, 2}
    for name, message in (
        ("art", "no image is of domain 'art'; valid: photo, sketch"),
        ("photos", "did you mean 'photo'"),
    ):
        with pytest.raises(DataError, match=message):
            build_data(DataConfig(name="table", root=str(tmp_path), file="t.csv", test_domain=name), seed=0)
    with pytest.raises(DataError, match="needs images with domains"):
        build_data(DataConfig(name="cub200", root=str(trees.cub(tmp_path / "c")), test_domain="x"), seed=0)


def test_classes_in_training_and_test_are_refused_unless_allowed(tmp_path):
    (tmp_path / "t.csv").write_text("path,label,split\na.jpg,1,train\nb.jpg,1,test\nc.jpg,2,test\n")
    section = {"name": "table", "root": str(tmp_path), "file": "t.csv", "validation": 0}
    with pytest.raises(DataError, match=r"1 classes are both trained on and tested, such as 1; .* data\.seen_classes"):
        build_data(DataConfig(**section), seed=0)
    assert len(build_data(DataConfig(**section, seen_classes=True), seed=0).test) == 2


def test_folds_hold_out_each_class_once(tmp_path):
    root = trees.cub(tmp_path / "cub")
    held = [
        build_data(DataConfig(name="cub200", root=str(root), folds=2, fold=fold), seed=3).val.labels for fold in (0, 1)
    ]
    assert sorted(np.concatenate([np.unique(labels) for labels in held])) == [1, 2, 99, 100]


def test_a_validation_split_of_its_own_is_used(tmp_path):
    root = trees.folders(tmp_path / "tree", splits=("train", "val", "test"))
    data = build_data(DataConfig(name="folder", root=str(root)), seed=0)
    assert {str(path).split("/")[0] for path in data.val.paths} == {"val"}


def test_the_shared_cars_train(configs, cars, tmp_path):
    overrides = ["model.weights=null", "model.backbone=convnet4", "train.epochs=1", "train.accelerator=cpu"]
    overrides += [f"data.root={cars}", f"data.cache={tmp_path / 'cache'}", "data.image_size=16", "data.workers=0"]
    from dmlkd.data import counts
    from dmlkd.data.counts import Counts

    official: Counts = {"train": (8054, 98), "test": (8131, 98)}
    counts.DUE["cars196"] = official  # the fixture puts back what was there
    config = load_config(configs / "cars196-64px.yaml", overrides)[0]
    data = build_data(config.data, seed=0)
    assert data.counts()["train"]["classes"] + data.counts()["val"]["classes"] == 98
    assert data.counts()["test"] == {"images": 8131, "classes": 98}
    from dmlkd.data.loading import loader
    from dmlkd.training.building import build

    parts = build(config)
    optimizer = torch.optim.Adam(parts.model.parameters(), lr=1e-3)
    for step, batch in enumerate(loader(parts.data.train, batch_sampler=parts.sampler)):
        loss = parts.objective(parts.model.signals(batch.images), batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        if step == 3:
            break


def test_batches_are_transformed_on_the_device_if_asked(tmp_path):
    root = trees.cub(tmp_path / "cub")
    wanted = ["data.on_device=true", "data.transform=published", f"data.cache={tmp_path / 'cache'}"]
    config = configured(tmp_path, "cub200", root, *wanted, "train.epochs=2")
    data = build_data(config.data, seed=0)
    assert data.train[0].images.dtype == torch.uint8
    assert data.on_device(data.train.batch([0, 1]).images).shape == (2, 3, 16, 16)
    result = run(config, tmp_path / "run")
    assert np.isfinite(result.fit.history[1]["train/loss"])
    assert load_transforms(tmp_path / "run" / "model").transforms.train.varies
    with pytest.raises(ConfigError, match="bilinear interpolation only"):
        build_data(DataConfig(name="cub200", root=str(root), transform="modern", on_device=True, validation=0), seed=0)
