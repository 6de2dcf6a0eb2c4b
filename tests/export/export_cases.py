"""A small model and small images for the tests of export."""

import csv

import numpy as np
import torch
from PIL import Image

from dmlkd.data.transforms import plain
from dmlkd.models import EmbeddingModel, prepared_by

SIZE = 12


def small_model(dim=8, seed=0) -> EmbeddingModel:
    torch.manual_seed(seed)
    model = EmbeddingModel("convnet4", dim=dim, in_channels=1, backbone_args={"width": 4}).eval()
    model.preparation = prepared_by(plain, image_size=SIZE, channels=1)
    return model


def image_tree(folder, count=23, labelled=True):
    """Grey noise as PNG files below class folders, with a table of them in another order than that of the names."""
    rng = np.random.default_rng(3)
    rows = []
    for n in range(count):
        path = folder / f"class{n % 5}" / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE + n % 3, SIZE, 1), np.uint8)[..., 0]).save(path)
        rows.append({"path": path.relative_to(folder).as_posix(), "id": f"row-{n}", "label": n % 5})
    order = rng.permutation(count)
    with (folder / "table.csv").open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["path", "id", "label"] if labelled else ["path", "id"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[n] for n in order)
    return [rows[n] for n in order]


def saved(folder, model=None, name="run"):
    """A run folder as far as export reads it."""
    model = model or small_model()
    run = folder / name
    run.mkdir()
    model.save_pretrained(run / "model")
    return run
