"""Run the experiments behind docs/results/, any part of them, and write their tables.

    python tools/reproduce.py list
    python tools/reproduce.py digits-lsd [--seeds 5] [--data ../shared/data]

Beside other work, set OMP_NUM_THREADS=1: PyTorch processes that share cores wait for one another many times over.

Finished runs are kept under runs/reproduce/ and not repeated, so a broken experiment goes on where it was. Each table
goes to docs/results/NAME.json (every run's scores) and docs/results/NAME.md (means and paired intervals).
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
SHOWN = ("recall@1", "map@r")


@dataclass(frozen=True)
class Experiment:
    """Arms that differ in a few settings of one configuration, run with the same seeds; the first is the baseline."""

    title: str
    config: str
    arms: dict[str, tuple[str, ...]]
    seeds: int


EXPERIMENTS = {
    "digits-lsd": Experiment(
        "Digits: train on 0 to 4, test on 5 to 9",
        "configs/digits.yaml",
        {"multi-similarity": ("distill=[]",), "multi-similarity + LSD": ()},
        seeds=5,
    ),
    "omniglot-small-lsd": Experiment(
        "Omniglot-small: contrastive loss, 64 dimensions, 25 epochs",
        "configs/omniglot-small.yaml",
        {"contrastive": ("distill=[]",), "contrastive + LSD": ()},
        seeds=5,
    ),
}


def run_once(name: str, arm: str, seed: int, overrides: tuple[str, ...], config: str) -> dict[str, Any]:
    """Train one run, unless a finished one with the same configuration is there."""
    from dmlkd.config import load_config
    from dmlkd.training import run

    settings, _ = load_config(ROOT / config, [*overrides, f"train.seed={seed}"])
    slug = "".join(c if c.isalnum() else "-" for c in arm)
    folder = ROOT / "runs" / "reproduce" / name / f"{slug}-seed{seed}"
    finished = folder / "metrics.json"
    if finished.is_file():
        if (folder / "config.yaml").read_text() != settings.to_yaml():
            sys.exit(f"{folder} was made with another configuration; move it away")
        return dict(json.loads(finished.read_text()))
    if folder.exists():  # broken off: start it anew
        folder.rename(folder.with_name(f"{folder.name}.broken-{time.time_ns()}"))
    print(f"{name}: {arm}, seed {seed}", flush=True)
    return run(settings, folder).metrics


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval of paired differences (Student's t)."""
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.nan
    return statistics.fmean(differences), float(half)


def table(scores: dict[str, list[dict[str, float]]]) -> str:
    """Means with standard deviations, and differences from the first arm with paired intervals, in percent."""
    baseline = next(iter(scores))
    head = "".join(f" {m} | difference |" for m in SHOWN)
    lines = [f"| |{head}", "|---|" + "---|" * (2 * len(SHOWN))]
    for arm, runs in scores.items():
        cells = []
        for metric in SHOWN:
            values = [100 * r[metric] for r in runs]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}")
            if arm == baseline:
                cells.append("")
            else:
                mean, half = interval(
                    [100 * (r[metric] - b[metric]) for r, b in zip(runs, scores[baseline], strict=True)]
                )
                cells.append(f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reproduce(name: str, seeds: int | None) -> None:
    """Run an experiment and write its JSON and Markdown."""
    from dmlkd.files import write_json, write_text

    experiment = EXPERIMENTS[name]
    count = seeds or experiment.seeds
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in experiment.arms}
    for seed in range(count):  # arm beside arm, so that a broken experiment has pairs
        for arm, overrides in experiment.arms.items():
            runs[arm].append(run_once(name, arm, seed, overrides, experiment.config))
    scores = {arm: [r["test"] for r in results] for arm, results in runs.items()}
    first = next(iter(runs.values()))[0]
    baselines = "; ".join(
        f"{label}: " + ", ".join(f"{m} {100 * first['baselines'][key][m]:.2f}" for m in SHOWN)
        for key, label in (("pixels", "raw pixels"), ("untrained", "untrained network, seed 0"))
    )
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    machine = f"{os.cpu_count()} CPU cores, {threads} thread(s), {platform.machine()}, {platform.system()}, {gpu}"
    versions = first["versions"]
    page = f"""# {experiment.title}

Unseen classes, last epoch, in %: mean ± standard deviation over {count} seeds; difference from the first row with its
paired 95 % interval (Student's t).

{table(scores)}

For comparison, {baselines}.

Made by `python tools/reproduce.py {name}`, seeds 0 to {count - 1}, from `{experiment.config}` with

{chr(10).join(f"- {arm}: {_shown(overrides)}" for arm, overrides in experiment.arms.items())}

on {machine}; torch {versions["torch"]}, faiss {versions["faiss-cpu"]}, pytorch-metric-learning
{versions["pytorch-metric-learning"]}. Every run's scores are in `docs/results/{name}.json`.
"""
    write_text(ROOT / "docs" / "results" / f"{name}.md", page)
    record = {"machine": machine, "versions": versions, "test": scores}
    write_json(ROOT / "docs" / "results" / f"{name}.json", record)
    print(table(scores))


def _shown(overrides: tuple[str, ...]) -> str:
    return f"`{' '.join(f'--set {o}' for o in overrides)}`" if overrides else "nothing changed"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["list", *EXPERIMENTS])
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; default: the experiment's own")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    if arguments.experiment == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.title}; {len(experiment.arms)} arms, {experiment.seeds} seeds")
        return
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    reproduce(arguments.experiment, arguments.seeds)


if __name__ == "__main__":
    main()
