"""Plots that commands write."""

from collections.abc import Mapping
from pathlib import Path

from dmlkd.errors import UserError
from dmlkd.files import replacing


def plot_recall(path: Path, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Plot Recall@K over K.

    Args:
        path: of the picture; its ending says what kind, such as .png, .svg or .pdf.
        rows: scores by metric name for each curve's label.

    Raises:
        UserError: if the ending stands for no kind of picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    if path.suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path} names no picture: it must end in .png, .svg or .pdf")
    axes = figure.subplots()
    for label, scores in rows.items():
        curve = {int(name.partition("@")[2]): value for name, value in scores.items() if name.startswith("recall@")}
        ks = sorted(curve)
        axes.plot(ks, [curve[k] for k in ks], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("K")
    axes.set_ylabel("Recall@K")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
