"""Time of a list term, forward and backward, beside the bare softmax and KL and a loop over rows (128 dimensions).

python tools/benchmarks/distill_list_cost.py [--batches 112,512] [--repeats 50] [--out result.json]

The candidates take turns in every repeat, so that what else the machine does meets all of them; the figures are
medians, and "of bare" and "of lsd" medians of the ratios within a repeat.
"""

import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from harness import made_up, parser, show
from torch.nn import functional as F

from dmlkd.distill import ListwiseSelfDistillation, OnlineBatchDiffusion

LOOPS_UP_TO, LOOP_REPEATS = 112, 5  # they take long


def bare(student, teacher):
    """What the term is in torch, without checks and options."""
    with torch.no_grad():
        target = F.log_softmax(teacher @ teacher.T / 1.0, dim=1)
    return F.kl_div(F.log_softmax(student @ student.T / 1.0, dim=1), target, reduction="batchmean", log_target=True)


def loop(student, teacher):
    """Row by row, entry by entry."""
    total = student.new_zeros(())
    for i in range(len(student)):
        s = torch.stack([student[i] @ other for other in student])
        t = torch.stack([teacher[i] @ other for other in teacher]).detach()
        total = total + F.kl_div(F.log_softmax(s, dim=0), F.log_softmax(t, dim=0), reduction="sum", log_target=True)
    return total / len(student)


def row_loop(student, teacher):
    """Row by row, each row in one product."""
    total = student.new_zeros(())
    for i in range(len(student)):
        s, t = student @ student[i], (teacher @ teacher[i]).detach()
        total = total + F.kl_div(F.log_softmax(s, dim=0), F.log_softmax(t, dim=0), reduction="sum", log_target=True)
    return total / len(student)


def candidates(rows):
    """What is timed."""
    found = {"bare log_softmax and kl_div": bare, "lsd": ListwiseSelfDistillation()}
    masked = ListwiseSelfDistillation()
    found["lsd, rows given"] = lambda student, teacher: masked(student=student, teacher=teacher, rows=rows)
    for comparison in ("reverse_kl", "js", "squared"):
        found[f"lsd, {comparison}"] = ListwiseSelfDistillation(comparison=comparison)
    found["lsd, without i itself"] = ListwiseSelfDistillation(include_self=False)
    found["obd_sd, exact"] = OnlineBatchDiffusion()
    found["obd_sd, series of 10"] = OnlineBatchDiffusion(steps=10)
    found["obd_sd, 10 neighbours"] = OnlineBatchDiffusion(neighbours=10)
    return found


def seconds(work, student, teacher):
    """Of one forward and backward."""
    student.grad = None
    started = time.perf_counter()
    work(student=student, teacher=teacher).backward()
    return time.perf_counter() - started


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--batches", default="112,512")
    options_of.add_argument("--repeats", type=int, default=50)
    options = options_of.parse_args()
    torch.set_num_threads(1)
    rows = []
    for size in map(int, options.batches.split(",")):
        z, _ = made_up(2 * size, 128, size // 4, largest=20, noise=1.4, seed=options.seed)
        student, teacher = torch.from_numpy(z[:size]).requires_grad_(), torch.from_numpy(z[size:])
        works = candidates(torch.from_numpy(np.arange(size)))
        for work in works.values():
            seconds(work, student, teacher)
        loops = {"loop over rows": row_loop, "loop over rows and entries": loop} if size <= LOOPS_UP_TO else {}
        taken = {name: [] for name in {**works, **loops}}
        for repeat in range(options.repeats):
            for name, work in {**works, **(loops if repeat < LOOP_REPEATS else {})}.items():
                taken[name].append(seconds(work, student, teacher))
        for name, times in taken.items():
            row = {"B": size, "what": name, "milliseconds": 1000 * statistics.median(times)}
            for title, other in (("of bare", "bare log_softmax and kl_div"), ("of lsd", "lsd")):
                ratios = [a / b for a, b in zip(times, taken[other], strict=False)]
                row[title] = round(statistics.median(ratios), 2)
            rows.append(row)
    show(rows, options.out, repeats=options.repeats, seed=options.seed, threads=1)


if __name__ == "__main__":
    main()
