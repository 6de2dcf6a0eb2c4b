"""Peak memory above the embeddings, and time, of ``evaluate`` as the number of embeddings grows (64 dimensions).

python tools/benchmarks/retrieval_memory.py [--rows 25000,50000,100000,200000] [--metrics recall@1,map@r] [--out r.json]
"""

import json
from pathlib import Path

import numpy as np
from harness import in_child, made_up, measured, parser, show


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--rows", default="25000,50000,100000,200000")
    options_of.add_argument("--metrics", default="recall@1,recall@10,map@r,r_precision")
    options = options_of.parse_args()
    if options.task:
        from dmlkd.retrieval import evaluate

        z, y = (np.load(Path(options.folder) / f"{name}.npy") for name in "zy")
        metrics = json.loads(options.arguments)["metrics"]
        evaluate(z[:5000], np.arange(5000) % 9, metrics=["recall@1"])
        print(json.dumps(measured(lambda: dict(evaluate(z, y, metrics=metrics)))))
        return
    rows = []
    for n in map(int, options.rows.split(",")):
        z, y = made_up(n, 64, n // 5, largest=12, noise=1.4, seed=options.seed)
        result = in_child(__file__, "evaluate", {"z": z, "y": y}, metrics=options.metrics.split(","))
        own = z.nbytes / 2**20
        rows.append(
            {"n": n, "seconds": result["seconds"][0], "peak MB": result["peak_mb"], "of which unit copy MB": own}
        )
    show(rows, options.out, metrics=options.metrics, seed=options.seed)
    n, seconds = (np.log([float(row[key]) for row in rows]) for key in ("n", "seconds"))
    if len(rows) > 1:
        print("time exponent:", round(float(np.polyfit(n, seconds, 1)[0]), 2))


if __name__ == "__main__":
    main()
