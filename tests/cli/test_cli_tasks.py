"""``dmlkd tasks`` and ``dmlkd eval --gallery-model`` as a user meets them."""

import json

import pytest

from dmlkd.config import load_training
from dmlkd.training import run_plan
from dmlkd.training.arriving import measure_tasks

PLAN = """
data: {name: digits, validation: 0, held_out_images: 0.2, tasks: 2, image_size: 8, transform: plain}
model: {backbone: convnet4, dim: 8, backbone_args: {width: 4}}
metric_loss: {name: NormalizedSoftmaxLoss, temperature: 0.05}
train: {epochs: 1, batch_size: 16, per_class: 8, lr: 3e-3}
eval: {metrics: [recall@1, map@r, nmi]}
plan:
  - {name: first, data: {task: 0}}
  - name: second
    data: {task: 1, replay: {fit: first, images: 30}}
    start: {fit: first, metric_loss: true}
    distill: [{name: embedding, weight: 1}]
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.yaml").write_text(PLAN.replace("name: embedding,", "name: embedding, teacher: {TEACHER},"))
    text = (folder / "plan.yaml").read_text().replace("{TEACHER}", "{name: finished_run, fit: first}")
    (folder / "plan.yaml").write_text(text)
    return run_plan(load_training(folder / "plan.yaml")[0], folder / "run", quiet=True).folder


def test_it_shows_each_task_after_each_and_what_was_forgotten(dmlkd, plan):
    code, out, err = dmlkd("tasks", plan)
    assert (code, err) == (0, "")
    found = measure_tasks(plan)
    for shown in ("task 0", "task 1", "average", "forgotten", "unseen", "in old gallery", "first", "second"):
        assert shown in out
    for value in (*found.steps[1].tasks, found.steps[1].average, found.steps[1].old_unseen):
        assert f"{100 * value:.1f}" in out


def test_its_json_holds_what_is_measured(dmlkd, plan):
    code, out, _ = dmlkd("tasks", plan, "--metric", "map@r", "--json")
    assert code == 0
    found = measure_tasks(plan, metric="map@r")
    said = json.loads(out)
    assert (said["metric"], said["order"]) == ("map@r", [0, 1])
    assert said["steps"][1]["tasks"] == list(found.steps[1].tasks)
    assert said["steps"][0]["forgetting"] is None


def test_what_is_no_plan_with_tasks_is_one_line(dmlkd, plan, tmp_path):
    for arguments, message in (
        ((tmp_path,), "is no plan folder: it has no plan.yaml"),
        ((plan, "--metric", "recal@1"), "recal@1"),
        ((plan, "--metric", "nmi"), "nmi is no mean over queries"),
    ):
        code, out, err = dmlkd("tasks", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_a_new_models_queries_search_the_gallery_of_an_old_one(dmlkd, plan):
    first, second = (plan / "fits" / name for name in ("first", "second"))
    code, out, err = dmlkd("eval", "--run", second, "--gallery-model", first, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["recall@1"] == measure_tasks(plan).steps[1].old_unseen
    for run in (first, second):
        metrics = json.loads((run / "metrics.json").read_text())["test"]
        assert found["alone"][str(run)] == {name: metrics[name] for name in ("recall@1", "map@r")}
    by_model = json.loads(
        dmlkd("eval", "--model", second / "model", "--data", "digits", "--gallery-model", first / "model", "--json")[1]
    )
    assert by_model["recall@1"] == found["recall@1"]
    assert by_model["queries"] == 896
    table = dmlkd("eval", "--run", second, "--gallery-model", first)[1]
    assert f"its gallery embedded by {first}" in table
    assert f"{second} in {first}" in table.replace("\n", "")


def test_an_old_model_of_another_dimension_or_without_a_new_one_is_one_line(dmlkd, plan, tmp_path):
    from dmlkd.data.transforms import plain
    from dmlkd.models import EmbeddingModel, prepared_by

    other = EmbeddingModel("convnet4", dim=6, in_channels=1, backbone_args={"width": 4})
    other.preparation = prepared_by(plain, image_size=8, channels=1)
    other.save_pretrained(tmp_path / "other")
    second = plan / "fits" / "second"
    for arguments, message in (
        (("--run", second, "--gallery-model", tmp_path / "other"), "have 8 dimensions and the old gallery's 6"),
        (("--run", second, "--gallery-model", tmp_path / "nowhere"), "model folder"),
        (("--embeddings", "x.npy", "--gallery-model", second), "--gallery-model does not go with --embeddings"),
        (("--run", second, "--gallery-model", second, "--rerank", "k_reciprocal"), "identities that are left out"),
        (("--model", second / "model", "--gallery-model", second), "--model needs --data"),
    ):
        code, out, err = dmlkd("eval", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
