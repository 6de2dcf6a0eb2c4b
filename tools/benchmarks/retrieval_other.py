"""Time and peak memory of what ranks or counts everything, at Stanford Online Products' size (60,502 x 128).

python tools/benchmarks/retrieval_other.py [--sample 2000] [--out result.json]
"""

import json
from pathlib import Path

import numpy as np
from harness import in_child, made_up, measured, parser, show


def tasks(z, y, sample):
    """Each to be timed; whole rankings are timed on a sample of the queries."""
    from dmlkd.retrieval import evaluate
    from dmlkd.retrieval.expansion import expand_queries
    from dmlkd.retrieval.lists import evaluate_ranking
    from dmlkd.retrieval.reranking import k_reciprocal

    part = slice(0, 10 * sample)
    return {
        f"map and mrr of {sample} queries": lambda: dict(evaluate(z, y, metrics=["map", "mrr"], sample=sample)),
        f"map@1000 of {sample} queries": lambda: dict(evaluate(z, y, metrics=["map@1000"], sample=sample)),
        "auroc, eer of all pairs": lambda: dict(evaluate(z, y, metrics=["auroc", "eer"])),
        f"query expansion of {10 * sample}": lambda: expand_queries(z[part]).shape,
        f"k-reciprocal of {10 * sample}": lambda: dict(
            evaluate_ranking(k_reciprocal(z[part], depth=50), y[part], metrics=["recall@1"])
        ),
    }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--sample", type=int, default=2000)
    options = options_of.parse_args()
    if options.task:
        z, y = (np.load(Path(options.folder) / f"{name}.npy") for name in "zy")
        print(json.dumps(measured(tasks(z, y, **json.loads(options.arguments))[options.task])))
        return
    z, y = made_up(60_502, 128, 11_316, largest=12, noise=1.4, seed=options.seed)
    rows = []
    for name in tasks(z, y, options.sample):
        result = in_child(__file__, name, {"z": z, "y": y}, sample=options.sample)
        rows.append({"what": name, "seconds": result["seconds"][0], "peak MB": result["peak_mb"]})
    show(rows, options.out, seed=options.seed)


if __name__ == "__main__":
    main()
