"""What self-distillation makes of class posteriors, on held-out images of the training classes, and of retrieval.

    python tools/reproduce_posteriors.py [--only noise] [--processes 2] [--seeds 5] [--data ../shared/data]
    python tools/reproduce_posteriors.py --arm AI-KD
    python tools/reproduce_posteriors.py --only list

Every arm of a group is the group's recipe with a few settings changed, trained with the same seeds; the first is the
baseline. <ARM> in a setting stands for the run folder of that arm with the same seed, which is trained first; <fit ARM>
for that folder's name. Finished runs are kept under runs/reproduce/class-posteriors/ and not repeated, so a broken
experiment goes on where it was and a new arm costs only its own runs. With --arm those arms and the ones that they name
are trained, and the scores of the others are those of the JSON. Writes docs/results/class-posteriors.{json,md}.

Epochs and the learning rate of the class weights are longer and higher than the recipe's. They were chosen by the top-1
of the plain loss on held-out training images with seed 100, which no table uses.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproduce import ROOT, Job, folder_of, interval, machine, run_once

NAME = "class-posteriors"
COMMON = (
    "data.held_out_images=0.25",
    "train.epochs=36",
    "train.metric_loss_lr=1e-2",
    "eval.metrics=[recall@1, map@r]",
)
PLAIN = ("distill=[]",)
LSD = "{name: lsd, weight: 50, temperature: 1}"
CS_KD = "{name: cs_kd, weight: 1, temperature: 4}"
NOISE = "data.noise=0.3"
LONGER = "train.epochs=108"
AUGMENTED = "data.transform=handwriting"


@dataclass(frozen=True)
class Group:
    """Arms of one table."""

    title: str
    config: str
    arms: dict[str, tuple[str, ...]]
    seeds: int = 5
    common: tuple[str, ...] = COMMON
    first_seed: int = 0


PS_KD = "{name: ps_kd, weight: 1}"
RESIDUAL = "{name: adaptive_labels, weight: 1}"
WHOLE = "metric_weight=0"  # the terms hold the label: their cross-entropy is the whole loss


def taught_by(run: str, method: str, *, temperature: float = 4) -> str:
    """A term whose teacher is another arm's run."""
    teacher = f"{{name: finished_run, path: <{run}>}}"
    return f"{{name: {method}, weight: 1, temperature: {temperature}, teacher: {teacher}}}"


def left_out(alphabet: str) -> dict[str, tuple[str, ...]]:
    """Arms tested on one alphabet, which the others are trained for."""
    domain = f"data.test_domain={alphabet}"
    plain = f"plain, {alphabet}"
    return {
        plain: (*PLAIN, domain),
        f"born again, {alphabet}": (f"distill=[{taught_by(plain, 'posterior')}]", domain),
        f"KDDG, {alphabet}": (f"distill=[{taught_by(plain, 'kddg')}]", domain),
    }


def evidence(label: float, discount: float) -> str:
    """BSD with so much evidence for the label, and so much of it kept from epoch to epoch."""
    return f"{{name: bsd, weight: 1, teacher: {{name: evidence, label_evidence: {label}, discount: {discount}}}}}"


def geometry(share: float, sigma: float) -> str:
    """SKD with such a share of the geometry, and so wide a neighbourhood."""
    teacher = f"{{name: class_geometry, neighbours: 10, sigma: {sigma}}}"
    return f"{{name: skd, weight: 1, share: {share}, teacher: {teacher}}}"


def dropout(weight: float, temperature: float) -> str:
    """SD-Dropout of such a weight."""
    return f"{{name: sd_dropout, weight: {weight}, rate: 0.5, temperature: {temperature}}}"


def ambiguity(weight: float) -> str:
    """Learning ambiguity in the second half, of such a weight."""
    lower = "teacher: {name: lower_exit, stage: 1}, schedule: {name: after, epochs: 18}"
    return f"{{name: ambiguity, weight: {weight}, {lower}}}"


TRIED = {
    **{
        f"BSD, label evidence {label}, discount {discount}": (f"distill=[{evidence(label, discount)}]", WHOLE)
        for label, discount in ((10, 0.9), (10, 0.99), (100, 0.9), (100, 0.99), (1000, 0.9))
    },
    **{
        f"adaptive labels, weight {weight}": (f"distill=[{{name: adaptive_labels, weight: {weight}}}]",)
        for weight in (1, 0.3, 0.1, 0.03)
    },
    **{
        f"SKD, share {share}, sigma {sigma}": (f"distill=[{geometry(share, sigma)}]", WHOLE)
        for share, sigma in ((0.1, 0.1), (0.03, 0.1), (0.1, 0.03), (0.03, 0.03))
    },
    **{
        f"SD-Dropout, weight {weight}, temperature {temperature}": (f"distill=[{dropout(weight, temperature)}]",)
        for weight, temperature in ((1, 4), (0.1, 4), (0.01, 4), (0.1, 1))
    },
    **{f"ambiguity, weight {weight}": (f"distill=[{ambiguity(weight)}]",) for weight in (0.3, 0.1, 0.03)},
}

