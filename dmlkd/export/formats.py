"""A model in other formats: ONNX, torch.export's archive, 8-bit integers; each compared with PyTorch when written."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmlkd.errors import UserError
from dmlkd.files import check_folder, replacing
from dmlkd.models import EmbeddingModel

OPSET = 18
MOST_DIFFERENT = 1e-4
"""How far an exported model's embeddings may be from PyTorch's, as the largest difference of a coordinate."""


class Check(NamedTuple):
    """How an exported model compares with PyTorch on real images.

    Attributes:
        images: how many were compared.
        difference: largest difference of a coordinate.
        bytes: size of the file.
    """

    images: int
    difference: float
    bytes: int


class Whole(nn.Module):
    """A model with the last steps of its preparation inside: images as bytes in.

    Args:
        model: floats (B, C, H, W) in, embeddings out.
        mean: (C,) of each channel, of values from 0 to 1.
        std: (C,) standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, C, H, W) of uint8, at the size the network takes."""
        embeddings: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        return embeddings


def export_onnx(model: nn.Module, images: Tensor, path: Path) -> Check:
    """Write ONNX: any number of images, L2 norm inside; checked with onnxruntime against PyTorch.

    Args:
        model: images in, embeddings of unit length out.
        images: (B, C, H, W) real images as the model takes them: floats, or bytes for :class:`Whole`; B >= 2. The
            size of images is fixed to theirs, B is not.
        path: of the file, ending in .onnx.

    Raises:
        UserError: if a package is missing, the model cannot be exported, or the result differs by more than
            :data:`MOST_DIFFERENT`; nothing is written then.
    """
    _check(images, path, ".onnx")
    _needs("onnx", "onnxscript", "onnxruntime")

    def write(temporary: Path) -> None:
        program = torch.onnx.export(
            model,
            (images[:2],),
            input_names=["images"],
            output_names=["embeddings"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        assert program is not None
        program.save(str(temporary), external_data=False)

    return _written(model, images, path, write, run_onnx)


def export_torch(model: nn.Module, images: Tensor, path: Path) -> Check:
    """Write an archive of ``torch.export``, which ``torch.export.load`` reads without this library.

    Args:
        model: images in, embeddings of unit length out.
        images: (B, C, H, W) real images as the model takes them; B >= 2.
        path: of the file, ending in .pt2.

    Raises:
        UserError: as :func:`export_onnx`.
    """
    _check(images, path, ".pt2")

    def write(temporary: Path) -> None:
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        torch.export.save(torch.export.export(model, (images[:2],), dynamic_shapes=shapes), temporary)

    return _written(model, images, path, write, _run_archive)


def export_int8(model: nn.Module, images: Tensor, path: Path) -> Check:
    """Write ONNX with weights of 8 bits, activations quantised as they come; the difference is for the caller to judge.

    Args:
        model: images in, embeddings of unit length out.
        images: (B, C, H, W) real images as the model takes them; B >= 2.
        path: of the file, ending in .onnx.

    Raises:
        UserError: if a package is missing or the model cannot be exported.
    """
    _check(images, path, ".onnx")
    _needs("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with replacing(path.with_name(f"{path.stem}.float.onnx")) as plain, replacing(path) as temporary:
        export_onnx(model, images, plain)
        try:
            quantize_dynamic(plain, temporary, weight_type=QuantType.QUInt8)
        except Exception as error:
            raise UserError(f"the model cannot be quantised: {' '.join(str(error).split())[:200]}") from None
        found = run_onnx(temporary, images)
        plain.write_bytes(b"")
    path.with_name(f"{path.stem}.float.onnx").unlink()
    return Check(len(images), float(np.abs(found - _of_torch(model, images)).max()), path.stat().st_size)


def run_onnx(path: Path, images: Tensor, *, batch_size: int = 64, threads: int = 0) -> NDArray[np.float32]:
    """Embed with onnxruntime on the CPU.

    Args:
        path: of an ONNX file that this module wrote.
        images: (N, C, H, W) as the model takes them.
        batch_size: images at a time.
        threads: of a run; 0: as onnxruntime chooses.

    Returns:
        (N, D).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": part.numpy()})[0] for part in _parts(images, batch_size)]
    embeddings: NDArray[np.float32] = np.concatenate(parts)
    return embeddings


def with_preparation(model: EmbeddingModel) -> Whole:
    """The model with scaling and normalising inside; resizing stays outside.

    Raises:
        UserError: if nothing says how its images are prepared.
    """
    if model.preparation is None:
        raise UserError("nothing says how this model's images are prepared, so it cannot be put inside")
    # The last steps of every transform are x -> (x / 255 - mean) / std: two flat images tell both.
    side = 64
    black, white = (
        model.preparation.preprocessing.transforms.test(
            torch.full((model.in_channels, side, side), value, dtype=torch.uint8)
        )[:, 0, 0]
        for value in (0, 255)
    )
    std = 1 / (white - black).double()
    return Whole(model, mean=(-black.double() * std).tolist(), std=std.tolist()).eval()


def as_bytes(model: nn.Module, images: Tensor) -> Tensor:
    """Prepared images as the bytes that a model with its preparation inside takes.

    Args:
        model: from :func:`with_preparation`.
        images: (B, C, H, W) prepared floats.
    """
    assert isinstance(model, Whole)
    return ((images * model.std + model.mean) * 255).round().clamp(0, 255).to(torch.uint8)


def _parts(images: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _check(images: Tensor, path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise UserError(f"{path} must end in {suffix}")
    check_folder(path)
    if images.ndim != 4 or len(images) < 2:
        raise UserError(f"at least 2 images (B, C, H, W) are needed to export and check, got {tuple(images.shape)}")


def _needs(*packages: str) -> None:
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"this needs {' and '.join(missing)}: pip install 'dmlkd[onnx]'")


def _written(
    model: nn.Module,
    images: Tensor,
    path: Path,
    write: Callable[[Path], None],
    run: Callable[[Path, Tensor], NDArray[np.float32]],
) -> Check:
    """Write, run on the images, in batches of several sizes, and compare; keep the file only if it says the same."""
    was_training = model.training
    model.eval()
    try:
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what exporters say of their own insides
            try:
                write(temporary)
            except Exception as error:
                lines = str(error).splitlines() or [type(error).__name__]
                raise UserError(f"the model cannot be exported: {lines[0][:200]}") from error
            expected = _of_torch(model, images)
            found = np.concatenate([run(temporary, images[:1]), run(temporary, images[1:])])
            difference = float(np.abs(found - expected).max())
            if not difference <= MOST_DIFFERENT:
                raise UserError(f"the exported model differs from PyTorch by {difference:.2g} on real images")
    finally:
        model.train(was_training)
    return Check(len(images), difference, path.stat().st_size)


@torch.no_grad()
def _of_torch(model: nn.Module, images: Tensor) -> NDArray[Any]:
    return torch.cat([model(part) for part in _parts(images, 64)]).numpy()


@torch.no_grad()
def _run_archive(path: Path, images: Tensor) -> NDArray[np.float32]:
    module = torch.export.load(path).module()
    return torch.cat([module(part) for part in _parts(images, 64)]).numpy()
