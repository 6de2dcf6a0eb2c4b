"""Classes that arrive over time: the memory of a plan's fits, who teaches which classes, and what is measured of it."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.config import load_config, load_training
from dmlkd.data.exemplars import herding_order
from dmlkd.errors import ConfigError, UserError
from dmlkd.export import embed
from dmlkd.retrieval import evaluate
from dmlkd.retrieval.arriving import forgetting
from dmlkd.training import EmbeddingModule, Objective, plans, resume_plan, run, run_plan
from dmlkd.training.arriving import measure_tasks
from dmlkd.training.building import build
from dmlkd.training.building_data import build_task_images, build_training_images
from dmlkd.training.recorded import recorded_rows, trained_rows
from dmlkd.training.replay import exemplars, nearest_classes

PLAN = """
data:
  {name: digits, test_share: 0.4, seen_classes: true, validation: 0, held_out_images: 0.2, tasks: 3, image_size: 8,
   transform: plain}
model: {backbone: convnet4, dim: 16, backbone_args: {width: 4}}
metric_loss: {name: NormalizedSoftmaxLoss, temperature: 0.05}
train: {epochs: 2, batch_size: 24, per_class: 8, lr: 3e-3, checkpoint_every_steps: 3}
eval: {metrics: [recall@1, map@r]}
plan:
  - {name: first, data: {task: 0}}
  - name: second
    data: {task: 1, replay: {fit: previous, images: 51}}
    start: {fit: previous, metric_loss: true}
    distill: [{name: sril, weight: 1, teacher: {name: finished_run, fit: previous, trained_classes: true}}]
  - name: expert
    data: {task: 2, replay: {fit: second, images: 51, nearest: 1}}
    start: {fit: second, metric_loss: true}
  - name: third
    data: {task: 2, replay: {fit: second, images: 51}}
    start: {fit: second, metric_loss: true}
    distill:
      - {name: discriminative, weight: 1, teacher: {name: finished_run, fit: second, trained_classes: true}}
      - {name: discriminative, weight: 1, teacher: {name: finished_run, fit: expert, trained_classes: true}}
"""
FITS = ("first", "second", "expert", "third")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def whole(file):
    """The unbroken plan."""
    return run_plan(load_training(file)[0], file.parent / "whole", quiet=True).folder


def built(whole, fit, *overrides):
    folder = whole / "fits" / fit
    return build(load_config(folder / "config.yaml", overrides)[0], whole / "fits")


def memory(whole, fit):
    """Rows of a fit's memory by class, in their order."""
    targets = built(whole, "first").data.train.targets
    found = {}
    with (whole / "fits" / fit / "replay.csv").open() as opened:
        for row in csv.DictReader(opened):
            found.setdefault(int(targets[int(row["row"])]), []).append(int(row["row"]))
    return found


def test_a_fit_draws_its_tasks_images_and_its_memory_and_nothing_else(whole):
    for fit in FITS[1:]:
        parts = built(whole, fit)
        data, kept = parts.data, np.concatenate(list(memory(whole, fit).values()))
        assert np.array_equal(data.replayed, kept)
        task = load_config(whole / "fits" / fit / "config.yaml")[0].data.task
        own = build_tasks(whole) == task
        assert np.array_equal(data.trained, np.union1d(np.flatnonzero(own), kept))
        assert not own[kept].any()
        drawn = {row for batch in parts.sampler for row in batch}
        assert drawn <= set(data.trained.tolist())
        assert drawn & set(kept.tolist())
        assert data.counts()["replayed"] == {"images": len(kept), "classes": len(memory(whole, fit))}
        assert np.array_equal(trained_rows(whole / "fits" / fit, data.train.paths), data.trained)


def build_tasks(whole):
    """The task of each training image, by the fits without a memory that see one task each."""
    found = np.full(len(built(whole, "first").data.train), -1)
    for task in range(3):
        found[built(whole, "first", f"data.task={task}").data.trained] = task
    assert (found >= 0).all()
    return found


