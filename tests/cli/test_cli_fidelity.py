"""``dmlkd fidelity`` as a user meets it."""

import json
import shutil

import numpy as np
import pytest
import torch

from dmlkd.data import digits
from dmlkd.data.transforms import plain
from dmlkd.models import ClassHead, EmbeddingModel, load_classes, prepared_by, save_classes
from dmlkd.retrieval.fidelity import fidelity

NAMES = {"images", "nearest", "neighbours", "spearman", "cka"}


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A run of digits, and a saved model of another dimension and image size, in the folder to be in."""
    monkeypatch.chdir(tmp_path)
    made = {}
    for name, dim, size in (("run/model", 8, 8), ("wide", 12, 12)):
        torch.manual_seed(dim)
        model = EmbeddingModel("convnet4", dim=dim, in_channels=1, backbone_args={"width": 4}).eval()
        model.preparation = prepared_by(plain, image_size=size, channels=1)
        model.save_pretrained(tmp_path / name)
        made[name] = model
    config = "data: {name: digits, image_size: 8, channels: 1, transform: plain}\nmetric_loss: ContrastiveLoss\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    return made


def test_it_measures_training_and_unseen_classes_of_the_students_run(dmlkd, models):
    code, out, err = dmlkd("fidelity", "wide", "run", "-k", 5, "--json")
    assert (code, err) == (0, "")
    splits = json.loads(out)["splits"]
    assert {name: values["images"] for name, values in splits.items()} == {"train": 901, "test": 896}
    pixels = torch.from_numpy(digits().of_split("test").pixels)
    z = [models[name].embed(list(pixels)) for name in ("wide", "run/model")]
    expected = fidelity(teacher=z[0], student=z[1], neighbours=5)
    assert set(splits["test"]) == NAMES
    for name in NAMES - {"images"}:
        assert splits["test"][name] == pytest.approx(getattr(expected, name), abs=2e-3)


def test_runs_with_class_scores_are_compared_by_them_too(dmlkd, models, tmp_path):
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for seed, run in enumerate(("run", "other")):
        torch.manual_seed(seed)
        save_classes(ClassHead(dim=8, classes=5), tmp_path / run / "classes.safetensors")
    found = json.loads(dmlkd("fidelity", "run", "other", "--split", "test", "--json")[1])["splits"]["test"]
    assert set(found) == NAMES | {"top1", "kl"}
    pixels = torch.from_numpy(digits().of_split("test").pixels)
    z = models["run/model"].embed(list(pixels))
    logits = [load_classes(tmp_path / run / "classes.safetensors")(z)[0] for run in ("run", "other")]
    expected = fidelity(teacher=z, student=z, teacher_logits=logits[0], student_logits=logits[1])
    assert (found["top1"], found["kl"]) == (
        pytest.approx(expected.top1, abs=2e-3),
        pytest.approx(expected.kl, abs=1e-4),
    )
    assert found["kl"] > 0


def test_a_model_agrees_with_itself_and_the_table_says_so(dmlkd, models):
    code, out, _ = dmlkd("fidelity", "run", "run/model", "--data", "digits", "--split", "test")
    assert code == 0
    assert "10 neighbours" in out
    row = next(line for line in out.splitlines() if line.strip().startswith("test"))
    np.testing.assert_allclose([float(word) for word in row.split()[2:]], 1, atol=1e-3)


WRONG = {
    "no data": (["run", "wide"], "wide is no run folder: give --data"),
    "no teacher": (["nowhere", "run"], "model folder nowhere does not exist"),
    "no such data": (["run", "wide", "--data", "digts"], "did you mean 'digits'"),
    "too many neighbours": (["wide", "run", "-k", "5000"], "neighbours must be at least 1 and less than the 901"),
    "no such split": (["wide", "run", "--split", "tets"], "did you mean 'test'"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_with_exit_code_2(dmlkd, models, arguments, said):
    code, out, err = dmlkd("fidelity", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
