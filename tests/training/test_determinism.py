"""Only algorithms that give the same bits, as long as it is asked for."""

import pytest
import torch
from lightning import Callback

from dmlkd.config import load_config
from dmlkd.training import fit
from dmlkd.training.building import build
from dmlkd.training.determinism import determinism


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")


def flags() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


@pytest.mark.parametrize("before", [(False, False), (True, True)])
def test_it_holds_within_the_block_and_what_was_comes_back(before):
    def failing():
        with determinism(True):
            assert flags() == (True, False)
            raise KeyError

    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        with pytest.raises(KeyError):
            failing()
        assert flags() == before
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_run_takes_such_algorithms_if_asked(configs, tmp_path, wanted):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, *_):
            seen.append(torch.are_deterministic_algorithms_enabled())

    short = ["train.epochs=1", "data.image_size=8", f"train.deterministic={wanted}".lower()]
    config = load_config(configs / "digits.yaml", short)[0]
    parts = build(config)
    fit(parts.model, parts.objective, parts.data, config.train, out=tmp_path, callbacks=[Look()], quiet=True)
    assert set(seen) == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()
