"""What a self-supervised start makes of few and of many labelled images a class: Omniglot-small, unseen classes.

    python tools/reproduce_moco.py [--only few] [--seeds 3] [--data ../shared/data]

Every arm of a group is one recipe with a few settings changed, trained with the same seeds; the first is the baseline.
ARM in angle brackets in a setting stands for the run folder of that arm with the same seed, which comes before it.
Finished runs are kept under runs/reproduce/self-supervised-start/ and not repeated, so a broken experiment goes on
where it was. Writes docs/results/self-supervised-start.{json,md}.

The weight of margin_relu, of 1e-4, 1e-3 and 1e-2, was chosen by Recall@1 with five images a class and seed 100, which
no table uses.
"""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduce import ROOT, folder_of, machine, run_once, table

NAME = "self-supervised-start"
CONFIG = "configs/omniglot-small/normalized-softmax.yaml"
COMMON = ("data.transform=handwriting", "eval.metrics=[recall@1, map@r]")
FEW = "data.held_out_images=0.75"  # of 20 images a class 5 are left to train on
PLAIN = ("distill=[]",)
MOCO = (
    "model.hidden=64",
    "metric_weight=0",
    "train.sampler=shuffled",
    "train.views=2",
    "distill=[{name: moco, weight: 1, temperature: 0.07, margin: 0.4, queue: 4096, "
    "teacher: {name: moving_average, decay: 0.99, mode: train}}]",
)


def started(run: str) -> tuple[str, ...]:
    """A model that starts from the trunk of another arm."""
    return (*PLAIN, f"start={{path: <{run}>, part: trunk}}")


def held(run: str) -> tuple[str, ...]:
    """The same, held to that trunk's features."""
    term = f"{{name: margin_relu, weight: 1e-2, teacher: {{name: finished_run, path: <{run}>}}}}"
    return (f"start={{path: <{run}>, part: trunk}}", f"distill=[{term}]")


@dataclass(frozen=True)
class Group:
    """Arms of one table, and settings that all of them have."""

    title: str
    common: tuple[str, ...]
    arms: dict[str, tuple[str, ...]]
    seeds: int = 3


FIVE = "MoCo, 5 a class, no labels (60 epochs)"
LONG = "plain, 5 a class, as many steps as with the start (166 epochs)"
ALL = "MoCo, no labels (20 epochs)"
GROUPS = {
    "few": Group(
        "5 images a class: 680 images, 36 epochs with labels",
        ("train.epochs=36", FEW),
        {
            "plain, 5 a class": PLAIN,
            LONG: (*PLAIN, "train.epochs=166"),
            FIVE: (*MOCO, "train.epochs=60"),
            "MoCo start, 5 a class": started(FIVE),
            "MoCo start + margin-ReLU, 5 a class": held(FIVE),
            "plain start + margin-ReLU, 5 a class": held("plain, 5 a class"),
        },
    ),
    "longer": Group(
        "5 images a class, 166 epochs with labels",
        ("train.epochs=166", FEW),
        {
            LONG: PLAIN,
            "MoCo start + margin-ReLU, 5 a class, 166 epochs": held(FIVE),
        },
        seeds=2,
    ),
    "all": Group(
        "All 20 images a class: 2720 images, 18 epochs with labels",
        ("train.epochs=18",),
        {
            "plain": PLAIN,
            "plain, as many steps as with the start (59 epochs)": (*PLAIN, "train.epochs=59"),
            ALL: (*MOCO, "train.epochs=20"),
            "MoCo start": started(ALL),
            "MoCo start + margin-ReLU": held(ALL),
        },
        seeds=1,
    ),
    "unlabelled": Group(
        "Labels of 5 images a class, MoCo on all 2720 images",
        ("train.epochs=36", FEW),
        {
            "plain, 5 a class": PLAIN,
            "MoCo start of all 2720 images": started(ALL),
            "MoCo start of all 2720 images + margin-ReLU": held(ALL),
        },
        seeds=1,
    ),
}

Runs = dict[str, list[dict[str, Any]]]


def trained(group: Group, seeds: int) -> Runs:
    """Every run of a group, seed by seed, so that a broken experiment has pairs."""
    runs: Runs = {}
    for seed in range(seeds):
        for arm, settings in group.arms.items():
            overrides = tuple(
                re.sub(r"<([^<>]+)>", lambda named: str(folder_of(NAME, named[1], seed)), one)  # noqa: B023
                for one in (*COMMON, *group.common, *settings)
            )
            runs.setdefault(arm, []).append(run_once((NAME, arm, seed, overrides, CONFIG)))
    return runs


def page(found: dict[str, Runs], where: str) -> str:
    """The Markdown."""
    versions = next(iter(next(iter(found.values())).values()))[0]["versions"]
    parts = []
    for label, runs in found.items():
        group = GROUPS[label]
        scores = table({arm: [one["test"] for one in ones] for arm, ones in runs.items()})
        scores = scores.replace(" [+nan, +nan]", "")  # one seed has no interval
        shown = "\n".join(f"- {arm}: `{' '.join(f'--set {o!r}' for o in group.arms[arm])}`" for arm in runs)
        common = " ".join(f"--set {o!r}" for o in (*COMMON, *group.common))
        seeds = len(next(iter(runs.values())))
        which = f"Seeds 0 to {seeds - 1}" if seeds > 1 else "Seed 0 alone"
        parts.append(f"## {group.title}\n\n{scores}\n\n{which}, with `{common}` and\n\n{shown}\n")
    return f"""# Self-supervised start

Unseen classes (106 of Omniglot-small), last epoch, in %: mean ± standard deviation over the seeds; difference from
the first row with its paired 95 % interval (Student's t). [What is compared](../methods/moco-start.md).

{chr(10).join(parts)}
An arm in angle brackets stands for its run folder with the same seed. "As many steps": as pre-training and training
have together, though a step of MoCo costs more.

Made by `python tools/reproduce_moco.py` from `{CONFIG}` on {where}; torch {versions["torch"]},
pytorch-metric-learning {versions["pytorch-metric-learning"]}. Every run's scores are in `docs/results/{NAME}.json`.
"""


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(GROUPS), help="one group, whose table is shown but not written")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; default: the group's own")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    found = {
        label: trained(group, arguments.seeds or group.seeds)
        for label, group in GROUPS.items()
        if arguments.only in (None, label)
    }
    for runs in found.values():
        print(table({arm: [one["test"] for one in ones] for arm, ones in runs.items()}), end="\n\n")
    if arguments.only is not None:
        return
    from dmlkd.files import write_json, write_text

    where = machine()
    versions = next(iter(next(iter(found.values())).values()))[0]["versions"]
    scores = {
        label: {arm: [one["test"] for one in ones] for arm, ones in runs.items()} for label, runs in found.items()
    }
    write_json(ROOT / "docs/results" / f"{NAME}.json", {"machine": where, "versions": versions, **scores})
    write_text(ROOT / "docs/results" / f"{NAME}.md", page(found, where))


if __name__ == "__main__":
    main()
