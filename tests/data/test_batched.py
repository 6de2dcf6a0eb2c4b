"""Transforming whole batches: what torchvision does to each image, with random numbers of its own."""

import pytest
import torch
from torchvision.transforms.v2 import functional as v2f

from dmlkd.data.batched import BatchPipeline, crops, random_boxes
from dmlkd.data.transforms import modern, plain, published
from dmlkd.errors import DataError


def images(count=6, height=40, width=52):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("size", [7, 40, 64])
def test_crops_are_those_of_torchvision_but_for_rounding(size):
    batch = images()
    boxes = random_boxes(6, 40, 52, scale=(0.08, 1), ratio=(0.75, 4 / 3), device=torch.device("cpu"))
    for image, box, ours in zip(batch, boxes.int().tolist(), crops(batch, boxes, size), strict=True):
        theirs = v2f.resized_crop(image, *box, [size, size], antialias=True)
        assert (ours.int() - theirs.int()).abs().max() <= 1


def test_boxes_have_the_areas_and_proportions_asked_for():
    boxes = random_boxes(4000, 100, 100, scale=(0.2, 0.6), ratio=(0.5, 2), device=torch.device("cpu"))
    top, left, height, width = boxes.T
    assert (torch.stack([top, left, 100 - top - height, 100 - left - width]) >= 0).all()
    area, ratio = height * width / 1e4, width / height
    assert 0.19 < area.min() < 0.21
    assert 0.59 < area.max() < 0.61
    assert 0.48 < ratio.min() < 0.52
    assert 1.9 < ratio.max() < 2.1


def test_an_image_that_no_box_fits_gives_its_middle():
    boxes = random_boxes(3, 2, 100, scale=(1, 1), ratio=(0.75, 4 / 3), device=torch.device("cpu"))
    assert boxes.tolist() == [[0, 48, 2, 3]] * 3


def test_each_image_is_treated_on_its_own():
    one = images(1).expand(16, -1, -1, -1)
    out = BatchPipeline(published(image_size=16, channels=3).train.steps)(one)
    assert (out.shape, out.dtype) == ((16, 3, 16, 16), torch.float32)
    assert len({image.numpy().tobytes() for image in out}) == 16


def test_half_of_the_images_are_mirrored():
    one = images(1).expand(400, -1, -1, -1)
    flipped = (BatchPipeline([{"op": "flip"}])(one) != one).flatten(1).any(1)
    assert 150 < flipped.sum() < 250
    assert torch.equal(BatchPipeline([{"op": "flip", "p": 1}])(one[:2]), one[:2].flip(3))


def test_without_random_steps_it_is_the_pipeline():
    pipeline = plain(image_size=16, channels=3).test
    batch = images()
    assert torch.equal(BatchPipeline(pipeline.steps)(batch), pipeline(batch))


def test_steps_that_batches_do_not_have_are_refused():
    with pytest.raises(DataError, match="bilinear interpolation only, got 'bicubic'"):
        BatchPipeline(modern(image_size=16, channels=3).train.steps)
    with pytest.raises(DataError, match="flip and random_resized_crop only, not by rand_augment"):
        BatchPipeline([{"op": "rand_augment"}])
