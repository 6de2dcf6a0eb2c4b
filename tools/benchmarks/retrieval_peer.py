"""``evaluate`` against one raw FAISS flat search and pytorch-metric-learning's AccuracyCalculator, on the same arrays.

python tools/benchmarks/retrieval_peer.py --size sop|cub [--repeats 3] [--out result.json]
"""

import json
import time
from pathlib import Path

import numpy as np
from harness import in_child, made_up, measured, parser, show

SIZES = {
    "sop": {"rows": 60_502, "dims": 128, "classes": 11_316, "largest": 12, "noise": 1.4},
    "cub": {"rows": 5_924, "dims": 512, "classes": 100, "largest": 60, "noise": 3.2},
}
METRICS = {
    "sop": ["recall@1", "recall@10", "map@r", "r_precision"],
    "cub": ["recall@1", "recall@2", "recall@4", "recall@8", "map@r", "r_precision"],
}
PEER = {"recall@1": "precision_at_1", "map@r": "mean_average_precision_at_r", "r_precision": "r_precision"}


def raw(z, y, **_):
    """The search alone: build a flat index and search it for as many neighbours as the metrics need, and the query."""
    import faiss

    k = int(np.bincount(y).max())

    def work():
        index = faiss.IndexFlatIP(z.shape[1])
        index.add(z)
        index.search(z, k)

    return work


def ours(z, y, metrics, **_):
    from dmlkd.retrieval import evaluate

    evaluate(z[:200], np.arange(200) % 9, metrics=metrics)
    return lambda: dict(evaluate(z, y, metrics=metrics))


def peer(z, y, k, **_):
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(include=tuple(PEER.values()), k=k, device=torch.device("cpu"))
    z, y = torch.from_numpy(z), torch.from_numpy(y)
    calculator.get_accuracy(z[:200], torch.arange(200) % 9)
    return lambda: calculator.get_accuracy(z, y)


def equal_clusters(z, y, **_):
    """NMI and AMI of the peer, given the clusters of ours, and the other way round."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    from dmlkd.retrieval.clustering import compared, kmeans

    assigned = kmeans(z, len(np.unique(y)), seed=0)
    calculator = AccuracyCalculator(
        include=("NMI", "AMI"), kmeans_func=lambda *_: torch.from_numpy(assigned), device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(torch.from_numpy(z), torch.from_numpy(y))

    def work():
        return {
            "nmi": compared("nmi", y, assigned),
            "ami": compared("ami", y, assigned),
            **{f"peer {name}": float(value) for name, value in theirs.items()},
        }

    return work


TASKS = {"raw": raw, "ours": ours, "peer": peer, "equal_clusters": equal_clusters}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--size", choices=SIZES, default="cub")
    options_of.add_argument("--repeats", type=int, default=3)
    options = options_of.parse_args()
    if options.task:
        z, y = (np.load(Path(options.folder) / f"{name}.npy") for name in "zy")
        arguments = json.loads(options.arguments)
        print(json.dumps(measured(TASKS[options.task](z, y, **arguments), repeats=arguments["repeats"]), default=float))
        return
    z, y = made_up(**SIZES[options.size], seed=options.seed)
    arrays, metrics, script = {"z": z, "y": y}, METRICS[options.size], __file__
    plan = [
        ("raw", "raw", {}),
        ("ours", "ours", {"metrics": metrics}),
        ("peer max_bin_count", "peer", {"k": "max_bin_count"}),
    ]
    if options.size == "cub":
        plan += [("peer default k", "peer", {"k": None}), ("equal clusters", "equal_clusters", {})]
    done = {}
    for label, task, arguments in plan:
        repeats = options.repeats if task in ("raw", "ours") else 1
        done[label] = in_child(script, task, arrays, repeats=repeats, **arguments)
        time.sleep(1)
    rows = []
    for label, result in done.items():
        best = min(result["seconds"])
        rows.append(
            {
                "what": label,
                "seconds": best,
                "of raw": best / min(done["raw"]["seconds"]),
                "peak MB": result["peak_mb"],
                **(result["result"] or {}),
            }
        )
    show(rows, options.out, size=SIZES[options.size], seed=options.seed, runs=done)
    got, theirs = done["ours"]["result"], done["peer max_bin_count"]["result"]
    print("largest difference from the peer:", max(abs(got[mine] - theirs[other]) for mine, other in PEER.items()))


if __name__ == "__main__":
    main()