def test_the_memory_of_new_classes_is_the_herding_of_the_earlier_fits_embeddings(whole):
    config = load_config(whole / "fits" / "first" / "config.yaml")[0]
    images = build_training_images(config.data, seed=0).images
    first = built(whole, "first").data
    z = embed(EmbeddingModel.from_pretrained(whole / "fits" / "first"), images).numpy()
    kept = memory(whole, "second")
    assert set(kept) == set(first.train.targets[first.trained].tolist())
    assert {len(rows) for rows in kept.values()} == {51 // len(kept)}
    for label, rows in kept.items():
        of_class = np.flatnonzero(first.train.targets == label)
        assert rows == of_class[herding_order(z[of_class], len(rows))].tolist()


def test_a_memory_shrinks_to_its_best_and_takes_from_the_gone_images_nothing_new(whole):
    second, third = memory(whole, "second"), memory(whole, "third")
    assert len(third) > len(second)
    assert sum(map(len, third.values())) <= 51
    for label, rows in third.items():
        assert len(rows) == 51 // len(third)
        if label in second:
            assert rows == second[label][: len(rows)]


def test_an_expert_has_the_same_images_of_the_classes_nearest_to_its_own_alone(whole):
    near, every = memory(whole, "expert"), memory(whole, "third")
    assert 0 < len(near) <= 3 < len(every)
    assert all(every[label] == rows for label, rows in near.items())


def test_a_teacher_scores_the_classes_that_its_run_had_images_of(whole):
    parts = built(whole, "third")
    batch = next(iter(parts.sampler))
    images = parts.data.train.batch(batch).images
    targets = parts.data.train.targets
    for teacher, fit in zip(parts.objective.teachers, ("second", "expert"), strict=True):
        logits = teacher.network.eval().signals(images, ["logits"]).logits
        known = np.unique(targets[trained_rows(whole / "fits" / fit, parts.data.train.paths)])
        assert (logits > -torch.inf).all(dim=0).nonzero().squeeze(1).tolist() == known.tolist()
        assert (logits == -torch.inf).all(dim=0).sum() == 10 - len(known)


def bits(folder: Path) -> dict[str, bytes]:
    names = ("metrics.json", "log.csv", "model.safetensors", "left_out.csv", "replay.csv")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for name in names for p in folder.rglob(name)}


class Death(BaseException):
    """Stands for a kill that nothing in the run can catch."""


