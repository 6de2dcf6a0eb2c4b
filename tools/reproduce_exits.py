"""What exits score and cost: trained together, with and without distillation, and each alone.

    python tools/reproduce_exits.py [--processes 2] [--seeds 5] [--data ../shared/data]

Every arm is configs/methods/byot.yaml with a few settings changed, trained with the same seeds. Finished runs are kept
under runs/reproduce/exits/ and not repeated. Writes docs/results/exits.{json,md}. Images a second are measured in the
first run of the first arm with exits, so run this on a machine that does nothing else, or read them with care.
"""

import argparse
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from reproduce import ROOT, folder_of, interval, machine, run_once

NAME = "exits"
CONFIG = "configs/methods/byot.yaml"
COMMON = ("eval.metrics=[recall@1, map@r]",)
STAGES = ("stage-0", "stage-1", "stage-2", "whole")
METRICS = {"recall@1": "Recall@1", "map@r": "MAP@R"}
TOGETHER = "exits, metric losses alone"
ARMS = {
    TOGETHER: ("distill.0.share=0", "distill.0.hint=0"),
    "lists, a = 0.1": ("distill.0.share=0.1",),
    "lists, a = 0.5": ("distill.0.share=0.5",),
    "posteriors, a = 0.1": ("distill=[{name: byot_posterior, weight: 1, share: 0.1, hint: 1e-6}]",),
    "posteriors, a = 0.5": ("distill=[{name: byot_posterior, weight: 1, share: 0.5, hint: 1e-6}]",),
}
# Each gives a single model, compared with the exit that it stands for.
ALONE = {
    **{f"alone, {stage}": ("distill=[]", f"model.exit_stage={stage[-1]}") for stage in STAGES[:-1]},
    "alone, whole": ("distill=[]",),
}

Scores = dict[str, dict[str, list[float]]]  # by arm, then stage: one a seed, in %


def scores_of(found: dict[tuple[str, int], dict[str, Any]], seeds: int, metric: str) -> Scores:
    """Each arm's scores by exit; the models trained alone are one arm."""
    scores: Scores = {
        arm: {
            stage: [100 * found[arm, seed]["exits"][stage]["test"][metric] for seed in range(seeds)] for stage in STAGES
        }
        for arm in ARMS
    }
    alone = {stage: [100 * found[f"alone, {stage}", seed]["test"][metric] for seed in range(seeds)] for stage in STAGES}
    return {"each trained alone": alone, **scores}


def differences(own: list[float], other: list[float]) -> str:
    """Mean and paired 95 % interval, in bold where it leaves out 0."""
    middle, half = interval([a - b for a, b in zip(own, other, strict=True)])
    shown = f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]"
    return f"**{shown}**" if abs(middle) > half else shown


def table(scores: Scores, against: str | None = None) -> str:
    """A row an arm, a column an exit."""
    head = "" if against is None else f"minus {against}"
    lines = [f"| {head} | " + " | ".join(STAGES) + " |", "|---" * (len(STAGES) + 1) + "|"]
    for arm, by_stage in scores.items():
        if arm == against:
            continue
        cells = [
            f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
            if against is None
            else differences(values, scores[against][stage])
            for stage, values in by_stage.items()
        ]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs(folder: Path, batch_size: int = 64) -> str:
    """What each exit costs, and how fast it is here."""
    from dmlkd.training.exits import measure_exits

    found = measure_exits(folder, batch_size=batch_size, seconds=5)
    whole = found[-1]
    lines = [
        f"| | parameters | multiply-adds | of the whole | images/s, batches of {batch_size} | times the whole |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.parameters:,} | {one.multiply_adds:,} | "
        f"{100 * one.multiply_adds / whole.multiply_adds:.0f} % | {one.images_per_second:,.0f} | "
        f"{one.images_per_second / whole.images_per_second:.2f} |"
        for one in found
    ]
    return "\n".join(lines)


def page(scores: dict[str, Scores], priced: str, seeds: int, versions: dict[str, str]) -> str:
    """The Markdown."""
    shown = "\n".join(f"- {arm}: `{' '.join(f'--set {o!r}' for o in own)}`" for arm, own in (ARMS | ALONE).items())
    parts = "\n\n".join(
        f"## {METRICS[metric]}\n\n{table(own)}\n\n{table(own, TOGETHER)}\n\n{table(own, 'each trained alone')}"
        for metric, own in scores.items()
    )
    return f"""# Exits

Omniglot-small, unseen classes, last epoch, in %: mean ± standard deviation over {seeds} seeds; differences with their
paired 95 % interval (Student's t), in bold where that leaves out 0. What the arms are:
[be your own teacher](../methods/byot.md).

{parts}

## Cost

{priced}

Made by `python tools/reproduce_exits.py`, seeds 0 to {seeds - 1}, from `{CONFIG}` with `{COMMON[0]}` and

{shown}

on {machine()}; torch {versions["torch"]}, pytorch-metric-learning {versions["pytorch-metric-learning"]}. Every run's
scores are in `docs/results/{NAME}.json`.
"""


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs-only", action="store_true", help="train, and write nothing")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    jobs = {
        (arm, seed): (NAME, arm, seed, (*COMMON, *overrides), CONFIG)
        for seed in range(arguments.seeds)
        for arm, overrides in (ARMS | ALONE).items()
    }
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        metrics = list(pool.map(run_once, jobs.values()) if arguments.processes > 1 else map(run_once, jobs.values()))
    if arguments.runs_only:
        return
    found = dict(zip(jobs, metrics, strict=True))
    from dmlkd.files import write_json, write_text

    scores = {metric: scores_of(found, arguments.seeds, metric) for metric in METRICS}
    versions = metrics[0]["versions"]
    text = page(scores, costs(folder_of(NAME, TOGETHER, 0)), arguments.seeds, versions)
    write_text(ROOT / "docs/results" / f"{NAME}.md", text)
    write_json(ROOT / "docs/results" / f"{NAME}.json", {"machine": machine(), "versions": versions, "test": scores})
    print(text)


if __name__ == "__main__":
    main()
