"""A run on Omniglot-small by one process and by two on the same batches: how far loss curves and scores differ.

DMLKD_DATA=FOLDER python tools/benchmarks/two_processes.py [--epochs 5] [--seed 0] [--out result.json]

Contrastive loss and listwise self-distillation with the previous epoch's teacher, 20 pixels, no augmentation. Once with
batch norm frozen, where one process and two differ by rounding alone, and once live, where each process normalises by
its own half of the batch. "1, chunks" is one process that runs on half a batch at a time: what rounding alone does. One
thread a process; two processes by torchrun.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import parser, show

ROOT = Path(__file__).parents[2]
SETTINGS = ["data.image_size=20", "data.transform=plain", "data.validation=0.15", "train.sampler=without_replacement"]
KINDS = {"frozen": ["model.frozen_batch_norm=true"], "live": []}


def trained(processes: int, out: Path, settings: list[str]) -> dict[str, object]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    start = launcher if processes > 1 else [sys.executable, "-m"]
    words = [word for value in settings for word in ("--set", value)]
    command = [*start, "dmlkd", "train", "--config", "configs/omniglot-small.yaml", "--out", str(out), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    with (out / "log.csv").open() as file:
        log = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    metrics = json.loads((out / "metrics.json").read_text())
    return {"log": log, "metrics": metrics, "seconds": time.perf_counter() - began}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--epochs", type=int, default=5)
    options = options_of.parse_args()
    rows = []
    curves = {}
    for kind, own in KINDS.items():
        settings = [*SETTINGS, *own, f"train.epochs={options.epochs}", f"train.seed={options.seed}"]
        with tempfile.TemporaryDirectory() as folder:
            runs = {str(count): trained(count, Path(folder) / str(count), settings) for count in (1, 2)}
            if kind == "frozen":
                runs["1, chunks"] = trained(1, Path(folder) / "chunks", [*settings, "train.chunk_size=56"])
        curves[kind] = {name: [row["train/loss"] for row in run["log"]] for name, run in runs.items()}
        for name, run in runs.items():
            test = run["metrics"]["test_by_epoch"]["last"]
            differences = [abs(a - b) for a, b in zip(curves[kind]["1"], curves[kind][name], strict=True)]
            rows.append(
                {
                    "batch norm": kind,
                    "processes": name,
                    "loss of the last epoch": run["log"][-1]["train/loss"],
                    "largest difference of the curve": max(differences),
                    "in the first epoch": differences[0],
                    "test recall@1": test["recall@1"],
                    "test map@r": test["map@r"],
                    "seconds": run["seconds"],
                }
            )
    show(rows, options.out, epochs=options.epochs, seed=options.seed, loss_by_epoch=curves)


if __name__ == "__main__":
    main()
