"""Run the experiments behind docs/results/, any part of them, and write their tables.

    python tools/reproduce.py list
    python tools/reproduce.py omniglot-losses [--only margin] [--processes 2] [--seeds 5] [--data ../shared/data]

Beside other work, set OMP_NUM_THREADS=1: PyTorch processes that share cores wait for one another many times over.
Several processes are given one thread each.

Finished runs are kept under runs/reproduce/ and not repeated, so a broken experiment goes on where it was. Each table
goes to docs/results/NAME.json (every run's scores) and docs/results/NAME.md (means and paired intervals).
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).parents[1]
SHOWN = ("recall@1", "map@r")


@dataclass(frozen=True)
class Group:
    """Arms that differ in a few settings of one configuration, run with the same seeds; the first is the baseline."""

    config: str
    arms: dict[str, tuple[str, ...]]
    seeds: int


@dataclass(frozen=True)
class Experiment:
    """Groups of one table."""

    title: str
    groups: dict[str, Group]


NONE = ("distill=[]",)
NOISE = "data.noise=0.3"
LONGER = "train.epochs=36"
S2SD = "distill=[{{name: s2sd, weight: {}, teacher: {{name: wider_heads, dims: [128, 256], features_after: {}}}}}]"
REMEMBERED = ("distill.0.teacher=remembered",)
LOSSES = {
    "contrastive": "contrastive",
    "triplet, distance-weighted": "triplet-distance-weighted",
    "margin": "margin",
    "multi-similarity": "multi-similarity",
    "ProxyNCA++": "proxy-nca",
    "normalised softmax": "normalized-softmax",
    "smooth-AP": "smooth-ap",
}
TWO = ("contrastive", "multi-similarity")

EXPERIMENTS = {
    "digits-lsd": Experiment(
        "Digits: train on 0 to 4, test on 5 to 9",
        {
            "multi-similarity": Group(
                "configs/digits.yaml", {"multi-similarity": NONE, "multi-similarity + LSD": ()}, seeds=5
            )
        },
    ),
    "omniglot-small-lsd": Experiment(
        "Omniglot-small with augmentation: contrastive loss, 64 dimensions, 25 epochs",
        {"contrastive": Group("configs/omniglot-small.yaml", {"contrastive": NONE, "contrastive + LSD": ()}, seeds=5)},
    ),
    "omniglot-losses": Experiment(
        "Omniglot-small: seven metric losses with listwise self-distillation",
        {
            name: Group(
                f"configs/omniglot-small/{recipe}.yaml",
                {name: NONE, f"{name} + LSD": (), f"{name} + LSD, remembered": REMEMBERED},
                seeds=5,
            )
            for name, recipe in LOSSES.items()
        },
    ),
    "omniglot-teachers": Experiment(
        "Omniglot-small: other teachers and targets",
        {
            name: Group(
                f"configs/omniglot-small/{name}.yaml",
                {
                    name: NONE,
                    f"{name} + LSD, moving average": ("distill.0.teacher={name: moving_average, decay: 0.99}",),
                    f"{name} + OBD-SD": ("distill.0.name=obd_sd", "distill.0.omega=0.5"),
                    f"{name} + S2SD, weight 5, heads alone": (S2SD.format(5, "null"),),
                    f"{name} + S2SD, weight 50, features after 100 steps": (S2SD.format(50, 100),),
                },
                seeds=3,
            )
            for name in TWO
        },
    ),
    "omniglot-longer": Experiment(
        "Omniglot-small: three times as many epochs",
        {
            f"{name}, 36 epochs": Group(
                f"configs/omniglot-small/{LOSSES[name]}.yaml",
                {f"{name}, 36 epochs": (*NONE, LONGER), f"{name}, 36 epochs + LSD": (LONGER,)},
                seeds=3,
            )
            for name in ("margin", "multi-similarity")
        },
    ),
    "omniglot-noise": Experiment(
        "Omniglot-small with 30 % of the training labels wrong",
        {
            name: Group(
                f"configs/omniglot-small/{name}.yaml",
                {f"{name}, 30 % noise": (*NONE, NOISE), f"{name}, 30 % noise + LSD": (NOISE,)},
                seeds=3,
            )
            for name in TWO
        },
    ),
}

Job = tuple[str, str, int, tuple[str, ...], str]


def folder_of(place: str, arm: str, seed: int) -> Path:
    """Where a run is kept."""
    slug = "".join(c if c.isalnum() else "-" for c in arm)
    return ROOT / "runs" / "reproduce" / place / f"{slug}-seed{seed}"


def run_once(job: Job) -> dict[str, Any]:
    """Train one run, unless a finished one with the same configuration is there."""
    from dmlkd.config import load_config
    from dmlkd.training import run

    place, arm, seed, overrides, config = job
    settings, _ = load_config(ROOT / config, [*overrides, f"train.seed={seed}"])
    folder = folder_of(place, arm, seed)
    finished = folder / "metrics.json"
    if finished.is_file():
        made, _ = load_config(folder / "config.yaml")  # keys that have come since have their defaults
        if made.to_yaml() != settings.to_yaml():
            raise SystemExit(f"{folder} was made with another configuration; move it away")
        return dict(json.loads(finished.read_text()))
    if folder.exists():  # broken off: start it anew
        folder.rename(folder.with_name(f"{folder.name}.broken-{time.time_ns()}"))
    print(f"{place}: {arm}, seed {seed}", flush=True)
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


def reproduce(name: str, *, only: str | None, seeds: int | None, processes: int) -> None:
    """Run an experiment, or one of its groups, and write its JSON and Markdown."""
    from dmlkd.files import write_json, write_text

    experiment = EXPERIMENTS[name]
    groups = {label: group for label, group in experiment.groups.items() if only in (None, label)}
    jobs = [
        (Path(group.config).stem, arm, seed, overrides, group.config)  # tables share the runs of equal arms
        for seed in range(seeds or max(group.seeds for group in groups.values()))
        for group in groups.values()  # arm beside arm, so that a broken experiment has pairs
        for arm, overrides in group.arms.items()
        if seeds or seed < group.seeds
    ]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        metrics = list(pool.map(run_once, jobs)) if processes > 1 else [run_once(job) for job in jobs]
    if only is not None:
        print(f"{name}: group {only} is run; without --only the table is written")
        return
    runs: dict[str, list[dict[str, Any]]] = {}
    for (_, arm, *_rest), result in zip(jobs, metrics, strict=True):
        runs.setdefault(arm, []).append(result)
    first = metrics[0]
    tables = [
        table({arm: [r["test"] for r in runs[arm]] for arm in group.arms}) for group in experiment.groups.values()
    ]
    where = machine()
    write_text(ROOT / "docs" / "results" / f"{name}.md", _page(name, experiment, jobs, tables, first, where))
    record = {
        "machine": where,
        "versions": first["versions"],
        "test": {arm: [r["test"] for r in results] for arm, results in runs.items()},
    }
    write_json(ROOT / "docs" / "results" / f"{name}.json", record)
    print("\n\n".join(tables))


def machine() -> str:
    """Where this runs, in general terms."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    return f"{os.cpu_count()} CPU cores, {threads} thread(s), {platform.machine()}, {platform.system()}, {gpu}"


