"""Images held out of the training classes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlkd.config import DataConfig, checked_data, load_config
from dmlkd.data import ImageDataset, ImageTable, hold_out_images
from dmlkd.data.table import strings
from dmlkd.errors import ConfigError, DataError
from dmlkd.training.building_data import build_data, build_seen_images, build_training_images


def table_of(labels) -> ImageTable:
    labels = np.array(labels)
    return ImageTable(
        paths=strings(map(str, range(len(labels)))),
        labels=labels,
        split=strings(["train"] * len(labels)),
        class_names=strings(map(str, np.unique(labels))),
        pixels=np.zeros((len(labels), 1, 2, 2), np.uint8),
    )


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    st.integers(0, 3),
)
def test_each_class_gives_its_share_and_keeps_an_image(labels, share, seed):
    table = table_of(labels)
    due = {c: min(round(share * labels.count(c)), labels.count(c) - 1) for c in set(labels)}
    if not any(due.values()):
        with pytest.raises(DataError, match="holds out no image"):
            hold_out_images(table, share, seed=seed)
        return
    train, seen = hold_out_images(table, share, seed=seed)
    assert {c: int((seen.labels == c).sum()) for c in due} == due
    assert sorted([*train.paths, *seen.paths], key=int) == list(table.paths)
    assert set(train.labels) == set(labels)


def test_the_choice_is_the_seeds():
    table = table_of(np.arange(200) % 10)
    chosen = [set(hold_out_images(table, 0.25, seed=seed)[1].paths) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_nothing_is_held_out_unless_asked_for():
    table = table_of([0, 0, 1])
    assert hold_out_images(table, 0.0, seed=0) == (table, None)


CONFIGS = Path(__file__).parents[2] / "configs"


def digits(**options) -> DataConfig:
    return checked_data(DataConfig(name="digits", validation=0, **options))


def test_held_out_images_are_neither_trained_nor_validated_nor_tested_on():
    data = build_data(digits(held_out_images=0.25).model_copy(update={"validation": 0.4}), seed=3)
    parts = [set(part.paths) for part in (data.train, data.val, data.seen, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert set(data.seen.labels) == set(data.train.labels)
    assert data.counts()["seen"] == {"images": len(data.seen), "classes": 3}
    again = build_seen_images(digits(held_out_images=0.25).model_copy(update={"validation": 0.4}), seed=3)
    assert list(again.paths) == list(data.seen.paths)
    assert (again.targets == data.seen.targets).all()


def test_held_out_images_keep_their_true_labels_and_the_numbers_of_the_training_classes():
    clean, noisy = (build_data(digits(held_out_images=0.25, noise=noise), seed=0) for noise in (0.0, 0.5))
    assert list(clean.seen.paths) == list(noisy.seen.paths)
    assert (clean.seen.labels == noisy.seen.labels).all()
    assert noisy.counts()["train"]["wrong_labels"] == round(len(noisy.train) / 2)
    images = build_training_images(digits(held_out_images=0.25, noise=0.5), seed=0).images
    assert (images.labels == noisy.train.labels).all()


def test_targets_count_the_classes_that_are_given():
    dataset = ImageDataset(table_of([7, 3, 7]), lambda image: image, channels=1, classes=np.array([1, 3, 5, 7]))
    assert dataset.targets.tolist() == [3, 1, 3]
    with pytest.raises(DataError, match="none of those asked for"):
        ImageDataset(table_of([7, 4]), lambda image: image, channels=1, classes=np.array([1, 3, 5, 7]))


@pytest.mark.parametrize("share", [-0.1, 1])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ConfigError, match="held_out_images"):
        load_config(CONFIGS / "digits.yaml", [f"data.held_out_images={share}"])


def test_noise_that_takes_all_images_of_a_class_is_refused(monkeypatch):
    monkeypatch.setattr("dmlkd.training.building_data.noisy_labels", lambda labels, *_, **__: np.maximum(labels, 1))
    with pytest.raises(DataError, match="leaves no training image of"):
        build_data(digits(held_out_images=0.25, noise=0.5), seed=0)
