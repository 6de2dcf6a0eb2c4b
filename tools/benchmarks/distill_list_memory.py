"""Peak memory above the inputs, and time, of a list term forward and backward (512 dimensions), each in a process.

python tools/benchmarks/distill_list_memory.py [--plain 8192] [--blocked 8192,16384,32768] [--out result.json]

"plain" is one block of all rows; "default" leaves the size of the block to the library. Memory also in multiples of a
B x B float32 matrix.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from harness import in_child, made_up, measured, parser, show

DIMS = 512


def task(folder: Path, size: int, what: str, comparison: str) -> None:
    import torch
    from torch.nn import functional as F

    from dmlkd.distill import listwise_divergence

    torch.set_num_threads(1)
    z = torch.from_numpy(np.load(folder / "z.npy"))
    student, teacher = z[:size].requires_grad_(), z[size:]

    def work(count: int) -> None:
        s, t = student[:count], teacher[:count]
        if what == "bare":
            target = F.log_softmax(t @ t.T, dim=1)
            F.kl_div(F.log_softmax(s @ s.T, dim=1), target, reduction="batchmean", log_target=True).backward()
        else:
            block = size if what == "plain" else None
            listwise_divergence(student=s, teacher=t, comparison=comparison, block=block).backward()

    work(64)  # what is loaded on first use is no part of it
    student.grad = None
    print(json.dumps(measured(lambda: work(size))))


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--plain", default="8192")
    options_of.add_argument("--blocked", default="8192,16384,32768")
    options = options_of.parse_args()
    if options.task:
        task(Path(options.folder), **json.loads(options.arguments))
        return
    jobs = [(int(n), what, "kl") for n in options.plain.split(",") for what in ("bare", "plain")]
    jobs += [(int(n), "default", "kl") for n in options.blocked.split(",")]
    jobs += [(int(options.plain.split(",")[0]), "default", comparison) for comparison in ("js", "squared")]
    rows = []
    for size, what, comparison in jobs:
        z, _ = made_up(2 * size, DIMS, size // 4, largest=20, noise=1.4, seed=options.seed)
        result = in_child(__file__, "term", {"z": z}, size=size, what=what, comparison=comparison)
        peak = result["peak_mb"]
        rows.append(
            {
                "B": size,
                "what": what,
                "comparison": comparison,
                "seconds": result["seconds"][0],
                "peak MB": peak,
                "B x B matrices": peak / (size * size * 4 / 2**20),
            }
        )
    show(rows, options.out, dims=DIMS, seed=options.seed, threads=1)


if __name__ == "__main__":
    main()
