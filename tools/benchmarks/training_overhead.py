"""What the whole loop of ``fit`` costs over a loop written by hand that computes the same.

python tools/benchmarks/training_overhead.py [--backbone resnet18] [--size 64] [--steps 25] [--batch 112] [--out r.json]

The two loops take turns: after each step of ``fit`` a callback runs one step of the other, each with a model, an
optimiser and a loader of its own over the same images. So a change in the machine's load falls on both. Times are of
everything between the ends of two steps of an epoch: loading, transfer, step, logging, progress. The ends of epochs
(checkpoints, history) are apart.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import parser, show
from lightning import Callback
from pytorch_metric_learning.losses import ContrastiveLoss

from dmlkd import EmbeddingModel, Objective, fit
from dmlkd.config import TrainConfig
from dmlkd.data import DataSplits, ImageDataset, ImageTable
from dmlkd.data.loading import loader
from dmlkd.data.table import strings
from dmlkd.training.building_data import build_sampler

PER_CLASS = 4


def as_floats(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


as_floats.varies = False


def made_up(images: int, size: int, channels: int, seed: int) -> ImageDataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (images, channels, size, size), dtype=np.uint8)
    labels = np.arange(images) // (2 * PER_CLASS)
    table = ImageTable(
        paths=strings([f"{row}.png" for row in range(images)]),
        labels=labels,
        split=strings(["train"] * images),
        class_names=strings([str(label) for label in range(labels.max() + 1)]),
        pixels=pixels,
    )
    return ImageDataset(table, as_floats, channels=channels)


class ByHand(Callback):
    """The loop that somebody would write, one step at a time, and the clock of both."""

    def __init__(self, model, data: ImageDataset, train: TrainConfig) -> None:
        self.model = model.train()
        self.loss = ContrastiveLoss()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=train.lr)
        self.batches = iter(loader(data, batch_sampler=build_sampler(data.targets, train)))
        self.theirs: list[float] = []
        self.ours: list[float] = []
        self.began = 0.0

    def step(self) -> None:
        batch = next(self.batches)
        loss = self.loss(self.model(batch.images), batch.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def on_train_batch_end(self, _trainer, _module, _outputs, _batch, batch_idx):
        ended = time.perf_counter()
        if batch_idx >= 3:  # the first are to warm up
            self.ours.append(ended - self.began)
        self.step()
        self.began = time.perf_counter()
        if batch_idx >= 3:
            self.theirs.append(self.began - ended)


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--backbone", default="resnet18")
    options_of.add_argument("--size", type=int, default=64)
    options_of.add_argument("--channels", type=int, default=3)
    options_of.add_argument("--batch", type=int, default=112)
    options_of.add_argument("--steps", type=int, default=25)
    options_of.add_argument("--dim", type=int, default=128)
    options = options_of.parse_args()
    train = TrainConfig(
        epochs=1, batch_size=options.batch, per_class=PER_CLASS, lr=1e-5, accelerator="cpu", seed=options.seed
    )
    data = made_up((options.steps + 3) * options.batch, options.size, options.channels, options.seed)
    models = []
    for _ in range(2):
        torch.manual_seed(options.seed)
        models.append(EmbeddingModel(options.backbone, dim=options.dim, in_channels=options.channels))
    by_hand = ByHand(models[1], data, train)
    with tempfile.TemporaryDirectory() as out:
        splits = DataSplits(data, None, data)
        fit(models[0], Objective(ContrastiveLoss()), splits, train, out=Path(out), callbacks=[by_hand])
    same = all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    pairs = list(zip(by_hand.ours, by_hand.theirs, strict=True))
    rows = [
        {"loop": "by hand", "mean s": statistics.mean(by_hand.theirs), "median s": statistics.median(by_hand.theirs)},
        {
            "loop": "fit",
            "mean s": statistics.mean(by_hand.ours),
            "median s": statistics.median(by_hand.ours),
            "ratio of sums": sum(by_hand.ours) / sum(by_hand.theirs),
            "median ratio": statistics.median(a / b for a, b in pairs),
        },
    ]
    shape = {key: getattr(options, key) for key in ("backbone", "size", "channels", "batch", "steps", "dim", "seed")}
    show(rows, options.out, threads=torch.get_num_threads(), same_weights=same, **shape)
    print("the two end with the same weights" if same else "THE TWO END WITH DIFFERENT WEIGHTS")


if __name__ == "__main__":
    main()
