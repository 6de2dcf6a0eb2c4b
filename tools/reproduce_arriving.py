"""What methods keep of earlier classes when classes arrive in tasks, and whether new queries can search an old gallery.

    python tools/reproduce_arriving.py [--only SRIL] [--processes 2] [--seeds 3] [--data ../shared/data]

Every arm is a recipe of configs/plans/ with a few settings changed, trained with the same seeds; the first is the
baseline. The seed also deals the classes out to the tasks. Finished plans are kept under runs/reproduce/arriving/ and
not repeated, one that was broken off goes on. Writes docs/results/arriving.{json,md}.

Learning rates are those of the recipes. The weights of the distilling terms were looked at with seed 100, which no
table uses.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reproduce import ROOT, folder_of, interval, machine

NAME = "arriving"
COMMON = ("eval.metrics=[recall@1, map@r]",)
LATER = (1, 2, 3)  # fits after the first, where a recipe has one a task
RECIPES = {"replay": "fine-tuning", "embedding": "embedding", "sril": "sril", "experts": "discriminative"}


def of_each(key: str, value: object) -> tuple[str, ...]:
    """A setting of every fit after the first."""
    return tuple(f"plan.{fit}.{key}={value}" for fit in LATER)


ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fine-tuning": (RECIPES["replay"], ()),
    "fine-tuning, no memory": (RECIPES["replay"], of_each("data.replay", "null")),
    "feature distillation, weight 1": (RECIPES["embedding"], of_each("distill.0.weight", 1)),
    "feature distillation": (RECIPES["embedding"], ()),
    "SRIL without interpolation": (RECIPES["sril"], of_each("distill.0.interpolation", 0)),
    "SRIL": (RECIPES["sril"], ()),
    "discriminative distillation": (RECIPES["experts"], ()),
    "joint training": (RECIPES["replay"], ("plan=[{name: joint, train: {lr: 3e-3}}]",)),
}
Job = tuple[str, int]
Steps = list[dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A column: its heading, and which measure of which step it shows."""

    heading: str
    measure: str
    step: int = -1

    def of(self, steps: Steps) -> float | None:
        """Its value in percent, if there is one."""
        if len(steps) < -self.step or (value := steps[self.step][self.measure]) is None:
            return None
        return 100 * float(value)


COLUMNS = (
    Shown("tasks, average ↑", "average"),
    Shown("forgotten ↓", "forgetting"),
    Shown("unseen ↑", "unseen"),
    Shown("tasks in old gallery ↑", "old_tasks"),
    Shown("unseen in old gallery ↑", "old_unseen"),
    Shown("unseen, old model alone", "unseen", step=-2),
)


def config_of(arm: str) -> str:
    """The recipe of an arm."""
    return f"configs/plans/arriving-{ARMS[arm][0]}.yaml"


def plan_once(job: Job) -> Steps:
    """Carry out and measure the plan of an arm and a seed, or what is left to do of it."""
    from dmlkd.config import load_training
    from dmlkd.files import write_json
    from dmlkd.training import resume_plan, run_plan
    from dmlkd.training.arriving import measure_tasks

    arm, seed = job
    plan, _ = load_training(ROOT / config_of(arm), [*ARMS[arm][1], *COMMON, f"train.seed={seed}"])
    folder = folder_of(NAME, arm, seed)
    if (folder / "plan.yaml").is_file() and (folder / "plan.yaml").read_text() != plan.to_yaml():
        raise SystemExit(f"{folder} was made with another configuration; move it away")
    measured = folder / "tasks.json"
    if measured.is_file():
        return list(json.loads(measured.read_text()))
    print(f"{arm}, seed {seed}", flush=True)
    if not (folder / "plan.yaml").is_file():
        run_plan(plan, folder, quiet=True)
    elif not (folder / "metrics.json").is_file():
        resume_plan(folder, quiet=True)
    steps = [asdict(step) for step in measure_tasks(folder).steps]
    write_json(measured, steps)
    return steps


