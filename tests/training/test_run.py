"""A whole run: what it leaves in its folder, that it repeats, and that nothing is lost when it is refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import small_trees as trees
import torch
import yaml

from dmlkd import EmbeddingModel, embed, evaluate
from dmlkd.config import load_config
from dmlkd.errors import ConfigError, DataError, TrainingError, UserError
from dmlkd.training import run
from dmlkd.training.building import build
from dmlkd.training.measuring import evaluate_run

SHORT = ["train.epochs=3", "data.image_size=8", "model.backbone_args.width=8", "data.transform=plain"]


def configured(configs: Path, *overrides: str):
    return load_config(configs / "digits.yaml", [*SHORT, *overrides])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = configured(Path(__file__).parents[2] / "configs", "data.validation=0.4", "train.batch_size=48")
    return config, run(config, tmp_path_factory.mktemp("run") / "digits")


def test_the_folder_holds_what_the_docs_say(finished):
    _, result = finished
    names = {p.relative_to(result.folder).as_posix() for p in result.folder.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.json",
        "log.csv",
        "run.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
    } <= names
    assert f"{100 * result.metrics['test']['map@r']:.2f}" in (result.folder / "model" / "README.md").read_text()
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not any("tmp" in name for name in names)


def test_the_configuration_is_kept_as_resolved(finished):
    config, result = finished
    assert load_config(result.folder / "config.yaml")[0] == config
    assert yaml.safe_load((result.folder / "config.yaml").read_text())["data"]["image_size"] == 8


def test_metrics_say_what_was_measured_on_what(finished):
    _, result = finished
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert set(metrics["test"]) == {"recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision", "nmi"}
    assert set(metrics["baselines"]) == {"pixels", "untrained"}
    assert metrics["data"]["train"]["classes"] == 3
    assert metrics["data"]["val"]["classes"] == 2
    assert metrics["data"]["test"] == {"images": 896, "classes": 5}
    assert metrics["seed"] == 0
    assert {"dmlkd", "torch", "faiss-cpu"} <= set(metrics["versions"])


def test_the_log_has_a_row_an_epoch(finished):
    _, result = finished
    with (result.folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [float(row["weight/lsd"]) for row in rows] == pytest.approx([0, 50 / 3, 100 / 3])
    assert rows[0]["train/lsd"] == ""
    assert float(rows[2]["train/loss"]) == pytest.approx(
        float(rows[2]["train/metric"]) + 100 / 3 * float(rows[2]["train/lsd"]), rel=1e-4
    )


def test_the_best_epoch_is_chosen_on_validation_classes_and_is_what_is_saved(finished):
    config, result = finished
    scores = [row["val/map@r"] for row in result.fit.history]
    best = result.metrics["epoch"]["best"]
    assert scores[best] == max(scores)
    assert result.metrics["epoch"] == {"last": 2, "best": best, "reported": "best"}
    assert result.metrics["val"]["map@r"] == max(scores)
    assert result.metrics["test"] == result.metrics["test_by_epoch"]["best"]
    val = build(config).data.val
    model = EmbeddingModel.from_pretrained(result.folder / "model")
    assert evaluate(embed(model, val), val.labels, metrics=["map@r"])["map@r"] == pytest.approx(max(scores), abs=1e-6)


def test_evaluating_the_run_again_gives_the_same_scores(finished):
    _, result = finished
    assert dict(evaluate_run(result.folder)) == result.metrics["test"]


def test_the_checkpoint_loads_without_unpickling_and_holds_the_teacher(finished):
    _, result = finished
    saved = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = saved["state_dict"]
    # The teacher of the last epoch is the student at the end of the one before.
    assert "objective.teachers.0.network.head.weight" in state
    assert not torch.equal(state["objective.teachers.0.network.head.weight"], state["model.head.weight"])


def test_the_teacher_is_not_in_the_optimiser(finished):
    config, result = finished
    saved = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    held = sum(len(group["params"]) for group in saved["optimizer_states"][0]["param_groups"])
    assert held == len(list(build(config).model.parameters()))


def test_the_same_seed_gives_the_same_metrics_file(configs, tmp_path):
    config = configured(configs, "train.epochs=2", "data.transform=handwriting")
    first, second = (run(config, tmp_path / name).folder for name in ("a", "b"))
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    assert (first / "log.csv").read_bytes() == (second / "log.csv").read_bytes()
    other = run(configured(configs, "train.epochs=2", "train.seed=1"), tmp_path / "c").folder
    assert (other / "metrics.json").read_bytes() != (first / "metrics.json").read_bytes()


def test_without_validation_the_last_epoch_is_reported(configs, tmp_path):
    result = run(configured(configs, "train.epochs=2"), tmp_path / "run")
    assert result.metrics["epoch"] == {"last": 1, "best": None, "reported": "last"}
    assert result.metrics["val"] == {}
    assert set(result.metrics["test_by_epoch"]) == {"last"}
    assert not (result.folder / "checkpoints" / "best.ckpt").exists()


def test_a_loss_with_class_weights_trains_them(configs, tmp_path):
    config = configured(configs, "metric_loss={name: ProxyAnchorLoss}", "miner=null", "train.per_class=16")
    parts = build(config)
    before = parts.objective.metric_loss.proxies.detach().clone()
    assert before.shape == (5, 64)
    result = run(config, tmp_path / "run")
    saved = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert not torch.allclose(saved["objective.metric_loss.proxies"], before, atol=1e-5)


def test_the_published_sampler_is_one_setting_away(configs):
    assert not build(configured(configs)).sampler.replacement
    parts = build(configured(configs, "train.sampler=published"))
    assert parts.sampler.replacement
    assert len(parts.sampler) == len(parts.data.train) // 80


def test_terms_with_equal_teachers_share_one(configs):
    lsd = "{name: lsd, weight: 1, temperature: 0.5}"
    parts = build(
        configured(
            configs, f"distill=[{lsd}, {lsd}, {{name: lsd, weight: 1, teacher: {{name: previous_epoch, mode: train}}}}]"
        )
    )
    assert len(parts.objective.teachers) == 2
    assert list(parts.objective.weights) == ["lsd_0", "lsd_1", "lsd_2"]


@pytest.mark.parametrize(
    "teacher",
    ["{name: moving_average, decay: 0.9}", "{name: snapshot, every: 5}", "{name: previous_epoch, mode: train}"],
)
def test_every_teacher_teaches_in_a_run_and_is_in_its_checkpoint(configs, tmp_path, teacher):
    config = configured(configs, f"distill.0.teacher={teacher}", "distill.0.schedule=constant", "train.epochs=2")
    result = run(config, tmp_path / "run")
    assert result.fit.history[-1]["train/lsd"] > 0
    state = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    steps_an_epoch = 11
    clock = {"moving_average": 2 * steps_an_epoch, "snapshot": 2 * steps_an_epoch, "previous_epoch": 1}
    (name,) = (n for n in clock if n in teacher)
    assert state["objective.teachers.0._extra_state"] == {"clock": clock[name]}


def test_remembered_embeddings_teach_in_a_run_and_are_in_its_checkpoint(configs, tmp_path):
    result = run(configured(configs, "distill.0.teacher=remembered"), tmp_path / "run")
    assert result.fit.history[0]["weight/lsd"] == 0
    assert result.fit.history[-1]["train/lsd"] > 0
    state = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    memory = state["objective.teachers.0.memory.values"]
    assert memory.shape == (901, 64)
    assert memory.dtype == torch.half
    assert state["objective.teachers.0._extra_state"]["epoch"] == 2


@pytest.mark.parametrize("loss", ["ContrastiveLoss", "ProxyAnchorLoss"])
def test_wider_heads_teach_in_a_run_and_are_not_in_its_model(configs, tmp_path, loss):
    s2sd = "{name: s2sd, weight: 100, teacher: {name: wider_heads, dims: [96, 128], features_after: 5}}"
    overrides = [f"metric_loss={{name: {loss}}}", "miner=null", f"distill=[{s2sd}]", "train.metric_loss_lr=0.5"]
    result = run(configured(configs, *overrides), tmp_path / "run")
    row = result.fit.history[-1]
    assert row["train/loss"] == pytest.approx(
        row["train/metric"] + 100 * row["train/s2sd"] + row["train/s2sd_teacher"], rel=1e-4
    )
    saved = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"]["objective.teachers.0.heads.1.2.weight"].shape == (128, 128)
    groups = saved["optimizer_states"][0]["param_groups"]
    rates = [(group["lr"], len(group["params"])) for group in groups]
    students_and_heads = len(list(EmbeddingModel("convnet4", in_channels=1).parameters())) + 2 * 4
    assert rates == [(3e-4, students_and_heads)] + ([(0.5, 3)] if loss == "ProxyAnchorLoss" else [])
    assert not any("teacher" in name for name in EmbeddingModel.from_pretrained(result.folder / "model").state_dict())


def test_a_cross_batch_memory_and_its_place_in_the_queue_are_in_the_checkpoint(configs, tmp_path):
    loss = "metric_loss={name: CrossBatchMemory, memory_size: 200, loss: {name: ContrastiveLoss}}"
    result = run(configured(configs, loss, "miner=null", "train.epochs=1"), tmp_path / "run")
    state = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["objective.metric_loss.embedding_memory"].shape == (200, 64)
    assert state["objective.metric_loss._extra_state"] == {"queue_idx": 11 * 80 % 200, "has_been_filled": True}


@pytest.mark.parametrize("part", ["", "model"])
def test_a_finished_run_of_another_dimension_teaches(configs, tmp_path, finished, part):
    path = finished[1].folder / part
    overrides = [
        "model.dim=16",
        f"distill.0.teacher={{name: finished_run, path: {path}}}",
        "distill.0.schedule=constant",
    ]
    result = run(configured(configs, *overrides, "train.epochs=1"), tmp_path / "run")
    assert result.fit.history[0]["train/lsd"] > 0


def test_a_finished_run_that_is_not_there_is_refused(configs, tmp_path):
    teacher = f"distill.0.teacher={{name: finished_run, path: {tmp_path}}}"
    with pytest.raises(ConfigError, match=r"is no saved model: it has no config\.json"):
        run(configured(configs, teacher), tmp_path / "run")


@pytest.mark.parametrize(("kind", "steps"), [("symmetric", {1, 2, 3, 4}), ("pair", {1})])
def test_noise_makes_training_labels_wrong_and_is_recorded(configs, tmp_path, kind, steps):
    config = configured(configs, "data.noise=0.3", f"data.noise_kind={kind}", "train.epochs=1")
    result = run(config, tmp_path / "run")
    with (tmp_path / "run" / "label_noise.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == round(0.3 * 901) == result.metrics["data"]["train"]["wrong_labels"]
    assert all(row["path"].startswith(f"digits/{row['true_label']}/") for row in rows)
    assert {(int(row["label"]) - int(row["true_label"])) % 5 for row in rows} == steps
    assert np.array_equal(build(config).data.test.labels, build(configured(configs)).data.test.labels)


def test_a_taken_folder_is_refused_and_kept(configs, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="is already there and not an empty folder"):
        run(configured(configs), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["train.batch_size=81"], ConfigError, "batch_size must be a multiple of per_class, got 81 and 16"),
        (["train.batch_size=96"], DataError, "needs 6 classes, the training split has 5"),
        (["train.per_class=1", "train.batch_size=5"], ConfigError, "MultiSimilarityLoss compares images of one class"),
        (["model.backbone=resnet8"], ConfigError, "unknown backbone 'resnet8'; did you mean 'resnet18'"),
        (["model.backbone=resnet18", "model.backbone_args=null"], ConfigError, "set data.channels to 3"),
        (["distill.0.temperature=-1"], ConfigError, "temperature must be a finite number above 0, got -1.0"),
        (["distill.0.teacher={name: previous_epoch, mode: x}"], ConfigError, "must be 'eval' or 'train', got 'x'"),
        (["data.validation=0.1"], DataError, "holds out 0 of 5 training classes"),
        (["metric_loss={name: RankedListLoss}"], ConfigError, "key 'margin' is missing"),
        (
            ["metric_loss={name: SmoothAPLoss}", "miner=null", "train.sampler=published"],
            ConfigError,
            "SmoothAPLoss needs equally many images of each class, which published does not draw",
        ),
        (
            ["metric_loss={name: SmoothAPLoss}", "miner=null", "train.per_class=200", "train.batch_size=400"],
            ConfigError,
            "SmoothAPLoss needs equally many images of each class in a batch, but 5 classes have fewer than 200",
        ),
        (["train.metric_loss_lr=0"], ConfigError, "metric_loss_lr: must be greater than 0, got 0"),
        (["train.early_stop_epochs=2"], ConfigError, r"stopping early needs validation classes; set data\.validation"),
        (
            ["train.checkpoint_trunk=true", "train.compile=true"],
            ConfigError,
            "a compiled backbone cannot be computed again stage by stage",
        ),
        (["distill.0.teacher={name: wider_heads, dims: []}"], ConfigError, "dims must name at least one dimension"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(configs, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        run(configured(configs, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("validation", [["data.validation=0.4", "train.batch_size=48"], []])
def test_a_loss_that_is_not_finite_stops_the_run(configs, tmp_path, validation):
    with pytest.raises(TrainingError, match=r"the loss is not finite at step \d+"):
        run(configured(configs, "train.optimizer=sgd", "train.lr=1e30", *validation), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("missing", ["config.yaml", "model/config.json", "model/model.safetensors"])
def test_an_unfinished_run_cannot_be_evaluated(finished, tmp_path, missing):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished[1].folder, copy)
    (copy / missing).unlink()
    with pytest.raises(UserError, match=f"is not a finished run: it has no {missing}"):
        evaluate_run(copy)


def test_a_damaged_model_is_refused_in_one_line(finished, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished[1].folder, copy)
    (copy / "model" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="cannot be read as a model") as caught:
        evaluate_run(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[2] / "configs").glob("*.yaml")))
def test_every_shipped_configuration_is_built(configs, omniglot, monkeypatch, tmp_path, small_counts, name):
    monkeypatch.setenv("DMLKD_DATA", str(omniglot))
    overrides = []
    if (tree := trees.TREES.get(load_config(configs / name)[0].data.name)) is not None:
        monkeypatch.setenv("DMLKD_DATA", str(tree(tmp_path)))
        overrides = ["model.weights=null", "data.image_size=64", "data.validation=0", "train.batch_size=8"]
        overrides += ["train.per_class=2", f"data.cache={tmp_path / 'cache'}", "data.workers=0"]
    parts = build(load_config(configs / name, overrides)[0])
    batch = [parts.data.train[row] for row in next(iter(parts.sampler))]
    z = parts.model(torch.stack([item.images for item in batch]))
    labels = torch.stack([item.labels for item in batch])
    assert torch.isfinite(parts.objective.metric_loss(z, labels))


@pytest.mark.slow
def test_omniglot_learns_to_tell_unseen_characters_apart(configs, omniglot, tmp_path):
    config, _ = load_config(configs / "omniglot-small.yaml", [f"data.root={omniglot}", "train.epochs=5"])
    metrics = run(config, tmp_path / "run").metrics
    assert metrics["data"] == {
        "train": {"images": 2720, "classes": 136},
        "test": {"images": 2120, "classes": 106},
        "test_queries_left_out": 0,
    }
    assert metrics["test"]["recall@1"] > metrics["baselines"]["pixels"]["recall@1"] + 0.05
    assert metrics["test"]["map@r"] > 2 * metrics["baselines"]["pixels"]["map@r"]
