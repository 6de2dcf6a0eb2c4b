"""The embedding model: unit rows, saved and read back, names refused clearly."""

import copy
import json

import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.distill import MovingAverageTeacher, PreviousEpochTeacher
from dmlkd.errors import ConfigError
from dmlkd.models import backbone_names


def small(**kwargs) -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=8, in_channels=1, **kwargs)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 28, 33])
def test_rows_have_unit_length_at_any_image_size(size):
    z = small().eval()(torch.rand(3, 1, size, size))
    assert z.shape == (3, 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))


# One of each way that torchvision writes its classifiers.
@pytest.mark.parametrize(
    ("backbone", "size"),
    [("resnet18", 64), ("mobilenet_v3_small", 64), ("convnext_tiny", 64), ("vit_b_32", 224), ("densenet121", 64)],
)
def test_torchvision_networks_embed_and_lose_their_classifier(backbone, size):
    model = EmbeddingModel(backbone, dim=16).eval()
    with torch.no_grad():
        signals = model.signals(torch.rand(2, 3, size, size))
    assert signals.embeddings.shape == (2, 16)
    assert signals.features.shape == (2, model.head.in_features)
    assert not any(p.shape[:1] == (1000,) for p in model.parameters())


def test_stages_are_given_only_when_asked_for():
    model = EmbeddingModel("resnet18", dim=4).eval()
    images = torch.rand(1, 3, 64, 64)
    assert model.signals(images).stages is None
    stages = model.signals(images, {"stages"}).stages
    assert [tuple(s.shape[1:]) for s in stages] == [(64, 16, 16), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


def test_max_pooling_takes_the_largest_of_the_feature_map():
    model = small(pool="max").eval()
    signals = model.signals(torch.rand(2, 1, 28, 28), {"stages"})
    assert torch.equal(signals.features, signals.stages[-1].amax(dim=(2, 3)))


def test_embeddings_are_float32_under_autocast():
    model = small().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(torch.rand(4, 1, 8, 8))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))


def test_a_black_image_gives_no_nan():
    model = small()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert torch.isfinite(model.eval()(torch.zeros(2, 1, 8, 8))).all()


def statistics(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_frozen_batch_norm_keeps_its_statistics_and_trains_scale_and_shift():
    model = small(frozen_batch_norm=True)
    before = statistics(model)
    for part in (model, model.trunk, copy.deepcopy(model)):
        part.eval()
        part.train()
        assert part.training
        assert not any(m.training for m in part.modules() if isinstance(m, torch.nn.BatchNorm2d))
    model(torch.rand(4, 1, 8, 8))[:, 0].sum().backward()
    assert before.keys() == statistics(model).keys() != set()
    assert same(before, statistics(model))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 4
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for m in norms for p in (m.weight, m.bias))
    live = small()
    live(torch.rand(4, 1, 8, 8))
    assert not same(statistics(live), before)


def test_with_frozen_batch_norm_train_and_eval_mode_say_the_same():
    model, images = small(frozen_batch_norm=True), torch.rand(4, 1, 8, 8)
    assert torch.equal(model.train()(images), model.eval()(images))
    teacher = PreviousEpochTeacher(model, mode="train")
    assert torch.equal(teacher.train()(images), model(images))
    average = MovingAverageTeacher(model, mode="train")
    assert torch.equal(average._teaching(images), model(images))


def test_frozen_batch_norm_is_kept_by_a_saved_model(tmp_path):
    small(frozen_batch_norm=True).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["frozen_batch_norm"] is True
    again = EmbeddingModel.from_pretrained(tmp_path).train()
    before = statistics(again)
    again(torch.rand(4, 1, 8, 8))
    assert same(before, statistics(again))


def test_logits_are_refused():
    with pytest.raises(ValueError, match="has no class weights"):
        small().signals(torch.rand(1, 1, 8, 8), {"logits"})


def test_saved_and_read_back_it_is_the_same(tmp_path, capsys):
    model = EmbeddingModel("convnet4", dim=8, in_channels=1, pool="max", backbone_args={"width": 5}).eval()
    model.save_pretrained(tmp_path)
    again = EmbeddingModel.from_pretrained(tmp_path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(again(images), model(images))
    assert not again.training
    assert (tmp_path / "model.safetensors").is_file()
    assert capsys.readouterr().out == ""


def test_a_saved_model_does_not_ask_for_the_weights_it_started_from(tmp_path, monkeypatch):
    import torchvision

    plain = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: plain())
    EmbeddingModel("resnet18", dim=4, weights="DEFAULT").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["weights"] is None


def test_weights_are_passed_through_to_torchvision(monkeypatch):
    import torchvision

    asked = []
    plain = torchvision.models.resnet18
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: asked.append((name, weights)) or plain())
    EmbeddingModel("resnet18", weights="IMAGENET1K_V1")
    assert asked == [("resnet18", "IMAGENET1K_V1")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet8"}, "unknown backbone 'resnet8'; did you mean 'resnet18'"),
        ({"backbone": "inception_v3"}, "unknown backbone 'inception_v3'"),
        (
            {"backbone": "resnet18", "weights": "IMAGENET1K_V3"},
            "no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V1'",
        ),
        ({"backbone": "convnet4", "weights": "DEFAULT"}, "no published weights, got weights='DEFAULT'"),
        ({"backbone": "convnet4", "backbone_args": {"widht": 3}}, "takes no 'widht'; did you mean 'width'"),
        ({"backbone": "convnet4", "backbone_args": {"width": 0}}, "width must be at least 1, got 0"),
        ({"backbone": "resnet18", "backbone_args": {"width": 3}}, "backbone 'resnet18' takes no 'width'"),
        ({"backbone": "resnet18", "in_channels": 1}, "takes images of 3 channels, got 1; set data.channels to 3"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"pool": "median"}, "pool must be 'avg' or 'max', got 'median'"),
    ],
)
def test_what_it_cannot_build_is_refused_by_name(arguments, message):
    with pytest.raises(ConfigError, match=message):
        EmbeddingModel(**arguments)


def test_every_backbone_name_is_unique():
    assert len(set(backbone_names())) == len(backbone_names()) > 60