CHOSEN = (
    "BSD, label evidence 1000, discount 0.9",
    "adaptive labels, weight 0.1",
    "SKD, share 0.03, sigma 0.1",
    "SD-Dropout, weight 0.1, temperature 1",
    "ambiguity, weight 0.1",
)

GROUPS = {
    "methods": Group(
        "Omniglot-small, normalised softmax",
        "configs/methods/cs-kd.yaml",
        {
            "plain": PLAIN,
            "LSD": (f"distill=[{LSD}]",),
            "CS-KD": (f"distill=[{CS_KD}]",),
            "PS-KD": (f"distill=[{PS_KD}]", WHOLE),
            "BSD": (f"distill=[{evidence(10, 0.9)}]", WHOLE),
            "adaptive labels": (f"distill=[{RESIDUAL}]",),
            "SKD": (
                f"distill=[{geometry(0.1, 0.1)}]",
                WHOLE,
            ),
            "SD-Dropout": (f"distill=[{dropout(1, 4)}]",),
            "AI-KD": (
                "distill=[{name: ps_kd, weight: 1, teacher: previous_epoch}, "
                f"{taught_by('plain', 'posterior', temperature=1)}, "
                "{name: adversary, weight: 0.1, teacher: {name: finished_run, path: <plain>}}]",
                WHOLE,
            ),
            "ambiguity": (f"distill=[{ambiguity(0.3)}]",),
            "Beta smoothing": (
                "distill=[{name: beta_smoothing, weight: 1, a: 9, teacher: {name: moving_average, decay: 0.99}}]",
                WHOLE,
            ),
            "born again": (f"distill=[{taught_by('plain', 'posterior')}]",),
            "CS-KD + LSD": (f"distill=[{CS_KD}, {LSD}]",),
            "PS-KD + LSD": (f"distill=[{PS_KD}, {LSD}]", WHOLE),
            "CS-KD + PS-KD + LSD": (f"distill=[{CS_KD}, {PS_KD}, {LSD}]", WHOLE),
        },
    ),
    "settings": Group(
        "Settings tried, of which the table below takes those of least NLL",
        "configs/methods/cs-kd.yaml",
        {"plain": PLAIN, **TRIED},
        seeds=1,
        first_seed=100,
    ),
    "tuned": Group(
        "The settings of least NLL",
        "configs/methods/cs-kd.yaml",
        {"plain": PLAIN, **{arm: TRIED[arm] for arm in CHOSEN}},
    ),
    "longer": Group(
        "Three times as many epochs",
        "configs/methods/cs-kd.yaml",
        {
            "plain, longer": (*PLAIN, LONGER),
            "CS-KD, longer": (f"distill=[{CS_KD}]", LONGER),
            "CS-KD + LSD, longer": (f"distill=[{CS_KD}, {LSD}]", LONGER),
        },
        seeds=3,
    ),
    "augmented": Group(
        "With augmentation",
        "configs/methods/cs-kd.yaml",
        {
            "plain, augmented": (*PLAIN, AUGMENTED),
            "CS-KD, augmented": (f"distill=[{CS_KD}]", AUGMENTED),
            "CS-KD + LSD, augmented": (f"distill=[{CS_KD}, {LSD}]", AUGMENTED),
        },
        seeds=3,
    ),
    "noise": Group(
        "The same with 30 % of the training labels wrong",
        "configs/methods/cs-kd.yaml",
        {
            "plain, noise": (*PLAIN, NOISE),
            "LSD, noise": (f"distill=[{LSD}]", NOISE),
            "CS-KD, noise": (f"distill=[{CS_KD}]", NOISE),
            "PS-KD, noise": (f"distill=[{PS_KD}]", WHOLE, NOISE),
            "BSD, noise": (f"distill=[{evidence(10, 0.9)}]", WHOLE, NOISE),
            "adaptive labels, noise": (f"distill=[{RESIDUAL}]", NOISE),
        },
        seeds=3,
    ),
    "subclasses": Group(
        "Digits as two super-classes, retrieval of the ten",
        "configs/digits.yaml",
        {
            "cross-entropy": ("distill=[{name: cross_entropy, weight: 1}]",),
            "spread": ("distill=[{name: subclass_spread, weight: 1, temperature: 1}]",),
            "taught classes by cross-entropy": (f"distill=[{taught_by('cross-entropy', 'posterior')}]",),
            "taught classes by spread": (f"distill=[{taught_by('spread', 'posterior')}]",),
            "taught subclasses by spread": (f"distill=[{taught_by('spread', 'subclass')}]",),
        },
        common=(
            "data={name: digits, image_size: 32, transform: handwriting, validation: 0, test_share: 0.5, "
            "seen_classes: true, superclasses: {low: [0, 1, 2, 3, 4], high: [5, 6, 7, 8, 9]}, held_out_images: 0.25}",
            "model={backbone: convnet4, dim: 64}",
            "metric_loss=ContrastiveLoss",
            "miner=null",
            WHOLE,
            "classes={subclasses: 5}",
            "train={epochs: 10, batch_size: 80, per_class: 40, lr: 1e-3}",
            "eval.metrics=[recall@1, map@r]",
        ),
    ),
    **{
        f"domain-{alphabet.lower()}": Group(
            f"Tested on one alphabet, {alphabet}", "configs/methods/cs-kd.yaml", left_out(alphabet), seeds=3
        )
        for alphabet in ("Sanskrit",)
    },
}


