"""``dmlkd data``: look at a data set before anything is trained on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmlkd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dmlkd.config import DataConfig
    from dmlkd.data.verifying import Finding

app = typer.Typer(name="data", help="Check and describe data sets.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Registered name, such as cub200, sop, folder or table.")]
_Root = Annotated[Path | None, typer.Option(help="Folder of the data set. [default: $DMLKD_DATA]")]
_Options = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Of the data section, such as file=mine.csv; repeatable."),
]


@app.command("verify")
def verify(
    name: _Name,
    root: _Root = None,
    options: _Options = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not open the images.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check counts, paths, files, roles, classes and contents; exit code 1 if anything must be mended."""
    from dmlkd.data.verifying import Finding
    from dmlkd.data.verifying import verify as checked

    config = _complete_or_not(name, root, options)
    try:
        table = _read(config)
        zero_shot = not config.seen_classes and config.test_domain is None
        findings = checked(name, table, zero_shot=zero_shot, decode=not quick, workers=config.workers)
    except DataError as error:
        findings = [Finding("FAIL", "layout", str(error))]
    _report(name, findings, json=json)
    if any(finding.level == "FAIL" for finding in findings):
        raise typer.Exit(1)


@app.command("describe")
def describe(
    name: _Name,
    root: _Root = None,
    options: _Options = None,
    sheet: Annotated[Path | None, typer.Option(help="Write a picture of examples to this .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the description as JSON.")] = False,
) -> None:
    """Show counts, images a class, sizes, and a sheet of examples."""
    from dmlkd.data.describing import contact_sheet
    from dmlkd.data.describing import describe as described
    from dmlkd.errors import UserError
    from dmlkd.files import check_folder

    if sheet is not None:
        if sheet.suffix != ".png":
            raise UserError(f"--sheet {sheet}: must end in .png")
        check_folder(sheet)
    table = _read(_complete_or_not(name, root, options))
    _print_description(name, described(table), json=json)
    if sheet is not None:
        contact_sheet(table, sheet)
        if not json:
            print(f"examples: {sheet}")


def section(name: str, root: Path | None, options: list[str]) -> "DataConfig":
    """A data section from the command line.

    Args:
        name: of the data set.
        root: its folder, if given.
        options: further ``KEY=VALUE``.

    Raises:
        ConfigError: for an option that is not of that form, or a value that is not valid.
    """
    from pydantic import ValidationError

    from dmlkd.config import DataConfig, YamlSource
    from dmlkd.config.signatures import explain

    source = YamlSource(Path(name), {"name": name} if root is None else {"name": name, "root": str(root)}, {})
    for option in options:
        source.override(option)
    try:
        return DataConfig.model_validate(source.values)
    except ValidationError as error:
        first = error.errors()[0]
        raise source.located(ConfigError(explain(first), first["loc"])) from None


def _complete_or_not(name: str, root: Path | None, options: list[str] | None) -> "DataConfig":
    """The checked section, with a reader that does not refuse an incomplete data set."""
    from dmlkd import registry
    from dmlkd.config import checked_data, parameters

    entry = registry.lookup(registry.DATA, "data set", name, ())
    incomplete = ["complete=false"] if "complete" in parameters(registry.load(entry.reader)) else []
    return checked_data(section(name, root, [*incomplete, *(options or [])]))


def _read(config: "DataConfig") -> Any:
    from dmlkd.training.building_data import read_table

    return read_table(config)


def _report(name: str, findings: "list[Finding]", *, json: bool) -> None:
    failed = sum(finding.level == "FAIL" for finding in findings)
    if json:
        from dmlkd.files import json_text

        print(json_text({"data": name, "sound": not failed, "findings": [f._asdict() for f in findings]}))
        return
    print(name)
    for finding in findings:
        print(f"  {finding.level:<4}  {finding.check:<8}  {finding.text}")
        for detail in finding.details:
            print(f"                    {detail}")
    print(f"{name} is sound" if not failed else f"{name} is not sound: {failed} of {len(findings)} checks failed")


def _print_description(name: str, shown: dict[str, Any], *, json: bool) -> None:
    if json:
        from dmlkd.files import json_text

        print(json_text(shown))
        return
    print(name)
    for part, facts in shown["parts"].items():
        low, middle, high = facts["images a class"]
        counted = f"{facts['images']:>8} images {facts['classes']:>7} classes"
        print(f"  {part:<8}{counted}   {low} to {high} a class, median {middle}")
    for domain, images in shown["domains"].items():
        print(f"  domain {domain}: {images} images")
    sizes = shown["sizes"]
    if sizes["width"]:
        (w0, w1, w2), (h0, h1, h2) = sizes["width"], sizes["height"]
        print(f"  width {w0} to {w2}, median {w1}; height {h0} to {h2}, median {h1} ({sizes['of']} images looked at)")
    if sizes["unreadable"]:
        print(f"  {sizes['unreadable']} of {sizes['of']} images looked at cannot be read: see dmlkd data verify")
