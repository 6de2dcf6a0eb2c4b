"""What the benchmarks share: made-up embeddings, child processes whose time and peak memory are measured, tables."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np


def made_up(
    rows: int,
    dims: int,
    classes: int,
    *,
    largest: int,
    noise: float,
    seed: int,
    ordered: bool = False,
    groups: int = 0,
    apart: float = 1.0,
):
    """Unit float32 rows around random class centres, classes of 2 to ``largest`` rows, in random order.

    With ``groups`` the class centres lie around so many centres of their own, ``apart`` from them in each dimension: a
    mixture of Gaussians in two levels, the coarser of which an index can use.
    """
    rng = np.random.default_rng(seed)
    sizes = np.full(classes, 2)
    while (missing := rows - sizes.sum()) > 0:
        room = np.flatnonzero(sizes < largest)
        np.add.at(sizes, rng.choice(room, size=min(missing, len(room)), replace=False), 1)
    labels = np.repeat(np.arange(classes), sizes)
    if not ordered:
        rng.shuffle(labels)
    centres = rng.standard_normal((classes, dims), dtype=np.float32)
    if groups:
        coarse = rng.standard_normal((groups, dims), dtype=np.float32)
        centres = coarse[rng.integers(groups, size=classes)] + apart * centres
    z = np.empty((rows, dims), np.float32)
    for start in range(0, rows, 8192):
        part = labels[start : start + 8192]
        block = centres[part] + noise * rng.standard_normal((len(part), dims), dtype=np.float32)
        z[start : start + 8192] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return z, labels


def measured(work: Callable[[], object], *, repeats: int = 1) -> dict[str, object]:
    """Seconds of each call, and the peak of resident memory above what was resident before, in MB."""
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "peak_mb": max(0.0, _status("VmHWM") - before) / 1024, "result": result}


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1])


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark, and the hidden ones of its child processes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", help="write the figures to this JSON file")
    for hidden in ("--task", "--folder", "--arguments"):
        made.add_argument(hidden, help=argparse.SUPPRESS)
    return made


def in_child(script: str, task: str, arrays: dict[str, np.ndarray], **arguments: object) -> dict[str, object]:
    """Run one task of a benchmark script in a process of its own, which prints JSON."""
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array)
        command = [sys.executable, script, "--task", task, "--folder", folder, "--arguments", json.dumps(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, object]:
    """Where this ran, in general terms."""
    packages = ("numpy", "torch", "faiss-cpu", "pytorch-metric-learning")
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }


def show(rows: list[dict[str, object]], out: str | None, **facts: object) -> None:
    """Print a table, and write JSON if asked."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [names] + [[_cell(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if out:
        Path(out).write_text(json.dumps({"machine": machine(), **facts, "rows": rows}, indent=2) + "\n")


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