@dataclass(frozen=True)
class Shown:
    """A column: its heading, where it is in ``metrics.json``, the factor it is shown with, and its decimals."""

    heading: str
    section: str
    key: str
    factor: float = 100.0
    decimals: int = 2

    def of(self, metrics: dict[str, Any]) -> float:
        """Its value, as shown."""
        return self.factor * float(metrics[self.section][self.key])


COLUMNS = (
    Shown("Recall@1 ↑", "test", "recall@1"),
    Shown("MAP@R ↑", "test", "map@r"),
    Shown("top-1 ↑", "seen", "top1"),
    Shown("top-5 ↑", "seen", "top5"),
    Shown("confidence", "seen", "confidence"),
    Shown("ECE ↓", "seen", "ece"),
    Shown("adaptive ECE ↓", "seen", "adaptive_ece"),
    Shown("NLL ↓", "seen", "nll", factor=1.0, decimals=3),
    Shown("Brier ↓", "seen", "brier"),
    Shown("AURC ↓", "seen", "aurc"),
)

Runs = dict[str, list[dict[str, Any]]]
NAMED = re.compile(r"<(fit )?([^<>]+)>")


def mean(values: list[float], column: Shown) -> str:
    """Mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.{column.decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{column.decimals}f}{spread}"


def difference(differences: list[float], column: Shown) -> str:
    """Mean and paired 95 % interval, in bold where it leaves out 0."""
    middle, half = interval(differences)
    low, high = middle - half, middle + half
    shown = f"{middle:+.{column.decimals}f}"
    if math.isnan(half):
        return shown
    shown += f" [{low:+.{column.decimals}f}, {high:+.{column.decimals}f}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


def table(title: str, runs: Runs, cell: Callable[[str, Shown], str], columns: tuple[Shown, ...]) -> str:
    """A row an arm, a column a measure."""
    lines = [
        f"| {title} | " + " | ".join(column.heading for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| {arm} | " + " | ".join(cell(arm, column) for column in columns) + " |" for arm in runs]
    return "\n".join(lines)


def tables(runs: Runs, columns: tuple[Shown, ...] = COLUMNS) -> str:
    """The scores of each arm, and their differences from those of the first."""
    baseline, *others = runs

    def values(arm: str, column: Shown) -> list[float]:
        return [column.of(metrics) for metrics in runs[arm]]

    def differences(arm: str, column: Shown) -> str:
        pairs = zip(values(arm, column), values(baseline, column), strict=True)
        return difference([one - other for one, other in pairs], column)

    scores = table("", runs, lambda arm, column: mean(values(arm, column), column), columns)
    return scores + "\n\n" + table(f"minus {baseline}", {arm: runs[arm] for arm in others}, differences, columns)


def narrowed(group: Group, arms: list[str]) -> Group:
    """The group with some of its arms alone, and those whose runs they name."""
    named = {name[2] for arm in arms if arm in group.arms for one in group.arms[arm] for name in NAMED.finditer(one)}
    return replace(group, arms={arm: how for arm, how in group.arms.items() if arm in named | set(arms)})


def jobs_of(group: Group, seeds: int, name: str = NAME) -> dict[tuple[str, int], Job]:
    """The runs of a group by arm and seed, kept under a name."""

    def settings(overrides: tuple[str, ...], seed: int) -> tuple[str, ...]:
        def put(named: re.Match[str]) -> str:
            folder = folder_of(name, named[2], seed)
            return folder.name if named[1] else str(folder)

        return tuple(NAMED.sub(put, one) for one in overrides)

    return {
        (arm, seed): (name, arm, seed, settings((*group.common, *overrides), seed), group.config)
        for seed in range(group.first_seed, group.first_seed + seeds)
        for arm, overrides in group.arms.items()
    }


def trained(groups: dict[str, Group], *, seeds: int | None, processes: int, name: str = NAME) -> dict[str, Runs]:
    """Every run of some groups, those that others name first."""
    jobs = {
        (label, *place): job
        for label, group in groups.items()
        for place, job in jobs_of(group, seeds or group.seeds, name).items()
    }

    def waits(group: Group, arm: str) -> int:
        """How many runs have to come one after another before this arm's."""
        named = {found[2] for override in group.arms[arm] for found in NAMED.finditer(override)}
        return 1 + max(waits(group, other) for other in named) if named else 0

    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    rounds = {place: waits(groups[place[0]], place[1]) for place in jobs}
    for number in range(max(rounds.values()) + 1):
        wave = {place: job for place, job in jobs.items() if rounds[place] == number}
        if processes == 1:
            found |= {place: run_once(job) for place, job in wave.items()}
            continue
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            found |= dict(zip(wave, pool.map(run_once, wave.values()), strict=True))
    return {
        label: {
            arm: [
                found[label, arm, seed] for seed in range(group.first_seed, group.first_seed + (seeds or group.seeds))
            ]
            for arm in group.arms
        }
        for label, group in groups.items()
    }


