"""Self-distillation in closed form: how exact, when it collapses, and what a round gains.

    python tools/closed_forms.py [--data ../shared/data] [--run RUN] [--seeds 5] [--out docs/results/closed-forms.json]

Prints the tables of docs/results/closed-forms.md. ``--run`` is a finished run of configs/digits.yaml, whose embeddings
are features too; Omniglot-small is left out without its images.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from dmlkd.data import ImageDataset, ImageTable, digits, noisy_labels, omniglot_small
from dmlkd.distill.closed_form import (
    Rounds,
    Spectrum,
    closed_form_rounds,
    coefficients,
    rounds_before_collapse,
    spectrum,
)
from dmlkd.retrieval import evaluate

SHOWN = (2, 5, 10)
CONSTRAINED = (1, 2, 3, 5)
ARMS: dict[str, dict[str, float]] = {
    "ridge 0.1, labels dropped": {"ridge": 0.1},
    "ridge 0.1, half labels": {"ridge": 0.1, "label_weight": 0.5},
    "ridge 1, labels dropped": {"ridge": 1.0},
    "ridge 1, half labels": {"ridge": 1.0, "label_weight": 0.5},
    "constraint, labels dropped": {"share": 0.05},
}
ALONE = (
    0.1,
    0.2,
    1.0,
    2.0,
    10.0,
    30.0,
    100.0,
)  # ridges of a single fit: 0.2 and 2 are the limits of the two arms with labels
NOISES = (0.0, 0.3)


class Problem(NamedTuple):
    """One split: features and labels to fit, other images of these classes, images of classes never fitted."""

    fit: np.ndarray
    labels: np.ndarray
    seen: np.ndarray
    seen_labels: np.ndarray
    unseen: np.ndarray
    unseen_labels: np.ndarray


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    options_of.add_argument("--run", type=Path)
    options_of.add_argument("--seeds", type=int, default=5)
    options_of.add_argument("--out", type=Path)
    options = options_of.parse_args()
    started = time.perf_counter()
    found: dict[str, Any] = {"exactness": exactness(), "collapse": collapses(), "rounds": {}}
    for name, make in sources(options.data, options.run).items():
        per_seed = [rounds_of(make(seed)) for seed in range(options.seeds)]
        found["rounds"][name] = per_seed
        show(name, per_seed)
    show_best(found["rounds"])
    found["seconds"] = time.perf_counter() - started
    print(f"{found['seconds']:.0f} s")
    if options.out:
        options.out.write_text(json.dumps(rounded(found), indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Floats with six digits, whatever they are in."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def exactness() -> float:
    """The largest difference of the labelled rounds' limit from ridge regression solved with ridge / a."""
    x, y = digits().pixels.reshape(1797, -1) / 255.0, digits().labels  # type: ignore[union-attr]
    x, hot = x[:600], np.eye(10)[y[:600]]
    largest = 0.0
    for gamma in (0.05, 0.5):
        gram = rbf_kernel(x, gamma=gamma)
        basis = spectrum(gram)
        projected = basis.project(hot)
        for ridge in (0.1, 1.0, 10.0):
            for weight in (0.05, 0.2, 0.5, 1.0):
                done = closed_form_rounds(basis.values, projected, rounds=1000, ridge=ridge, label_weight=weight)
                ours = gram @ coefficients(basis, projected, done)
                theirs = gram @ np.linalg.solve(gram + ridge / weight * np.eye(len(gram)), hot)
                largest = max(largest, float(np.abs(ours - theirs).max()))
    print(f"largest difference from ridge regression with ridge / a: {largest:.2g}\n")
    return largest


