"""``dmlkd embed``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dmlkd.errors import UserError

if TYPE_CHECKING:
    from dmlkd.export import ImageRows
    from dmlkd.models import EmbeddingModel


def embed(
    out: Annotated[Path, typer.Option(help="Folder for shards, or a file: .safetensors, .parquet, .npy or .npz.")],
    run: Annotated[Path | None, typer.Option(help="Run folder of a finished training run.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder of a saved model, or a name on the Hugging Face hub.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of images, or a .csv or .parquet table. [default: the test images of the run]"),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="What the paths of a table start from. [default: its folder]")
    ] = None,
    files: Annotated[str | None, typer.Option("--format", help="Of shards: parquet, safetensors, npy or npz.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    dim: Annotated[int | None, typer.Option(help="Keep so many dimensions, scaled to unit length again.")] = None,
    shard_rows: Annotated[int, typer.Option(help="Rows a shard.")] = 100_000,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    workers: Annotated[int, typer.Option(help="Processes that load images; with ray: that embed.")] = 0,
    device: Annotated[str | None, typer.Option(help="Such as cuda or cpu. [default: cuda where there is one]")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray: on a Ray cluster.")] = "local",
    transform: Annotated[str, typer.Option(help="For a model that does not say: how images are prepared.")] = "plain",
    image_size: Annotated[int | None, typer.Option(help="For a model that does not say: pixels a side.")] = None,
) -> None:
    """Embed images to files: in shards, with a manifest; the same command goes on after a kill.

    Under torchrun each process makes its share of the shards.
    """
    if engine not in ("local", "ray"):
        from dmlkd.errors import suggestion

        raise UserError(f"unknown engine {engine!r}{suggestion(engine, ('local', 'ray'))}")
    found = load(run, model, transform=transform, image_size=image_size)
    rows = rows_of(found, data, root)
    from dmlkd.export import embed_to

    asked: dict[str, Any] = {
        "transform": found.described,
        "dtype": dtype,
        "dim": dim,
        "files": files,
        "shard_rows": shard_rows,
        "batch_size": batch_size,
    }
    if engine == "ray":
        from dmlkd.export.on_ray import embed_on_ray

        embed_on_ray(found.model, rows, out, workers=max(1, workers), **asked)
        complete = True
    else:
        share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        complete = embed_to(found.model, rows, out, workers=workers, device=device or _device(), share=share, **asked)
    if complete:
        print(f"{len(rows)} embeddings: {out}")


class Loaded(NamedTuple):
    """A model that is ready to embed.

    Attributes:
        model: it.
        folder: where it is.
        run: the run folder it is from, if it is from one.
        described: how its images are prepared, in words.
    """

    model: "EmbeddingModel"
    folder: Path
    run: Path | None
    described: str


def load(run: Path | None, model: str | None, *, transform: str = "plain", image_size: int | None = None) -> Loaded:
    """Load the model that --run or --model names.

    Raises:
        UserError: if not one of them is given, it cannot be read, or nothing says how its images are prepared.
    """
    if (run is None) == (model is None):
        raise UserError("give either --run or --model")
    if run is not None and not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    from dmlkd import registry
    from dmlkd.models import EmbeddingModel, prepared_by
    from dmlkd.models.saved import model_folder, run_folder

    if run is not None and not ((run := run_folder(run)) / "model").is_dir():
        raise UserError(f"{run} is not a finished run: it has no model")
    assert run is not None or model is not None
    folder = model_folder(run if run is not None else str(model))
    loaded = EmbeddingModel.from_pretrained(folder)
    if image_size is not None:
        if loaded.preparation is not None:
            raise UserError(f"{folder} says how its images are prepared: leave out --image-size")
        make = registry.lookup(registry.TRANSFORMS, "transform", transform, ("--transform",))
        loaded.preparation = prepared_by(make, image_size=image_size, channels=loaded.in_channels)
    if loaded.preparation is None:
        raise UserError(f"{folder} does not say how its images are prepared: give --image-size, and --transform")
    return Loaded(loaded, folder, run, loaded.preparation.description)


def rows_of(found: Loaded, data: Path | None, root: Path | None) -> "ImageRows":
    """The images of a folder or table, or the test images of the model's run.

    Raises:
        UserError: if they are not there, or there is neither.
    """
    from dmlkd.export import ImageRows, read_table

    if data is not None:
        table, ids, labelled = read_table(data, root=root)
        assert found.model.preparation is not None
        return ImageRows(found.model.preparation.dataset(table), ids=ids, labelled=labelled)
    if found.run is None:
        raise UserError("--model needs --data: a folder of images or a table")
    from dmlkd.config import load_config
    from dmlkd.training.building_data import build_test_data

    config, _ = load_config(found.run / "config.yaml")
    return ImageRows(build_test_data(config.data))


def _device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
