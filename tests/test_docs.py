"""What README and docs show is run: Python blocks as they stand, YAML blocks read, links followed."""

import re
from pathlib import Path

import pytest

from dmlkd.config import load_training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list:
    found = []
    for page in PAGES:
        matches = re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        for number, match in enumerate(matches):
            found.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}-{number}"))
    return found


# pytorch-metric-learning's trainer turns the loss into a number for its progress bar.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs(code, capsys):
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_the_loop_of_the_readme_distils(capsys):
    """Its teacher teaches from the second epoch on: the printed weights would not show a loss that is always zero."""
    (loop, *_) = [param.values[0] for param in blocks("python")]
    seen: list[float] = []
    watched = loop.replace(
        "loss.backward()",
        "seen.append((weight * lsd(student=z, teacher=teacher(images[batch]))).item()); loss.backward()",
    )
    exec(compile(watched, "block", "exec"), {"seen": seen})
    assert seen[:2] == [0, 0]
    assert all(value > 0 for value in seen[2:])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_yaml_block_is_a_configuration(text, tmp_path):
    path = tmp_path / "block.yaml"
    path.write_text(text)
    load_training(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_commands_in_the_docs_name_real_options(configs, tmp_path, monkeypatch, omniglot):
    """Every ``--set`` shown on a page is one that its configuration takes."""
    monkeypatch.setenv("DMLKD_DATA", str(omniglot))
    shown = 0
    for page in PAGES:
        for line in page.read_text().splitlines():
            config = re.search(r"dmlkd train --config (configs/\S+)", line)
            overrides = re.findall(r"--set (?:'([^']+)'|(\S+))", line)
            if config and overrides:
                values = [a or b for a, b in overrides]
                load_training(ROOT / config[1], [v for v in values if not v.startswith("data.root=")])
                shown += len(values)
    assert shown >= 5
