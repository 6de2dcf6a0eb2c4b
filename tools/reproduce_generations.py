"""Generations of self-distillation, cross-fitting, fidelity; and shallow stages taught by the deep one.

    python tools/reproduce_generations.py [--only sfr] [--processes 2] [--seeds 3] [--data ../shared/data]
    python tools/reproduce_generations.py --only list

Arms are written as in tools/reproduce_posteriors.py, whose settings these are. Finished runs are kept under
runs/reproduce/generations/ and not repeated. Writes docs/results/generations.{json,md} and docs/results/sfr.{json,md}.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from reproduce import ROOT, folder_of, machine
from reproduce_posteriors import (
    COMMON,
    PLAIN,
    WHOLE,
    Group,
    Runs,
    Shown,
    difference,
    mean,
    table,
    tables,
    taught_by,
    trained,
)
from scipy import stats

NAME = "generations"
CONFIG = "configs/methods/cs-kd.yaml"
FOLDS = 3
HALF = 0.5
COLUMNS = (
    Shown("Recall@1 ↑", "test", "recall@1"),
    Shown("MAP@R ↑", "test", "map@r"),
    Shown("entropy", "seen", "entropy", factor=1.0, decimals=3),
    Shown("spread", "seen", "spread"),
    Shown("label spread", "seen", "label_spread"),
    Shown("confidence", "seen", "confidence"),
    Shown("top-1 ↑", "seen", "top1"),
    Shown("ECE ↓", "seen", "ece"),
)
AGREEMENT = tuple(
    Shown(f"{words}: {heading}", split, key, factor, decimals)
    for split, words in (("train", "training"), ("test", "unseen"))
    for heading, key, factor, decimals in (
        ("10 neighbours", "neighbours", 100.0, 1),
        ("CKA", "cka", 1.0, 3),
        ("best class", "top1", 100.0, 1),
        ("KL", "kl", 1.0, 3),
    )
)
TAUGHT_BY = {
    **{f"{kind} {n + 1}": f"{kind} {n}" if n else "plain" for kind in ("posterior", "half labels") for n in range(3)},
    "corrected": "plain",
}
AGAINST = {"corrected": "posterior 1", "out of fold, corrected": "out of fold", "out of fold": "without fold 0"}
UNTAUGHT = ("Beta smoothing",)  # put beside the plain run: what networks of one seed share anyway


def mixed(run: str) -> str:
    """A term whose target is half the label, half what another arm's run says."""
    return f"{{name: label_mixing, weight: 1, share: {HALF}, teacher: {{name: finished_run, path: <{run}>}}}}"


def generations(kind: str, count: int, term: Any) -> dict[str, tuple[str, ...]]:
    """Arms each of which is taught by the one before, the first by the plain one."""
    names = ["plain", *(f"{kind} {number + 1}" for number in range(count))]
    return {name: (f"distill=[{term(teacher)}]", WHOLE) for teacher, name in itertools.pairwise(names)}


def out_of_fold(method: str) -> tuple[str, ...]:
    """A student that is taught about each image by the fit that did not see it."""
    fits = ", ".join(f"<fit without fold {fold}>" for fold in range(FOLDS))
    teacher = f"{{name: out_of_fold, fits: [{fits}]}}"
    return (
        f"distill=[{{name: {method}, weight: 1, temperature: 4, teacher: {teacher}}}]",
        f"data.image_folds={FOLDS}",
        WHOLE,
    )


def sfr(weight: float) -> str:
    """A term that pulls the second stage's descriptors to the last one's."""
    return f"{{name: sfr, weight: {weight:g}, stage: 1, groups: 8}}"


