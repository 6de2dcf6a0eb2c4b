"""The decoded cache: the same bits as decoding, shared, gone on with after a crash, refused when stale."""

import multiprocessing
import os
import pickle
import signal
import time
import zipfile

import numpy as np
import pytest
import small_trees as trees
import torch

from dmlkd.data import ImageDataset, cars196, cub200, image_folder
from dmlkd.data.cache import cached
from dmlkd.data.images import Preparation
from dmlkd.data.transforms import plain, published
from dmlkd.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("small_counts")

PREPARATIONS = [Preparation(3), Preparation(1, square=8), Preparation(3, shorter=12), Preparation(3, crop=True)]


def dataset(table, preparation, transform):
    sizes = {"image_size": preparation.square or 0, "shorter": preparation.shorter or 0, "crop": preparation.crop}
    return ImageDataset(table, transform, channels=preparation.channels, **sizes)


@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_cached_is_what_is_decoded_bit_for_bit(tmp_path, preparation, workers):
    table = cub200(trees.cub(tmp_path))
    stored, bad = cached(table, preparation, tmp_path / "cache", workers=workers)
    assert bad == ()
    transform = plain(image_size=8, channels=preparation.channels).test
    decoded, kept = (dataset(t, preparation, transform) for t in (table, stored))
    for row in range(len(table)):
        assert torch.equal(decoded.image(row), kept.image(row))
    rows = [5, 0, 23, 5]
    for one, other in zip(decoded.batch(rows), kept.batch(rows), strict=True):
        assert torch.equal(one, other)


def test_parts_of_a_cached_table_keep_their_images(tmp_path):
    table = cub200(trees.cub(tmp_path))
    stored, _ = cached(table, Preparation(3), tmp_path / "cache")
    test, transform = stored.of_split("test"), published(image_size=8, channels=3).test
    first = dataset(table.of_split("test"), Preparation(3), transform)
    for part in (test, pickle.loads(pickle.dumps(test))):
        assert torch.equal(dataset(part, Preparation(3), transform)[4].images, first[4].images)


def test_a_pickled_table_does_not_carry_the_pixels(tmp_path):
    stored, _ = cached(cub200(trees.cub(tmp_path)), Preparation(3, square=200), tmp_path / "cache")
    assert stored.pixels[0].shape == (3, 200, 200)
    assert len(pickle.dumps(stored.pixels)) < 10_000


def test_a_second_call_decodes_nothing(tmp_path, monkeypatch):
    table = cub200(trees.cub(tmp_path))
    cached(table, Preparation(3), tmp_path / "cache")
    monkeypatch.setattr("dmlkd.data.checking.decode", None)
    assert len(cached(table, Preparation(3), tmp_path / "cache")[0].pixels) == 24
    with pytest.raises(TypeError):
        cached(table, Preparation(1), tmp_path / "cache")  # another preparation is another store


def stores(folder):
    return [path for path in folder.iterdir() if path.is_dir()]


def test_building_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    table = cub200(trees.cub(tmp_path))
    whole, _ = cached(table, Preparation(3), tmp_path / "whole")
    monkeypatch.setattr("dmlkd.data.cache._AT_ONCE", 5)
    read = []

    def interrupted(content, *, channels):
        read.append(content)
        if len(read) == 13:
            raise KeyboardInterrupt
        return real(content, channels=channels)

    from dmlkd.data.checking import decode as real

    monkeypatch.setattr("dmlkd.data.checking.decode", interrupted)
    monkeypatch.setattr("dmlkd.data.loading._AHEAD", 1)
    with pytest.raises(KeyboardInterrupt):
        cached(table, Preparation(3), tmp_path / "cache")
    (store,) = stores(tmp_path / "cache")
    assert not (store / "store.json").exists()
    with (store / "pixels.bin").open("ab") as pixels, (store / "index.bin").open("ab") as index:
        pixels.write(b"half an image")
        index.write(b"half a record")
    before = len(read)
    resumed, _ = cached(table, Preparation(3), tmp_path / "cache")
    assert len(read) - before == 24 - 10  # two lots of five were safe
    for row in range(24):
        assert np.array_equal(resumed.pixels[row], whole.pixels[row])


