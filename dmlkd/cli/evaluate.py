"""``dmlkd eval``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from dmlkd.cli.output import print_left_out, print_scores, print_seen
from dmlkd.errors import UserError

if TYPE_CHECKING:
    from dmlkd.config import DataConfig
    from dmlkd.retrieval import Scores

_CURVE = (1, 2, 4, 8, 16, 32, 64, 128)


class _Source(NamedTuple):
    """What to measure: arguments of ``evaluate``, a label, the metrics that it names, class scores, if any, and what is
    measured beside it, by label."""

    label: str
    title: str
    arguments: dict[str, Any]
    metrics: tuple[str, ...] = ()
    seen: dict[str, float] | None = None
    others: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Run folder of a finished training run.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="File of embeddings and labels: .safetensors, .parquet, .npz or .npy.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="File of labels, where --embeddings has none.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="File of a gallery, searched instead of the rest.")] = None,
    gallery_labels: Annotated[Path | None, typer.Option(help="File of labels, where --gallery has none.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a saved model; with --data.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set whose test images the model embeds.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Of the data section, such as archive=a.zip; repeatable."),
    ] = None,
    gallery_model: Annotated[
        Path | None,
        typer.Option(help="Run or saved model that embeds the gallery: are old embeddings of use with a new model?"),
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Such as recall@5, map@r, mrr, nmi or eer; repeatable.")
    ] = None,
    distance: Annotated[str, typer.Option(help="cosine, euclidean or inner.")] = "cosine",
    average: Annotated[str, typer.Option(help="micro (over queries) or macro (over classes).")] = "micro",
    index: Annotated[str | None, typer.Option(help="Approximate index of FAISS, such as HNSW32.")] = None,
    search: Annotated[str, typer.Option(help="Parameters of its search, such as efSearch=128.")] = "",
    sample: Annotated[int | None, typer.Option(help="Score only so many queries.")] = None,
    seed: Annotated[int, typer.Option(help="Of k-means and the sample.")] = 0,
    expand: Annotated[
        str | None, typer.Option(help="Move embeddings towards their neighbours first: queries, database or both.")
    ] = None,
    rerank: Annotated[str | None, typer.Option(help="Re-rank the neighbours: k_reciprocal or diffusion.")] = None,
    structure: Annotated[
        bool, typer.Option("--structure", help="Add how the embeddings lie in space: spectrum, distances, hubs.")
    ] = False,
    intervals: Annotated[bool, typer.Option("--intervals", help="Add 95 % intervals.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON instead of a table.")] = False,
    per_query: Annotated[Path | None, typer.Option(help="Write each query's values to this .parquet file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot of Recall@K to this .png, .svg or .pdf.")] = None,
) -> None:
    """Measure retrieval: of a run, of a saved model on a data set, or of embedding files."""
    wanted = {"--run": run, "--embeddings": embeddings, "--model": model}
    given = [name for name, value in wanted.items() if value is not None]
    if not given:
        raise typer.BadParameter("give one of --run, --embeddings and --model")
    if len(given) > 1:
        raise UserError(f"give one of --run, --embeddings and --model, got {' and '.join(given)}")
    strays = {"labels": labels, "gallery": gallery, "gallery_labels": gallery_labels, "data": data, "root": root}
    _refuse_strays(given[0], **strays, set=options or None, gallery_model=gallery_model)
    _check_outputs(per_query, plot)
    if run is not None:
        source = _of_run(run) if gallery_model is None else _in_gallery(gallery_model, run=run)
    elif embeddings is not None:
        source = _of_files(embeddings, labels, gallery, gallery_labels)
    else:
        assert model is not None
        chosen_data = _section(data, root, options or [])
        _check_prepared_once(model, chosen_data)
        source = (
            _of_model(model, chosen_data)
            if gallery_model is None
            else _in_gallery(gallery_model, model=model, data=chosen_data)
        )
    from dmlkd.retrieval import DEFAULT_METRICS, Index
    from dmlkd.retrieval.metrics import CLUSTERING

    chosen = metrics or source.metrics or DEFAULT_METRICS
    # A clustering has no queries and gallery, nor an order to change: if nobody asked for it here it is left out.
    unclustered = source.arguments.get("gallery") is not None or expand is not None or rerank is not None
    names = list(chosen) if metrics else [n for n in chosen if not unclustered or n not in CLUSTERING]
    extra = [] if plot is None else [f"recall@{k}" for k in _CURVE if f"recall@{k}" not in names]
    if structure and source.arguments.get("gallery") is not None:
        raise UserError("--structure is of one set of embeddings, here there are queries and a gallery")
    options_of_search = {
        "distance": distance,
        "average": average,
        "index": None if index is None else Index(index, search),
        "sample": sample,
    }

    def measured(arguments: Mapping[str, Any], metrics: list[str]) -> "Scores":
        if expand is not None or rerank is not None:
            return _postprocessed(arguments, metrics, expand, rerank, options_of_search)
        from dmlkd.retrieval import evaluate as measure

        return measure(**arguments, metrics=metrics, seed=seed, **options_of_search)  # type: ignore[arg-type]

    scores = measured(source.arguments, names + extra)
    others = {label: dict(measured(arguments, names)) for label, arguments in source.others.items()}
    _write(scores, source.label, per_query, plot)
    _show(scores, names, source, others, intervals=intervals, json=json, structure=structure)


def _postprocessed(
    given: Mapping[str, Any], metrics: list[str], expand: str | None, rerank: str | None, options: dict[str, Any]
) -> "Scores":
    from dmlkd.retrieval.postprocessing import evaluate_postprocessed

    for name, value in options.items():
        if value not in (None, "cosine", "micro"):
            raise UserError(f"--{name} does not go with --{'rerank' if expand is None else 'expand'}")
    arguments = dict(given)
    ids = [arguments.pop(name, None) for name in ("query_ids", "gallery_ids")]
    if ids[1] is not None or (ids[0] is not None and len(set(ids[0])) < len(ids[0])):
        raise UserError("identities that are left out of the search do not go with --expand and --rerank")
    return evaluate_postprocessed(**arguments, metrics=metrics, expand=expand, rerank=rerank)  # type: ignore[arg-type]


def _refuse_strays(kind: str, **options: object) -> None:
    """Refuse options that belong to another source."""
    of_files = ("labels", "gallery", "gallery_labels")
    allowed = {
        "--run": ("gallery_model",),
        "--embeddings": of_files,
        "--model": ("data", "root", "set", "gallery_model"),
    }[kind]
    for name, value in options.items():
        if value is not None and name not in allowed:
            raise UserError(f"--{name.replace('_', '-')} does not go with {kind}")


def _check_outputs(per_query: Path | None, plot: Path | None) -> None:
    """Refuse names that cannot be written to before anything is measured."""
    if per_query is not None:
        from dmlkd.retrieval.files import check_per_query

        check_per_query(per_query)
    if plot is not None:
        from dmlkd.cli.plots import check_picture

        check_picture(plot)


def _of_run(run: Path) -> _Source:
    from dmlkd.training.measuring import embed_run, measure_run_seen

    found, seen = embed_run(run), measure_run_seen(run)
    where = _where("on unseen classes", found.gallery)
    return _Source(str(run), where, found.arguments(), found.metrics, None if seen is None else seen._asdict())


def _section(data: str | None, root: Path | None, options: list[str]) -> "DataConfig":
    if data is None:
        raise UserError("--model needs --data, the name of a data set")
    from dmlkd.cli.data import section

    return section(data, root, options)


def _check_prepared_once(model: Path, data: "DataConfig") -> None:
    """Refuse options that a model which says how its images are prepared would leave without effect."""
    from dmlkd.data.preprocessing import load_transforms

    if data.preparing and load_transforms(model) is not None:
        raise UserError(f"{model} says how its images are prepared: leave out {' and '.join(data.preparing)}")


def _of_model(model: Path, data: "DataConfig") -> _Source:
    from dmlkd.training.measuring import embed_saved

    found = embed_saved(model, data)
    return _Source(str(model), _where(f"on the test images of {data.name}", found.gallery), found.arguments())


def _in_gallery(
    old: Path, *, run: Path | None = None, model: Path | None = None, data: "DataConfig | None" = None
) -> _Source:
    """The queries of one model in the gallery of another, and each model alone."""
    from dmlkd.models.saved import model_folder
    from dmlkd.training.loading import load_run
    from dmlkd.training.measuring import embed_run, embed_saved

    if run is not None:
        data, new = load_run(run).config.data, embed_run(run)
    else:
        assert model is not None
        assert data is not None
        new = embed_saved(model, data)
    theirs = embed_saved(model_folder(old), data)
    label = str(run or model)
    alone = {label: new.arguments(), str(old): theirs.arguments()}
    where = f"of {data.name}, its gallery embedded by {old}"
    return _Source(f"{label} in {old}", where, new.searching(theirs), new.metrics, others=alone)


def _where(words: str, gallery: Any) -> str:
    return words if gallery is None else f"{words}, queries in their gallery"


def _of_files(embeddings: Path, labels: Path | None, gallery: Path | None, gallery_labels: Path | None) -> _Source:
    from dmlkd.retrieval.files import read_embeddings, read_labels

    if gallery is None and gallery_labels is not None:
        raise UserError("--gallery-labels needs --gallery")
    arguments: dict[str, Any] = {}
    prefixes = [("", "query_ids", embeddings, labels)]
    if gallery is not None:
        prefixes.append(("gallery_", "gallery_ids", gallery, gallery_labels))
    for prefix, ids, file, separate in prefixes:
        read = read_embeddings(file)
        found = read.labels if separate is None else read_labels(separate)
        if found is None:
            option = f"--{prefix.replace('_', '-')}labels"
            raise UserError(
                f"{file} has no labels: give them as {option} FILE.npy, or in one .npz or .safetensors file"
            )
        arguments |= {prefix.rstrip("_") or "embeddings": read.embeddings, f"{prefix}labels": found, ids: read.ids}
    if gallery is not None and (arguments["query_ids"] is None or arguments["gallery_ids"] is None):
        arguments["query_ids"] = arguments["gallery_ids"] = None
    where = "among each other" if gallery is None else f"in {gallery}"
    return _Source(str(embeddings), where, arguments)


def _write(scores: "Scores", label: str, per_query: Path | None, plot: Path | None) -> None:
    if per_query is not None:
        from dmlkd.retrieval.files import write_per_query

        write_per_query(per_query, scores)
    if plot is not None:
        from dmlkd.cli.plots import plot_recall

        plot_recall(plot, {label: scores})


def _show(
    scores: "Scores",
    names: list[str],
    source: _Source,
    others: Mapping[str, Mapping[str, float]],
    *,
    intervals: bool,
    json: bool,
    structure: bool,
) -> None:
    shown = {name: scores[name] for name in names}
    ends = {n: scores.interval(n) for n in names if n in scores.per_query} if intervals else {}
    counts: dict[str, Any] = {"queries": scores.queries, "left_out": scores.left_out}
    if scores.search_recall is not None:
        counts["search_recall"] = scores.search_recall
    lie: dict[str, float] = {}
    if structure:
        from dmlkd.retrieval.structure import structure as measure

        lie = measure(source.arguments["embeddings"], source.arguments["labels"])._asdict()
    if json:
        from dmlkd.files import json_text

        more = {**({"intervals": ends} if intervals else {}), **({"structure": lie} if structure else {})}
        more |= {} if source.seen is None else {"seen": source.seen}
        more |= {"alone": others} if others else {}
        print(json_text({**shown, **counts, **more}))
        return
    rows = {source.label: shown}
    rows |= {f"{label} alone": dict(values) for label, values in others.items()}
    if intervals:
        rows |= {f"95 % {end}": {n: ends[n][i] for n in ends} for i, end in enumerate(("from", "to"))}
    print_scores(f"Retrieval of {scores.queries} queries {source.title}, in %", rows)
    print_left_out(scores.left_out)
    for name, value in lie.items():
        print(f"{name:<14}{value:.4f}")
    if scores.search_recall is not None:
        print(f"the index found {100 * scores.search_recall:.1f} % of the true nearest neighbours")
    if source.seen is not None:
        print_seen(source.seen)
