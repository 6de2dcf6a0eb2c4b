"""Random transforms of a whole batch at once, on the device it is on, each image with random numbers of its own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmlkd.data.transforms import Pipeline, Step, Transform
from dmlkd.errors import DataError

_RANDOM = ("flip", "random_resized_crop")


class BatchPipeline:
    """The steps of a pipeline, for a batch of uint8 images (B, C, H, W) of one size.

    Random crops are resized with the same filter as torchvision's, as two matrix products an image.

    Args:
        steps: as of :class:`~dmlkd.data.transforms.Pipeline`; of the random ones only "random_resized_crop" (bilinear)
            and "flip".

    Raises:
        DataError: for a random step that is not one of these.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._apply: list[Transform] = []
        for step in steps:
            single = Pipeline([step])
            self._apply.append(_batched(step) if single.varies else single)

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the steps to (B, C, H, W)."""
        for operation in self._apply:
            images = operation(images)
        return images


def crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it to a square with antialiasing.

    Args:
        images: (B, C, H, W) uint8.
        boxes: (B, 4) top, left, height and width, in pixels.
        size: pixels a side.

    Returns:
        (B, C, size, size) uint8.
    """
    rows = _weights(boxes[:, 0], boxes[:, 2], size, images.shape[2])
    columns = _weights(boxes[:, 1], boxes[:, 3], size, images.shape[3])
    resized = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def random_boxes(
    count: int, height: int, width: int, *, scale: Sequence[float], ratio: Sequence[float], device: torch.device
) -> Tensor:
    """Boxes (count, 4) of random area and proportions inside an image, as torchvision's RandomResizedCrop draws them.

    Ten draws are made for each, the first that fits is taken; where none fits, the largest box in the middle of the
    allowed proportions.

    Args:
        count: how many.
        height: of the image.
        width: of the image.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width to height.
        device: where to draw.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * torch.rand(count, 10, device=device))
    low, high = math.log(ratio[0]), math.log(ratio[1])
    proportion = torch.exp(low + (high - low) * torch.rand(count, 10, device=device))
    w, h = torch.round(torch.sqrt(area * proportion)), torch.round(torch.sqrt(area / proportion))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    none = ~fits.any(1)
    w = torch.where(none, float(min(width, round(height * ratio[1]))), w)
    h = torch.where(none, float(min(height, round(width / ratio[0]))), h)
    top = torch.floor(torch.rand(count, device=device) * (height - h + 1))
    left = torch.floor(torch.rand(count, device=device) * (width - w + 1))
    top = torch.where(none, torch.floor((height - h) / 2), top)
    left = torch.where(none, torch.floor((width - w) / 2), left)
    return torch.stack([top, left, h, w], 1)


def _weights(start: Tensor, length: Tensor, size: int, pixels: int) -> Tensor:
    """(B, size, pixels): how much of each pixel of an image is in each of a crop's, for the triangle filter."""
    scale = (length / size)[:, None, None]
    reach = scale.clamp(min=1)
    index = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    centre = start[:, None, None] + (index + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device, dtype=torch.float32)[None, None]
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weights = (1 - (pixel + 0.5 - centre).abs() / reach).clamp(min=0) * inside
    return weights / weights.sum(2, keepdim=True)


class _RandomResizedCrop:
    def __init__(
        self,
        size: int,
        interpolation: str = "bilinear",
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        if interpolation != "bilinear":
            raise DataError(f"batches are cropped with bilinear interpolation only, got {interpolation!r}")
        self._size, self._scale, self._ratio = size, scale, ratio

    def __call__(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        boxes = random_boxes(count, height, width, scale=self._scale, ratio=self._ratio, device=images.device)
        return crops(images, boxes, self._size)


class _Flip:
    def __init__(self, p: float = 0.5) -> None:
        self._p = p

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), device=images.device) < self._p
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _batched(step: Step) -> Transform:
    arguments = dict(step)
    name = arguments.pop("op")
    if name not in _RANDOM:
        raise DataError(f"batches can be transformed at random by {' and '.join(_RANDOM)} only, not by {name}")
    operation: Transform = _RandomResizedCrop(**arguments) if name == "random_resized_crop" else _Flip(**arguments)
    return operation
