"""Several processes train what one process trains on the joined batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import process_cases
import pytest
import torch
from process_cases import ALIKE, EQUAL, ROOT, recorded

from dmlkd.launching import launcher
from dmlkd.training.gathering import average_statistics, same_randomness
from dmlkd.training.processes import Processes, together


def started(size: int, *command: str | Path, slurm: dict[str, str] | None = None) -> list[subprocess.Popen]:
    """Processes with the variables that torchrun sets, or some of Slurm's and those that srun sets for each task."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common = {**os.environ, "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    common |= torchrun if slurm is None else slurm
    rank_of, local_rank_of = ("RANK", "LOCAL_RANK") if slurm is None else ("SLURM_PROCID", "SLURM_LOCALID")
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**common, rank_of: str(rank), local_rank_of: str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def test_who_started_a_process_is_told_by_its_variables(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert launcher() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert launcher() == "srun"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert launcher() == "torchrun"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert launcher() is None


def test_one_process_needs_no_group():
    alone = Processes.now()
    assert (alone.several, alone.first, alone.group) == (False, True, None)
    assert (alone.largest(3), alone.all_of("a"), alone.from_first(lambda: 5)) == (3, ["a"], 5)
    with together() as same:
        assert same == alone


def test_statistics_that_move_are_averaged_and_no_others(monkeypatch):
    def doubled(tensor, group=None):
        tensor.mul_(2)

    monkeypatch.setattr("torch.distributed.all_reduce", doubled)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 4)
    norms = torch.nn.ModuleList([torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(3).eval(), torch.nn.Linear(1, 1)])
    for norm in norms[:2]:
        norm.running_mean += 1
    average_statistics(norms)
    assert norms[0].running_mean.tolist() == norms[0].running_var.tolist() == [0.5, 0.5]
    assert norms[1].running_mean.tolist() == [1, 1, 1]


def test_what_is_drawn_alike_leaves_the_own_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with same_randomness(0, 3):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with same_randomness(0, 3):
        assert torch.equal(torch.rand(2), first)
    with same_randomness(0, 4):
        assert not torch.equal(torch.rand(2), first)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """What each of several processes recorded of each case, by their number."""
    results: dict[int, dict[str, list[dict]]] = {}

    def of(size: int) -> dict[str, list[dict]]:
        if size not in results:
            names = [*EQUAL, *ALIKE] if size == 2 else ["remembered, chunks", "queue", "S2SD"]
            out = tmp_path_factory.mktemp(f"of-{size}")
            for code, _, errors in ended(started(size, process_cases.__file__, out, json.dumps(names))):
                assert code == 0, errors
            results[size] = {
                name: [torch.load(out / f"{number}.{rank}.pt", weights_only=True) for rank in range(size)]
                for number, name in enumerate(names)
            }
        return results[size]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "case"), [(2, name) for name in EQUAL] + [(3, name) for name in ("remembered, chunks", "queue", "S2SD")]
)
def test_losses_gradients_and_memories_are_those_of_one_process(several, tmp_path, size, case):
    one = recorded(EQUAL[case], tmp_path / "one")
    for own in several(size)[case]:
        assert len(own["losses"]) == len(one["losses"]) == 6
        for loss, expected in zip(own["losses"], one["losses"], strict=True):
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for gradients, expected in zip(own["gradients"], one["gradients"], strict=True):
            torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(own["state"], one["state"], rtol=1e-5, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in one["gradients"][-1].values()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("case", [*EQUAL, *ALIKE])
def test_all_processes_have_the_same_bits(several, case):
    first, *others = several(2)[case]
    for other in others:
        for what in ("losses", "gradients", "state"):
            torch.testing.assert_close(other[what], first[what], rtol=0, atol=0)
        assert not torch.equal(other["generators"][0], first["generators"][0])  # each augments by numbers of its own
