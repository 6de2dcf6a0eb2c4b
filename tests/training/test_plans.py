"""A plan: what its folder holds, that it goes on where it was broken, and that earlier fits teach later ones."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.config import load_config, load_training
from dmlkd.errors import ConfigError, Interrupted, UserError
from dmlkd.training import plans, resume_plan, run, run_plan, running
from dmlkd.training.building import build
from dmlkd.training.checkpoints import CheckpointFiles, read_checkpoint
from dmlkd.training.loading import load_run
from dmlkd.training.measuring import evaluate_run
from dmlkd.training.teachers import out_of_fold

PLANS = Path(__file__).parents[2] / "configs" / "plans"
SHORT = [
    "train.epochs=1",
    "train.checkpoint_every_steps=2",
    "data.image_size=8",
    "data.transform=plain",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r]",
]


class Death(BaseException):
    """Stands for a kill that nothing in the run can catch."""


def configured(*overrides: str, name: str = "digits-folds"):
    plan, _ = load_training(PLANS / f"{name}.yaml", [*SHORT, *overrides])
    return plan


def bits(folder: Path) -> dict[str, bytes]:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("metrics.json", "log.csv", "model.safetensors", "left_out.csv", "plan.yaml", "config.yaml")
        for path in folder.rglob(name)
    }
    assert len(found) >= 3
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken plan with the settings above."""
    return run_plan(configured(), tmp_path_factory.mktemp("whole") / "plan")


def test_every_fit_has_a_run_folder_and_the_plan_the_last_ones_scores(whole):
    fits = [json.loads((whole.folder / "fits" / fit.name / "metrics.json").read_text()) for fit in configured().fits]
    assert json.loads((whole.folder / "metrics.json").read_text()) == whole.metrics
    assert {key: whole.metrics[key] for key in fits[-1]} == fits[-1]
    assert list(whole.metrics["fits"]) == ["without-0", "without-1", "without-2", "student"]
    assert [found["test"] for found in whole.metrics["fits"].values()] == [found["test"] for found in fits]
    assert load_training(whole.folder / "plan.yaml")[0].to_yaml() == configured().to_yaml()
    assert not list(whole.folder.rglob("*.tmp*"))


def test_a_plan_folder_stands_for_its_last_fit(whole):
    last = whole.folder / "fits" / "student"
    assert load_run(whole.folder).folder == last
    assert dict(evaluate_run(whole.folder)) == whole.metrics["test"]
    ours, theirs = (EmbeddingModel.from_pretrained(folder).state_dict() for folder in (whole.folder, last))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_each_image_is_taught_by_the_fit_that_did_not_see_it(whole):
    fits = whole.folder / "fits"
    left_out = {}
    for name in ("without-0", "without-1", "without-2"):
        parts = build(load_config(fits / name / "config.yaml")[0])
        drawn = {row for batch in parts.sampler for row in batch}
        with (fits / name / "left_out.csv").open() as file:
            left_out[name] = {int(row["row"]) for row in csv.DictReader(file)}
        assert not drawn & left_out[name]
    student = build(load_config(fits / "student" / "config.yaml")[0], fits)
    (teacher,) = student.objective.teachers
    for index, rows in enumerate(left_out.values()):
        assert set((teacher.teaches == index).nonzero().squeeze(1).tolist()) == rows
    weights = [EmbeddingModel.from_pretrained(fits / name).head.weight for name in left_out]
    assert all(torch.equal(m.network.head.weight, w) for m, w in zip(teacher.members, weights, strict=True))
    assert sum(map(len, left_out.values())) == len(student.data.train)


def test_a_fit_is_the_run_that_it_would_be_alone(whole, tmp_path):
    alone = run(configured().fits[1].config, tmp_path / "alone").folder
    assert bits(alone).keys() >= {"metrics.json", "log.csv", "left_out.csv"}
    assert bits(alone) == bits(whole.folder / "fits" / "without-1")


def die_at(monkeypatch, number: int) -> None:
    """Let the process die at the end of a call of the training, counted from 1."""
    fit, calls = running.fit, []

    def dying(*arguments, **named):
        calls.append(1)
        result = fit(*arguments, **named)
        if len(calls) == number:
            raise Death
        return result

    monkeypatch.setattr(running, "fit", dying)


def processes(folder: Path) -> list[int]:
    """How many processes worked on each fit."""
    found = (folder / "fits" / fit.name / "run.json" for fit in configured().fits)
    return [len(json.loads(path.read_text())["processes"]) for path in found]


