"""A plan on the command line: trained, resumed, measured; one line for what is wrong."""

import json
import os
import signal
from pathlib import Path

import pytest

PLAN = Path(__file__).parents[2] / "configs" / "plans" / "digits-generations.yaml"
SHORT = [
    word
    for value in (
        "train.epochs=1",
        "data.image_size=8",
        "model.backbone_args.width=4",
        "data.transform=plain",
        "plan.1.repeat=1",
    )
    for word in ("--set", value)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plan") / "digits"


def test_a_plan_stopped_by_a_signal_is_resumed_by_the_command_it_prints(dmlkd, monkeypatch, folder):
    from dmlkd.training import running

    fit, calls = running.fit, []

    def stopped(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(running, "fit", stopped)
        code, _, err = dmlkd("train", "--config", PLAN, *SHORT, "--out", folder)
    assert code == 143
    lines = err.splitlines()
    assert lines[0] == "fit 1/2 first"
    assert lines[-1] == f"stopped by SIGTERM; go on with: dmlkd train --resume {folder}"
    code, out, err = dmlkd("train", "--resume", folder)
    assert code == 0
    assert err.splitlines()[:2] == ["fit 1/2 first: finished already", "fit 2/2 generation-1"]
    for shown in ("raw pixels", "first", "generation-1", "map@r", f"plan folder: {folder}"):
        assert shown in out
    assert dmlkd("train", "--resume", folder) == (0, out + "it was finished already\n", "")


def test_other_commands_take_a_plan_as_its_last_fit(dmlkd, folder, tmp_path):
    last = folder / "fits" / "generation-1"
    metrics = json.loads((folder / "metrics.json").read_text())
    for run in (folder, last):
        code, out, _ = dmlkd("eval", "--run", run, "--json")
        assert code == 0
        assert {name: json.loads(out)[name] for name in metrics["test"]} == metrics["test"]
    code, out, _ = dmlkd("compare", folder / "fits" / "first", folder, "--json")
    assert code == 0
    assert {row["metric"] for row in json.loads(out)["comparisons"]} >= {"map@r"}
    for run, name in ((folder, "a.npy"), (last, "b.npy")):
        assert dmlkd("embed", "--run", run, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_plan_that_is_wrong_is_one_line_and_leaves_nothing(dmlkd, tmp_path):
    for override, message in (
        ("plan.1.distill.0.teacher.fit=frist", "no fit 'frist' comes before this one; did you mean 'first'?"),
        ("plan.1.distill.0.temperature=0", "must be a finite number above 0, got 0.0 (fit generation-1)"),
        ("plan.1.train.epoch=2", "plan.1.train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("train.batch_size=81", "batch_size must be a multiple of per_class, got 81 and 16 (fit first)"),
    ):
        code, _, err = dmlkd("train", "--config", PLAN, *SHORT, "--set", override, "--out", tmp_path / "plan")
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert err.startswith(("error: --set ", f"error: {PLAN}"))
        assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize("text", ["", "[", "plan: []", "plan: [3]", "plan: [{name: ../../x}]"])
def test_a_plan_folder_that_is_broken_is_one_line(dmlkd, tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    for command in (("eval", "--run"), ("embed", "--out", "x.npy", "--run"), ("train", "--resume")):
        code, _, err = dmlkd(*command, tmp_path)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_a_plan_whose_last_fit_is_not_there_yet_is_said(dmlkd, tmp_path):
    (tmp_path / "plan.yaml").write_text("plan: [{name: a}]")
    code, _, err = dmlkd("eval", "--run", tmp_path)
    assert (code, err) == (2, f"error: {tmp_path}/fits/a is not a finished run: it has no config.yaml\n")


GENERATIONS = """
data: {name: digits, image_size: 8, transform: plain, validation: 0, held_out_images: 0.25}
model: {backbone: convnet4, dim: 8, backbone_args: {width: 4}}
metric_loss: NormalizedSoftmaxLoss
train: {epochs: 1, batch_size: 80, per_class: 16, lr: 1e-2}
plan:
  - name: first
  - name: generation
    repeat: 2
    metric_weight: 0
    distill: [{name: label_mixing, weight: 1, share: 0.5, teacher: {name: finished_run, fit: previous}}]
"""


def test_a_plan_says_of_each_generation_what_its_class_scores_are_like(dmlkd, tmp_path):
    config, folder = tmp_path / "plan.yaml", tmp_path / "generations"
    config.write_text(GENERATIONS)
    code, out, _ = dmlkd("train", "--config", config, "--out", folder)
    assert code == 0
    _, table = out.split("Class scores on held-out images of the training classes")
    found = json.loads((folder / "metrics.json").read_text())["fits"]
    assert list(found) == ["first", "generation-1", "generation-2"]
    for name, fit in found.items():
        assert fit["seen"] == json.loads((folder / "fits" / name / "metrics.json").read_text())["seen"]
        row = next(line.split() for line in table.splitlines() if line.strip().startswith(name))
        assert row[1:] == [f"{value:.3f}" for value in fit["seen"].values()]
    assert len({fit["seen"]["entropy"] for fit in found.values()}) == 3
