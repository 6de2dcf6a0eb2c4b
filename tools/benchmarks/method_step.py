"""What a training step costs with the terms of a recipe, against the same recipe with its metric loss alone.

    python tools/benchmarks/method_step.py configs/methods/*.yaml [--set KEY=VALUE] [--repeats 40] [--out result.json]

A change of the recipes, such as --set model.backbone=resnet18, holds for all of them and for what they are compared
with. All arms take turns step by step, on real batches of their own data, so that a change in the machine's load falls
on all of them; the ratio is the median over the turns of the time divided by that turn's step of the metric loss alone,
which runs twice, to show how much of a ratio is noise. Of a plan the last fit is timed, the others are trained for an
epoch before. Timed are epochs from the middle of the recipe's training on,
when teachers teach; what teachers do between two epochs, such as copying the network, is not in a step.
"""

import itertools
import os
import statistics
import tempfile
from pathlib import Path

import torch
from harness import parser, show
from torch.utils.data import DataLoader
from training_step import Arm

from dmlkd import Batch
from dmlkd.config import RunConfig, load_training
from dmlkd.training import EmbeddingModule, run
from dmlkd.training.building import build
from dmlkd.training.fitting import optimizer

NAMES = ("metric loss", "metric loss again", "with terms")
BATCHES = 2


def read(recipe: str, overrides: list[str], folder: Path) -> RunConfig:
    """A recipe's configuration, that of its last fit where it is a plan, whose others are trained into the folder."""
    loaded, _ = load_training(Path(recipe), overrides)
    if isinstance(loaded, RunConfig):
        return loaded
    for fit in loaded.fits[:-1]:
        short = fit.config.train.model_copy(update={"epochs": 1})
        run(fit.config.model_copy(update={"train": short}), folder / fit.name, quiet=True)
    return loaded.fits[-1].config


def alone(config: RunConfig) -> RunConfig:
    """The configuration without its terms."""
    data = config.data.model_copy(update={"held_out_images": 0.0})
    return config.model_copy(update={"distill": (), "metric_weight": 1.0, "classes": None, "exits": None, "data": data})


def built(config: RunConfig, folder: Path, device: str) -> tuple[Arm, list[Batch], int]:
    """A configuration's arm, a few of its batches, and the epochs it trains."""
    torch.manual_seed(config.train.seed)
    parts = build(config, folder)
    module = EmbeddingModule(
        parts.student,
        parts.objective,
        optimizer=optimizer(config.train),
        epochs=config.train.epochs,
        metric_loss_lr=config.train.metric_loss_lr,
        trunk_lr=config.train.trunk_lr,
    ).to(device)
    made = module.configure_optimizers()
    loader = DataLoader(parts.data.train, batch_sampler=parts.sampler)
    batches = [
        Batch(*(field.to(device) for field in batch)) for batch in itertools.islice(itertools.cycle(loader), BATCHES)
    ]
    steps = made["optimizer"] if isinstance(made, dict) else made
    return Arm(parts.student.train(), parts.objective, steps), batches, config.train.epochs


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("recipes", nargs="+", help="configuration files, such as configs/methods/cs-kd.yaml")
    options_of.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options_of.add_argument("--repeats", type=int, default=40)
    options_of.add_argument("--device", default="cpu")
    options = options_of.parse_args()
    os.environ.setdefault("DMLKD_DATA", str(Path(__file__).parents[2].parent / "shared" / "data"))
    running = {}
    with tempfile.TemporaryDirectory() as made:
        for recipe in options.recipes:
            stem = Path(recipe).stem
            folder = Path(made) / stem
            config = read(recipe, options.overrides, folder)
            for name in NAMES:
                chosen = config if name == NAMES[-1] else alone(config)
                running[stem, name] = built(chosen, folder, options.device)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in running}
    for turn in range(-2 * BATCHES, options.repeats):  # two epochs to warm up
        order = list(running)
        shift = turn % len(order)
        for key in order[shift:] + order[:shift]:
            arm, batches, epochs = running[key]
            middle = max(epochs // 2, 2)
            if turn % BATCHES == 0:
                epoch = turn // BATCHES + (middle if turn >= 0 else 2)
                arm.objective.start_epoch(arm.model, epoch, middle + -(-options.repeats // BATCHES))
            taken = arm.step(batches[turn % BATCHES])
            if turn >= 0:
                seconds[key].append(taken)
    rows = [
        {
            "recipe": recipe,
            "step": name,
            "median ms": 1000 * statistics.median(times),
            "ratio": statistics.median(t / p for t, p in zip(times, seconds[recipe, NAMES[0]], strict=True)),
        }
        for (recipe, name), times in seconds.items()
    ]
    facts = {"repeats": options.repeats, "device": options.device, "set": options.overrides}
    show(rows, options.out, threads=torch.get_num_threads(), **facts)


if __name__ == "__main__":
    main()