def test_a_plan_killed_in_its_second_fit_goes_on_there_and_repeats_nothing(monkeypatch, tmp_path, whole, capsys):
    save, written = CheckpointFiles.save_checkpoint, []

    def dying(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        written.append(path)
        if path.parents[1].name == "without-1":
            raise Death

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFiles, "save_checkpoint", dying)
        with pytest.raises(Death):
            run_plan(configured(), tmp_path / "plan")
    assert read_checkpoint(written[-1])["global_step"] == 2
    capsys.readouterr()
    assert bits(resume_plan(tmp_path / "plan").folder) == bits(whole.folder)
    assert processes(tmp_path / "plan") == [1, 2, 1, 1]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fit ")]
    assert said == ["fit 1/4 without-0: finished already", "fit 2/4 without-1", "fit 3/4 without-2", "fit 4/4 student"]


@pytest.mark.parametrize("moment", ["before a fit has its configuration", "between two fits", "before its own metrics"])
def test_a_plan_killed_between_fits_ends_with_the_same_bits(monkeypatch, tmp_path, whole, moment):
    real = {"begin": plans.begin, "write_json": plans.write_json}

    def half_begun(config, parts, out, stop, **named):
        if out.name == "without-1":
            (out / ".config.99.tmp.yaml").write_text("half")
            raise Death
        return real["begin"](config, parts, out, stop, **named)

    def dying(*arguments):
        raise Death

    with monkeypatch.context() as patched:
        if moment == "before a fit has its configuration":
            patched.setattr(plans, "begin", half_begun)
        elif moment == "between two fits":
            held = plans.held_by_first
            patched.setattr(
                plans, "held_by_first", lambda folder: dying() if folder.name == "without-1" else held(folder)
            )
        else:
            patched.setattr(plans, "write_json", dying)
        with pytest.raises(Death):
            run_plan(configured(), tmp_path / "plan")
    assert bits(resume_plan(tmp_path / "plan").folder) == bits(whole.folder)
    assert processes(tmp_path / "plan") == [1, 1, 1, 1]
    assert not list((tmp_path / "plan").rglob("*.tmp*"))


def test_a_plan_killed_again_and_again_ends_with_the_same_bits(monkeypatch, tmp_path, whole):
    attempts = [lambda: run_plan(configured(), tmp_path / "plan")] + [lambda: resume_plan(tmp_path / "plan")] * 2
    for attempt in attempts:
        with monkeypatch.context() as patched:
            die_at(patched, 2)
            with pytest.raises(Death):
                attempt()
    assert bits(resume_plan(tmp_path / "plan").folder) == bits(whole.folder)
    assert processes(tmp_path / "plan") == [1, 2, 2, 2]


