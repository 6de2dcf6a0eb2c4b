"""The exits of a finished run: what each scores, what it costs, and how fast it is here and now."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel, images_per_second
from dmlkd.models.saved import run_folder
from dmlkd.training.loading import EXITS, WHOLE


class ExitReport(NamedTuple):
    """One encoder of a run.

    Attributes:
        name: "stage-K", the stage it leaves the network after, or "whole".
        test: its scores on the run's test images, by metric.
        parameters: how many it has.
        multiply_adds: of one image.
        images_per_second: measured now.
        folder: of the model.
    """

    name: str
    test: dict[str, float]
    parameters: int
    multiply_adds: int
    images_per_second: float
    folder: Path


def measure_exits(folder: Path, *, batch_size: int = 64, seconds: float = 1.0, device: str = "cpu") -> list[ExitReport]:
    """Read what a run's exits scored, and measure how fast they are on this machine, taking turns.

    Args:
        folder: of the run, or of a plan, whose last fit is meant.
        batch_size: images at a time.
        seconds: at least so long for each.
        device: of torch, such as "cpu" or "cuda".

    Returns:
        The exits, shallow to deep, and the whole network.

    Raises:
        UserError: if the folder is no finished run, the run had no exits, or there is no such device.
    """
    if batch_size < 1:
        raise UserError(f"the batch size must be at least 1, got {batch_size}")
    if not seconds > 0:
        raise UserError(f"seconds must be above 0, got {seconds}")
    folder = run_folder(folder)
    found = _recorded(folder)
    places = {name: folder / ("model" if name == WHOLE else f"{EXITS}/{name}") for name in found}
    models = {name: EmbeddingModel.from_pretrained(place) for name, place in places.items()}
    whole = models[WHOLE]
    if whole.preparation is None:
        raise UserError(f"{places[WHOLE]} does not say how its images are prepared")
    side = 256
    shape = whole.preparation.of(Image.new("RGB" if whole.in_channels == 3 else "L", (side, side))).shape
    try:
        for model in models.values():
            model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {device!r} here: {str(error).splitlines()[0]}") from None
    speeds = images_per_second(models, shape=shape, batch_size=batch_size, seconds=seconds)
    return [
        ExitReport(name=name, **values, images_per_second=speeds[name], folder=places[name])
        for name, values in found.items()
    ]


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``metrics.json`` says of the exits, by name."""
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    file = folder / "metrics.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a finished run: it has no metrics.json")
    try:
        exits = json.loads(file.read_text(encoding="utf-8")).get(EXITS)
        kept = ("test", "parameters", "multiply_adds")
        found = {name: {key: values[key] for key in kept} for name, values in (exits or {}).items()}
        if exits and WHOLE not in found:
            raise KeyError(WHOLE)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{folder} has no exits: train with the method byot, see docs/methods/byot.md")
    return found
