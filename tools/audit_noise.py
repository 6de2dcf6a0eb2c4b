"""Measure how well `dmlkd audit` finds labels that were made wrong, and write docs/results/label-audit.{json,md}.

    python tools/audit_noise.py [--seeds 3] [--data ../shared/data]

Beside other work, set OMP_NUM_THREADS=1. Finished runs are kept under runs/reproduce/label-audit/ and not repeated.
"""

import argparse
import json
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
MEASURES = ("precision", "auroc")


def audited(arm: str, share: float, seed: int) -> dict[str, Any]:
    """Train a run, unless it is there, audit its labels, and its raw pixels with it."""
    from torch import nn

    from dmlkd.export import embed
    from dmlkd.retrieval.audit import audit_labels, detection
    from dmlkd.training.auditing import audit_run
    from dmlkd.training.building import build_training_images
    from dmlkd.training.loading import load_run

    overrides = (*ARMS[arm], f"train.epochs={EPOCHS}", f"data.noise={share}")
    metrics = run_once(NAME, f"{arm}-{share}", seed, overrides, CONFIG)
    slug = "".join(c if c.isalnum() else "-" for c in f"{arm}-{share}")
    folder = ROOT / "runs" / "reproduce" / NAME / f"{slug}-seed{seed}"
    found = audit_run(folder)
    config = load_run(folder).config
    images = build_training_images(config.data, seed=seed).images
    pixels = audit_labels(embed(nn.Flatten(), images), images.labels)
    return {
        "seed": seed,
        "network": detection(found.audit.score, found.wrong)._asdict(),
        "pixels": detection(pixels.score, found.wrong)._asdict(),
        "recall@1": metrics["test"]["recall@1"],
        "versions": metrics["versions"],
    }


def cell(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A row for each share of wrong labels and each arm."""
    lines = ["| wrong labels | audited with | precision among the top n | AUROC |", "|---|---|---|---|"]
    for share, arms in results.items():
        first = next(iter(arms.values()))
        rows = {"raw pixels": [r["pixels"] for r in first]} | {a: [r["network"] for r in rs] for a, rs in arms.items()}
        for label, found in rows.items():
            cells = " | ".join(cell([f[m] for f in found]) for m in MEASURES)
            lines.append(f"| {float(share):.0%} (n = {found[0]['wrong']}) | {label} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, train, audit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--data", type=Path, help="folder of the data sets; default: $DMLKD_DATA, else ../shared/data")
    arguments = parser.parse_args()
    os.environ["DMLKD_DATA"] = str(arguments.data or os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    import torch

    from dmlkd.files import write_json, write_text

    results: dict[str, dict[str, list[dict[str, Any]]]] = {str(s): {arm: [] for arm in ARMS} for s in SHARES}
    for seed in range(arguments.seeds):
        for share in SHARES:
            for arm in ARMS:
                results[str(share)][arm].append(audited(arm, share, seed))
                print(share, arm, json.dumps(results[str(share)][arm][-1]["network"]), flush=True)
    versions = results[str(SHARES[0])]["contrastive"][0]["versions"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = torch.get_num_threads()
    machine = f"{os.cpu_count()} CPU cores, {threads} thread(s), {platform.machine()}, {platform.system()}, {gpu}"
    page = PAGE.format(
        table=table(results), seeds=arguments.seeds, last=arguments.seeds - 1, machine=machine, **versions
    )
    write_text(ROOT / "docs" / "results" / f"{NAME}.md", page)
    write_json(ROOT / "docs" / "results" / f"{NAME}.json", {"machine": machine, "versions": versions, "runs": results})
    print(table(results))


PAGE = ""

if __name__ == "__main__":
    main()