DYNAMIC = "{name: dynamic_smoothing, weight: 1, epsilon: 0.1}"
BETA = "{name: beta_smoothing, weight: 1, a: 9, teacher: {name: moving_average, decay: 0.99}}"
GROUPS = {
    "generations": Group(
        "Generations",
        CONFIG,
        {
            "plain": PLAIN,
            **generations("posterior", 3, lambda run: taught_by(run, "posterior")),
            **generations("half labels", 3, mixed),
            "Beta smoothing": (f"distill=[{BETA}]", WHOLE),
        },
        seeds=3,
    ),
    "cross-fitting": Group(
        "Cross-fitting and loss correction",
        CONFIG,
        {
            "plain": PLAIN,
            "posterior 1": (f"distill=[{taught_by('plain', 'posterior')}]", WHOLE),
            "corrected": (f"distill=[{taught_by('plain', 'corrected')}]", WHOLE),
            **{
                f"without fold {fold}": (*PLAIN, f"data.image_folds={FOLDS}", f"data.image_fold={fold}")
                for fold in range(FOLDS)
            },
            "out of fold": out_of_fold("posterior"),
            "out of fold, corrected": out_of_fold("corrected"),
        },
        seeds=3,
    ),
    "sfr": Group(
        "Shallow stages taught by the deep one, and smoothing by accuracy",
        CONFIG,
        {
            "plain": PLAIN,
            "SFR": (f"distill=[{sfr(1)}]",),
            "dynamic smoothing": (f"distill=[{DYNAMIC}]", WHOLE),
            "SFR + dynamic smoothing": (f"distill=[{sfr(1)}, {DYNAMIC}]", WHOLE),
        },
        seeds=3,
    ),
    "sfr-weights": Group(
        "Other weights",
        CONFIG,
        {
            "plain": PLAIN,
            **{f"SFR, weight {weight:g}": (f"distill=[{sfr(weight)}]",) for weight in (0.1, 10)},
        },
        seeds=3,
    ),
}

PAGES = {
    "generations": ("Generations", ["generations", "cross-fitting"]),
    "sfr": ("Shallow stages taught by the deep one", ["sfr", "sfr-weights"]),
}


def agreement(student: str, teacher: str, seed: int) -> dict[str, Any]:
    """What ``dmlkd fidelity`` says of two runs, on the student's training classes and on the unseen ones."""
    folders = [str(folder_of(NAME, arm, seed)) for arm in (teacher, student)]
    kept = Path(folders[1]) / "fidelity.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "dmlkd", "fidelity", *folders, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        kept.write_text(done.stdout)
    return dict(json.loads(kept.read_text())["splits"])


def agreements(seeds: int) -> Runs:
    """The fidelity of each student to its teacher, and of runs that the plain one did not teach to that."""
    pairs = {**TAUGHT_BY, **dict.fromkeys(UNTAUGHT, "plain")}
    return {
        f"{student}, of {teacher}{', not its teacher' if student in UNTAUGHT else ''}": [
            agreement(student, teacher, seed) for seed in range(seeds)
        ]
        for student, teacher in pairs.items()
    }


def gains(runs: Runs) -> list[tuple[float, float]]:
    """Of every taught student: neighbours shared with its teacher on unseen classes; Recall@1 above the teacher's."""
    found = []
    for student, teacher in TAUGHT_BY.items():
        for seed, (of_student, of_teacher) in enumerate(zip(runs[student], runs[teacher], strict=True)):
            gain = of_student["test"]["recall@1"] - of_teacher["test"]["recall@1"]
            found.append((agreement(student, teacher, seed)["test"]["neighbours"], gain))
    return found


def one_by_one(runs: Runs) -> str:
    """Differences that are not from the plain run."""

    def cell(pair: str, column: Shown) -> str:
        arm, other = pair.split(" minus ")
        values = zip(runs[arm], runs[other], strict=True)
        return difference([column.of(one) - column.of(against) for one, against in values], column)

    pairs: Runs = {f"{arm} minus {other}": [] for arm, other in AGAINST.items()}
    return table("", pairs, cell, COLUMNS) + "\n\n"


def settings_of(labels: list[str], found: dict[str, Runs]) -> str:
    """What was set in each arm."""
    parts = []
    for label in labels:
        group = GROUPS[label]
        shown = "\n".join(f"- {arm}: `{' '.join(f'--set {o!r}' for o in group.arms[arm])}`" for arm in found[label])
        parts.append(f"{group.title}, seeds 0 to {len(found[label]['plain']) - 1}:\n\n{shown}")
    common = " ".join(f"--set {o!r}" for o in COMMON)
    return f"From `{CONFIG}` with `{common}` and\n\n" + "\n\n".join(parts)


