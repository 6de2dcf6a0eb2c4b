"""Measure how well `dmlkd audit` finds labels that were made wrong, and write docs/results/label-audit.{json,md}.

    python tools/audit_noise.py [--seeds 3] [--data ../shared/data]

Beside other work, set OMP_NUM_THREADS=1. Finished runs are kept under runs/reproduce/label-audit/ and not repeated.
"""

import argparse
import itertools
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from reproduce import ROOT, run_once

NAME = "label-audit"
CONFIG = "configs/omniglot-small.yaml"
SHARES = (0.1, 0.3)
ARMS: dict[str, tuple[str, ...]] = {"contrastive": ("distill=[]",), "contrastive + LSD": ()}
EPOCHS = 10
CHOICE_SEEDS = (100, 101)
CHOICE = [(k, temperature) for k in (20, 50, 100, 200) for temperature in (0.02, 0.05, 0.1, 0.2)]


def trained(arm: str, share: float, seed: int) -> tuple[Path, dict[str, Any]]:
    """The folder of a run, trained unless it is there, and its metrics."""
    name = f"{arm}-{share}"
    overrides = (*ARMS[arm], f"train.epochs={EPOCHS}", f"data.noise={share}")
    metrics = run_once((NAME, name, seed, overrides, CONFIG))
    slug = "".join(c if c.isalnum() else "-" for c in name)
    return ROOT / "runs" / "reproduce" / NAME / f"{slug}-seed{seed}", metrics


def audited(arm: str, share: float, seed: int) -> dict[str, Any]:
    """What the audit of a run finds, and what that of its raw pixels does."""
    from torch import nn

    from dmlkd.export import embed
    from dmlkd.retrieval.audit import audit_labels, detection
    from dmlkd.training.auditing import audit_run
    from dmlkd.training.building_data import build_training_images
    from dmlkd.training.loading import load_run

    folder, metrics = trained(arm, share, seed)
    found = audit_run(folder)
    images = build_training_images(load_run(folder).config.data, seed=seed).images
    pixels = audit_labels(embed(nn.Flatten(), images), images.labels)
    return {
        "seed": seed,
        "network": detection(found.audit, found.wrong)._asdict(),
        "pixels": detection(pixels, found.wrong)._asdict(),
        "recall@1": metrics["test"]["recall@1"],
        "versions": metrics["versions"],
    }


def choice() -> list[dict[str, float]]:
    """Means over arms, shares and the seeds of the choice for each number of neighbours and temperature."""
    from dmlkd.export import embed
    from dmlkd.retrieval.audit import audit_labels, detection
    from dmlkd.training.building_data import build_training_images
    from dmlkd.training.loading import load_run

    found: dict[tuple[int, float], list[Any]] = {pair: [] for pair in CHOICE}
    for seed, share, arm in itertools.product(CHOICE_SEEDS, SHARES, ARMS):
        config, model = load_run(trained(arm, share, seed)[0])
        images, _, true_labels = build_training_images(config.data, seed=seed)
        embeddings = embed(model, images)
        for k, temperature in CHOICE:
            audit = audit_labels(embeddings, images.labels, k=k, temperature=temperature)
            found[k, temperature].append(detection(audit, images.labels != true_labels))
    return [
        {
            "k": k,
            "temperature": temperature,
            **{measure: statistics.fmean(getattr(f, measure) for f in own) for measure in ("precision", "auroc")},
        }
        for (k, temperature), own in found.items()
    ]


def cell(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A row for each share of wrong labels and each embedding."""
    lines = ["| wrong labels | embeddings | precision among the first n | AUROC |", "|---|---|---|---|"]
    for share, arms in results.items():
        rows = {"raw pixels": [r["pixels"] for r in next(iter(arms.values()))]}
        rows |= {arm: [r["network"] for r in runs] for arm, runs in arms.items()}
        for label, found in rows.items():
            cells = " | ".join(cell([f[measure] for f in found]) for measure in ("precision", "auroc"))
            lines.append(f"| {float(share):.0%}, n = {found[0]['wrong']} | {label} | {cells} |")
    return "\n".join(lines)


def choice_table(rows: list[dict[str, float]]) -> str:
    """Precision, and AUROC in brackets, by neighbours and temperature."""
    temperatures = sorted({row["temperature"] for row in rows})
    lines = ["| k |" + "".join(f" {t} |" for t in temperatures), "|---|" + "---|" * len(temperatures)]
    for k in sorted({row["k"] for row in rows}):
        own = sorted((row for row in rows if row["k"] == k), key=lambda row: row["temperature"])
        lines.append(f"| {k} |" + "".join(f" {100 * r['precision']:.2f} ({100 * r['auroc']:.2f}) |" for r in own))
    return "\n".join(lines)


def page(results: dict[str, Any], rows: list[dict[str, float]], seeds: int, machine: str, versions: Any) -> str:
    """The page of docs/results/."""
    chosen_on = " and ".join(map(str, CHOICE_SEEDS))
    return f"""# Label audit: Omniglot-small, labels made wrong on purpose

How well [`dmlkd audit`](../audit.md) finds training labels that were made wrong (symmetric noise), in %: the share of
wrong labels among the first n of the table, n being how many there are, and the area under the ROC over the 2,720
training images. Mean ± standard deviation over {seeds} seeds. Chance would give a precision of 10 and 30, AUROC 50.

{table(results)}

The networks were trained with the wrong labels, {EPOCHS} epochs, from `{CONFIG}`: contrastive with
`--set distill=[]`, contrastive + LSD with nothing else changed.

k = 100 and temperature 0.05 were chosen on seeds {chosen_on}, which are not in the table above. Mean precision
(AUROC) there over both shares and both networks, k by temperature:

{choice_table(rows)}

Made by `OMP_NUM_THREADS=1 python tools/audit_noise.py`, seeds 0 to {seeds - 1},
on {machine};
torch {versions["torch"]}, faiss {versions["faiss-cpu"]}, pytorch-metric-learning {versions["pytorch-metric-learning"]}.
Every run's figures are in `docs/results/{NAME}.json`.
"""


def main() -> None:
    """Read the command line, train, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    data = arguments.data or Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    os.environ["DMLKD_DATA"] = str(data)
    import torch

    from dmlkd.files import write_json, write_text

    rows = choice()
    print(choice_table(rows), flush=True)
    results: dict[str, dict[str, list[dict[str, Any]]]] = {str(s): {arm: [] for arm in ARMS} for s in SHARES}
    for seed in range(arguments.seeds):
        for share in SHARES:
            for arm in ARMS:
                results[str(share)][arm].append(audited(arm, share, seed))
    versions = results[str(SHARES[0])]["contrastive"][0]["versions"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    machine = f"{os.cpu_count()} CPU cores, {threads} thread(s), {platform.machine()}, {platform.system()}, {gpu}"
    text = page(results, rows, arguments.seeds, machine, versions)
    write_text(ROOT / "docs" / "results" / f"{NAME}.md", text)
    record = {"machine": machine, "versions": versions, "choice": rows, "runs": results}
    write_json(ROOT / "docs" / "results" / f"{NAME}.json", record)
    print(table(results))


if __name__ == "__main__":
    main()
