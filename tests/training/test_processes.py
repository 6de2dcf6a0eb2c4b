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


def started(size: int, *command: str | Path, **named) -> list[subprocess.Popen]:
    """Processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            **named,
        )
        for rank in range(size)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    said = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


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
