"""Index folders of 1,000,000 x 128: time to build, bytes, queries a second, recall@10 beside the flat index.

python tools/benchmarks/index_kinds.py [--rows 1000000] [--queries 1000] [--only flat,IVF] [--out result.json]

The rows are a mixture of Gaussians in two levels: a group for each thousand rows, and in it a hundred classes of ten
rows on average.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import in_child, made_up, measured, parser, show

KINDS = {
    "flat": ("Flat", ""),
    "HNSW": ("HNSW32", "efSearch=128"),
    "IVF": ("IVF4096,Flat", "nprobe=32"),
    "IVF-PQ": ("IVF4096,PQ32", "nprobe=32"),
}


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--rows", type=int, default=1_000_000)
    options_of.add_argument("--queries", type=int, default=1000)
    options_of.add_argument("--only", default=",".join(KINDS))
    options = options_of.parse_args()
    if options.task:
        print(json.dumps(task(Path(options.folder), **json.loads(options.arguments))))
        return
    count, groups = options.rows + options.queries, max(1, options.rows // 1000)
    z, _ = made_up(count, 128, options.rows // 10, largest=20, noise=0.7, seed=options.seed, groups=groups, apart=0.7)
    arrays = {"rows": z[: options.rows], "queries": z[options.rows :]}
    rows, exact = [], None
    for name, (factory, search) in KINDS.items():
        if name not in options.only.split(","):
            continue
        found = in_child(__file__, "build", arrays, factory=factory, search=search)
        ids = [set(row) for row in found.pop("ids")]
        exact = exact or (ids if name == "flat" else None)
        if exact is not None:
            found["recall@10"] = float(np.mean([len(a & b) / 10 for a, b in zip(ids, exact, strict=True)]))
        rows.append({"kind": f"{factory} {search}".strip(), **found})
        show(rows, options.out, rows_in_index=options.rows, queries=options.queries, seed=options.seed)


def task(folder: Path, *, factory: str, search: str) -> dict[str, object]:
    from dmlkd.retrieval.index import SearchIndex
    from dmlkd.retrieval.indexing import build_index

    rows = np.load(folder / "rows.npy", mmap_mode="r")
    np.savez(folder / "e.npz", embeddings=rows, ids=np.array([f"{n}" for n in range(len(rows))]))
    queries = np.load(folder / "queries.npy")
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "index"
        built = measured(lambda: build_index(folder / "e.npz", out, factory=factory, search=search))
        started = time.perf_counter()
        index = SearchIndex(out)
        opened = time.perf_counter() - started
        ids = index.search(queries, 10).ids.tolist()  # and so the mapped file is in memory
        searched = measured(lambda: index.search(queries, 10), repeats=3)["seconds"]
        size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "build s": built["seconds"][0],
        "build peak MB": built["peak_mb"],
        "MB": size / 2**20,
        "open s": opened,
        "queries/s": len(queries) / min(searched),
        "ids": ids,
    }


if __name__ == "__main__":
    main()
