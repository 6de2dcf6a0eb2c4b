"""``dmlkd export``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlkd.cli.inputs import (
    DataOption,
    ModelOption,
    RootOption,
    RunOption,
    SetOption,
    SplitOption,
    load,
    rows_of,
    wanted_images,
)
from dmlkd.errors import UserError, suggestion

if TYPE_CHECKING:
    import torch

    from dmlkd.export import ImageRows
    from dmlkd.models import EmbeddingModel

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "int8": ".onnx"}
_MOST = 10_000  # images that Recall@1 is measured on


def export(
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 of --format torch.")],
    files: Annotated[
        str, typer.Option("--format", help="onnx, torch (torch.export) or int8 (ONNX of 8 bits).")
    ] = "onnx",
    run: RunOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    root: RootOption = None,
    options: SetOption = None,
    split: SplitOption = None,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Put scaling and normalising inside: images as bytes in.")
    ] = False,
    check: Annotated[int, typer.Option(help="How many images to compare with PyTorch on.", min=2)] = 256,
    image_size: Annotated[int | None, typer.Option(help="For a model that does not say: pixels a side.")] = None,
) -> None:
    """Write a model for other runtimes, compared with PyTorch on real images."""
    if files not in _ENDINGS:
        raise UserError(f"unknown format {files!r}{suggestion(files, _ENDINGS)}")
    if out.suffix != _ENDINGS[files]:
        raise UserError(f"{out} must end in {_ENDINGS[files]}")
    wanted = wanted_images(data, root, options, split)
    loaded = load(run, model, image_size=image_size, wanted=wanted)
    rows = rows_of(loaded, wanted)
    from dmlkd.export import formats

    network: torch.nn.Module = loaded.model
    images = rows.images(range(min(check, len(rows))))
    if preprocess:
        network = formats.with_preparation(loaded.model)
        images = formats.as_bytes(network, images)
    writers = {"onnx": formats.export_onnx, "torch": formats.export_torch, "int8": formats.export_int8}
    found = writers[files](network, images, out)
    opset = "" if files == "torch" else f", opset {formats.OPSET}"
    print(
        f"{out}: {found.bytes / 2**20:.2f} MiB{opset}, any number of images of {' x '.join(map(str, images.shape[1:]))}"
    )
    print(f"largest difference from PyTorch on {found.images} images: {found.difference:.2g}")
    if files == "int8":
        _print_recall(loaded.model, out, rows, preprocess=preprocess)


def _print_recall(model: "EmbeddingModel", path: Path, rows: "ImageRows", *, preprocess: bool) -> None:
    """What 8 bits cost: Recall@1 of both on the same images."""
    if not rows.labelled:
        print("Recall@1 was not compared: the images have no labels")
        return
    import numpy as np

    from dmlkd.export import formats
    from dmlkd.retrieval import evaluate

    count = min(_MOST, len(rows))
    found: dict[str, list[np.ndarray]] = {"float32": [], "int8": []}
    for start in range(0, count, 256):
        images = rows.images(range(start, min(start + 256, count)))
        found["float32"].append(model.embed(images).numpy())
        given = formats.as_bytes(formats.with_preparation(model), images) if preprocess else images
        found["int8"].append(formats.run_onnx(path, given))
    labels = rows.dataset.labels[:count]
    scores = {name: evaluate(np.concatenate(z), labels, metrics=["recall@1"])["recall@1"] for name, z in found.items()}
    lost = 100 * (scores["float32"] - scores["int8"])
    print(
        f"Recall@1 among {count} images: {100 * scores['float32']:.2f} % in float32, {100 * scores['int8']:.2f} % in "
        f"int8, {lost:.2f} points lost"
    )
