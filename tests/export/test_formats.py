"""Other formats say what PyTorch says, on any number of images."""

import numpy as np
import onnx
import pytest
import torch
from export_cases import SIZE, small_model

from dmlkd.data import digits
from dmlkd.errors import UserError
from dmlkd.export import formats

IMAGES = torch.from_numpy(digits().pixels[:40]).repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :SIZE, :SIZE]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    model = small_model()
    return model, folder, formats.export_onnx(model, prepared(model), folder / "m.onnx")


def prepared(model):
    return torch.stack([model.preparation.of(image) for image in IMAGES])


def test_onnx_says_what_pytorch_says(exported):
    model, folder, check = exported
    assert check.images == 40
    assert check.difference < 1e-5
    assert check.bytes == (folder / "m.onnx").stat().st_size
    for count in (1, 3, 40):
        z = formats.run_onnx(folder / "m.onnx", prepared(model)[:count])
        np.testing.assert_allclose(z, model(prepared(model)[:count]).detach().numpy(), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]


def test_onnx_states_its_opset_and_leaves_the_batch_open(exported):
    _, folder, _ = exported
    model = onnx.load(folder / "m.onnx")
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == formats.OPSET
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert shape[0].dim_param
    assert [d.dim_value for d in shape[1:]] == [1, SIZE, SIZE]


def test_scaling_and_normalising_can_be_inside(tmp_path):
    model = small_model()
    whole = formats.with_preparation(model)
    formats.export_onnx(whole, IMAGES, tmp_path / "m.onnx")
    z = formats.run_onnx(tmp_path / "m.onnx", IMAGES)
    np.testing.assert_allclose(z, model.embed(list(IMAGES)).numpy(), atol=1e-5)


def test_the_archive_says_what_pytorch_says_without_the_library(tmp_path):
    model = small_model()
    assert formats.export_torch(model, prepared(model), tmp_path / "m.pt2").difference < 1e-5
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(loaded(prepared(model)[:5]), model(prepared(model)[:5]), atol=1e-5, rtol=0)


def test_8_bits_are_smaller_and_nearly_the_same(tmp_path):
    model = small_model(dim=64)
    check = formats.export_int8(model, prepared(model), tmp_path / "m8.onnx")
    z = formats.run_onnx(tmp_path / "m8.onnx", prepared(model))
    cosines = (z * model(prepared(model)).detach().numpy()).sum(axis=1)
    assert cosines.min() > 0.98
    assert 0 < check.difference < 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["m8.onnx"]


def test_a_model_that_differs_is_not_written(tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.setattr(formats, "run_onnx", lambda path, images: np.zeros((len(images), 8), np.float32))
    with pytest.raises(UserError, match="differs from PyTorch by"):
        formats.export_onnx(model, prepared(model), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    model = small_model()
    with pytest.raises(UserError, match=r"must end in \.onnx"):
        formats.export_onnx(model, prepared(model), tmp_path / "m.pt2")
    with pytest.raises(UserError, match="at least 2 images"):
        formats.export_torch(model, prepared(model)[:1], tmp_path / "m.pt2")
    with pytest.raises(UserError, match="does not exist"):
        formats.export_onnx(model, prepared(model), tmp_path / "no" / "m.onnx")
    model.preparation = None
    with pytest.raises(UserError, match="nothing says how"):
        formats.with_preparation(model)
