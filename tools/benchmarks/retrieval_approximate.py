"""Approximate evaluation of 10,000 queries against 1,000,000 x 128: time, recall of the index, scores.

python tools/benchmarks/retrieval_approximate.py [--rows 1000000] [--queries 10000] [--out result.json]
"""

import json
from pathlib import Path

import numpy as np
from harness import in_child, made_up, measured, parser, show

INDEXES = [("exact", None, ""), ("IVF", "IVF4096,Flat", "nprobe=64"), ("HNSW", "HNSW32", "efSearch=128")]
METRICS = ["recall@1", "recall@10", "map@r"]


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--rows", type=int, default=1_000_000)
    options_of.add_argument("--queries", type=int, default=10_000)
    options_of.add_argument("--only", default="exact,IVF,HNSW")
    options = options_of.parse_args()
    if options.task:
        task(Path(options.folder), **json.loads(options.arguments))
        return
    z, y = made_up(options.rows, 128, options.rows // 10, largest=20, noise=1.4, seed=options.seed)
    rows = []
    for label, factory, search in INDEXES:
        if label in options.only.split(","):
            result = in_child(
                __file__, "evaluate", {"z": z, "y": y}, factory=factory, search=search, queries=options.queries
            )
            row = {"what": f"{factory or 'exact flat'} {search}".strip(), "seconds": result["seconds"][0]}
            rows.append({**row, "peak MB": result["peak_mb"], **result["result"]})
            show(rows, options.out, rows_in_gallery=options.rows, queries=options.queries, seed=options.seed)


def task(folder: Path, *, factory: str | None, search: str, queries: int) -> None:
    from dmlkd.retrieval import Index, evaluate

    z, y = (np.load(folder / f"{name}.npy") for name in "zy")
    index = None if factory is None else Index(factory, search)

    def work() -> dict[str, float]:
        scores = evaluate(z, y, metrics=METRICS, index=index, sample=queries)
        low, high = scores.interval("recall@1")
        found = {} if scores.search_recall is None else {"search recall": scores.search_recall}
        return {**scores, "recall@1 low": low, "recall@1 high": high, **found}

    print(json.dumps(measured(work)))


if __name__ == "__main__":
    main()