def test_a_plan_killed_in_mid_epoch_goes_on_with_the_memory_it_had(monkeypatch, file, whole, tmp_path):
    from dmlkd.training import replay
    from dmlkd.training.checkpoints import CheckpointFiles

    save = CheckpointFiles.save_checkpoint

    def dying(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        if path.parents[1].name == "second":
            raise Death

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save_checkpoint", dying)
        with pytest.raises(Death):
            run_plan(load_training(file)[0], tmp_path / "plan", quiet=True)
    chosen, real = [], replay._chosen
    monkeypatch.setattr(replay, "_chosen", lambda config, *rest: chosen.append(config) or real(config, *rest))
    resume_plan(tmp_path / "plan", quiet=True)
    assert [config.data.task for config in chosen] == [2, 2]  # that of the second fit was read
    assert {f"fits/{fit}/replay.csv" for fit in FITS[1:]} < bits(whole).keys()
    assert bits(tmp_path / "plan") == bits(whole)


def test_the_scores_of_each_task_are_those_of_its_held_out_images_among_all(whole):
    found = measure_tasks(whole)
    assert found.order == (0, 1, 2)
    assert [step.fit for step in found.steps] == ["first", "second", "third"]
    config = load_config(whole / "fits" / "first" / "config.yaml")[0]
    images, tasks = build_task_images(config.data, seed=0)
    z = {}
    for step in found.steps:
        z[step.fit] = embed(EmbeddingModel.from_pretrained(whole / "fits" / step.fit), images)
        each = evaluate(z[step.fit], images.labels, metrics=["recall@1"]).per_query["recall@1"]
        assert step.tasks == pytest.approx([each[tasks == task].mean() for task in range(3)])
        metrics = json.loads((whole / "fits" / step.fit / "metrics.json").read_text())
        assert step.unseen == metrics["test"]["recall@1"]
    assert [step.average for step in found.steps] == pytest.approx(
        [float(np.mean(step.tasks[: number + 1])) for number, step in enumerate(found.steps)]
    )
    table = np.array([step.tasks for step in found.steps])
    assert [step.forgetting for step in found.steps[1:]] == [forgetting(table[:2]), forgetting(table)]
    first = found.steps[0]
    assert first.forgetting is first.old_tasks is first.old_unseen is None
    ids = np.arange(len(images))
    crossed = evaluate(
        z["third"],
        images.labels,
        gallery=z["second"],
        gallery_labels=images.labels,
        query_ids=ids,
        gallery_ids=ids,
        metrics=["recall@1"],
    ).per_query["recall@1"]
    expected = np.mean([crossed[tasks == task].mean() for task in range(3)])
    assert found.steps[2].old_tasks == pytest.approx(expected)


def test_tasks_have_whole_classes_of_held_out_images_too(whole):
    config = load_config(whole / "fits" / "first" / "config.yaml")[0]
    images, tasks = build_task_images(config.data, seed=0)
    of_row = build_tasks(whole)
    targets = built(whole, "first").data.train.targets
    for label in np.unique(images.targets):
        assert set(tasks[images.targets == label]) == set(of_row[targets == label])


def test_one_fit_of_all_tasks_is_measured_alone(file, tmp_path):
    plan, _ = load_training(file, ["plan=[{name: joint, train: {epochs: 1}}]"])
    run_plan(plan, tmp_path / "joint", quiet=True)
    (step,) = measure_tasks(tmp_path / "joint").steps
    assert (step.fit, step.task, step.forgetting) == ("joint", None, None)
    assert step.average == pytest.approx(np.mean(step.tasks))


def edited(whole, tmp_path, old):
    shutil.copytree(whole, tmp_path / "edited")
    text = (whole / "plan.yaml").read_text()
    assert re.search(old, text)
    (tmp_path / "edited" / "plan.yaml").write_text(re.sub(old, "", text))
    return tmp_path / "edited"


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("    held_out_images: 0.2\n", "fit first held no images out to measure its tasks on"),
        ("    tasks?: [0-9]\n", "has no fit with data.tasks: its classes do not arrive"),
        ("    task: 1\n", "fit second trains on all tasks at once, beside fits of single ones"),
    ],
)
def test_a_plan_that_has_no_tasks_to_measure_is_refused(whole, tmp_path, old, message):
    with pytest.raises(UserError, match=message):
        measure_tasks(edited(whole, tmp_path, old))


def test_a_task_without_two_held_out_images_of_a_class_is_refused(monkeypatch, whole):
    from dmlkd.training import arriving

    real = arriving.build_task_images

    def without_any_of_task_1(config, *, seed):
        found = real(config, seed=seed)
        rows = np.flatnonzero(found.tasks == 1)
        found.images.labels[rows] = 1000 + rows  # each alone in its class
        return found

    monkeypatch.setattr(arriving, "build_task_images", without_any_of_task_1)
    with pytest.raises(UserError, match="task 1 has no two held-out images of one class: hold out a larger share"):
        measure_tasks(whole)


def test_a_folder_without_plan_an_unfinished_one_and_another_kind_of_metric_are_refused(whole, tmp_path):
    with pytest.raises(UserError, match=r"is no plan folder: it has no plan\.yaml"):
        measure_tasks(tmp_path)
    with pytest.raises(UserError, match="nmi is no mean over queries"):
        measure_tasks(whole, metric="nmi")
    shutil.copytree(whole, tmp_path / "plan")
    (tmp_path / "plan" / "fits" / "third" / "metrics.json").unlink()
    with pytest.raises(UserError, match="fit third is not finished; go on with: dmlkd train --resume"):
        measure_tasks(tmp_path / "plan")


