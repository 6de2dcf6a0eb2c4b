"""Tables, datasets, transforms and splits."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dmlkd.data import ImageDataset, ImageTable, class_folds, digits, split_classes
from dmlkd.data.table import strings
from dmlkd.data.transforms import handwriting, plain, published
from dmlkd.errors import ConfigError, DataError


@pytest.fixture
def files(tmp_path) -> ImageTable:
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return ImageTable(
        paths=strings([f"{i}.png" for i in range(6)]),
        labels=np.array([9, 9, 2**40, 2**40, 5, 5]),
        split=strings(["train"] * 4 + ["test"] * 2),
        class_names=strings(["five", "nine", "huge"]),
        root=tmp_path,
    )


def test_a_part_of_a_table_keeps_its_rows_and_names_together(files):
    train = files.of_split("train")
    assert train.paths.tolist() == ["0.png", "1.png", "2.png", "3.png"]
    assert train.class_names.tolist() == ["nine", "huge"]
    assert (len(train), train.classes) == (4, 2)


def test_columns_of_different_length_are_refused(files):
    with pytest.raises(DataError, match="column labels has 2 rows, paths has 1"):
        ImageTable(strings(["a"]), np.array([1, 2]), strings(["train"]), strings(["x"]))


def test_a_missing_class_name_is_refused(files):
    with pytest.raises(DataError, match="1 class names for 2 classes"):
        ImageTable(strings(["a", "b"]), np.array([1, 2]), strings(["train"] * 2), strings(["x"]))


def test_an_item_is_image_target_and_row(files):
    dataset = ImageDataset(files, plain(image_size=8, channels=3).test, channels=3)
    image, target, row = dataset[3]
    assert (image.shape, image.dtype) == ((3, 8, 8), torch.float32)
    assert (target.item(), row.item()) == (2, 3)  # classes 5, 9, 2**40 are 0, 1, 2
    assert dataset.labels.tolist() == files.labels.tolist()


def test_a_loader_stacks_items_into_a_batch(files):
    dataset = ImageDataset(files, plain(image_size=8, channels=1).test, channels=1)
    (batch,) = DataLoader(dataset, batch_size=6)
    assert batch.images.shape == (6, 1, 8, 8)
    assert batch.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.labels.tolist() == [1, 1, 2, 2, 0, 0]


def test_images_in_memory_are_the_decoded_and_resized_files(files):
    transform = plain(image_size=8, channels=3).test
    kept = ImageDataset(files, transform, channels=3, in_memory=True, image_size=8)
    for row in range(6):
        resized = Image.open(files.root / f"{row}.png").resize((8, 8), Image.Resampling.BILINEAR)
        assert np.array_equal(kept.image(row), np.asarray(resized).transpose(2, 0, 1))


def test_an_empty_table_is_refused(files):
    with pytest.raises(DataError, match="the table has no rows"):
        ImageDataset(files.of_split("val"), plain(image_size=8, channels=3).test, channels=3)


def test_pixels_of_another_channel_count_are_refused():
    with pytest.raises(DataError, match="the images have 1 channels, asked for 3"):
        ImageDataset(digits(), plain(image_size=8, channels=3).test, channels=3)


@pytest.mark.parametrize("make", [plain, handwriting, published])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28)])
def test_every_transform_gives_floats_of_the_size_asked_for(make, channels, size):
    image = torch.randint(0, 255, (channels, 30, 20), dtype=torch.uint8)
    for transform in make(image_size=size, channels=channels):
        out = transform(image)
        assert out.shape == (channels, size, size)
        assert out.dtype == torch.float32
        assert out.abs().max() < 5


@pytest.mark.parametrize("make", [handwriting, published])
def test_training_transforms_vary_and_test_transforms_do_not(make):
    image = torch.randint(0, 255, (1, 28, 28), dtype=torch.uint8)
    train, test = make(image_size=28, channels=1)
    assert not torch.equal(train(image), train(image))
    assert torch.equal(test(image), test(image))


def test_what_moves_into_handwriting_has_the_colour_of_the_paper():
    white = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    torch.testing.assert_close(handwriting(image_size=28, channels=1).train(white), torch.ones(1, 28, 28))


def test_validation_holds_out_whole_classes_chosen_by_the_seed():
    table = digits()
    train, val = split_classes(table, 0.3, seed=0)
    assert val is not None
    assert not set(train.labels) & set(val.labels)
    assert len(train) + len(val) == len(table)
    assert val.classes == 3
    assert np.array_equal(split_classes(table, 0.3, seed=0)[1].labels, val.labels)
    assert len({tuple(np.unique(split_classes(table, 0.3, seed=s)[1].labels)) for s in range(10)}) > 1


def test_no_validation_leaves_the_table_alone():
    table = digits()
    assert split_classes(table, 0, seed=0) == (table, None)


@given(folds=st.integers(2, 5), seed=st.integers(0, 99))
def test_every_class_is_held_out_in_just_one_fold(folds, seed):
    table = digits()
    parts = [class_folds(table, folds, fold, seed=seed) for fold in range(folds)]
    held = [set(np.unique(val.labels)) for _, val in parts]
    assert sorted(label for classes in held for label in classes) == list(range(10))
    assert max(map(len, held)) - min(map(len, held)) <= 1
    for (train, val), classes in zip(parts, held, strict=True):
        assert len(train) + len(val) == len(table)
        assert not classes & set(train.labels)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (3, 3), (3, -1)])
def test_a_fold_that_is_not_there_is_refused(folds, fold):
    with pytest.raises(ConfigError, match=f"got fold {fold} of {folds}"):
        class_folds(digits(), folds, fold, seed=0)


def test_folds_of_too_few_classes_are_refused():
    with pytest.raises(DataError, match="fold 6 of 7 holds out 1 of 10"):
        class_folds(digits(), 7, 6, seed=0)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.9])
def test_a_validation_split_of_one_class_is_refused(fraction):
    with pytest.raises(DataError, match="at least 2 must be held out and 2 left"):
        split_classes(digits(), fraction, seed=0)
