"""Shared by all tests: the real data, the command line, and hypothesis' settings."""

import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # workers side by side have a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Times vary with the machine; a slow example is no failure.
settings.register_profile("dmlkd", deadline=None, print_blob=True)
settings.load_profile("dmlkd")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def configs() -> Path:
    return ROOT / "configs"


@pytest.fixture
def omniglot() -> Path:
    """The folder of the Omniglot zips, from DMLKD_DATA or the shared data beside the checkout."""
    root = Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    if not (root / "images_background_small1.zip").is_file():
        pytest.skip(f"{root} holds no images_background_small1.zip; set DMLKD_DATA")
    return root


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts that are due are those of the small trees."""
    from small_trees import COUNTS

    from dmlkd.data import counts

    for name, due in COUNTS.items():
        monkeypatch.setitem(counts.DUE, name, due)


@pytest.fixture
def cars() -> Path:
    """The folder of cars196.csv and its zips, from DMLKD_DATA or the shared data beside the checkout."""
    root = Path(os.environ.get("DMLKD_DATA") or ROOT.parent / "shared" / "data")
    if not (root / "cars196-64px.zip").is_file():
        pytest.skip(f"{root} holds no cars196-64px.zip; set DMLKD_DATA")
    return root


@pytest.fixture
def dmlkd(monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, standard output, standard error."""
    from dmlkd.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dmlkd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run