def page(title: str, labels: list[str], found: dict[str, Runs], where: str, *, more: str = "") -> str:
    """The Markdown of some groups."""
    first = found[labels[0]]["plain"][0]
    counts, versions = first["data"], first["versions"]
    shown = "\n\n".join(f"## {GROUPS[label].title}\n\n{tables(found[label], COLUMNS)}" for label in labels)
    return f"""# {title}

Omniglot-small, normalised softmax, 36 epochs. Retrieval (Recall@1, MAP@R) on unseen classes; all else on the
{counts["seen"]["images"]} images of the training classes that were held out of {
        counts["seen"]["images"] + counts["train"]["images"]
    }. Entropy of the posterior in nats; spread is the standard deviation over images of the confidence, label
spread that of the label's probability ([what each is](../metrics.md#class-posteriors)). In %, mean ± standard
deviation; difference from the plain run, which is the first generation, with its paired 95 % interval (Student's t), in
bold where that leaves out 0. Last epoch.

{shown}

{more}## Settings

{settings_of(labels, found)}

`<ARM>` is the run folder of that arm with the same seed, `<fit ARM>` its name. Made by `python
tools/reproduce_generations.py` on {where}; torch {versions["torch"]}, pytorch-metric-learning
{versions["pytorch-metric-learning"]}. Every run's scores are in the JSON file of the same name.
"""


def fidelity_section(runs: Runs, measured: Runs) -> str:
    """The table of fidelity, and whether it goes with what the students gain."""
    shared, gained = zip(*gains(runs), strict=True)
    together = stats.spearmanr(shared, gained)
    shown = table(
        "student", measured, lambda arm, column: mean([column.of(one) for one in measured[arm]], column), AGREEMENT
    )
    return f"""## Fidelity

What [`dmlkd fidelity`](../methods/fidelity.md) says of student and teacher of the same seed: 10 nearest neighbours in
common and same best class in %, KL in nats. The training classes are measured on all their images, those held out
included.

{shown}

Of the {len(shared)} taught students, the share of neighbours on unseen classes and the gain in Recall@1 over the
teacher have a rank correlation of {together.statistic:+.2f}. Students of one seed and of one kind are no independent
draws, so no interval is given.

"""


def write(name: str, found: dict[str, Runs]) -> None:
    """A page and its JSON file."""
    from dmlkd.files import write_json, write_text

    title, labels = PAGES[name]
    where, versions = machine(), found[labels[0]]["plain"][0]["versions"]
    record: dict[str, Any] = {"machine": where, "versions": versions}
    for label in labels:
        record[label] = {
            arm: [{part: one[part] for part in ("test", "seen")} for one in ones] for arm, ones in found[label].items()
        }
    more = ""
    if name == "generations":
        runs = {**found["generations"], **found["cross-fitting"]}
        record["fidelity"] = agreements(len(runs["plain"]))
        more = one_by_one(runs) + fidelity_section(runs, record["fidelity"])
    write_json(ROOT / "docs" / "results" / f"{name}.json", record)
    write_text(ROOT / "docs" / "results" / f"{name}.md", page(title, labels, found, where, more=more))


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["list", *PAGES], help="one page instead of both; list: show what there is")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; default: the group's own")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    if arguments.only == "list":
        for label, group in GROUPS.items():
            (name,) = (name for name, (_, labels) in PAGES.items() if label in labels)
            print(f"{name}, {label}: {group.title}: {', '.join(group.arms)}; {group.seeds} seeds")
        return
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    for name in PAGES if arguments.only is None else [arguments.only]:
        groups = {label: GROUPS[label] for label in PAGES[name][1]}
        found = trained(groups, seeds=arguments.seeds, processes=max(arguments.processes, 1), name=NAME)
        for runs in found.values():
            print(tables(runs, COLUMNS), end="\n\n")
        write(name, found)


if __name__ == "__main__":
    main()