REFUSED = {
    "too small": (["data.replay.images=2"], r"must be at least one for each of \d classes, got 2"),
    "nothing old": (["data.task=0"], "fit 'first' trained on no class that is not in this one's task"),
    "no such fit": (["data.replay.fit=zeroth"], "fit 'zeroth' is no finished run beside this one"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_a_memory_that_cannot_be_is_refused(whole, overrides, message):
    with pytest.raises(ConfigError, match=message):
        built(whole, "second", *overrides)


def test_nearest_classes_need_class_scores_and_so_do_trained_ones(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "plan")
    (tmp_path / "plan" / "fits" / "first" / "classes.safetensors").unlink()
    with pytest.raises(ConfigError, match="fit 'first' has no class scores, by which classes are near"):
        built(tmp_path / "plan", "second", "data.replay.nearest=1")
    with pytest.raises(ConfigError, match="first has no class scores: no term of its run read any"):
        built(tmp_path / "plan", "second")


def test_a_record_of_other_images_is_refused(whole, tmp_path):
    paths = built(whole, "first").data.train.paths
    (tmp_path / "replay.csv").write_text("row,path,label\n0,another,0\n")
    with pytest.raises(UserError, match="is of other training images: row 0 is another there"):
        recorded_rows(tmp_path / "replay.csv", paths)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.1.data.replay.fit=third", "no fit 'third' comes before this one"),
        ("plan.1.data.replay.images=0", "greater than or equal to 1"),
        ("plan.1.data.replay.image=5", "unknown key 'image'"),
        ("plan.1.data.noise=0.1", "fit first has another data section or train.seed: its rows are not the same"),
        ("plan.0.data.replay={fit: previous, images: 9}", "names the fit 'previous', but no fit comes before"),
        ("plan.1.distill.0.interpolation=2", "interpolation must be a number from 0 to 1, got 2"),
    ],
)
def test_what_a_fit_gets_wrong_is_said_before_the_first_one_starts(file, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run_plan(load_training(file, [override])[0], tmp_path / "plan", quiet=True)
    assert not (tmp_path / "plan").exists()


def test_a_teacher_of_another_dimension_is_refused_in_one_line(whole):
    for term in ("embedding", "sril"):
        overrides = [
            f"distill=[{{name: {term}, weight: 1, teacher: {{name: finished_run, fit: first}}}}]",
            "model.dim=8",
        ]
        with pytest.raises(ConfigError, match="the teacher's have 16, the student's 8"):
            built(whole, "second", "start=null", *overrides)


def test_the_fits_of_the_plan_go_on_from_each_other_and_interpolate(whole):
    last = json.loads((whole / "fits" / "second" / "run.json").read_text())
    assert last["data"]["replayed"]["images"] == 51 // len(memory(whole, "second")) * len(memory(whole, "second"))
    plans._rehearse(load_training(whole / "plan.yaml")[0].fits[1])


def test_the_end_of_an_epoch_comes_once_after_its_last_step_and_before_validation(monkeypatch, configs, tmp_path):
    said = []
    for kind, name in (
        (Objective, "end_epoch"),
        (Objective, "after_step"),
        (EmbeddingModule, "on_validation_epoch_start"),
    ):
        real = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *given, real=real, name=name: (said.append(name), real(*given))[1])
    short = ["train.epochs=2", "train.batch_size=48", "data.image_size=8", "model.backbone_args.width=4"]
    config = load_config(
        configs / "digits.yaml", [*short, "data.transform=plain", "distill=[]", "data.validation=0.4"]
    )[0]
    run(config, tmp_path / "run")
    steps = said.index("end_epoch")
    assert steps > 5
    assert said == 2 * (["after_step"] * steps + ["end_epoch", "on_validation_epoch_start"])


def test_exemplars_are_the_first_kept_and_else_by_herding():
    targets = np.array([0, 0, 0, 1, 1, 1, 2])
    embedded = {3: [1.0, 0.0], 4: [0.0, 1.0], 5: [0.6, 0.6]}
    asked = []

    def embed_rows(rows):
        asked.append(rows.tolist())
        return np.array([embedded[row] for row in rows], np.float32)

    found = exemplars(targets, np.array([0, 1, 3, 4, 5]), np.array([1, 0]), embed_rows, each=1)
    assert found.tolist() == [1, 5]
    assert asked == [[3, 4, 5]]


def test_nearest_classes_are_those_of_a_loop_over_new_classes():
    rng = np.random.default_rng(0)
    z, targets, weights = rng.normal(size=(12, 4)), np.repeat([2, 5, 7], 4), rng.normal(size=(9, 4))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    old = np.array([0, 1, 3, 4, 6])
    expected = set()
    for label in (2, 5, 7):
        mean = z[targets == label].mean(axis=0)
        expected |= set(sorted(old.tolist(), key=lambda c: -float(mean @ weights[c]))[:2])
    assert set(nearest_classes(z, targets, weights, old, k=2).tolist()) == expected