def _page(
    name: str, experiment: Experiment, jobs: list[Job], tables: list[str], first: dict[str, Any], where: str
) -> str:
    baselines = "; ".join(
        f"{label}: " + ", ".join(f"{m} {100 * first['baselines'][key][m]:.2f}" for m in SHOWN)
        for key, label in (("pixels", "raw pixels"), ("untrained", "untrained network, seed 0"))
    )
    settings = "\n".join(
        f"- {arm}: `{group.config}`, {_shown(overrides)}"
        for group in experiment.groups.values()
        for arm, overrides in group.arms.items()
    )
    versions = first["versions"]
    seeds = max(seed for _, _, seed, *_ in jobs)
    joined = "\n\n".join(tables)
    return f"""# {experiment.title}

Unseen classes, last epoch, in %: mean ± standard deviation over {seeds + 1} seeds; difference from the first row of the
table with its paired 95 % interval (Student's t).

{joined}

For comparison, {baselines}.

Made by `python tools/reproduce.py {name}`, seeds 0 to {seeds}, from

{settings}

on {where}; torch {versions["torch"]}, faiss {versions["faiss-cpu"]}, pytorch-metric-learning
{versions["pytorch-metric-learning"]}. Every run's scores are in `docs/results/{name}.json`.
"""


def _shown(overrides: tuple[str, ...]) -> str:
    return f"`{' '.join(f'--set {o}' for o in overrides)}`" if overrides else "nothing changed"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["list", *EXPERIMENTS])
    parser.add_argument("--only", help="one group of the table; see list")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; default: the experiment's own")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    if arguments.experiment == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.title}")
            for label, group in experiment.groups.items():
                print(f"    {label}: {len(group.arms)} arms, {group.seeds} seeds")
        return
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.only is not None and arguments.only not in EXPERIMENTS[arguments.experiment].groups:
        parser.error(f"--only: {arguments.experiment} has {', '.join(EXPERIMENTS[arguments.experiment].groups)}")
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    reproduce(arguments.experiment, only=arguments.only, seeds=arguments.seeds, processes=max(arguments.processes, 1))


if __name__ == "__main__":
    main()
