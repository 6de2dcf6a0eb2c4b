"""What callers embed with a model, and where models are read from."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from dmlkd.data.transforms import plain
from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel, fingerprint, prepared_by
from dmlkd.models import saved as places


def small(seed=0, **kwargs) -> EmbeddingModel:
    torch.manual_seed(seed)
    return EmbeddingModel("convnet4", dim=8, in_channels=1, **kwargs)


@pytest.fixture
def run(tmp_path):
    """A run folder as far as a model reads it."""
    (tmp_path / "run").mkdir()
    model = small()
    model.preparation = prepared_by(plain, image_size=8, channels=1)
    model.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_paths_pictures_and_pixels_give_the_same_embeddings(run):
    model = EmbeddingModel.from_pretrained(run / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 9, 11), np.uint8)
    pictures = [Image.fromarray(image[0]) for image in pixels]
    paths = [run / f"{n}.png" for n in range(5)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    z = model.embed(list(pixels), batch_size=2)
    assert torch.equal(z, model.embed(pictures, batch_size=2))
    assert torch.equal(z, model.embed([paths[0], str(paths[1]), *pictures[2:]], batch_size=2))
    assert torch.equal(z, model.embed(torch.from_numpy(pixels), batch_size=2))
    ready = torch.stack([model.preparation.of(path) for path in paths])
    torch.testing.assert_close(model.embed(ready), z)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))


def test_embedding_runs_in_eval_mode_and_puts_the_mode_back():
    model = small().train()
    images = torch.rand(6, 1, 8, 8)
    z = model.embed(images, batch_size=4)
    assert model.training
    torch.testing.assert_close(z, model.eval()(images), atol=1e-6, rtol=0)
    assert not z.requires_grad
    assert model.embed(images[:0]).shape == (0, 8)


def test_colour_pictures_become_grey_for_a_grey_model():
    model = small()
    model.preparation = prepared_by(plain, image_size=8, channels=1)
    picture = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    assert torch.equal(model.embed([picture]), model.embed([picture.convert("L")]))


def test_a_picture_that_lies_on_its_side_or_is_transparent_is_taken_as_its_file_is(tmp_path):
    model = EmbeddingModel("convnet4", dim=8, in_channels=3)
    model.preparation = prepared_by(plain, image_size=8, channels=3)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "see-through.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(pixels[:, :, :3].copy()).save(tmp_path / "turned.png", exif=turned)
    for path in sorted(tmp_path.glob("*.png")):
        assert torch.equal(model.preparation.of(Image.open(path)), model.preparation.of(path))


def test_a_transform_by_name_prepares_as_a_run_with_it_does(tmp_path):
    from dmlkd.config import DataConfig
    from dmlkd.training.building_data import build_preprocessing

    of_a_run = build_preprocessing(DataConfig(name="digits", image_size=12, transform="plain"))
    assert prepared_by(plain, image_size=12, channels=1).preprocessing.preparation == of_a_run.preparation


def test_what_cannot_be_embedded_is_refused(tmp_path):
    model = small()
    with pytest.raises(UserError, match="nothing says how this model's images are prepared"):
        model.embed([np.zeros((1, 8, 8), np.uint8)])
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        model.embed(torch.rand(1, 1, 8, 8), batch_size=0)
    model.preparation = prepared_by(plain, image_size=8, channels=1)
    with pytest.raises(UserError, match=r"got \(3, 8, 8\) torch.uint8"):
        model.embed([np.zeros((3, 8, 8), np.uint8)])
    with pytest.raises(UserError, match=r"no\.png"):
        model.embed([tmp_path / "no.png"])
    with pytest.raises(UserError, match="image_size must be at least 1, got 0"):
        prepared_by(plain, image_size=0, channels=1)


def test_a_run_folder_stands_for_its_model(run):
    model = EmbeddingModel.from_pretrained(run)
    assert fingerprint(model) == fingerprint(small())
    assert model.preparation.description == prepared_by(plain, image_size=8, channels=1).description
    (run / "model" / "preprocessing.json").write_text("{}")
    with pytest.raises(UserError, match=r"preprocessing\.json: cannot be read"):
        EmbeddingModel.from_pretrained(run)


@pytest.mark.parametrize("name", ["nowhere/at/all", "runs/my run", "/nowhere", "nothing"])
def test_a_folder_that_is_not_there_is_one_clear_line(name):
    with pytest.raises(UserError, match=f"^model folder {name} does not exist$"):
        EmbeddingModel.from_pretrained(name)


def test_a_name_that_the_hub_does_not_give_is_one_clear_line(monkeypatch):
    def fails(*_, **__):
        raise LocalEntryNotFoundError("no\nconnection")

    monkeypatch.setattr(places, "snapshot_download", fails)
    with pytest.raises(
        UserError, match=r"^owner/model is no folder here, and no model of the hub that can be read: no"
    ):
        EmbeddingModel.from_pretrained("owner/model")


def test_a_model_of_the_hub_is_read_from_what_was_fetched(run, monkeypatch):
    asked = {}
    monkeypatch.setattr(places, "snapshot_download", lambda name, **k: asked.update(k, name=name) or str(run / "model"))
    assert fingerprint(EmbeddingModel.from_pretrained("owner/model", revision="v1")) == fingerprint(small())
    assert (asked["name"], asked["revision"]) == ("owner/model", "v1")
    assert all(pattern.endswith((".json", ".safetensors", ".md")) for pattern in asked["allow_patterns"])


def test_a_damaged_model_is_one_clear_line(run):
    file = run / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as a model"):
        EmbeddingModel.from_pretrained(run)
    file.unlink()
    with pytest.raises(UserError, match=r"is no saved model: it has no model\.safetensors"):
        EmbeddingModel.from_pretrained(run)


def test_a_plain_model_is_saved_and_known_as_before_there_were_exits_and_hidden_layers(tmp_path):
    small().save_pretrained(tmp_path)
    kept = {"backbone", "dim", "pool", "weights", "in_channels", "backbone_args", "frozen_batch_norm"}
    assert set(json.loads((tmp_path / "config.json").read_text())) == kept


def test_the_fingerprint_tells_weights_and_architecture_but_not_modes():
    same = fingerprint(small())
    assert same == fingerprint(small().train())
    assert len({same, fingerprint(small(1)), fingerprint(small(pool="max"))}) == 3
