"""Peak memory above what is resident before, and time, of one training step: a batch as a whole and in chunks.

python tools/benchmarks/training_memory.py [--chunk 64] [--times 1,4,16,64] [--size 32] [--width 32] [--out result.json]

convnet4, multi-similarity loss and listwise self-distillation with the previous epoch's teacher; each step in a process
of its own, batches of the chunk's size times 1, 4, 16, 64. "plain" runs student and teacher on the whole batch;
"loss alone" is the metric loss of embeddings that are there already, which chunks leave as it is.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from harness import in_child, measured, parser, show


def task(folder: Path, what: str, chunk: int | None, width: int) -> None:
    import torch
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    from dmlkd import Batch, EmbeddingModel, Objective
    from dmlkd.chunks import signals_in_chunks
    from dmlkd.distill import ListwiseSelfDistillation, PreviousEpochTeacher
    from dmlkd.training import Term

    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.from_numpy(np.load(folder / "images.npy"))
    model = EmbeddingModel("convnet4", dim=64, backbone_args={"width": width}, frozen_batch_norm=True)
    teacher = PreviousEpochTeacher(model, chunk_size=chunk)
    objective = Objective(MultiSimilarityLoss(), [Term(ListwiseSelfDistillation(), teacher, weight=50.0, name="lsd")])
    objective.start_epoch(model, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    gradient_norms = []

    def work(count: int) -> float:
        batch = Batch(images[:count], torch.arange(count) // 4, torch.arange(count))
        losses = objective(signals_in_chunks(model, batch.images, objective.student_needs, size=chunk), batch)
        optimizer.zero_grad()
        losses.total.backward()
        gradient_norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        optimizer.step()
        return float(losses.total)

    def loss_alone() -> None:
        z = torch.randn(len(images), 64).requires_grad_()
        objective.metric_loss(z, torch.arange(len(z)) // 4).backward()

    if what == "loss alone":
        print(json.dumps(measured(loss_alone)))
        return
    state = {name: value.clone() for name, value in model.state_dict().items()}
    work(16)  # what is loaded on first use is no part of it
    model.load_state_dict(state)
    result = measured(lambda: work(len(images)))
    print(json.dumps({**result, "gradient": gradient_norms[-1]}))


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--chunk", type=int, default=64)
    options_of.add_argument("--times", default="1,4,16,64")
    options_of.add_argument("--size", type=int, default=32)
    options_of.add_argument("--width", type=int, default=32)
    options = options_of.parse_args()
    if options.task:
        task(Path(options.folder), **json.loads(options.arguments))
        return
    rows = []
    for times in map(int, options.times.split(",")):
        count = times * options.chunk
        rng = np.random.default_rng(options.seed)
        images = rng.random((count, 3, options.size, options.size), dtype=np.float32)
        for what, chunk in (("plain", None), ("chunks", options.chunk), ("loss alone", None)):
            result = in_child(__file__, "step", {"images": images}, what=what, chunk=chunk, width=options.width)
            rows.append(
                {
                    "batch": count,
                    "what": what,
                    "seconds": result["seconds"][0],
                    "peak MB": result["peak_mb"],
                    "loss": result["result"] or "",
                    "gradient norm": result.get("gradient", ""),
                }
            )
    show(rows, options.out, size=options.size, width=options.width, seed=options.seed, threads=1)


if __name__ == "__main__":
    main()
