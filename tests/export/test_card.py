"""The model card says what the run measured; a folder is pushed whole."""

import pytest
import yaml
from export_cases import saved, small_model
from huggingface_hub import HfApi

from dmlkd.errors import UserError
from dmlkd.export.card import model_card, push_folder

METRICS = {
    "test": {"recall@1": 0.5, "map@r": 0.25},
    "epoch": {"last": 3, "best": 2, "reported": "best"},
    "baselines": {"pixels": {"recall@1": 0.4, "map@r": 0.2}, "untrained": {"recall@1": 0.3, "map@r": 0.1}},
    "data": {"train": {"images": 1234, "classes": 5}, "test": {"images": 20, "classes": 2}},
    "seed": 7,
    "versions": {"dmlkd": "0"},
}


def test_the_card_has_the_metrics_the_data_and_the_hubs_header():
    card = model_card(small_model(), METRICS, "data: {name: digits}\n")
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "dmlkd"
    for shown in ("| this model | 50.00 | 25.00 |", "| baseline: pixels | 40.00 | 20.00 |", "| train | 1,234 | 5 |"):
        assert shown in card
    assert "Epoch 2 (from 0; chosen on validation classes), seed 7." in card
    assert "data: {name: digits}" in card
    assert "8 numbers of unit length" in card


def test_a_folder_is_pushed_with_everything_in_it(tmp_path, monkeypatch):
    run = saved(tmp_path)
    done = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **k: type("R", (), {"repo_id": f"me/{name}"})())
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **k: done.update(k) or "address")
    assert push_folder(run, "name") == "address"
    assert done == {"repo_id": "me/name", "folder_path": run / "model"}


def test_what_cannot_be_pushed_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist"):
        push_folder(tmp_path / "nowhere", "name")
    with pytest.raises(UserError, match="cannot be uploaded as a//b"):
        push_folder(saved(tmp_path), "a//b")
