"""Loading in worker processes: the same images, random numbers of their own, errors that arrive."""

import os
import random
import signal

import numpy as np
import pytest
import small_trees as trees
import torch

from dmlkd.data import ClassBalancedBatchSampler, ImageDataset, cars196, digits, image_folder
from dmlkd.data.loading import clear_errors, in_order, loader
from dmlkd.data.transforms import Pipeline, Transforms, plain, published
from dmlkd.errors import DataError
from dmlkd.signals import Batch


@pytest.fixture
def table(tmp_path):
    return image_folder(trees.folders(tmp_path))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_number_of_workers_gives_the_same_batches(table, workers):
    dataset = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)
    batches = list(loader(dataset, batch_size=5, workers=workers))
    assert all(isinstance(batch, Batch) for batch in batches)
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(12))
    expected = torch.stack([dataset[row].images for row in range(12)])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.targets.tolist()


def test_workers_read_one_archive_that_this_process_has_open(tmp_path):
    table = cars196(trees.cars_table(tmp_path), complete=False)
    dataset = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)
    expected = torch.stack([dataset[row].images for row in range(24)])
    for _ in range(3):
        found = torch.cat([batch.images for batch in loader(dataset, batch_size=1, workers=2)])
        assert torch.equal(found, expected)


def test_a_batch_transformed_at_once_is_equal_to_one_by_one():
    for size in (8, 32):
        dataset = ImageDataset(digits(), plain(image_size=size, channels=1).test, channels=1)
        together = dataset.batch([3, 1, 1796])
        assert torch.equal(together.images, torch.stack([dataset[row].images for row in (3, 1, 1796)]))


def test_a_random_transform_draws_for_each_image_of_a_batch():
    dataset = ImageDataset(digits(), published(image_size=8, channels=1).train, channels=1)
    images = dataset.batch([5, 5, 5, 5]).images
    assert len({image.numpy().tobytes() for image in images}) > 1


class Numbers(torch.utils.data.Dataset):
    """What each random number generator says, and which process said it."""

    labels = targets = np.zeros(8, np.int64)

    def __len__(self):
        return 8

    def batch(self, rows):
        drawn = torch.tensor([torch.rand(()), np.random.rand(), random.random()])  # noqa: NPY002
        return Batch(drawn, torch.tensor(rows), torch.tensor([os.getpid()]))


def drawn(seed, epochs=2):
    torch.manual_seed(seed)
    batches = loader(Numbers(), batch_size=4, workers=2, persistent=True)
    return [[batch.images.tolist() for batch in batches] for _ in range(epochs)]


def test_workers_and_epochs_have_random_numbers_of_their_own_that_the_seed_repeats():
    first, again, other = drawn(0), drawn(0), drawn(1)
    assert first == again
    assert first != other
    values = [value for epoch in first for batch in epoch for value in batch]
    assert len(set(values)) == len(values)  # two workers x two epochs x three generators


def test_numbers_drawn_in_workers_depend_on_the_seed_of_the_batch_alone():
    def drawn(workers, done):
        sampler = ClassBalancedBatchSampler(np.zeros(8, np.int64), batch_size=2, per_class=2)
        sampler.resume(0, done)
        before = torch.get_rng_state()
        batches = loader(Numbers(), batch_sampler=sampler, workers=workers, persistent=True)
        values = [batch.images.tolist() for batch in batches]
        assert torch.equal(torch.get_rng_state(), before)
        return values

    first = drawn(1, 0)
    assert len({value for batch in first for value in batch}) == 4 * 3
    assert drawn(2, 0) == first
    assert drawn(2, 3) == first[3:]


def test_persistent_workers_stay_from_epoch_to_epoch():
    batches = loader(Numbers(), batch_size=4, workers=2, persistent=True)
    processes = [{int(batch.rows) for batch in batches} for _ in range(2)]
    assert processes[0] == processes[1]
    assert len(processes[0]) == 2
    assert os.getpid() not in processes[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_one_line_and_nothing_hangs(table, tmp_path, workers):
    (tmp_path / "b" / "1.jpg").write_bytes(b"")
    dataset = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)
    with pytest.raises(DataError) as caught, clear_errors():
        list(loader(dataset, batch_size=1, workers=workers))
    assert str(caught.value) == f"row 4: {tmp_path}/b/1.jpg: cannot be read as an image: the file is empty"


class Deadly(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, item):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_clear_error():
    with pytest.raises(DataError, match=r"the process \d+ that loads images .*; lower data\.workers"):
        list(in_order(Deadly(), workers=1))


def test_other_errors_are_left_alone():
    with pytest.raises(RuntimeError, match="mine"), clear_errors():
        raise RuntimeError("mine")


def test_going_through_in_order_draws_no_random_number(table):
    before = torch.get_rng_state()
    dataset = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)
    for workers in (0, 1):
        assert [int(item.rows) for item in in_order(dataset, workers=workers)] == list(range(12))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["bicubic", "color_jitter", "contrastive", "modern", "rand_augment", "random_erasing"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_modern_transform_is_random_in_training_and_comes_back_from_its_steps(name, channels):
    import json

    from dmlkd import registry

    made: Transforms = registry.load(registry.TRANSFORMS[name])(image_size=16, channels=channels)
    image = torch.randint(0, 255, (channels, 30, 20), dtype=torch.uint8)
    train, test = (Pipeline(json.loads(json.dumps(pipeline.steps))) for pipeline in made)
    assert train.varies
    assert not test.varies
    for pipeline, again in zip(made, (train, test), strict=True):
        torch.manual_seed(3)
        one = pipeline(image)
        torch.manual_seed(3)
        assert torch.equal(one, again(image))
        assert one.shape == (channels, 16, 16)
    assert not torch.equal(train(image), train(image))
    assert made.square == 0


def test_only_transforms_that_begin_with_the_same_square_share_it():
    assert plain(image_size=8, channels=3).square == 8
    assert Transforms(plain(image_size=8, channels=3).train, plain(image_size=9, channels=3).test).square == 0
    assert Transforms(lambda x: x, lambda x: x).square == 0
