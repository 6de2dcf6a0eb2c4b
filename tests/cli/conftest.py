"""Shared by the tests of the command line."""

import sys

import pytest

from dmlkd.cli import main


@pytest.fixture
def dmlkd(monkeypatch, capsys):
    """Runs the command line in this process; gives exit code, standard output, standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dmlkd", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run
