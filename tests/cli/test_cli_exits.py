"""``dmlkd exits`` as a user meets it, and the other commands on an exit's folder."""

import json

import pytest

from dmlkd.data.transforms import plain
from dmlkd.models import EmbeddingModel, ExitingModel, cost, prepared_by

SHAPE = (1, 8, 8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with two exits, as a run would leave it."""
    monkeypatch.chdir(tmp_path)
    whole = EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4}).eval()
    whole.preparation = prepared_by(plain, image_size=8, channels=1)
    models = {**ExitingModel(whole, stages=[0, 1]).encoders(), "whole": whole}
    exits = {}
    for number, (name, model) in enumerate(models.items()):
        folder = tmp_path / "run" / ("model" if name == "whole" else f"exits/{name}")
        model.save_pretrained(folder)
        scores = {"recall@1": 0.5 + number / 10, "map@r": 0.25}
        exits[name] = {"test": scores, **cost(model, shape=SHAPE)._asdict()}
    config = "data: {name: digits, image_size: 8, channels: 1, transform: plain}\nmetric_loss: ContrastiveLoss\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"exits": exits}))
    return models


def test_it_shows_what_each_exit_scores_and_costs(dmlkd, run):
    code, out, err = dmlkd("exits", "run", "--batch-size", 4, "--seconds", 0.001)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    rows = {line[0]: line for line in lines if line and line[0] in run}
    assert list(rows) == ["stage-0", "stage-1", "whole"]
    for number, (name, model) in enumerate(run.items()):
        costs = cost(model, shape=SHAPE)
        assert rows[name][1:4] == [f"{50 + 10 * number}.00", f"{costs.parameters:,}", f"{costs.multiply_adds:,}"]
    assert "100 %" in out
    assert "25.00" in dmlkd("exits", "run", "--metric", "map@r", "--seconds", 0.001)[1]


def test_json_has_all_scores_and_speeds(dmlkd, run):
    found = json.loads(dmlkd("exits", "run", "--batch-size", 4, "--seconds", 0.001, "--json")[1])
    assert (found["batch_size"], found["device"]) == (4, "cpu")
    assert [one["name"] for one in found["exits"]] == list(run)
    for one in found["exits"]:
        assert one["images_per_second"] > 0
        assert set(one["test"]) == {"recall@1", "map@r"}
        assert one["folder"] == ("run/model" if one["name"] == "whole" else f"run/exits/{one['name']}")


def test_other_commands_take_an_exits_folder_as_any_model(dmlkd, run, tmp_path):
    code, out, err = dmlkd("eval", "--model", "run/exits/stage-0", "--data", "digits", "--metric", "recall@1", "--json")
    assert (code, err) == (0, "")
    assert 0 < json.loads(out)["recall@1"] <= 1
    code, _, err = dmlkd("embed", "--model", "run/exits/stage-0", "--data", "digits", "--out", "e.npz")
    assert code == 0, err
    code, _, err = dmlkd(
        "export", "--model", "run/exits/stage-0", "--format", "torch", "--data", "digits", "--out", "m.pt2"
    )
    assert code == 0, err
    assert (tmp_path / "e.npz").is_file()
    assert (tmp_path / "m.pt2").is_file()


BAD = {
    "no folder": (["nowhere"], "run folder nowhere does not exist"),
    "not finished": (["run/model"], "run/model is not a finished run: it has no metrics.json"),
    "batch": (["run", "--batch-size", 0], "the batch size must be at least 1, got 0"),
    "seconds": (["run", "--seconds", 0], "seconds must be above 0, got 0"),
    "device": (["run", "--device", "cupboard"], "there is no device 'cupboard' here"),
    "metric": (["run", "--metric", "mrr"], "the run did not measure 'mrr', but recall@1, map@r"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_is_wrong_is_one_line(dmlkd, run, arguments, message):
    code, out, err = dmlkd("exits", *arguments, *([] if "--seconds" in arguments else ["--seconds", 0.001]))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{}", "run has no exits: train with the method byot"),
        ("[]", "cannot be read"),
        ('{"exits": {"stage-0": {}}}', "cannot be read"),
        ('{"exits": {"stage-0": {"test": {}, "parameters": 1, "multiply_adds": 1}}}', "cannot be read"),
    ],
)
def test_metrics_without_exits_are_one_line(dmlkd, run, tmp_path, metrics, message):
    (tmp_path / "run" / "metrics.json").write_text(metrics)
    code, _, err = dmlkd("exits", "run")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
