"""Choose weight and temperature of listwise self-distillation for each metric loss, on held-out training classes.

    python tools/tune_lists.py [--processes 2] [--data ../shared/data]

A quarter of Omniglot-small's training characters is held out; the test characters play no part. Each setting is trained
with seeds that the tables of results do not use. Finished runs are kept under runs/tuning/ and not repeated. Writes
docs/results/omniglot-tuning.{json,md}; what it chooses stands in the recipes, configs/omniglot-small/.
"""

import argparse
import csv
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from reproduce import LOSSES, ROOT, machine

SEEDS = (100, 101)
HELD_OUT = 0.25
SETTINGS = {
    "none": "[]",
    **{
        f"w{weight}-t{temperature}": f"[{{name: lsd, weight: {weight}, temperature: {temperature}}}]"
        for weight, temperature in ((50, 1.0), (200, 1.0), (10, 1.0), (10, 0.2))
    },
}

Job = tuple[str, str, int]


def trained(job: Job) -> float:
    """MAP@R of the held-out classes after the last epoch, in %."""
    from dmlkd.config import load_config
    from dmlkd.training import run

    recipe, setting, seed = job
    folder = ROOT / "runs" / "tuning" / f"{recipe}-{setting}-{seed}"
    if not (folder / "metrics.json").is_file():
        overrides = [f"distill={SETTINGS[setting]}", f"train.seed={seed}", f"data.validation={HELD_OUT}"]
        path = ROOT / "configs" / "omniglot-small" / f"{recipe}.yaml"
        run(load_config(path, [*overrides, "eval.metrics=[recall@1]"])[0], folder)
    with (folder / "log.csv").open() as file:
        value = 100 * float(list(csv.DictReader(file))[-1]["val/map@r"])
    print(f"{recipe} {setting} seed {seed}: {value:.1f}", flush=True)
    return value


def page(found: dict[tuple[str, str], list[float]]) -> str:
    """The table: the mean over the seeds, and how far each setting is from no distillation with the same seeds."""
    lines = ["| loss | none | " + " | ".join(s for s in SETTINGS if s != "none") + " |", "|---" * 6 + "|"]
    for name, recipe in LOSSES.items():
        none = found[recipe, "none"]
        cells = [f"{statistics.fmean(none):.1f}"]
        gains = {s: statistics.fmean(found[recipe, s]) - statistics.fmean(none) for s in SETTINGS if s != "none"}
        best = max(gains, key=lambda s: gains[s])
        cells += [f"**{gain:+.1f}**" if s == best else f"{gain:+.1f}" for s, gain in gains.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return f"""# Choosing weight and temperature on Omniglot-small

MAP@R in % of a quarter of the *training* characters, held out (others with each seed), after the last epoch, without
self-distillation, and the difference with listwise self-distillation at a weight w and a temperature t. Mean over the
seeds {" and ".join(map(str, SEEDS))}, which are not in the tables of results. In bold what the recipes have
(`configs/omniglot-small/`).

{chr(10).join(lines)}

Made by `python tools/tune_lists.py` on {machine()}. Every run is in `docs/results/omniglot-tuning.json`.
"""


def main() -> None:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="runs side by side, with one thread each")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    if arguments.processes > 1:
        os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [(recipe, setting, seed) for seed in SEEDS for recipe in LOSSES.values() for setting in SETTINGS]
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        values = list(pool.map(trained, jobs))
    from dmlkd.files import write_json, write_text

    found: dict[tuple[str, str], list[float]] = {}
    for (recipe, setting, _), value in zip(jobs, values, strict=True):
        found.setdefault((recipe, setting), []).append(value)
    record = {"machine": machine(), "seeds": SEEDS, "map@r": {f"{r} {s}": v for (r, s), v in found.items()}}
    write_json(ROOT / "docs" / "results" / "omniglot-tuning.json", record)
    write_text(ROOT / "docs" / "results" / "omniglot-tuning.md", page(found))


if __name__ == "__main__":
    main()