def collapses() -> list[dict[str, float]]:
    """Rounds that the constraint allows before the output is 0, and the bound on them."""
    table = digits()
    x, hot = table.pixels[:400].reshape(400, -1) / 255.0, np.eye(10)[table.labels[:400]]  # type: ignore[index]
    rows = []
    print("| gamma | d_max / d_min | tolerance, of the labels' mean square | bound | rounds |\n|---|---|---|---|---|")
    for gamma in (2.0, 0.5, 0.2):
        basis = spectrum(rbf_kernel(x, gamma=gamma))
        projected = basis.project(hot)
        for share in (1e-4, 1e-2):
            tolerance = share * float((hot * hot).sum()) / len(hot)
            bound = rounds_before_collapse(basis.values, projected, tolerance)
            done = closed_form_rounds(basis.values, projected, rounds=2000, tolerance=tolerance)
            solved = done.collapsed - 1 if done.collapsed else float("inf")
            condition = float(basis.values[-1] / basis.values[0])
            rows.append({"gamma": gamma, "condition": condition, "share": share, "bound": bound, "rounds": solved})
            print(f"| {gamma} | {condition:.3g} | {share:g} | {bound:.2f} | {solved} |")
    print()
    return rows


def sources(data: Path, run: Path | None) -> dict[str, Callable[[int], Problem]]:
    """Where the features come from: a problem for each seed."""
    table = digits()
    pixels = table.pixels.reshape(len(table), -1) / 255.0  # type: ignore[union-attr]
    made: dict[str, Callable[[int], Problem]] = {"digits, pixels": lambda seed: split(pixels, table.labels, seed)}
    if run is not None:
        z, seen = embeddings(run, table), table.split == "train"
        made["digits, embeddings of a run"] = lambda seed: split(z, table.labels, seed, fitted=seen)
    if (data / "images_background_small1.zip").is_file():
        characters = omniglot_small(data)
        strokes = flat(characters)
        made["Omniglot-small, pixels"] = lambda seed: split(strokes, characters.labels, seed)
    return made


def flat(table: ImageTable) -> np.ndarray:
    images = ImageDataset(table, lambda image: image, channels=1, image_size=20, in_memory=True)
    return 1 - np.stack([images.image(row).numpy().ravel() for row in range(len(images))]) / 255.0


def embeddings(run: Path, table: ImageTable) -> np.ndarray:
    from dmlkd.export import embed
    from dmlkd.models import EmbeddingModel

    model = EmbeddingModel.from_pretrained(run)
    assert model.preparation is not None
    return embed(model, model.preparation.dataset(table)).double().numpy()


