"""Short trainings that one process and several do alike; run as a script, one of several processes."""

import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import lightning
import torch
import torch.distributed as dist
from lightning import Callback

from dmlkd.config import load_config
from dmlkd.data import EpochBatchSampler
from dmlkd.exits import Exit
from dmlkd.files import write_csv, write_json
from dmlkd.models import exits_of
from dmlkd.training import fit
from dmlkd.training.building import Parts, build
from dmlkd.training.processes import Processes, together

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.epochs=2",
    "train.batch_size=48",
    "train.optimizer=sgd",
    "train.lr=1e-3",
    "data.image_size=8",
    "data.transform=plain",
    "model.backbone_args.width=4",
    "model.frozen_batch_norm=true",
    "miner=null",
    "metric_loss=ContrastiveLoss",
    "distill.0.schedule=constant",
]
EQUAL = {
    "previous epoch": [],
    "remembered, chunks": ["distill.0.teacher=remembered", "train.chunk_size=10"],
    "moving average, chunks": ["distill.0.teacher={name: moving_average, decay: 0.5}", "train.chunk_size=9"],
    "proxies, online batch diffusion": ["metric_loss=ProxyAnchorLoss", "distill.0.name=obd_sd"],
    "queue": ["metric_loss={name: CrossBatchMemory, memory_size: 100, loss: {name: MultiSimilarityLoss}}"],
    "S2SD": [
        "distill=[{name: s2sd, weight: 10, teacher: {name: wider_heads, dims: [32, 24], features_after: 3}}]",
        "metric_loss=ProxyAnchorLoss",
    ],
    "class posteriors": [
        "distill=[{name: cs_kd, weight: 1}, {name: ps_kd, weight: 1}, {name: bsd, weight: 1}, "
        "{name: adaptive_labels, weight: 1}, {name: sd_dropout, weight: 1}, "
        "{name: adversary, weight: 0.1, teacher: previous_epoch}, "
        "{name: ambiguity, weight: 1, schedule: constant}, "
        "{name: subclass_spread, weight: 0.1}, {name: beta_smoothing, weight: 1}]",
        "classes={subclasses: 2, scale: 4}",
    ],
    "out of fold": ["distill.0.teacher={name: out_of_fold, fits: [even, odd]}", "distill.0.weight=1"],
    "deep stage, smoothing by accuracy": [
        "distill=[{name: sfr, weight: 1, stage: 0, groups: 2}, {name: dynamic_smoothing, weight: 1, epsilon: 0.5}]",
        "data.image_size=16",
        "classes={scale: 4}",
    ],
    "exits, chunks": [
        "distill=[{name: byot, weight: 1, hint: 1e-3}, {name: byot_posterior, weight: 1}]",
        "exits={width: 16}",  # one channel, a quarter of the backbone's, may be dead: all embeddings would be alike
        "metric_loss=ProxyAnchorLoss",  # smooth, where a mean over the pairs that count is not
        "train.chunk_size=10",
    ],
    "embeddings held, selectively too": [
        "distill=[{name: sril, weight: 1, teacher: previous_epoch}, "
        "{name: embedding, weight: 1, teacher: previous_epoch}]",
        "classes={}",
    ],
    "views, a queue of keys, features before the ReLU": [
        "distill=[{name: moco, weight: 1, queue: 100, teacher: {name: moving_average, decay: 0.5}}, "
        "{name: margin_relu, weight: 1e-3, teacher: previous_epoch}]",
        "metric_weight=0",
        "train.sampler=shuffled",
        "train.views=2",
    ],
    "head alone first": ["train.head_only_epochs=1"],
}
ALIKE = {
    "miner that draws": ["metric_loss=TripletMarginLoss", "miner=DistanceWeightedMiner"],
    "exits with batch norm": ["distill=[{name: byot, weight: 1}]", "metric_loss=ProxyAnchorLoss"],
    "live batch norm, augmented": [
        "model.frozen_batch_norm=false",
        "data.transform=handwriting",
        "distill.0.teacher={name: moving_average, decay: 0.5}",
    ],
}


class Uneven(EpochBatchSampler):
    """Three batches of 47 images an epoch, whose shares differ in size."""

    def __init__(self, whole: EpochBatchSampler) -> None:
        processes = Processes.now()
        super().__init__(seed=whole.seed, num_replicas=processes.size, rank=processes.rank)
        self.whole = whole

    def __len__(self) -> int:
        return 3

    def _drawn(self, rng):
        return (batch[:47] for batch in itertools.islice(self.whole._drawn(rng), 3))


class Recorder(Callback):
    """Keeps the losses and gradients of each step."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        named = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append({name: gradient.clone() for name, gradient in named.items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].detach().clone())


def recorded(overrides: list[str], out: Path) -> dict:
    """Losses and gradients of each step, and all weights, buffers and memories at the end; in float64."""
    config = load_config(ROOT / "configs" / "digits.yaml", [*SHORT, *overrides])[0]
    lightning.seed_everything(0, verbose=False)
    if overrides == EQUAL["out of fold"]:
        _fits(out / "fits", build(config.model_copy(update={"distill": ()})))
        lightning.seed_everything(0, verbose=False)
    parts = build(config, out / "fits")
    sampler = Uneven(parts.sampler)
    seen = Recorder()
    out.mkdir(exist_ok=True)
    parts.student.double()
    parts.objective.double()
    _normalise(parts.student, parts.data.train.batch(list(range(0, 900, 5))).images.double())
    if overrides in EQUAL.values():
        _fix_batch_norm_of_exits(parts.student)
    data = replace(parts.data, on_device=torch.Tensor.double)
    fit(parts.student, parts.objective, data, config.train, out=out, sampler=sampler, callbacks=[seen])
    state = {**parts.student.state_dict(prefix="model."), **parts.objective.state_dict(prefix="objective.")}
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    generators = [torch.rand(2), torch.get_rng_state()]
    return {"losses": seen.losses, "gradients": seen.gradients, "state": tensors, "generators": generators}


def _fits(folder: Path, parts: Parts) -> None:
    """Two earlier fits, one of which left out the images of even rows and one the others."""
    for number, name in enumerate(("even", "odd")):
        parts.model.save_pretrained(folder / name / "model")
        rows = [{"row": r, "path": path} for r, path in enumerate(parts.data.train.paths) if r % 2 == number]
        write_csv(folder / name / "left_out.csv", rows)
        write_json(folder / name / "metrics.json", {})
        torch.nn.init.normal_(parts.model.head.weight)


def _normalise(student: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch norm the statistics of some images: with those of random weights all embeddings would be alike."""
    norms = [module for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        student.signals(images, [] if exits_of(student) is None else ["exit_embeddings"])
    for norm in norms:
        norm.momentum = 0.1
    student.train()


class Fixed(torch.nn.Module):
    """Batch norm by its running statistics, in every mode."""

    def __init__(self, norm: torch.nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.norm.eval()(maps)


def _fix_batch_norm_of_exits(student: torch.nn.Module) -> None:
    """It is live where the backbone's is frozen, so that each process would normalise by its own share."""
    for leaving in (module for module in student.modules() if isinstance(module, Exit)):
        for index, part in enumerate(leaving.bottleneck):
            if isinstance(part, torch.nn.BatchNorm2d):
                leaving.bottleneck[index] = Fixed(part)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), json.loads(sys.argv[2])
    with together() as processes:
        assert processes.size == dist.get_world_size() == int(os.environ["WORLD_SIZE"])
        for number, name in enumerate(names):
            result = recorded({**EQUAL, **ALIKE}[name], out / f"run-{number}")
            torch.save(result, out / f"{number}.{processes.rank}.pt")
