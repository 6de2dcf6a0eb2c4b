"""Image files as they occur: each decoded as a person would see it, or refused with the reason."""

import contextlib
import io
import struct
import zipfile

import numpy as np
import pytest
import small_trees as trees
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmlkd.data.images import Preparation, decode, prepared, read_image
from dmlkd.data.places import check_path, check_paths, fingerprint, read_bytes
from dmlkd.data.table import strings
from dmlkd.errors import DataError


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_cmyk_becomes_rgb():
    red = Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK")
    pixels = np.asarray(decode(saved(red, "JPEG", quality=95), channels=3))
    assert np.abs(pixels.astype(int) - (250, 10, 10)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_are_kept_and_not_clipped(kind):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(decode(saved(deep, kind), channels=1)), RAMP)


def test_pixels_without_a_known_range_are_refused():
    for mode, value, reason in (("F", 0.5, "floating-point"), ("I", 70000, "32-bit pixels from 70000 to 70000")):
        with pytest.raises(DataError, match=reason):
            decode(saved(Image.new(mode, (4, 4), value), "TIFF"), channels=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_lies_beneath(mode):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        content = saved(image, "PNG", transparency=1)
    else:
        content = saved(image.convert(mode), "PNG")
    for channels in (1, 3):
        assert (np.asarray(decode(content, channels=channels)) == 255).all()


def test_a_palette_without_alpha_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert np.asarray(decode(saved(image, "PNG"), channels=3))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation):
    stored = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: np.rot90,
    }[orientation]
    read = np.asarray(decode(saved(stored, "PNG", exif=exif), channels=1))
    assert np.array_equal(read, turned(np.asarray(stored)))


def test_damaged_exif_does_not_hide_the_picture():
    content = trees.picture(1)
    broken = content[:2] + b"\xff\xe1" + struct.pack(">H", 12) + b"Exif\0\0\x49\x49\xff\xff" + content[2:]
    assert decode(broken, channels=3).size == (40, 32)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue", "green")]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.asarray(decode(content, channels=3))[3, 3, 0] > 240


def test_the_content_and_not_the_name_tells_the_format(tmp_path):
    (tmp_path / "really-a.jpg").write_bytes(saved(Image.new("L", (3, 3), 7), "PNG"))
    assert np.asarray(read_image(tmp_path, "really-a.jpg", channels=1))[0, 0] == 7


BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"<html>404 Not Found", "not an image: it begins with b'<html>40'"),
    "cut.jpg": (trees.picture(1)[:-300], "[Tt]runcated"),
    "cut.png": (trees.picture(1, kind="PNG")[:-300], "truncated|broken"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_whole_image_is_refused_with_the_reason(tmp_path, name):
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read as an image: .*({reason})") as caught:
        read_image(tmp_path, name, channels=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(monkeypatch, factor):
    content = saved(Image.new("1", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(10000 / factor))
    with pytest.raises(DataError, match=r"more than .* pixels"):
        decode(content, channels=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
@given(st.data())
@settings(max_examples=60)
def test_damaged_files_give_an_image_or_a_data_error(kind, data):
    content = bytearray(trees.picture(1, kind=kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    with contextlib.suppress(DataError):
        assert decode(bytes(content), channels=3).mode == "RGB"


def test_a_box_outside_the_image_is_refused():
    box = np.array([50, 0, 10, 10], np.float32)
    with pytest.raises(DataError, match="box 50, 0, 10, 10 holds no pixel of the 40 x 32 image"):
        prepared(decode(trees.picture(1), channels=3), Preparation(3, crop=True), box)


def test_the_shorter_side_is_resized_in_proportion():
    image = decode(trees.picture(1), channels=3)
    assert prepared(image, Preparation(3, shorter=16)).shape == (3, 16, 20)
    assert prepared(image.rotate(90, expand=True), Preparation(3, shorter=16)).shape == (3, 20, 16)


def test_resizing_is_that_of_torchvision_but_for_rounding():
    import torch
    from torchvision.transforms import v2

    image = decode(trees.picture(1, size=(97, 61)), channels=3)
    whole = torch.from_numpy(prepared(image, Preparation(3)))
    for preparation, size in ((Preparation(3, square=20), (20, 20)), (Preparation(3, shorter=20), 20)):
        ours = prepared(image, preparation).astype(int)
        theirs = v2.Resize(size, antialias=True)(whole).numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../a.png", "a/../../b.png", "a\\b.png", "", "a\0", "C:/a", "z.zip::../x", "z.zip::"]
)
def test_a_path_that_may_lead_out_is_refused_unseen(tmp_path, path):
    with pytest.raises(DataError, match=r"outside the root|is empty"):
        check_path(path)
    with pytest.raises(DataError, match="row 1: path"):
        check_paths(strings(["a/good.png", path]))
    with pytest.raises(DataError, match=r"outside the root|is empty"):
        read_bytes(tmp_path, path)


def test_names_with_dots_and_colons_that_stay_inside_are_taken(tmp_path):
    check_paths(strings(["a..b/c...png", "album 12:30.png", "z.zip::a/b.png"]))


def test_symbolic_links_lead_nowhere_outside(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(trees.picture(1))
    (root / "file.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "inside.png").symlink_to(root / "a.png")
    for path in ("file.png", "folder/a.png"):
        with pytest.raises(DataError, match="a symbolic link leads outside"):
            read_bytes(root, path)
        with pytest.raises(DataError, match="a symbolic link leads outside"):
            fingerprint(root, path)
    assert read_bytes(root, "inside.png") == trees.picture(1)


def test_a_link_inside_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="is a symbolic link inside the archive"):
        read_bytes(tmp_path, "a.zip::link.png")


def test_an_archive_that_blows_up_is_refused(tmp_path, monkeypatch):
    from dmlkd.data import places

    monkeypatch.setattr(places, "LARGEST_FILE", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", b"\0" * 1001)
    (tmp_path / "y.png").write_bytes(b"\0" * 1001)
    with pytest.raises(DataError, match="has 1001 bytes unpacked, at most 1000 are read"):
        read_bytes(tmp_path, "a.zip::x.png")
    with pytest.raises(DataError, match="has 1001 bytes, at most 1000 are read"):
        read_bytes(tmp_path, "y.png")


def test_a_damaged_archive_member_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", trees.picture(1))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[200] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip::x\.png: cannot be read as an image: cannot be unpacked: Bad CRC"):
        read_image(tmp_path, "a.zip::x.png", channels=3)
