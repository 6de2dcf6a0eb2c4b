"""Auditing a run: its own model, its own training images, the labels it was trained with."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dmlkd import EmbeddingModel, embed
from dmlkd.config import load_config
from dmlkd.errors import UserError
from dmlkd.retrieval.audit import LabelAudit, audit_labels, detection
from dmlkd.training import run
from dmlkd.training.auditing import RunAudit, audit_run
from dmlkd.training.building_data import build_data, build_training_images

SHORT = ["train.epochs=1", "data.image_size=8", "model.backbone_args.width=8", "data.transform=handwriting"]
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    overrides = [*SHORT, "data.noise=0.1", "data.validation=0.4", "train.batch_size=48", "train.seed=3"]
    config = load_config(CONFIGS / "digits.yaml", overrides)[0]
    return config, run(config, tmp_path_factory.mktemp("run") / "digits").folder


def test_training_images_are_those_of_the_run_without_augmentation(noisy):
    config, _ = noisy
    split = build_data(config.data, seed=3)
    images, names, true_labels = build_training_images(config.data, seed=3)
    assert (images.paths == split.train.paths).all()
    assert (images.labels == split.train.labels).all()
    assert (true_labels == split.true_labels).all()
    assert names.tolist() == [str(label) for label in np.unique(images.labels)]
    assert (images[0].images == images[0].images).all()
    assert (images[0].images == split.test.transform(images.image(0))).all()


def test_the_labels_are_those_trained_with_and_the_wrong_ones_those_recorded(noisy):
    config, folder = noisy
    found = audit_run(folder)
    with (folder / "label_noise.csv").open() as file:
        recorded = {int(row["row"]): int(row["label"]) for row in csv.DictReader(file)}
    assert dict(zip(np.flatnonzero(found.wrong), found.labels[found.wrong], strict=True)) == recorded
    images = build_training_images(config.data, seed=3).images
    embeddings = embed(EmbeddingModel.from_pretrained(folder / "model"), images)
    assert found.audit.score == pytest.approx(audit_labels(embeddings, images.labels).score)
    few = audit_labels(embeddings, images.labels, k=9, temperature=0.4)
    assert audit_run(folder, k=9, temperature=0.4).audit.score == pytest.approx(few.score)
    assert found.found() == detection(found.audit, found.wrong)
    assert found.found().auroc > 0.7  # chance is 0.5


def test_the_table_is_sorted_and_says_what_was_made_wrong(noisy):
    found = audit_run(noisy[1], k=20, temperature=0.1)
    table = found.table()
    assert set(map(len, table.values())) == {len(found.labels)}
    assert table["score"] == sorted(table["score"], reverse=True)
    for place in (0, 17, -1):
        row = table["row"][place]
        assert table["path"][place] == found.paths[row]
        assert table["label"][place] == found.labels[row]
        assert table["likelier_label"][place] == found.audit.likelier[row]
        assert table["label_name"][place] == str(found.labels[row])
        assert table["made_wrong"][place] == found.wrong[row]


def test_a_run_without_noise_has_no_known_wrong_labels(tmp_path):
    config = load_config(CONFIGS / "digits.yaml", [*SHORT, "data.validation=0"])[0]
    found = audit_run(run(config, tmp_path / "run").folder)
    assert found.wrong is None
    assert "made_wrong" not in found.table()
    assert len(found.labels) == 901


def test_where_nothing_or_everything_judged_is_wrong_nothing_is_measured():
    audit = LabelAudit(np.array([0.5, np.nan]), np.zeros(2, int), np.zeros(2), np.zeros(2))
    for wrong, measured in (([False, True], None), ([True, False], None), (None, None)):
        known = None if wrong is None else np.array(wrong)
        assert RunAudit(audit, np.array(["a", "b"]), np.zeros(2, int), {0: "x"}, known).found() is measured
    pair = audit._replace(score=np.array([0.5, 0.1]))
    assert RunAudit(pair, np.array(["a", "b"]), np.zeros(2, int), {0: "x"}, np.array([True, False])).found() == (
        1,
        1,
        1,
    )


def test_an_image_alone_in_its_class_has_an_empty_score_at_the_end():
    audit = LabelAudit(np.array([np.nan, -0.5]), np.array([7, 7]), np.zeros(2), np.zeros(2))
    table = RunAudit(audit, np.array(["a", "b"]), np.array([3, 7]), {3: "x", 7: "y"}, None).table()
    assert (table["score"], table["path"], table["label_name"]) == ([-0.5, None], ["b", "a"], ["y", "x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace(",1\n", ",2\n", 1), "does not fit the training images"),
        (lambda text: text[: text.rindex("\n", 0, -1) + 1], "does not fit the training images"),
        (lambda text: "\x00\n" + text, "does not fit the training images|cannot be read"),
        (lambda text: "nothing\n", "does not fit the training images"),
        (None, "is not a finished run: it has no label_noise.csv"),
    ],
)
def test_a_record_of_other_noise_is_refused(noisy, change, message):
    _, folder = noisy
    record = folder / "label_noise.csv"
    text = record.read_text()
    try:
        record.unlink()
        if change is not None:
            assert change(text) != text
            record.write_text(change(text))
        with pytest.raises(UserError, match=message):
            audit_run(folder)
    finally:
        record.write_text(text)
