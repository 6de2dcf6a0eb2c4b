"""Plots that commands write."""

from collections.abc import Mapping
from pathlib import Path

from dmlkd.errors import UserError
from dmlkd.files import check_folder, replacing

_PICTURES = (".png", ".svg", ".pdf")
_LABEL = 40  # characters


def check_picture(path: Path) -> None:
    """Refuse a name that stands for no kind of picture.

    Raises:
        UserError: unless it ends in .png, .svg or .pdf, in a folder that is there.
    """
    if path.suffix not in _PICTURES:
        raise UserError(f"{path} names no picture: it must end in .png, .svg or .pdf")
    check_folder(path)


def _short(label: str) -> str:
    """The end of a long label: a whole path would leave no room for the curves."""
    return label if len(label) <= _LABEL else "…" + label[1 - _LABEL :]


def plot_recall(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Plot Recall@K over K.

    Args:
        path: of the picture; its ending says what kind: .png, .svg or .pdf.
        rows: scores by metric name for each curve's label.

    Raises:
        UserError: if the ending stands for no kind of picture, or its folder is not there.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    check_picture(path)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, scores in rows.items():
        curve = {int(name.partition("@")[2]): value for name, value in scores.items() if name.startswith("recall@")}
        ks = sorted(curve)
        axes.plot(ks, [curve[k] for k in ks], marker="o", label=_short(label))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("K")
    axes.set_ylabel("Recall@K")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