def test_a_signal_stops_a_plan_and_names_the_folder_that_goes_on(monkeypatch, tmp_path, whole):
    fit, calls = running.fit, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return fit(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(running, "fit", interrupted)
        with pytest.raises(Interrupted, match=r"SIGINT; go on with: dmlkd train --resume \S*plan$"):
            run_plan(configured(), tmp_path / "plan")
    assert bits(resume_plan(tmp_path / "plan").folder) == bits(whole.folder)


def test_a_plan_that_was_changed_goes_on_only_with_fits_that_were_not_begun(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        die_at(patched, 1)
        with pytest.raises(Death):
            run_plan(configured(name="digits-generations"), tmp_path / "plan")
    path = tmp_path / "plan" / "plan.yaml"
    written = path.read_text()
    path.write_text(written.replace("lr: 0.0003", "lr: 0.0004", 1))
    with pytest.raises(
        UserError, match=r"first/config\.yaml is not what plan\.yaml says of first: put plan\.yaml back"
    ):
        resume_plan(tmp_path / "plan")
    path.write_text(written[: written.rindex("- name: generation-2")].replace("weight: 50.0", "weight: 5.0"))
    assert list(resume_plan(tmp_path / "plan").metrics["fits"]) == ["first", "generation-1"]
    changed = load_config(tmp_path / "plan" / "fits" / "generation-1" / "config.yaml")[0]
    assert changed.distill[0].weight == 5


def test_what_cannot_be_resumed_is_said(tmp_path, whole):
    with pytest.raises(UserError, match="is finished; measure its last fit again with dmlkd eval --run"):
        resume_plan(whole.folder)
    with pytest.raises(UserError, match=r"is no plan folder: it has no plan\.yaml"):
        resume_plan(tmp_path)
    (tmp_path / "plan.yaml").write_text(configured().fits[0].config.to_yaml())
    with pytest.raises(UserError, match=r"plan\.yaml holds no plan, but the configuration of one run"):
        resume_plan(tmp_path)
    with pytest.raises(UserError, match="is already there and not an empty folder"):
        run_plan(configured(), whole.folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.3.distill.0.temperature=-1", r"finite number above 0, got -1.0 \(fit student\)"),
        ("plan.2.metric_loss={name: TripletMarginLoss, margin: x}", "must be a number"),
        ("plan.3.start={path: nowhere}", r"model folder nowhere does not exist \(fit student\)"),
        ("plan.1.train.per_class=1", r"a batch needs at least 2 of each, got 1 \(fit without-1\)"),
        ("plan.1.train.batch_size=81", r"must be a multiple of per_class, got 81 and 16 \(fit without-1\)"),
        ("plan.2.train.lr_schedule=step", r"lr_step_epochs.*\(fit without-2\)"),
    ],
)
def test_what_a_later_fit_gets_wrong_is_said_before_the_first_one_starts(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_plan(configured(override), tmp_path / "plan")
    assert caught.value.path[:2] == ("plan", int(override[5])) or not caught.value.path
    assert not (tmp_path / "plan").exists()


def test_generations_are_taught_by_the_one_before(tmp_path):
    plan = configured("train.epochs=2", "plan.1.repeat=1", name="digits-generations")
    assert [fit.name for fit in plan.fits] == ["first", "generation-1"]
    fits = run_plan(plan, tmp_path / "plan").folder / "fits"
    saved = read_checkpoint(fits / "generation-1" / "checkpoints" / "last.ckpt")["state_dict"]
    first = EmbeddingModel.from_pretrained(fits / "first").head.weight
    assert torch.equal(saved["objective.teachers.0.network.head.weight"], first)
    assert not torch.equal(saved["model.head.weight"], first)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_plan_is_read_and_its_fits_are_built(path, request, monkeypatch):
    if not path.stem.startswith("digits"):
        monkeypatch.setenv("DMLKD_DATA", str(request.getfixturevalue("omniglot")))
    plan, _ = load_training(path)
    for fit in plan.fits:
        plans._rehearse(fit)
    assert len(build(plan.fits[0].config).sampler) > 3


@pytest.fixture
def folds(whole, tmp_path):
    for name in ("without-0", "without-1", "without-2"):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("metrics.json", "left_out.csv"):
            (folder / file).write_bytes((whole.folder / "fits" / name / file).read_bytes())
        (folder / "model").symlink_to(whole.folder / "fits" / name / "model")
    return tmp_path


def made(folds, *names):
    config = configured().fits[0].config
    paths = build(config).data.train.paths
    student = EmbeddingModel("convnet4", dim=8, in_channels=1)
    fits = list(names or ["without-0", "without-1", "without-2"])
    return out_of_fold(student, fits=fits, classes=5, paths=paths, runs=folds)


def test_fits_that_leave_out_each_image_once_are_taken(folds):
    assert np.bincount(made(folds).teaches).tolist() == [301, 300, 300]


def test_a_fit_that_left_no_image_out_is_refused(folds):
    (folds / "without-1" / "left_out.csv").unlink()
    with pytest.raises(UserError, match=r"without-1 left out no images: set data\.image_folds"):
        made(folds)


def test_images_that_no_fit_left_out_are_refused(folds):
    with pytest.raises(UserError, match="300 images were left out by none of the fits, such as "):
        made(folds, "without-0", "without-1")


def test_images_left_out_twice_are_refused(folds):
    (folds / "without-1" / "left_out.csv").write_bytes((folds / "without-0" / "left_out.csv").read_bytes())
    with pytest.raises(UserError, match="without-0 and without-1 both left out row "):
        made(folds)


@pytest.mark.parametrize("changed", ["row,path,label\n0,another,0\n", "row,path,label\n-1,x,0\n"])
def test_fits_of_other_images_are_refused(folds, changed):
    (folds / "without-1" / "left_out.csv").write_text(changed)
    with pytest.raises(UserError, match=r"left_out\.csv is of other training images: row "):
        made(folds)


def test_a_record_that_is_no_table_is_refused(folds):
    (folds / "without-1" / "left_out.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"left_out\.csv cannot be read"):
        made(folds)


def test_a_teacher_without_fits_is_refused(folds):
    with pytest.raises(UserError, match="fits must name at least one earlier fit, got none"):
        out_of_fold(EmbeddingModel(in_channels=1), fits=[], classes=5, paths=np.array(["a"]), runs=folds)


def test_a_quiet_plan_shows_nothing_also_when_it_is_resumed(tmp_path, capfd):
    folder = run_plan(configured(), tmp_path / "plan", quiet=True).folder
    (folder / "metrics.json").unlink()
    (folder / "fits" / "student" / "metrics.json").unlink()
    resume_plan(folder, quiet=True)
    assert capfd.readouterr() == ("", "")


HOLDER = """
import sys
from pathlib import Path
from dmlkd.training.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_fit_that_another_process_is_at_work_on_is_left_alone(whole, tmp_path):
    folder = tmp_path / "plan"
    shutil.copytree(whole.folder, folder)
    (folder / "metrics.json").unlink()
    student = folder / "fits" / "student"
    (student / "metrics.json").unlink()
    command, pipe = [sys.executable, "-c", HOLDER, student], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=PLANS.parents[1]) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="student is in use by another process"):
            resume_plan(folder)
        holder.stdin.close()