def test_a_process_that_is_killed_leaves_no_lock(tmp_path):
    table = image_folder(trees.folders(tmp_path / "tree"))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_build_and_die, args=(table, tmp_path / "cache"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(cached(table, Preparation(3), tmp_path / "cache")[0].pixels) == 12


def _build_and_die(table, folder):
    import dmlkd.data.cache as module

    module.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    cached(table, Preparation(3), folder)


def test_processes_build_a_store_once_between_them(tmp_path):
    table = image_folder(trees.folders(tmp_path / "tree"))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_build, args=(table, tmp_path / "cache", queue)) for _ in range(3)]
    for child in children:
        child.start()
    sums, decoded = zip(*(queue.get(timeout=60) for _ in children), strict=True)
    for child in children:
        child.join(60)
    assert len(set(sums)) == 1
    assert sorted(decoded) == [0, 0, 12]
    assert len(stores(tmp_path / "cache")) == 1


def _build(table, folder, queue):
    import dmlkd.data.checking as module

    decode, decoded = module.decode, []

    def slowly(content, *, channels):
        time.sleep(0.01)
        decoded.append(content)
        return decode(content, channels=channels)

    module.decode = slowly
    stored, _ = cached(table, Preparation(3), folder)
    queue.put((sum(int(stored.pixels[row].sum()) for row in range(len(stored))), len(decoded)))


def test_a_changed_image_makes_the_store_stale(tmp_path):
    root = trees.folders(tmp_path / "tree")
    table = image_folder(root)
    cached(table, Preparation(3), tmp_path / "cache")
    (root / "b" / "1.jpg").write_bytes(trees.picture(99))
    with pytest.raises(DataError, match=r"is stale: 1 images have changed since, such as b/1\.jpg; delete the folder"):
        cached(table, Preparation(3), tmp_path / "cache")
    (root / "b" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"is stale: 1 images have changed since, such as b/1\.jpg"):
        cached(table, Preparation(3), tmp_path / "cache")


def test_a_copy_with_other_times_and_the_same_content_is_not_stale(tmp_path):
    root = trees.folders(tmp_path / "tree")
    table = image_folder(root)
    cached(table, Preparation(3), tmp_path / "cache")
    for file in root.rglob("*.jpg"):
        os.utime(file, (1, 1))
    assert len(cached(table, Preparation(3), tmp_path / "cache")[0].pixels) == 12


def test_a_changed_archive_makes_the_store_stale(tmp_path):
    import dmlkd.data.places as places

    table = cars196(trees.cars_table(tmp_path))
    cached(table, Preparation(3), tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "cars196-64px.zip") as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "cars196-64px.zip", "w") as new:
        for number, (name, content) in enumerate(contents.items()):
            new.writestr(name, trees.picture(77) if number == 3 else content)
    places._archive.cache_clear()
    with pytest.raises(DataError, match="is stale: 1 images have changed"):
        cached(table, Preparation(3), tmp_path / "cache")


@pytest.mark.parametrize("file", ["pixels.bin", "index.bin", "store.json"])
def test_a_damaged_store_is_refused(tmp_path, file):
    table = image_folder(trees.folders(tmp_path / "tree"))
    cached(table, Preparation(3), tmp_path / "cache")
    (store,) = stores(tmp_path / "cache")
    (store / file).write_bytes((store / file).read_bytes()[:-60])
    with pytest.raises(DataError, match=r"is damaged: .* delete the folder to build it again"):
        cached(table, Preparation(3), tmp_path / "cache")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_building_or_is_passed_over(tmp_path, workers):
    root = trees.folders(tmp_path / "tree")
    (root / "b" / "1.jpg").write_bytes(b"")
    table = image_folder(root)
    for _ in range(2):
        with pytest.raises(DataError, match=r"^row 4: b/1\.jpg: cannot be read as an image: the file is empty"):
            cached(table, Preparation(3), tmp_path / "cache", workers=workers)
    for _ in range(2):
        stored, bad = cached(table, Preparation(3), tmp_path / "cache", skip=True, workers=workers)
        assert [tuple(one) for one in bad] == [(4, "b/1.jpg", "train", "the file is empty")]
    keep = np.arange(12) != 4
    assert stored.where(keep).pixels.stack(np.arange(11)).shape == (11, 3, 32, 40)
    with pytest.raises(DataError, match="row 4: b/1"):
        cached(table, Preparation(3), tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache .* cannot be written: Not a directory"):
        cached(image_folder(trees.folders(tmp_path / "tree")), Preparation(3), tmp_path / "file")
