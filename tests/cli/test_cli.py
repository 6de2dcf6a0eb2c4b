"""The command line as a user meets it: exit codes, one line for what is wrong, results on standard output."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmlkd import __version__
from dmlkd.cli import main

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs" / "digits.yaml")
OMNIGLOT = str(ROOT / "configs" / "omniglot-small.yaml")
SHORT = [
    "--set",
    "train.epochs=1",
    "--set",
    "data.image_size=8",
    "--set",
    "model.backbone_args.width=4",
    "--set",
    "data.transform=plain",
]


def dmlkd(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["dmlkd", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def test_help_names_the_commands(monkeypatch, capsys):
    code, out, _ = dmlkd(monkeypatch, capsys, "--help")
    assert code == 0
    assert "train" in out
    assert "eval" in out


@pytest.mark.parametrize("command", ["train", "eval"])
def test_every_command_has_help(monkeypatch, capsys, command):
    code, out, _ = dmlkd(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert "--" in out


def test_version(monkeypatch, capsys):
    assert dmlkd(monkeypatch, capsys, "--version")[:2] == (0, f"dmlkd {__version__}\n")


def test_train_then_eval_print_the_same_scores(monkeypatch, capsys, tmp_path):
    folder = str(tmp_path / "run")
    code, out, err = dmlkd(monkeypatch, capsys, "train", "--config", DIGITS, *SHORT, "--out", folder)
    assert code == 0
    for shown in ("raw pixels", "untrained", "last epoch", "recall@1", "map@r", "r_precision", "nmi", folder):
        assert shown in out
    assert "epoch 1/1" in err
    code, out, _ = dmlkd(monkeypatch, capsys, "eval", "--run", folder, "--json")
    assert code == 0
    scores = json.loads(out)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {name: scores[name] for name in metrics["test"]} == metrics["test"]
    assert (scores["queries"], scores["left_out"]) == (896, 0)
    code, out, _ = dmlkd(monkeypatch, capsys, "eval", "--run", folder)
    assert f"{100 * metrics['test']['recall@1']:.1f}" in out


def test_resuming_a_finished_run_shows_what_it_found(monkeypatch, capsys, tmp_path):
    folder = str(tmp_path / "run")
    _, trained, _ = dmlkd(monkeypatch, capsys, "train", "--config", DIGITS, *SHORT, "--out", folder)
    assert dmlkd(monkeypatch, capsys, "train", "--resume", folder)[:2] == (0, trained + "it was finished already\n")


def test_quietly_only_the_scores_are_printed(monkeypatch, capsys, tmp_path):
    arguments = ["train", "--config", DIGITS, *SHORT, "--quiet", "--deterministic", "--out", str(tmp_path / "run")]
    code, out, err = dmlkd(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("Retrieval among 896 images")
    assert "deterministic: true" in (tmp_path / "run" / "config.yaml").read_text()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_stopped_by_a_signal_says_how_to_go_on_and_goes_on(monkeypatch, capsys, tmp_path):
    folder = str(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr("dmlkd.training.running.fit", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
        code, _, err = dmlkd(monkeypatch, capsys, "train", "--config", DIGITS, *SHORT, "--out", folder)
    assert code == 143
    assert err == f"stopped by SIGTERM; go on with: dmlkd train --resume {folder}\n"
    code, out, _ = dmlkd(monkeypatch, capsys, "train", "--resume", folder)
    assert code == 0
    assert f"run folder: {folder}" in out


def test_without_out_runs_are_numbered_and_none_is_written_over(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert dmlkd(monkeypatch, capsys, "train", "--config", DIGITS, *SHORT)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]


def bad(*overrides: str, config: str = DIGITS) -> list[str]:
    return ["train", "--config", config, *(word for o in overrides for word in ("--set", o))]


WRONG = {
    "missing config file": (["train", "--config", "nothing.yaml"], "nothing.yaml: no such file"),
    "config is a folder": (["train", "--config", "."], ".: cannot be read: "),
    "bad YAML": (["train", "--config", "bad.yaml"], "bad.yaml:1: not valid YAML"),
    "empty file": (["train", "--config", "empty.yaml"], "empty.yaml: must be a mapping of sections"),
    "unknown key": (bad("train.epoch=3"), "train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    "wrong type": (bad("train.epochs=many"), "train.epochs: must be a valid integer"),
    "unknown loss": (bad("metric_loss.name=TripletMargin"), "did you mean 'TripletMarginLoss'?"),
    "unknown miner": (bad("miner.name=HardMiner"), "unknown class of pytorch_metric_learning.miners 'HardMiner'"),
    "unknown backbone": (bad("model.backbone=resnet51"), "model: unknown backbone 'resnet51'; did you mean 'resnet50'"),
    "unknown data": (bad("data.name=cifar"), "unknown data set 'cifar'"),
    "unknown method": (bad("distill.0.name=lsdd"), "did you mean 'lsd'?"),
    "unknown teacher": (bad("distill.0.teacher=ema"), "unknown teacher 'ema'"),
    "unknown schedule": (bad("distill.0.schedule=linear"), "unknown schedule 'linear'; did you mean 'linear_ramp'?"),
    "no data root": (bad(config=OMNIGLOT), "set data.root or the environment variable DMLKD_DATA"),
    "data root that is not there": (bad("data.root=/nowhere", config=OMNIGLOT), "folder /nowhere does not exist"),
    "data root that is empty": (bad("data.root=.", config=OMNIGLOT), "holds neither images_background_small1/ nor"),
    "batch not divisible": (bad("train.batch_size=81"), "batch_size must be a multiple of per_class, got 81 and 16"),
    "one a class with a pair loss": (bad("train.per_class=1", "train.batch_size=5"), "needs at least 2 of each, got 1"),
    "too few classes": (bad("train.batch_size=96"), "needs 6 classes, the training split has 5"),
    "bad number": (bad("distill.0.temperature=0"), "temperature must be a finite number above 0, got 0"),
    "run folder taken": ([*bad(), "--out", "taken"], "taken is already there and not an empty folder"),
    "run folder that cannot be made": ([*bad(), "--out", "bad.yaml/run"], "run folder bad.yaml/run cannot be written"),
    "run folder that is a file": ([*bad(), "--out", "bad.yaml"], "bad.yaml is already there and not an empty folder"),
    "no such accelerator": (bad("train.accelerator=mps"), "this machine has no mps device; auto takes what there is"),
    "run to resume that is not there": (["train", "--resume", "nowhere"], "nowhere is no run folder: it has no config"),
    "run to resume that is no run": (["train", "--resume", "taken"], "taken is no run folder: it has no config.yaml"),
    "run that is not there": (["eval", "--run", "nowhere"], "run folder nowhere does not exist"),
    "run that is no run": (["eval", "--run", "taken"], "taken is not a finished run: it has no config.yaml"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_with_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMLKD_DATA", raising=False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    (tmp_path / "bad.yaml").write_text("a: b: c\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep me")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = dmlkd(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["trian"],
        ["train", "--confg", "x"],
        ["eval"],
        ["train", "--resume", "x", "--config", DIGITS],
        ["train", "--resume", "x", "--set", "train.epochs=3"],
        ["train", "--resume", "x", "--deterministic"],
    ],
)
def test_wrong_usage_has_exit_code_2(monkeypatch, capsys, arguments):
    code, _, err = dmlkd(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "Usage: dmlkd" in err


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dmlkd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dmlkd {__version__}\n"