def page(found: dict[str, Runs], counts: dict[str, Any], versions: dict[str, Any], where: str) -> str:
    """The Markdown."""
    parts = []
    for label, runs in found.items():
        group = GROUPS[label]
        shown = "\n".join(f"- {arm}: `{' '.join(f'--set {o!r}' for o in group.arms[arm])}`" for arm in runs)
        common = " ".join(f"--set {o!r}" for o in group.common)
        seeds = len(next(iter(runs.values())))
        used = (
            f"Seeds {group.first_seed} to {group.first_seed + seeds - 1}" if seeds > 1 else f"Seed {group.first_seed}"
        )
        parts.append(
            f"## {group.title}\n\n{tables(runs)}\n\n{used}, from `{group.config}` with `{common}` and\n\n{shown}\n"
        )
    return f"""# Class posteriors

Retrieval (Recall@1, MAP@R) on unseen classes; all else on images of the training classes that were held out ({
        counts["seen"]["images"]
    } of {
        counts["seen"]["images"] + counts["train"]["images"]
    } in the first table), with their true labels. Last epoch; in
%, the negative log-likelihood (NLL) in nats: [what each is](../metrics.md#class-posteriors). Mean ± standard deviation;
difference from the first row with its paired 95 % interval (Student's t), in bold where that leaves out 0. Arrows say
which way is better.

{chr(10).join(parts)}
In a setting, an arm in angle brackets stands for its run folder with the same seed.

Made by `python tools/reproduce_posteriors.py` on {where}; torch {versions["torch"]}, pytorch-metric-learning
{versions["pytorch-metric-learning"]}. Every run's scores are in `docs/results/{NAME}.json`.
"""


def joined(kept: dict[str, Runs], found: dict[str, Runs]) -> dict[str, Runs]:
    """Scores found now and, of arms that were not trained now, those kept; in the order of the groups."""
    both = {label: {**kept.get(label, {}), **found.get(label, {})} for label in GROUPS}
    return {label: {arm: both[label][arm] for arm in GROUPS[label].arms if arm in both[label]} for label in GROUPS}


def main() -> None:
    """Train what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["list", *GROUPS], help="one group, whose tables are shown but not written")
    parser.add_argument("--arm", action="append", default=[], help="train this arm alone; may be given several times")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--seeds", type=int, help="how many, from 0 on; default: the group's own")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    if arguments.only == "list":
        for label, group in GROUPS.items():
            print(f"{label}: {group.title}: {', '.join(group.arms)}; {group.seeds} seeds")
        return
    if unknown := set(arguments.arm) - {arm for group in GROUPS.values() for arm in group.arms}:
        parser.error(f"no arm {sorted(unknown)[0]!r}; --only list shows them")
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    chosen = {label: group for label, group in GROUPS.items() if arguments.only in (None, label)}
    if arguments.arm:
        chosen = {label: part for label, group in chosen.items() if (part := narrowed(group, arguments.arm)).arms}
    found = trained(chosen, seeds=arguments.seeds, processes=max(arguments.processes, 1))
    from dmlkd.files import write_json, write_text

    first = next(iter(next(iter(found.values())).values()))[0]
    scores = {
        label: {arm: [{part: one[part] for part in ("test", "seen")} for one in ones] for arm, ones in runs.items()}
        for label, runs in found.items()
    }
    file = ROOT / "docs/results" / f"{NAME}.json"
    if arguments.arm:
        scores = joined(json.loads(file.read_text(encoding="utf-8")), scores)
    for runs in scores.values():
        print(tables(runs), end="\n\n")
    if arguments.only is not None:
        return
    where = machine()
    write_json(file, {"machine": where, "versions": first["versions"], **scores})
    write_text(file.with_suffix(".md"), page(scores, first["data"], first["versions"], where))


if __name__ == "__main__":
    main()
