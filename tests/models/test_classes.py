"""Class scores beside an embedding model, and their file."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from dmlkd.errors import ConfigError, UserError
from dmlkd.models import ClassHead, ClassifyingModel, EmbeddingModel, load_classes, save_classes
from dmlkd.models.classes import SavedClasses


def naive_scores(z, centres, scale, combination, gamma):
    """One class at a time, from the definition."""
    scores = []
    for own in centres.tolist():
        each = [scale * sum(a * b for a, b in zip(z.tolist(), centre, strict=True)) for centre in own]
        if combination == "logsumexp":
            scores.append(math.log(sum(math.exp(o) for o in each)))
        elif combination == "max":
            scores.append(max(each))
        else:
            shares = [math.exp(gamma * o / scale) for o in each]
            scores.append(sum(a * o for a, o in zip(shares, each, strict=True)) / sum(shares))
    return scores


@pytest.mark.parametrize("combination", ["logsumexp", "max", "softmax"])
def test_scores_are_those_of_a_loop_over_centres(combination):
    centres = F.normalize(torch.randn(4, 3, 6, dtype=torch.float64), dim=2)
    scores = SavedClasses(centres, scale=7.0, combination=combination, gamma=5.0)
    z = F.normalize(torch.randn(5, 6, dtype=torch.float64), dim=1)
    expected = [naive_scores(row, centres, 7.0, combination, 5.0) for row in z]
    assert torch.allclose(scores(z)[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-10)


def test_a_classifying_model_says_what_its_embedding_model_says_and_logits():
    model = EmbeddingModel(in_channels=1, dim=8).eval()
    student = ClassifyingModel(model, ClassHead(dim=8, classes=5, subclasses=2)).eval()
    images = torch.rand(3, 1, 8, 8)
    plain, said = model.signals(images), student.signals(images, ["logits", "subclass_logits", "stages"])
    assert torch.equal(student(images), plain.embeddings)
    assert torch.equal(said.embeddings, plain.embeddings)
    assert said.stages is not None
    assert said.subclass_logits.shape == (3, 5, 2)
    assert torch.allclose(student.classify(plain.features), said.logits)
    assert student.signals(images).logits is None
    assert student.signals(images, ["logits"]).subclass_logits is None


def test_class_scores_come_back_from_their_file_to_the_bit(tmp_path):
    head = ClassHead(dim=8, classes=5, subclasses=2, scale=3.3)
    save_classes(head, tmp_path / "c.safetensors")
    z = F.normalize(torch.randn(4, 8), dim=1)
    again = load_classes(tmp_path / "c.safetensors")
    assert torch.equal(again(z)[0], head(z)[0])
    assert not list(again.parameters())


def test_what_is_no_file_of_class_scores_is_refused_in_one_line(tmp_path):
    good = {"scale": "1.0", "combination": "max", "gamma": "1.0"}
    cases = {
        "missing": (None, None, "does not exist: its run had no class scores"),
        "text": (b"not a tensor", None, "cannot be read as class scores"),
        "other": ({"weights": torch.zeros(1)}, good, "cannot be read as class scores"),
        "flat": ({"centres": torch.zeros(3, 4)}, good, r"must have shape \(C, K, D\), got \(3, 4\)"),
        "how": ({"centres": torch.zeros(3, 1, 4)}, {**good, "combination": "sum"}, "cannot be read as class scores"),
        "scale": ({"centres": torch.zeros(3, 1, 4)}, {**good, "scale": "much"}, "cannot be read as class scores"),
    }
    for name, (content, how, message) in cases.items():
        file = tmp_path / name
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            save_file(content, file, metadata=how)
        with pytest.raises(UserError, match=message) as refused:
            load_classes(file)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"subclasses": 0}, "subclasses must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be above 0, got 0"),
    ],
)
def test_a_head_refuses_bad_numbers(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ClassHead(**({"dim": 8, "classes": 5} | arguments))
