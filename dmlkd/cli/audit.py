"""``dmlkd audit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmlkd.cli.output import print_table
from dmlkd.errors import UserError

if TYPE_CHECKING:
    from dmlkd.training.auditing import RunAudit


def audit(
    run: Annotated[Path, typer.Option(help="Run folder of a finished training run.")],
    out: Annotated[
        Path | None, typer.Option(help="Table of all training images, .csv or .parquet. [default: RUN/label_audit.csv]")
    ] = None,
    top: Annotated[int, typer.Option(help="How many of the most suspicious images to print.")] = 10,
    k: Annotated[int, typer.Option("--neighbours", "-k", help="How many neighbours vote.")] = 100,
    temperature: Annotated[float, typer.Option(help="Of the softmax that weights their votes.")] = 0.05,
) -> None:
    """Rank the training images of a run by how strongly their nearest neighbours contradict their label."""
    from dmlkd.files import check_table, write_table

    if top < 0:
        raise UserError(f"--top must be at least 0, got {top}")
    table = run / "label_audit.csv" if out is None else out
    if out is not None:
        check_table(out)
    from dmlkd.training.auditing import audit_run

    found = audit_run(run, k=k, temperature=temperature)
    columns = found.table()
    write_table(table, columns)
    _print(found, columns, top)
    print(f"table: {table}")


def _print(found: "RunAudit", columns: "dict[str, list[object]]", top: int) -> None:
    import numpy as np

    if top:
        title = "Labels that the nearest neighbours contradict most; score from -1 (for the label) to 1 (against it)"
        shown = [columns[name][:top] for name in ("score", "path", "label_name", "likelier_name")]
        cells = [
            ("" if score is None else f"{score:.3f}", *map(str, words)) for score, *words in zip(*shown, strict=True)
        ]
        print_table(("score", "path", "label", "likelier label"), cells, title=title, left=(1, 2, 3), wrapped=True)
    scores = found.audit.score
    above = ", ".join(f"{int((scores > bound).sum())} above {bound}" for bound in (0, 0.5, 0.9))
    print(f"scores of {len(scores)} training images: {above}")
    if alone := int(np.isnan(scores).sum()):
        print(f"not judged: {alone} images that are alone in their class")
    if measured := found.found():
        print(
            f"the run made {measured.wrong} labels wrong: of the first {measured.wrong} images of the table "
            f"{100 * measured.precision:.1f} % are among them, AUROC {measured.auroc:.4f}"
        )
