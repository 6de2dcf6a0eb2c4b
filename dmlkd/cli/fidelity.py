"""``dmlkd fidelity``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmlkd.cli.inputs import Loaded, RootOption, SetOption, Wanted, load, rows_of, wanted_images
from dmlkd.cli.output import print_table
from dmlkd.errors import UserError

if TYPE_CHECKING:
    import torch

_BOTH = ("train", "test")


def fidelity(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="Run folder, saved model or name on the hub.")],
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The same, of any architecture and dimension.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set by name, folder of images or table. [default: the data of the student's run]"),
    ] = None,
    root: RootOption = None,
    options: SetOption = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all. [default: train and test, one after the other; all of a folder]"),
    ] = None,
    neighbours: Annotated[int, typer.Option("-k", help="How many nearest neighbours are compared.")] = 10,
    distance: Annotated[str, typer.Option(help="cosine, euclidean or inner.")] = "cosine",
    pairs: Annotated[int, typer.Option(help="Most pairs of images whose similarities are ranked.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of the draw of these pairs.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the measures as JSON instead of a table.")] = False,
) -> None:
    """Measure how far a student agrees with its teacher, on images of training and on unseen classes."""
    wanted = wanted_images(data, root, options, split)
    models = [_load(name, wanted) for name in (teacher, student)]
    if wanted.place is None and wanted.config is None and models[1].run is None:
        raise UserError(f"{student} is no run folder: give --data, a folder of images, a table or a data set by name")
    rows: dict[str, dict[str, Any]] = {}
    for name in _splits(models[1], wanted, split):
        rows[name] = _measured(models, wanted, name, workers, k=neighbours, distance=distance, pairs=pairs, seed=seed)
    if json:
        from dmlkd.files import json_text

        # JSON has no NaN, which is what a model that says the same of all images gives.
        splits = {split: {k: v if v == v else None for k, v in values.items()} for split, values in rows.items()}
        print(json_text({"teacher": teacher, "student": student, "neighbours": neighbours, "splits": splits}))
        return
    _print(rows, teacher, student, neighbours)


def _load(name: str, wanted: Wanted) -> Loaded:
    """A model by the name of its run, of its folder, or on the hub."""
    run = Path(name)
    return load(run, None, wanted=wanted) if (run / "config.yaml").is_file() else load(None, name, wanted=wanted)


def _splits(student: Loaded, wanted: Wanted, asked: str | None) -> list[str]:
    """The splits to measure: what is asked for, or those of training and testing that have images."""
    if asked is not None or wanted.place is not None:
        return [wanted.split]
    from dmlkd.training.building_data import read_table

    there = read_table(wanted.data_set(student)).split
    if not (found := [name for name in _BOTH if (there == name).any()]):
        raise UserError("the data set has images of neither training nor testing: give --split")
    return found


def _measured(
    models: list[Loaded], wanted: Wanted, split: str, workers: int, *, k: int, distance: str, pairs: int, seed: int
) -> dict[str, Any]:
    from dmlkd.retrieval.fidelity import fidelity as measure

    given = replace(wanted, split=split)
    if wanted.place is None:
        given = replace(given, config=wanted.data_set(models[1]))
    z = [_embedded(model, given, workers) for model in models]
    logits = _logits(models, z)
    found = measure(
        teacher=z[0],
        student=z[1],
        neighbours=k,
        distance=distance,
        pairs=pairs,
        seed=seed,
        teacher_logits=logits[0],
        student_logits=logits[1],
    )
    return {"images": len(z[0]), **{name: value for name, value in found._asdict().items() if value is not None}}


def _logits(models: list[Loaded], z: list["torch.Tensor"]) -> "list[torch.Tensor] | list[None]":
    """Class scores of both, if both are runs that had some, of as many classes."""
    from dmlkd.models import load_classes
    from dmlkd.training.loading import CLASSES

    files = [None if model.run is None else model.run / CLASSES for model in models]
    if not all(file is not None and file.is_file() for file in files):
        return [None, None]
    logits = [load_classes(file)(part)[0] for file, part in zip(files, z, strict=True) if file is not None]
    return logits if logits[0].shape == logits[1].shape else [None, None]


def _embedded(found: Loaded, wanted: Wanted, workers: int) -> "torch.Tensor":
    import torch

    from dmlkd.export import embed

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return embed(found.model.to(device), rows_of(found, wanted).dataset, workers=workers, device=device)


def _print(rows: dict[str, dict[str, Any]], teacher: str, student: str, neighbours: int) -> None:
    print(f"Agreement of {student} with its teacher {teacher} on the same images; 1 is complete, of kl 0")
    names = list(next(iter(rows.values())))
    columns = [f"{neighbours} neighbours" if name == "neighbours" else name for name in names]
    cells = [
        (split, str(values["images"]), *(f"{values[name]:.4f}" for name in names[1:])) for split, values in rows.items()
    ]
    print_table(["", *columns], cells)
