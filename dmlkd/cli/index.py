"""``dmlkd index``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmlkd.cli.inputs import RootOption, SetOption, SplitOption, Wanted, load, rows_of, wanted_images
from dmlkd.errors import UserError

if TYPE_CHECKING:
    from dmlkd.retrieval.index import Nearest

index = typer.Typer(help="Build, search and change an index of embeddings.", no_args_is_help=True)

Embeddings = Annotated[Path, typer.Option(help="What dmlkd embed wrote, or another embedding file with ids.")]
Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="Index folder.")]


@index.command()
def build(
    embeddings: Embeddings,
    out: Annotated[Path, typer.Option(help="Index folder, new or empty.")],
    factory: Annotated[str, typer.Option(help="FAISS's factory string: Flat, HNSW32, IVF1024,PQ16, ...")] = "Flat",
    search: Annotated[str, typer.Option(help="Parameters of the search, such as nprobe=32.")] = "",
    distance: Annotated[str, typer.Option(help="cosine, euclidean or inner.")] = "cosine",
    train_rows: Annotated[int, typer.Option(help="Rows to train on, where the kind is trained.")] = 262_144,
    seed: Annotated[int, typer.Option(help="Of the draw of these rows.")] = 0,
    like: Annotated[Path | None, typer.Option(help="Index folder whose training to take over.")] = None,
) -> None:
    """Build an index of embeddings."""
    from dmlkd.retrieval.index import SearchIndex
    from dmlkd.retrieval.indexing import build_index

    build_index(
        embeddings,
        out,
        factory=factory,
        search=search,
        distance=distance,
        train_rows=train_rows,
        seed=seed,
        like=like,
    )
    print(f"{len(SearchIndex(out))} rows: {out}")


@index.command()
def search(
    folders: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Index folder; several: its shards.")],
    image: Annotated[list[Path] | None, typer.Option(help="Picture to search with; repeatable.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder, table or data set (its test images) to search with.")
    ] = None,
    root: RootOption = None,
    options: SetOption = None,
    split: SplitOption = None,
    embeddings: Annotated[Path | None, typer.Option(help="File or folder of embeddings to search with.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run folder whose model embeds the pictures.")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub name that embeds the pictures.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many to find.")] = 10,
    parameters: Annotated[str | None, typer.Option("--search", help="Such as nprobe=32. [default: as built]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a .parquet file of query, rank, id, similarity.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    image_size: Annotated[int | None, typer.Option(help="For a model that does not say: pixels a side.")] = None,
) -> None:
    """Find the nearest of one picture or of many."""
    given = [n for n, v in {"--image": image, "--data": data, "--embeddings": embeddings}.items() if v]
    if len(given) != 1:
        raise UserError(f"give one of --image, --data and --embeddings, got {' and '.join(given) or 'none'}")
    if out is not None:
        from dmlkd.files import check_folder

        if out.suffix != ".parquet":
            raise UserError(f"{out} must end in .parquet")
        check_folder(out)
    from dmlkd.retrieval.sharded import ShardedIndex

    opened = ShardedIndex(folders, search=parameters)
    wanted = wanted_images(data, root, options, split)
    names, queries, made_by = _queries(image, wanted, embeddings, run, model, image_size)
    found = opened.search(queries, k, model=made_by)
    _show(names, found, out, json=json)


def _queries(
    image: list[Path] | None,
    wanted: Wanted,
    embeddings: Path | None,
    run: Path | None,
    model: str | None,
    image_size: int | None,
) -> tuple[list[str], Any, str | None]:
    """Names and embeddings of the queries, and the fingerprint of what made them."""
    if embeddings is not None:
        from dmlkd.retrieval.files import read_embeddings

        read = read_embeddings(embeddings)
        ids = range(len(read.embeddings)) if read.ids is None else read.ids.tolist()
        return [str(name) for name in ids], read.embeddings, read.model
    from dmlkd.models import fingerprint

    loaded = load(run, model, image_size=image_size, wanted=wanted)
    if image:
        return [str(path) for path in image], loaded.model.embed(image), fingerprint(loaded.model)
    import torch

    rows = rows_of(loaded, wanted)
    parts = [
        loaded.model.embed(rows.images(range(start, min(start + 256, len(rows))))) for start in range(0, len(rows), 256)
    ]
    return list(rows.identities(0, len(rows)).ids), torch.cat(parts), fingerprint(loaded.model)


def _show(names: list[str], found: "Nearest", out: Path | None, *, json: bool) -> None:
    rows = [
        {
            "query": name,
            "rank": rank + 1,
            "id": str(found.ids[q, rank]),
            "similarity": float(found.similarities[q, rank]),
        }
        for q, name in enumerate(names)
        for rank in range(found.ids.shape[1])
        if found.ids[q, rank]
    ]
    if out is not None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from dmlkd.files import replacing

        with replacing(out) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        print(f"{len(rows)} rows: {out}")
    elif json:
        from dmlkd.files import json_text

        print(json_text(rows))
    else:
        for row in rows:
            print(f"{row['query']}\t{row['rank']}\t{row['id']}\t{row['similarity']:.4f}")


@index.command()
def add(folder: Folder, embeddings: Embeddings) -> None:
    """Add embeddings of the same model."""
    from dmlkd.retrieval.indexing import add_rows

    print(f"{add_rows(folder, embeddings)} rows added: {folder}")


@index.command()
def remove(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id of a row; repeatable.")] = None,
    file: Annotated[Path | None, typer.Option("--ids", help="Text file with an id a line.")] = None,
) -> None:
    """Remove rows by id."""
    from dmlkd.retrieval.indexing import remove_rows

    wanted = list(ids or [])
    if file is not None:
        try:
            wanted += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    if not wanted:
        raise UserError("give --id or --ids")
    print(f"{remove_rows(folder, wanted)} rows removed: {folder}")
