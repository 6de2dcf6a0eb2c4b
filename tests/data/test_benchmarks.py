"""The benchmark data sets in their real layouts, small: what is read, and what is said when something is wrong."""

import zipfile

import numpy as np
import pytest
import small_trees as trees
from PIL import Image

from dmlkd.data import ImageDataset, cars196, cub200, inshop, omniglot, sop
from dmlkd.data.counts import DUE, counts
from dmlkd.data.transforms import plain
from dmlkd.errors import DataError

pytestmark = pytest.mark.usefixtures("small_counts")

READERS = {"cub200": cub200, "cars196": cars196, "sop": sop, "inshop": inshop, "omniglot": omniglot}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_the_rows_of_its_layout(name, tmp_path):
    table = READERS[name](trees.TREES[name](tmp_path))
    assert counts(table) == trees.COUNTS[name]
    dataset = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)
    assert all(dataset[row].images.shape == (3, 8, 8) for row in range(len(table)))
    assert not set(table.labels[table.split == "train"]) & set(table.labels[table.split == "test"])


@pytest.mark.parametrize("name", READERS)
def test_other_counts_than_the_official_ones_are_refused_with_both(name, tmp_path, monkeypatch):
    root = trees.TREES[name](tmp_path)
    monkeypatch.setitem(DUE, name, {**DUE[name], "train": (13, 5)})
    found = trees.COUNTS[name]["train"]
    with pytest.raises(DataError, match=rf"found {found[0]} images of {found[1]} classes for train, 13 of 5 are due"):
        READERS[name](root)
    assert len(READERS[name](root, complete=False)) > 0


def test_birds_are_joined_by_id_and_not_by_line(tmp_path):
    table = cub200(trees.cub(tmp_path))
    for path, label, split in zip(table.paths, table.labels, table.split, strict=True):
        assert str(path).startswith(f"images/{label:03d}.Bird_{label}/")
        assert split == ("train" if label <= 100 else "test")
    assert table.class_names[0] == "001.Bird_1"
    assert table.boxes.tolist()[0] == [10, 4, 20, 24]
    assert len(cub200(tmp_path / "CUB_200_2011")) == len(table)


def edit(file, change):
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("image_class_labels.txt", lambda x: x[3:], r"labels\.txt: no row for image 22 of images\.txt \(3 are missing"),
        ("images.txt", lambda x: x[:-2], r"images\.txt: no row for image 24 of image_class_labels\.txt \(2 are miss"),
        ("bounding_boxes.txt", lambda x: x[1:], r"bounding_boxes\.txt: no row for image 1 of images\.txt \(1 are"),
        ("images.txt", lambda x: [*x, x[4]], r"images\.txt:25: id 5 is given twice"),
        ("images.txt", lambda x: ["1\n", *x[1:]], r"images\.txt:1: 2 fields are due, found 1: '1'"),
        ("image_class_labels.txt", lambda x: ["24 two\n", *x[1:]], r"a whole number is due, found 'two'"),
        ("bounding_boxes.txt", lambda x: ["1 a b c d\n", *x[1:]], r"bounding_boxes\.txt: could not convert"),
        ("classes.txt", lambda x: x[:-1], r"classes\.txt: no row for class 200"),
        ("images.txt", lambda x: ["1 ../../secret.jpg\n", *x[1:]], r"images\.txt: row 0: path .* is outside the root"),
    ],
)
def test_a_wrong_row_of_birds_is_named(tmp_path, file, change, message):
    trees.cub(tmp_path)
    edit(tmp_path / "CUB_200_2011" / file, change)
    with pytest.raises(DataError, match=message):
        cub200(tmp_path)


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt"])
def test_a_missing_file_of_birds_is_named(tmp_path, file):
    trees.cub(tmp_path)
    (tmp_path / "CUB_200_2011" / file).unlink()
    with pytest.raises(DataError, match=rf"{file}( does not exist| nor CUB_200_2011/images\.txt)"):
        cub200(tmp_path)


@pytest.mark.parametrize("write", [trees.cars_of_one_file, trees.cars_devkit, trees.cars_table])
def test_cars_are_alike_in_all_three_layouts(tmp_path, write):
    table = cars196(write(tmp_path))
    assert np.unique(table.labels).tolist() == [1, 2, 97, 98, 99, 100, 195, 196]
    assert table.class_names.tolist()[3] == "Maker Model 98 2012"
    assert set(table.split[table.labels <= 98]) == {"train"}
    assert set(table.split[table.labels > 98]) == {"test"}
    if write is not trees.cars_table:
        assert table.boxes.tolist()[0] == [10, 4, 20, 24]  # corners 11, 5, 30, 28, counted from 1
    assert len(ImageDataset(table, plain(image_size=8, channels=3).test, channels=3)[0].images) == 3


def test_cars_without_test_labels_are_refused(tmp_path):
    trees.cars_devkit(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match=r"has no cars_test_annos_withlabels\.mat: the test images have no labels"):
        cars196(tmp_path)