def split(features: np.ndarray, labels: np.ndarray, seed: int, fitted: np.ndarray | None = None) -> Problem:
    """Half of the classes, drawn, to fit (half of their images) and half to search; or the classes that are given."""
    rng = np.random.default_rng(seed)
    if fitted is None:
        classes = rng.permutation(np.unique(labels))
        fitted = np.isin(labels, classes[: len(classes) // 2])
    rows = rng.permutation(np.flatnonzero(fitted))
    half, rest = rows[::2], rows[1::2]
    known, y = np.unique(labels[fitted], return_inverse=True)
    numbers = np.full(len(labels), -1)
    numbers[fitted] = y
    assert len(np.unique(numbers[half])) == len(known)
    return Problem(features[half], numbers[half], features[rest], numbers[rest], features[~fitted], labels[~fitted])


def rounds_of(problem: Problem) -> dict[str, dict[str, float]]:
    """Accuracy on seen classes and MAP@R on unseen ones, of raw features, single fits and rounds."""
    apart = euclidean_distances(problem.fit[:500], squared=True)
    gamma = 1 / float(np.median(apart[apart > 0]))
    basis = spectrum(rbf_kernel(problem.fit, gamma=gamma))
    bases = [rbf_kernel(x, problem.fit, gamma=gamma) @ basis.vectors for x in (problem.seen, problem.unseen)]
    unseen = problem.unseen_labels.astype(np.int64)
    found = {"features": {"map@r": evaluate(problem.unseen, unseen, metrics=["map@r"])["map@r"]}}
    for noise in NOISES:
        given = noisy_labels(problem.labels, noise, kind="symmetric", seed=0) if noise else problem.labels
        projected = basis.project(np.eye(given.max() + 1)[given])
        for name, done in fits(basis, projected):
            scale = basis.vectors.T @ coefficients(basis, projected, done)
            seen, other = (part @ scale for part in bases)
            found[f"{noise:g}/{name}"] = {
                "accuracy": float((seen.argmax(axis=1) == problem.seen_labels).mean()),
                "map@r": evaluate(other, unseen, metrics=["map@r"])["map@r"],
            }
    return found


def fits(basis: Spectrum, projected: np.ndarray) -> Iterator[tuple[str, Rounds]]:
    for ridge in ALONE:
        yield f"ridge {ridge:g}", closed_form_rounds(basis.values, projected, rounds=1, ridge=ridge)
    for name, arguments in ARMS.items():
        numbers = dict(arguments)
        if "share" in numbers:
            numbers["tolerance"] = numbers.pop("share") * float((projected**2).sum()) / len(projected)
        for count in CONSTRAINED if "tolerance" in numbers else SHOWN:
            done = closed_form_rounds(basis.values, projected, rounds=count, **numbers)  # type: ignore[arg-type]
            if done.collapsed is None:
                yield f"{name}/{count}", done


def show(name: str, per_seed: list[dict[str, dict[str, float]]]) -> None:
    """Single fits, and rounds less the single fit that each arm begins with, with paired 95 % intervals over seeds."""
    raw = 100 * np.mean([seed["features"]["map@r"] for seed in per_seed])
    print(f"\n{name}: features themselves MAP@R {raw:.2f}\n")
    columns = [(noise, metric) for noise in NOISES for metric in ("accuracy", "map@r")]
    print(f"| fit | {' | '.join(f'{metric}, {100 * noise:.0f} % wrong' for noise, metric in columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for fit in dict.fromkeys(key.partition("/")[2] for seed in per_seed for key in seed if key != "features"):
        arm, _, count = fit.partition("/")
        first = arm.split(",")[0] if arm.startswith("ridge") else f"{arm}/1"
        cells = [cell(per_seed, f"{noise:g}/{fit}", f"{noise:g}/{first}", metric) for noise, metric in columns]
        print(f"| {arm}{f', round {count}' if count else ''} | {' | '.join(cells)} |")


def cell(per_seed: list[dict[str, dict[str, float]]], key: str, first: str, metric: str) -> str:
    if not all(key in seed for seed in per_seed):
        return "collapsed"
    values, begun = (np.array([100 * seed[name][metric] for seed in per_seed]) for name in (key, first))
    return f"{values.mean():.2f}" if key == first else interval(values - begun)


def show_best(found: dict[str, list[dict[str, dict[str, float]]]]) -> None:
    """The best arm of several rounds less the best single fit, both chosen on these figures, paired over seeds."""
    names = ("features", "labels wrong", "measure", "best single fit", "best rounds", "difference")
    print(f"\n| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for name, per_seed in found.items():
        for noise in NOISES:
            for metric in ("accuracy", "map@r"):
                there = [key for key in per_seed[0] if all(key in seed for seed in per_seed)]
                keys = [key for key in there if key.startswith(f"{noise:g}/")]
                means = {key: float(np.mean([100 * seed[key][metric] for seed in per_seed])) for key in keys}
                single = max((key for key in keys if key.count("/") == 1), key=means.__getitem__)
                rounds = max(
                    (key for key in keys if key.count("/") == 2 and not key.endswith("/1")), key=means.__getitem__
                )
                apart = interval(np.array([100 * (seed[rounds][metric] - seed[single][metric]) for seed in per_seed]))
                shown = (
                    f"{key.partition('/')[2].replace('/', ', round ')}: {means[key]:.2f}" for key in (single, rounds)
                )
                print(f"| {name} | {100 * noise:.0f} % | {metric} | {' | '.join(shown)} | {apart} |")


def interval(differences: np.ndarray) -> str:
    mean = float(differences.mean())
    reach = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return f"{mean:+.2f} [{mean - reach:+.2f}, {mean + reach:+.2f}]"


if __name__ == "__main__":
    main()
