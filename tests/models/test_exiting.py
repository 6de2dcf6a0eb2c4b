"""Exits of an embedding model: what they say together and each alone, and what an encoder holds."""

import json

import pytest
import torch

from dmlkd import EmbeddingModel
from dmlkd.chunks import signals_in_chunks
from dmlkd.distill import PreviousEpochTeacher
from dmlkd.errors import ConfigError, UserError
from dmlkd.models import ClassHead, ClassifyingModel, ExitingModel, cost, embedding_model, exits_of, fingerprint

EXITS = ("exit_embeddings", "exit_features")


def convnet(**arguments) -> EmbeddingModel:
    return EmbeddingModel("convnet4", dim=6, in_channels=1, backbone_args={"width": 8}, **arguments)


def settled(model, size: int = 16):
    """The model with statistics of batch norm that are not those of the start."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model.signals(torch.rand(3, embedding_model(model).in_channels, size, size), EXITS)
    return model.eval()


def test_exits_say_embeddings_of_unit_length_and_features_of_the_whole_ones_length():
    model = ExitingModel(convnet())
    signals = model.signals(torch.rand(3, 1, 16, 16), EXITS)
    assert model.stages == (0, 1, 2)
    assert signals.stages is None
    for z, features in zip(signals.exit_embeddings, signals.exit_features, strict=True):
        assert z.shape == (3, 6)
        assert features.shape == signals.features.shape == (3, 8)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(
    ("backbone", "stages"), [("convnet4", (0, 1, 2)), ("resnet18", (1, 2, 3)), ("convnext_tiny", (0, 1, 2))]
)
def test_exits_leave_every_inner_stage_but_a_stem_unless_told(backbone, stages):
    assert ExitingModel(EmbeddingModel(backbone, dim=2)).stages == stages


def test_the_exits_leave_the_model_as_it_is():
    model = convnet().eval()
    exiting, images = ExitingModel(model).eval(), torch.rand(2, 1, 16, 16)
    assert torch.equal(exiting(images), model(images))
    assert torch.equal(exiting.signals(images, EXITS).embeddings, model(images))
    plain = exiting.signals(images)
    assert plain.exit_embeddings is None
    assert plain.exit_features is None


def test_an_exit_is_run_only_when_asked_for():
    exiting = ExitingModel(convnet())
    calls = []
    exiting.exits[0].register_forward_hook(lambda *_: calls.append(1))
    exiting.signals(torch.rand(2, 1, 16, 16), ["stages", "features"])
    assert not calls
    exiting.signals(torch.rand(2, 1, 16, 16), ["exit_features"])
    assert calls == [1]


@pytest.mark.parametrize(
    ("backbone", "channels", "size"),
    [("convnet4", 1, 16), ("resnet18", 3, 32), ("mobilenet_v3_small", 3, 32), ("swin_t", 3, 32), ("vit_b_32", 3, 224)],
)
def test_an_encoder_says_what_its_exit_says_and_costs_less(backbone, channels, size):
    model = settled(ExitingModel(EmbeddingModel(backbone, dim=5, in_channels=channels)), size)
    images = torch.rand(2, channels, size, size)
    with torch.no_grad():
        said = model.signals(images, EXITS)
        costs = []
        for number, (name, encoder) in enumerate(model.encoders().items()):
            assert name == f"stage-{encoder.exit_stage}"
            assert not encoder.training
            assert torch.equal(encoder(images), said.exit_embeddings[number])
            assert torch.equal(encoder.signals(images).features, said.exit_features[number])
            assert len(encoder.trunk.stages) == encoder.exit_stage + 1
            costs.append(cost(encoder, shape=images.shape[1:]))
    costs.append(cost(model.model, shape=images.shape[1:]))
    assert costs[0].multiply_adds < costs[-1].multiply_adds
    assert costs[0].parameters < costs[-1].parameters


def test_an_encoder_is_a_copy_and_building_it_draws_no_numbers():
    model = settled(ExitingModel(convnet()))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    encoder = model.encoders()["stage-1"]
    assert torch.equal(torch.rand(2), expected)
    before = [p.clone() for p in encoder.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))


def test_an_encoder_saved_and_read_back_is_the_same(tmp_path):
    encoder = settled(ExitingModel(convnet(pool="max", frozen_batch_norm=True), width=3)).encoders()["stage-1"]
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["exit_stage"], config["exit_width"], config["pool"]) == (1, 3, "avg")
    again = EmbeddingModel.from_pretrained(tmp_path)
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(again(images), encoder(images))
    assert torch.equal(again.embed(images), encoder(images))
    assert fingerprint(again) == fingerprint(encoder)
    assert set(again.state_dict()) == set(encoder.state_dict())
    assert not any(".stages.2." in name for name in again.state_dict())


def test_a_model_without_exit_is_saved_and_known_by_what_it_was_before_there_were_exits(tmp_path):
    convnet().save_pretrained(tmp_path)
    assert not [key for key in json.loads((tmp_path / "config.json").read_text()) if key.startswith("exit")]


def test_an_encoder_can_be_trained_from_the_start_too():
    model = convnet(exit_stage=0, exit_width=4).train()
    model(torch.rand(3, 1, 16, 16))[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.features == 8
    assert model.bottleneck[0].weight.shape[0] == 4


def test_frozen_batch_norm_is_the_trunks_and_an_exits_own_is_live():
    model = ExitingModel(convnet(frozen_batch_norm=True)).train()
    of_exits = [m for m in model.exits.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.training for m in of_exits)
    assert not any(m.training for m in model.trunk.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_exits_go_with_class_scores_chunks_and_teachers():
    exiting = ExitingModel(convnet()).eval()
    student = ClassifyingModel(exiting, ClassHead(dim=6, classes=3)).eval()
    images = torch.rand(5, 1, 16, 16)
    signals = student.signals(images, [*EXITS, "logits"])
    assert signals.logits.shape == (5, 3)
    assert {"logits", *EXITS} <= student.gives
    assert (embedding_model(student), exits_of(student)) == (exiting.model, exiting)
    assert exits_of(ClassifyingModel(convnet(), ClassHead(dim=6, classes=3))) is None
    parts = signals_in_chunks(student, images, [*EXITS, "logits"], size=2)
    torch.testing.assert_close(parts.exit_embeddings, signals.exit_embeddings)
    assert parts.features is None
    teacher = PreviousEpochTeacher(exiting)
    assert set(EXITS) <= teacher.gives
    taken = signals.take(torch.tensor([3, 1]))
    assert torch.equal(taken.exit_features[2], signals.exit_features[2][[3, 1]])


BAD = {
    "the deepest": (lambda: ExitingModel(convnet(), stages=[3]), "stage must be an inner one, 0 to 2, got 3"),
    "twice": (lambda: ExitingModel(convnet(), stages=[1, 1]), r"stages must differ, got \[1, 1\]"),
    "none": (lambda: ExitingModel(convnet(), stages=[]), "stages must name at least one"),
    "no width": (lambda: ExitingModel(convnet(), width=0), "width must be at least 1, got 0"),
    "of an exit": (lambda: ExitingModel(convnet(exit_stage=1)), "a model that is itself an exit has none of its own"),
    "exit_stage": (lambda: convnet(exit_stage=3), "exit_stage must be an inner one, 0 to 2, got 3"),
    "exit_width": (lambda: convnet(exit_stage=0, exit_width=0), "exit_width must be at least 1, got 0"),
    "width without a stage": (lambda: convnet(exit_width=3), "exit_width goes with exit_stage, got 3 alone"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_built_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_saved_encoder_with_weights_of_another_stage_is_refused_in_one_line(tmp_path):
    model = ExitingModel(convnet())
    for name, encoder in model.encoders().items():
        encoder.save_pretrained(tmp_path / name)
    (tmp_path / "stage-2" / "config.json").write_text((tmp_path / "stage-0" / "config.json").read_text())
    with pytest.raises(UserError, match="cannot be read as a model"):
        EmbeddingModel.from_pretrained(tmp_path / "stage-2")