def test_cars_in_two_archives_must_be_told_apart(tmp_path):
    trees.cars_table(tmp_path)
    (tmp_path / "cars196-96px.zip").write_bytes((tmp_path / "cars196-64px.zip").read_bytes())
    with pytest.raises(DataError, match=r"is in cars196-64px\.zip, cars196-96px\.zip; say which with data\.archive"):
        cars196(tmp_path)
    assert str(cars196(tmp_path, archive="cars196-96px.zip").paths[0]).startswith("cars196-96px.zip::images/")


def test_cars_as_files_beside_a_parquet_table(tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    trees.cars_table(tmp_path)
    with zipfile.ZipFile(tmp_path / "cars196-64px.zip") as archive:
        archive.extractall(tmp_path)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "cars196.csv"), tmp_path / "cars196.parquet")
    (tmp_path / "cars196.csv").unlink()
    assert cars196(tmp_path).paths[0] == "images/train/00000.jpg"


def test_a_damaged_matlab_file_is_refused(tmp_path):
    trees.cars_of_one_file(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(b"MATLAB 5.0 not really")
    with pytest.raises(DataError, match=r"cars_annos\.mat: cannot be read as a MATLAB file"):
        cars196(tmp_path)


def test_cars_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"holds neither cars_annos\.mat, devkit/cars_train_annos\.mat nor cars196\.csv"
    ):
        cars196(tmp_path)


def test_products_have_the_labels_of_their_rows(tmp_path):
    table = sop(trees.sop(tmp_path))
    assert np.unique(table.labels[table.split == "test"]).tolist() == [11319, 11320, 11321, 11322]
    assert table.class_names[0] == "bicycle 1"


def test_products_with_another_header_are_refused(tmp_path):
    trees.sop(tmp_path)
    edit(tmp_path / "Stanford_Online_Products" / "Ebay_test.txt", lambda lines: lines[1:])
    with pytest.raises(
        DataError, match=r"Ebay_test\.txt:1: the header must be 'image_id class_id super_class_id path'"
    ):
        sop(tmp_path)


def test_clothes_have_queries_and_a_gallery(tmp_path):
    table = inshop(trees.inshop(tmp_path))
    assert len(table) == 28  # the first image, in line 3, is not lost
    assert table.paths[0] == "Img/img/WOMEN/Dresses/id_00000001/00_1_front.jpg"
    assert set(table.role[table.split == "train"]) == {""}
    assert set(table.role[table.split == "test"]) == {"query", "gallery"}
    assert table.class_names[1] == "id_00000002"
    assert table.labels[table.role == "query"].tolist() == [5, 5, 6, 6, 7, 7, 8, 8]


def test_clothes_are_read_inside_their_zip(tmp_path):
    import shutil

    trees.inshop(tmp_path)
    with zipfile.ZipFile(tmp_path / "Img" / "img.zip", "w") as archive:
        for file in sorted((tmp_path / "Img" / "img").rglob("*.jpg")):
            archive.write(file, file.relative_to(tmp_path / "Img").as_posix())
    shutil.rmtree(tmp_path / "Img" / "img")
    table = inshop(tmp_path)
    assert str(table.paths[0]).startswith("Img/img.zip::img/WOMEN/")
    assert ImageDataset(table, plain(image_size=8, channels=3).test, channels=3).image(27).shape == (3, 32, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: ["52712\n", *x[1:]], r"partition\.txt:1: states 52712 images, 28 rows follow"),
        (lambda x: [x[0], *x[2:]], r"partition\.txt:2: the header must be 'image_name item_id evaluation_status'"),
        (
            lambda x: [*x, "img/a.jpg id_00000001 val\n"],
            r"partition\.txt:31: train, query or gallery is due, found 'val'",
        ),
        (lambda x: [*x, "img/a.jpg 00000001 train\n"], r"an item id such as id_00000002 is due, found '00000001'"),
        (lambda x: [*x, "img/a.jpg id_1\n"], r"partition\.txt:31: 3 fields are due, found 2"),
    ],
)
def test_a_wrong_line_of_clothes_is_named(tmp_path, change, message):
    trees.inshop(tmp_path)
    edit(tmp_path / "Eval" / "list_eval_partition.txt", change)
    with pytest.raises(DataError, match=message):
        inshop(tmp_path)


def test_all_of_omniglot_is_read_from_zip_and_folder(tmp_path):
    table = omniglot(trees.omniglot(tmp_path))
    assert set(table.class_names) == {f"{a}/character0{c}" for a in ("Korean", "Tengwar") for c in (1, 2)}
    assert sum(str(path).startswith("images_background.zip::") for path in table.paths) == 40


def test_images_are_cropped_to_their_boxes(tmp_path):
    table = cub200(trees.cub(tmp_path))
    cropped = ImageDataset(table, plain(image_size=8, channels=3).test, channels=3, crop=True)
    with Image.open(table.root / str(table.paths[3])) as whole:
        assert np.array_equal(cropped.image(3), np.asarray(whole.crop((10, 4, 30, 28))).transpose(2, 0, 1))


def test_the_shared_cars_are_all_there(cars):
    table = cars196(cars, archive="cars196-64px.zip", complete=False)
    assert counts(table) == {"train": (8054, 98), "test": (8131, 98)}
