"""What exits score and cost: trained together, with and without distillation, and each alone.

    python tools/reproduce_exits.py --costs                 # on a machine that does nothing else: images a second
    python tools/reproduce_exits.py [--processes 2] [--seeds 3] [--data ../shared/data]

Every arm is configs/methods/byot.yaml with a few settings changed, trained with the same seeds. Finished runs, and what
--costs measured, are kept under runs/reproduce/exits/ and not repeated. Writes docs/results/exits.{json,md}.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from reproduce import ROOT, interval, machine, run_once

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
    "posteriors, a = 0.5": ("distill=[{name: byot_posterior, weight: 1, share: 0.5, hint: 1e-6}]",),
}
# Each gives a single model, compared with the exit that it stands for.
ALONE = {
    **{
        f"alone, {stage}": ("distill=[]", "exits=null", f"model.exit_stage={stage[-1]}", "model.exit_width=32")
        for stage in STAGES[:-1]
    },
    "alone, whole": ("distill=[]", "exits=null"),
}

# A backbone, the width of its exits (None: the default), channels and pixels of its images, and how many at a time.
BACKBONES = (
    ("convnet4", 32, 1, 20, 64),  # that of the scores
    ("convnet4", None, 1, 20, 64),
    ("resnet18", None, 3, 64, 64),
    ("resnet18", None, 3, 224, 8),
    ("resnet50", None, 3, 224, 8),
    ("mobilenet_v3_small", None, 3, 224, 8),
    ("vit_b_32", None, 3, 224, 8),
)

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


def measure_costs() -> dict[str, Any]:
    """What each exit of some backbones costs, and how fast it is here; weights, which are random, change nothing."""
    import torch

    from dmlkd.models import EmbeddingModel, ExitingModel, cost, images_per_second

    found: dict[str, Any] = {}
    for backbone, width, channels, size, batch_size in BACKBONES:
        model = EmbeddingModel(backbone, dim=64, in_channels=channels).eval()
        models = {**ExitingModel(model, width=width).encoders(), "whole": model}
        shape = (channels, size, size)
        speeds = images_per_second(models, shape=shape, batch_size=batch_size, seconds=1)
        rows = {
            name: {**cost(one, shape=shape)._asdict(), "images_per_second": speeds[name]}
            for name, one in models.items()
        }
        exits = "" if width is None else f", exits {width} wide"
        found[f"{backbone}{exits}, {size} pixels, batches of {batch_size}"] = rows
    return {"threads": torch.get_num_threads(), "backbones": found}


def cost_table(title: str, rows: dict[str, dict[str, float]]) -> str:
    """A row an exit."""
    whole = rows["whole"]
    lines = [
        f"| {title} | parameters | multiply-adds | of the whole | images/s | times the whole |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['parameters']:,} | {row['multiply_adds']:,} | "
        f"{100 * row['multiply_adds'] / whole['multiply_adds']:.0f} % | {row['images_per_second']:,.0f} | "
        f"{row['images_per_second'] / whole['images_per_second']:.2f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def page(scores: dict[str, Scores], priced: dict[str, Any], seeds: int, versions: dict[str, str]) -> str:
    """The Markdown."""
    shown = "\n".join(f"- {arm}: `{' '.join(f'--set {o!r}' for o in own)}`" for arm, own in (ARMS | ALONE).items())
    parts = "\n\n".join(
        f"## {METRICS[metric]}\n\n{table(own)}\n\n{table(own, TOGETHER)}\n\n{table(own, 'each trained alone')}"
        for metric, own in scores.items()
    )
    costs = "\n\n".join(cost_table(title, rows) for title, rows in priced["backbones"].items())
    return f"""# Exits

Omniglot-small, unseen classes, last epoch, in %: mean ± standard deviation over {seeds} seeds; differences with their
paired 95 % interval (Student's t), in bold where that leaves out 0. What the arms are:
[be your own teacher](../methods/byot.md).

{parts}

## Cost

Random weights, 64 dimensions, on the processor with {priced["threads"]} threads, all exits of a backbone taking turns.

{costs}

Made by `python tools/reproduce_exits.py --costs` and then without it, seeds 0 to {seeds - 1}, from `{CONFIG}` with
`{COMMON[0]}` and

{shown}

on {machine()}; torch {versions["torch"]}, pytorch-metric-learning {versions["pytorch-metric-learning"]}. Every run's
scores are in `docs/results/{NAME}.json`.
"""


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs-only", action="store_true", help="train, and write nothing")
    parser.add_argument("--costs", action="store_true", help="measure what exits cost, and train nothing")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    from dmlkd.files import write_json, write_text

    measured = ROOT / "runs" / "reproduce" / NAME / "costs.json"
    if arguments.costs:
        measured.parent.mkdir(parents=True, exist_ok=True)
        write_json(measured, measure_costs())
        return
    jobs = {
        (arm, seed): (NAME, arm, seed, (*COMMON, *overrides), CONFIG)
        for seed in range(arguments.seeds)
        for arm, overrides in (ARMS | ALONE).items()
    }
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        metrics = list(pool.map(run_once, jobs.values()) if arguments.processes > 1 else map(run_once, jobs.values()))
    if arguments.runs_only:
        return
    if not measured.is_file():
        parser.error("measure what exits cost first: --costs")
    priced = json.loads(measured.read_text())
    found = dict(zip(jobs, metrics, strict=True))
    scores = {metric: scores_of(found, arguments.seeds, metric) for metric in METRICS}
    versions = metrics[0]["versions"]
    text = page(scores, priced, arguments.seeds, versions)
    write_text(ROOT / "docs/results" / f"{NAME}.md", text)
    write_json(
        ROOT / "docs/results" / f"{NAME}.json",
        {"machine": machine(), "versions": versions, "test": scores, "costs": priced},
    )
    print(text)


if __name__ == "__main__":
    main()
