"""``dmlkd audit`` as a user meets it."""

import csv
import inspect
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dmlkd.cli.audit import audit
from dmlkd.config import load_config
from dmlkd.models import EmbeddingModel
from dmlkd.retrieval.audit import audit_labels
from dmlkd.training.auditing import audit_run
from dmlkd.training.building_data import build_data
from dmlkd.training.running import _record_noise

CONFIGS = Path(__file__).parents[2] / "configs"


def run_folder(folder: Path, *overrides: str, name: str = "digits") -> Path:
    """A run folder as far as the audit reads it, with an untrained model."""
    config = load_config(CONFIGS / f"{name}.yaml", ["data.image_size=8", "data.transform=plain", *overrides])[0]
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    EmbeddingModel("convnet4", dim=8, in_channels=1, backbone_args={"width": 4}).save_pretrained(folder / "model")
    if config.data.noise:
        _record_noise(build_data(config.data, seed=config.train.seed), folder / "label_noise.csv")
    return folder


def test_a_run_is_audited_into_its_folder(dmlkd, tmp_path):
    folder = run_folder(tmp_path / "run", "data.noise=0.1")
    code, out, err = dmlkd("audit", "--run", folder, "--top", 3)
    assert (code, err) == (0, "")
    assert "digits/" in out
    assert "scores of 901 training images: " in out
    assert "the run made 90 labels wrong: of the first 90 images of the table " in out
    assert f"table: {folder / 'label_audit.csv'}" in out
    with (folder / "label_audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert len(rows) == 901
    assert out.count("digits/") == 3
    wrong = np.array([row["made_wrong"] == "True" for row in rows])
    assert wrong.sum() == 90
    assert f"{100 * wrong[:90].mean():.1f} %" in out


def test_the_table_can_be_parquet_elsewhere_and_nothing_need_be_shown(dmlkd, tmp_path):
    folder = run_folder(tmp_path / "run")
    out = tmp_path / "audit.parquet"
    code, shown, _ = dmlkd("audit", "--run", folder, "--out", out, "--top", 0, "-k", 5, "--temperature", 0.5)
    assert code == 0
    assert "digits/" not in shown
    assert "wrong" not in shown
    table = pq.read_table(out)
    assert table.column_names[:5] == ["row", "path", "label", "likelier_label", "score"]
    assert str(table.schema.field("score").type) == "double"
    assert sorted(table.column("row").to_pylist()) == list(range(901))
    assert not (folder / "label_audit.csv").exists()


def test_the_command_asks_as_many_neighbours_as_the_function():
    defaults = [
        [inspect.signature(function).parameters[name].default for name in ("k", "temperature")]
        for function in (audit, audit_run, audit_labels)
    ]
    assert defaults[0] == defaults[1] == defaults[2]


WRONG = {
    "run that is not there": (["--run", "nowhere"], "run folder nowhere does not exist"),
    "run that did not finish": (["--run", "empty"], "empty is not a finished run: it has no config.yaml"),
    "run without a model": (["--run", "modelless"], "is not a finished run: it has no model/model.safetensors"),
    "images that are gone": (["--run", "gone"], "folder /nowhere does not exist"),
    "no folder of images": (["--run", "rootless"], "set data.root or the environment variable DMLKD_DATA"),
    "no neighbours": (["--run", "run", "-k", "0"], "k must be above 0, got 0"),
    "no temperature": (["--run", "run", "--temperature", "0"], "temperature must be above 0, got 0"),
    "nothing to show": (["--run", "run", "--top", "-1"], "--top must be at least 0, got -1"),
    "table of no kind": (["--run", "run", "--out", "a.txt"], "a.txt names no table: it must end in .csv or .parquet"),
    "table nowhere": (["--run", "run", "--out", "no/a.csv"], "folder no does not exist"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line_with_exit_code_2(dmlkd, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMLKD_DATA", raising=False)
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "run")
    for name, line in (("gone", "  root: /nowhere\n"), ("rootless", "")):
        config = run_folder(tmp_path / name, f"data.root={tmp_path}", name="omniglot-small") / "config.yaml"
        config.write_text(config.read_text().replace(f"  root: {tmp_path}\n", line))
    (run_folder(tmp_path / "modelless") / "model" / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = dmlkd("audit", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before
