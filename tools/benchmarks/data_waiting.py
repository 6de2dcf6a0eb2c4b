"""Share of a training step spent waiting for data: ResNet-18 at 64 pixels on Cars196, by data path and workers.

python tools/benchmarks/data_waiting.py --data ../shared/data [--steps 12] [--workers 0,2] [--backbone resnet18]

Waiting is the time until the next batch is there; the rest is forward, backward and optimiser step on --device.
Training augmentation ("published" crops and flips) is included, done image by image or, "on device", for the whole
batch, where it counts as waiting all the same. The first three steps are not counted.
"""

import tempfile
import time
from pathlib import Path

import torch
from harness import parser, show

from dmlkd.config import DataConfig, TrainConfig, checked_data
from dmlkd.data.loading import loader
from dmlkd.models import EmbeddingModel
from dmlkd.training.building_data import build_data, build_sampler

SKIPPED = 3


def shares(data, workers: int, options) -> dict[str, object]:
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = EmbeddingModel(options.backbone, dim=128).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    sampler = build_sampler(data.train.targets, TrainConfig(batch_size=112, per_class=4))
    batches = iter(loader(data.train, batch_sampler=sampler, workers=workers))
    waited, worked = 0.0, 0.0
    for step in range(SKIPPED + options.steps):
        started = time.perf_counter()
        images, labels, _ = next(batches)
        images = images.to(device)
        if data.on_device is not None:
            images = data.on_device(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        there = time.perf_counter()
        z = model(images)
        loss = torch.nn.functional.cross_entropy(z @ z.T / 0.1, labels.to(device) % len(z))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= SKIPPED:
            waited += there - started
            worked += time.perf_counter() - there
    total = waited + worked
    return {
        "wait ms": 1e3 * waited / options.steps,
        "step ms": 1e3 * total / options.steps,
        "wait %": 100 * waited / total,
    }


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--data", default="../shared/data")
    options_of.add_argument("--steps", type=int, default=12)
    options_of.add_argument("--workers", default="0,2")
    options_of.add_argument("--backbone", default="resnet18")
    options_of.add_argument("--device", default="cpu")
    options = options_of.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        section = {"name": "cars196", "root": options.data, "archive": "cars196-64px.zip", "image_size": 64}
        for name, extra in {
            "decoding": {},
            "cache": {"cache": str(Path(folder))},
            "cache, on device": {"cache": str(Path(folder)), "on_device": True},
        }.items():
            data = build_data(checked_data(DataConfig(**section, **extra)), seed=0)
            for workers in map(int, options.workers.split(",")):
                rows.append({"path": name, "workers": workers, **shares(data, workers, options)})
    show(rows, options.out, steps=options.steps, backbone=options.backbone, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
