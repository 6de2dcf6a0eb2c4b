"""The model and the images that a command is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from dmlkd.errors import UserError, suggestion

if TYPE_CHECKING:
    from dmlkd.config import DataConfig
    from dmlkd.export import ImageRows
    from dmlkd.models import EmbeddingModel

RunOption = Annotated[Path | None, typer.Option("--run", help="Run folder of a finished training run.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Folder of a saved model, or a name on the Hugging Face hub.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder of images, a .csv or .parquet table, or the name of a data set, such as cub200. "
        "[default: the test images of the run]",
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", help="What the paths of a table start from [default: its folder]; a data set's folder."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Of a data set, such as archive=a.zip or crop=true; repeatable."),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="train, val, test or all. [default: test of a data set or a run, all of a folder or table]",
    ),
]

_SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Wanted:
    """Which images.

    Attributes:
        split: "train", "val", "test" or "all".
        place: a folder or a table.
        root: what the paths of the table start from.
        config: a data set.
        preparing: keys of ``config`` that were given and say how images are prepared.

    Where there is neither a place nor a data set, it is the data set of the run.
    """

    split: str
    place: Path | None = None
    root: Path | None = None
    config: "DataConfig | None" = None
    preparing: tuple[str, ...] = ()

    def data_set(self, found: "Loaded") -> "DataConfig":
        """The data set that is named, or that of the model's run.

        Raises:
            UserError: if there is neither.
        """
        if self.config is not None:
            return self.config
        if found.run is None:
            raise UserError("--model needs --data: a folder of images, a table or the name of a data set")
        from dmlkd.config import load_config

        return load_config(found.run / "config.yaml")[0].data


def wanted_images(
    data: str | None, root: Path | None = None, options: list[str] | None = None, split: str | None = None
) -> Wanted:
    """Which images the options of a command ask for; a data set's name comes before a folder of that name.

    Args:
        data: of --data.
        root: of --root.
        options: of --set.
        split: of --split.

    Raises:
        UserError: for an option that has nothing to go with, or what is neither a place nor a data set.
    """
    if split is not None and split not in _SPLITS:
        raise UserError(f"unknown split {split!r}{suggestion(split, _SPLITS)}")
    from dmlkd import registry

    if data in registry.DATA:
        from dmlkd.cli.data import section
        from dmlkd.config import checked_data

        asked = section(data, root, options or [])
        return Wanted(split or "test", config=checked_data(asked), preparing=asked.preparing)
    if options:
        raise UserError(f"--set goes with a data set by name, got {data or 'no --data'}")
    if data is None:
        if root is not None:
            raise UserError("--root needs --data")
        return Wanted(split or "test")
    place = Path(data)
    if not place.is_dir() and place.suffix not in (".csv", ".parquet"):
        near = suggestion(data, registry.DATA)
        raise UserError(f"--data {data} is no folder here, no .csv or .parquet table and no data set{near}")
    return Wanted(split or "all", place=place, root=root)


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


def load(
    run: Path | None,
    model: str | None,
    *,
    transform: str = "plain",
    image_size: int | None = None,
    wanted: Wanted | None = None,
) -> Loaded:
    """Load the model that --run or --model names.

    Args:
        run: of --run.
        model: of --model.
        transform: how images are prepared, for a model that does not say.
        image_size: pixels a side, for the same.
        wanted: the images; where they are a data set, it says how images are prepared if nothing else does.

    Raises:
        UserError: if not one of them is given, it cannot be read, or nothing or too much says how its images are
            prepared.
    """
    if (run is None) == (model is None):
        raise UserError("give either --run or --model")
    if run is not None and not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    from dmlkd import registry
    from dmlkd.models import EmbeddingModel, Preparation, prepared_by
    from dmlkd.models.saved import model_folder, run_folder

    if run is not None and not ((run := run_folder(run)) / "model").is_dir():
        raise UserError(f"{run} is not a finished run: it has no model")
    assert run is not None or model is not None
    folder = model_folder(run if run is not None else str(model))
    loaded = EmbeddingModel.from_pretrained(folder)
    config = None if wanted is None else wanted.config
    doubled = (["--image-size"] if image_size is not None else []) + [
        f"--set {key}" for key in (() if wanted is None else wanted.preparing)
    ]
    if loaded.preparation is not None and doubled:
        raise UserError(f"{folder} says how its images are prepared: leave out {' and '.join(doubled)}")
    if image_size is not None:
        make = registry.lookup(registry.TRANSFORMS, "transform", transform, ("--transform",))
        loaded.preparation = prepared_by(make, image_size=image_size, channels=loaded.in_channels)
    elif loaded.preparation is None and config is not None:
        from dmlkd.training.building_data import build_preprocessing

        loaded.preparation = Preparation(build_preprocessing(config))
    if loaded.preparation is None:
        raise UserError(f"{folder} does not say how its images are prepared: give --image-size, and --transform")
    if config is not None and loaded.preparation.channels != loaded.in_channels:
        has = loaded.preparation.channels
        raise UserError(f"{folder} takes images of {loaded.in_channels} channels, {config.name} has {has}")
    return Loaded(loaded, folder, run, loaded.preparation.description)


def rows_of(found: Loaded, wanted: Wanted) -> "ImageRows":
    """The images that are wanted, prepared as the model's are.

    Raises:
        UserError: if they are not there, or nothing says which.
    """
    from dmlkd.export import ImageRows, read_table

    preparation = found.model.preparation
    assert preparation is not None
    if wanted.place is not None:
        return read_table(wanted.place, root=wanted.root, split=wanted.split).rows(preparation.dataset)
    config = wanted.data_set(found)
    from dmlkd.training.building_data import build_images

    images, names = build_images(config, split=wanted.split, preprocessing=preparation.preprocessing)
    return ImageRows(images, class_names=names)
