"""Whole runs in several processes: one folder, one message, one end, and going on from there."""

import csv
import json
import signal
import time

import pytest
from process_cases import ROOT
from test_processes import ended, started

from dmlkd.config import load_config
from dmlkd.training import run

RUN = [
    "train.epochs=6",
    "train.batch_size=48",
    "train.checkpoint_every_steps=2",
    "data.validation=0.4",
    "data.image_size=8",
    "model.backbone_args.width=4",
    "eval.metrics=[recall@1, map@r, nmi]",
    "distill.0.schedule=constant",
]
EQUAL = ["train.epochs=2", "data.transform=plain", "model.frozen_batch_norm=true", "train.optimizer=sgd"]


def train(*overrides: str):
    return ["-m", "dmlkd", "train", "--config", "configs/digits.yaml"] + [
        word for value in [*RUN, *overrides] for word in ("--set", value)
    ]


def bits(folder):
    return [(folder / name).read_bytes() for name in ("metrics.json", "log.csv", "model/model.safetensors")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The unbroken run of two processes, with live batch norm, augmentation and a remembered teacher."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for code, _, errors in ended(started(2, *train("distill.0.teacher=remembered"), "--out", folder)):
        assert code == 0, errors
    return folder


@pytest.mark.slow
def test_a_run_of_two_processes_is_that_of_one_but_for_rounding(tmp_path):
    """All that batch norm would see is out of the way; validation, test and baselines included."""
    first, second = ended(started(2, *train(*EQUAL), "--out", tmp_path / "two"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "run folder" in first[1]
    assert second[1] == ""
    run(load_config(ROOT / "configs" / "digits.yaml", [*RUN, *EQUAL])[0], tmp_path / "one")
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (tmp_path / "one", tmp_path / "two")]
    events = [[name for name in own if "events" in name] for own in names]
    assert [len(own) for own in events] == [1, 1]
    assert set(names[0]) - set(events[0]) == set(names[1]) - set(events[1])
    one, two = (list(csv.DictReader((tmp_path / name / "log.csv").read_text().splitlines())) for name in ("one", "two"))
    for ours, theirs in zip(one, two, strict=True):
        assert {k: float(v or 0) for k, v in ours.items()} == pytest.approx(
            {k: float(v or 0) for k, v in theirs.items()}, abs=2e-3
        )
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["baselines"] == two["baselines"]
    assert one["data"] == two["data"]
    assert one["test"] == pytest.approx(two["test"], abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_one_process_ends_all_and_resuming_gives_the_same_bits(tmp_path, whole, signum):
    folder = tmp_path / "run"
    processes = started(2, *train("distill.0.teacher=remembered"), "--out", folder)
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.005)
    processes[1].send_signal(signum)
    first, second = ended(processes)
    if signum == signal.SIGTERM:
        assert (first[0], second[0]) == (143, 143), first[2] + second[2]
        assert (first[2] + second[2]).count("stopped by SIGTERM; go on with: dmlkd train --resume") == 1
    else:
        assert (first[0], second[0]) == (2, -9), first[2]
        assert "error: another process of this run has ended; go on with dmlkd train --resume" in first[2]
    assert "Traceback" not in first[2] + second[2]
    assert not (folder / "metrics.json").exists()
    for code, _, errors in ended(started(2, "-m", "dmlkd", "train", "--resume", folder)):
        assert code == 0, errors
    assert bits(folder) == bits(whole)
    assert [entry["together"] for entry in json.loads((folder / "run.json").read_text())["processes"]] == [2, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "is already there and not an empty folder"),
        (["train.batch_size=49", "train.per_class=7"], "must be a multiple of 2, got 49"),
        (["train.sync_batch_norm=true"], "torch synchronises batch norm on GPUs alone"),
        (["train.epochz=3"], "did you mean 'epochs'"),
    ],
)
def test_what_is_wrong_is_said_once_and_ends_all(tmp_path, overrides, message):
    out = tmp_path / "run"
    out.mkdir()
    if not overrides:
        (out / "file").write_text("")
    results = ended(started(2, *train(*overrides), "--out", out))
    said = "".join(errors for _, _, errors in results)
    assert [code for code, *_ in results] == [2, 2], said
    assert said.count("error: ") == said.count(message) == 1
    assert "Traceback" not in said
    assert [path.name for path in out.iterdir()] == ([] if overrides else ["file"])


@pytest.mark.slow
def test_what_srun_starts_trains_together(tmp_path):
    """Its variables, as srun sets them; there is no Slurm here."""
    slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "cub"}
    command = [*train("train.epochs=1"), "--out", tmp_path / "run"]
    for code, _, errors in ended(started(2, *command, slurm=slurm)):
        assert code == 0, errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"][0]["together"] == 2


ONE_FAILS = """
from dmlkd.errors import UserError
from dmlkd.training.processes import Processes, together
try:
    with together() as processes:
        assert processes.all_of(processes.rank) == [0, 1, 2]
        assert processes.largest(processes.rank) == 2
        assert processes.from_first(lambda: processes.rank + 5) == 5
        try:
            processes.check_same("a colour", processes.rank // 2)
        except UserError as error:
            assert str(error).startswith("process 2 has a colour of its own: 1, the first has 0")
        else:
            raise AssertionError
        if processes.rank == 1:
            raise UserError("only here")
        processes.all_of(0)
except UserError as error:
    print(error.said, error)
assert Processes.now() == Processes(1, 0)
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others():
    results = ended(started(3, "-c", ONE_FAILS))
    assert [code for code, *_ in results] == [0, 0, 0], results
    said = [output for _, output, _ in results]
    assert said[1] == "False only here\n"
    assert all(other.startswith("True another process of this run has ended") for other in (said[0], said[2]))
