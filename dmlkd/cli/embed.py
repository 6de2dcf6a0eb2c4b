"""``dmlkd embed``."""

import os
from pathlib import Path
from typing import Annotated, Any

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
from dmlkd.errors import UserError


def embed(
    out: Annotated[Path, typer.Option(help="Folder for shards, or a file: .safetensors, .parquet, .npy or .npz.")],
    run: RunOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    root: RootOption = None,
    options: SetOption = None,
    split: SplitOption = None,
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
    wanted = wanted_images(data, root, options, split)
    found = load(run, model, transform=transform, image_size=image_size, wanted=wanted)
    rows = rows_of(found, wanted)
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


def _device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