def cell(values: list[float | None]) -> str:
    """Mean and standard deviation, where there are values."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    return f"{statistics.fmean(there):.1f}" + (f" ± {statistics.stdev(there):.1f}" if len(there) > 1 else "")


def difference(values: list[float | None], baseline: list[float | None]) -> str:
    """Mean difference with its paired 95 % interval, in bold where that leaves out 0."""
    pairs = [(a, b) for a, b in zip(values, baseline, strict=True) if a is not None and b is not None]
    if not pairs:
        return ""
    middle, half = interval([a - b for a, b in pairs])
    shown = f"{middle:+.1f}"
    if len(pairs) < 2:
        return shown
    shown += f" [{middle - half:+.1f}, {middle + half:+.1f}]"
    return f"**{shown}**" if abs(middle) > half else shown


def table(title: str, headings: list[str], rows: dict[str, list[str]]) -> str:
    """As Markdown."""
    lines = [f"| {title} | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])


def tables(runs: dict[str, list[Steps]]) -> str:
    """The scores at the end, their differences from the first arm's, and the average after each task."""
    headings = [column.heading for column in COLUMNS]
    values = {arm: [[column.of(steps) for steps in ones] for column in COLUMNS] for arm, ones in runs.items()}
    baseline, *others = runs
    scores = table("", headings, {arm: [cell(column) for column in columns] for arm, columns in values.items()})
    gaps = {
        arm: [difference(own, other) for own, other in zip(values[arm], values[baseline], strict=True)]
        for arm in others
    }
    sections = [scores, table(f"minus {baseline}", headings[:5], {arm: cells[:5] for arm, cells in gaps.items()})]
    several = {arm: ones for arm, ones in runs.items() if len(ones[0]) > 1}
    count = max((len(ones[0]) for ones in several.values()), default=0)
    for title, measure in (("tasks, average, after task", "average"), ("unseen, after task", "unseen")):
        over_time = {
            arm: [cell([100 * steps[step][measure] for steps in ones]) for step in range(count)]
            for arm, ones in several.items()
        }
        sections.append(table(title, [str(step + 1) for step in range(count)], over_time))
    last = {
        arm: [cell([100 * steps[-1]["tasks"][task] for steps in ones]) for task in range(count)]
        for arm, ones in runs.items()
    }
    sections.append(table("after the last task, on task", [str(task + 1) for task in range(count)], last))
    return "\n\n".join(sections)


def page(runs: dict[str, list[Steps]], where: str, versions: dict[str, str]) -> str:
    """The Markdown."""
    seeds = len(next(iter(runs.values())))
    settings = "\n".join(
        f"- {arm}: `{config_of(arm)}`" + "".join(f" `--set '{setting}'`" for setting in ARMS[arm][1]) for arm in runs
    )
    common = " ".join(f"--set '{setting}'" for setting in COMMON)
    return f"""# Arriving classes

Recall@1 in %, of Omniglot-small with its training classes in four tasks:
[what each column is](../arriving.md#measures). Mean ± standard deviation over seeds 0 to {seeds - 1}, which deal out
the classes too; difference from the first row with its paired 95 % interval (Student's t), in bold where that leaves
out 0; of three seeds such intervals are wide. "Old" is the model after the third task, the others are after the fourth.
Joint training sees all classes at once, and is no method but a line to measure by.

{tables(runs)}

From, each with `{common}`,

{settings}

Made by `python tools/reproduce_arriving.py` on {where}; torch {versions["torch"]}, pytorch-metric-learning
{versions["pytorch-metric-learning"]}. Every plan's scores after each task are in `docs/results/{NAME}.json`.
"""


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ARMS), help="one arm, which is trained and shown but not written")
    parser.add_argument("--processes", type=int, default=1, help="plans side by side, with one thread each")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    os.environ["DMLKD_DATA"] = str(
        arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    )
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    arms = [arguments.only] if arguments.only else list(ARMS)
    jobs = [(arm, seed) for seed in range(arguments.seeds) for arm in arms]  # arm beside arm: broken off, it has pairs
    if arguments.processes > 1:
        with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = dict(zip(jobs, pool.map(plan_once, jobs), strict=True))
    else:
        found = {job: plan_once(job) for job in jobs}
    runs = {arm: [found[arm, seed] for seed in range(arguments.seeds)] for arm in arms}
    print(tables(runs))
    if arguments.only:
        return
    from dmlkd.files import write_json, write_text
    from dmlkd.training.provenance import versions

    where, used = machine(), versions()
    write_json(ROOT / "docs/results" / f"{NAME}.json", {"machine": where, "versions": used, "runs": runs})
    write_text(ROOT / "docs/results" / f"{NAME}.md", page(runs, where, used))


if __name__ == "__main__":
    main()
