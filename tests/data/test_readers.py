"""Readers give the protocol's images and say what is missing."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlkd.data import ImageDataset, digits, omniglot_small
from dmlkd.data.images import read_image
from dmlkd.data.transforms import plain
from dmlkd.errors import DataError


def test_digits_are_the_real_scans_split_by_class():
    from sklearn.datasets import load_digits

    table = digits()
    assert len(table) == 1797
    train, test = table.of_split("train"), table.of_split("test")
    assert sorted(set(train.labels)) == [0, 1, 2, 3, 4]
    assert sorted(set(test.labels)) == [5, 6, 7, 8, 9]
    assert (len(train), len(test)) == (901, 896)
    assert np.array_equal(table.pixels[:, 0] / 15, load_digits().images)


def test_omniglot_small_has_the_images_of_the_protocol(omniglot):
    table = omniglot_small(omniglot)
    train, test = table.of_split("train"), table.of_split("test")
    assert (len(train), train.classes) == (2720, 136)
    assert (len(test), test.classes) == (2120, 106)
    assert not set(train.labels) & set(test.labels)
    alphabets = {str(name).split("/")[0] for name in test.class_names}
    assert alphabets == {"Japanese_(katakana)", "Sanskrit", "Tagalog"} == set(test.domain)
    assert set(train.domain) == {"Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"}
    names = dict(zip(np.unique(table.labels).tolist(), map(str, table.class_names), strict=True))
    assert all(names[label].startswith(f"{of}/") for label, of in zip(table.labels.tolist(), table.domain, strict=True))
    dataset = ImageDataset(test, plain(image_size=28, channels=1).test, channels=1, in_memory=True, image_size=28)
    assert dataset[0].images.shape == (1, 28, 28)
    with zipfile.ZipFile(omniglot / "images_background_small2.zip") as archive:
        direct = Image.open(io.BytesIO(archive.read(str(test.paths[7]).split("::")[1]))).convert("L")
    assert np.array_equal(read_image(omniglot, str(test.paths[7]), channels=1), direct)


def drawing() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (5, 5), 1).save(buffer, "PNG")
    return buffer.getvalue()


def write_omniglot(root: Path, *, as_zip: bool, leave_out: int = 0) -> None:
    """The real layout: 136 characters in small1, 106 beside two shared alphabets in small2, macOS litter among them."""
    layout = {
        "images_background_small1": {"Greek": 24, "Korean": 112},
        "images_background_small2": {"Greek": 24, "Latin": 26, "Sanskrit": 106},
    }
    for folder, alphabets in layout.items():
        names = [
            f"{folder}/{alphabet}/character{c:02d}/{c:04d}_{d:02d}.png"
            for alphabet, characters in alphabets.items()
            for c in range(1, characters + 1)
            for d in range(1, 21)
        ]
        names = names[: len(names) - leave_out]
        litter = [f"{folder}/Korean/character01/._0001_01.png"]
        if as_zip:
            with zipfile.ZipFile(root / f"{folder}.zip", "w") as archive:
                for name in names + litter:
                    archive.writestr(name, drawing())
        else:
            for name in names + litter:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(drawing())


@pytest.mark.parametrize("as_zip", [True, False])
def test_omniglot_reads_folders_and_archives_alike(tmp_path, as_zip):
    write_omniglot(tmp_path, as_zip=as_zip)
    table = omniglot_small(tmp_path)
    assert len(table) == 4840
    assert len(ImageDataset(table, plain(image_size=4, channels=1).test, channels=1)[4839].images) == 1


def test_omniglot_with_missing_drawings_is_refused_with_both_counts(tmp_path):
    write_omniglot(tmp_path, as_zip=True, leave_out=3)
    with pytest.raises(DataError, match="found 2717 images of 136 classes for train, 2720 of 136 are due"):
        omniglot_small(tmp_path)


def test_omniglot_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds neither images_background_small1/ nor images_background_small1\.zip"):
        omniglot_small(tmp_path)


def test_omniglot_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "images_background_small1.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"small1\.zip is not a readable zip file"):
        omniglot_small(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", drawing()[:40]])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: cannot be read as an image"):
        read_image(tmp_path, "bad.png", channels=3)


def test_a_path_outside_the_root_is_refused(tmp_path):
    (tmp_path / "secret.png").write_bytes(drawing())
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="is outside"):
        read_image(tmp_path / "root", "../secret.png", channels=1)


def test_a_missing_member_of_an_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", drawing())
    with pytest.raises(DataError, match=r"a\.zip::y\.png: cannot be read as an image"):
        read_image(tmp_path, "a.zip::y.png", channels=1)
