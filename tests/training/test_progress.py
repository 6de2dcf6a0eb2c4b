"""What is shown of a run while it goes."""

import io
import re

import pytest

from dmlkd.config import load_config
from dmlkd.training import fit
from dmlkd.training import progress as shown
from dmlkd.training.building import build

SHORT = ["train.epochs=2", "data.image_size=8", "model.backbone_args.width=4", "distill.0.schedule=constant"]


def trained(configs, out, *, quiet: bool = False) -> None:
    config = load_config(configs / "digits.yaml", SHORT)[0]
    parts = build(config)
    fit(parts.model, parts.objective, parts.data, config.train, out=out, quiet=quiet)


def test_without_a_terminal_there_is_a_line_an_epoch_with_losses_speed_and_time_left(configs, tmp_path, capsys):
    trained(configs, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 2
    pattern = r"epoch {}/2  train/loss \S+  (train/lsd \S+  )?train/metric \S+  \d+\.\d s  \d+ images/s  (\S+) left"
    first, last = (re.fullmatch(pattern.format(n), line) for n, line in enumerate(lines, 1))
    assert first
    assert last
    assert not first[1]  # the teacher is not ready
    assert last[1]
    assert last[2] == "0:00:00"


def test_quietly_nothing_is_shown(configs, tmp_path, capsys):
    trained(configs, tmp_path, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_with_speed_losses_and_time_left(configs, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(shown, "_REFRESH", 0.0)
    trained(configs, tmp_path)
    text = screen.getvalue()
    for part in ("Epoch 1/1", "11/11", "it/s", "images/s: ", "all left: ", "train/lsd: ", "train/metric: "):
        assert part in text, part


def test_the_losses_are_looked_at_twice_a_second_and_not_each_step(configs, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(shown, "progress", shown.Bar)
    monkeypatch.setattr("dmlkd.training.fitting.progress", shown.Bar)
    monkeypatch.setattr(shown, "_REFRESH", 1000.0)
    monkeypatch.setattr(shown, "_shown", lambda module: looks.append(1) or {})
    trained(configs, tmp_path)
    assert 2 <= len(looks) <= 6  # 22 steps; at the ends of the epochs


@pytest.mark.parametrize(("steps", "done", "left"), [(10, 5, "0:00:20"), (10, 0, "0:01:40"), (0, 3, "0:00:00")])
def test_time_left_is_that_of_the_steps_so_far(monkeypatch, steps, done, left):
    clock = [0.0]
    monkeypatch.setattr(shown.time, "perf_counter", lambda: clock[0])
    pace = shown.Pace()
    for _ in range(done):
        pace.step(7)
    clock[0] = 10.0
    assert pace.left(steps) == left


def test_images_a_second_leave_out_what_comes_after_the_last_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(shown.time, "perf_counter", lambda: clock[0])
    pace = shown.Pace()
    clock[0] = 2.0
    pace.step(30)
    clock[0] = 100.0  # validation
    assert pace.images_per_second == 15
    assert pace.epoch_seconds == 100
