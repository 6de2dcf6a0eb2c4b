"""Data of one's own: class folders and tables."""

import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import small_trees as trees

from dmlkd.data import image_folder, table_file
from dmlkd.errors import ConfigError, DataError


def test_class_folders_have_the_classes_and_order_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    trees.folders(tmp_path)
    for hidden in tmp_path.rglob("._0.jpg"):
        hidden.unlink()  # torchvision would take them for images
    theirs = ImageFolder(tmp_path)
    table = image_folder(tmp_path)
    assert table.class_names.tolist() == theirs.classes
    assert [(str(tmp_path / str(p)), y) for p, y in zip(table.paths, table.labels, strict=True)] == theirs.samples


def test_folders_without_splits_are_split_by_class(tmp_path):
    trees.folders(tmp_path)
    assert len(image_folder(tmp_path)) == 12  # hidden files are no images
    assert set(image_folder(tmp_path).of_split("train").class_names) == {"a", "b"}
    assert set(image_folder(tmp_path, train_fraction=0.75).of_split("test").class_names) == {"d"}
    assert set(image_folder(tmp_path, train_classes=("d", "a")).of_split("train").class_names) == {"a", "d"}
    assert len(image_folder(tmp_path, train_fraction=0).of_split("test")) == 12


def test_folders_of_splits_are_the_splits(tmp_path):
    table = image_folder(trees.folders(tmp_path, splits=("train", "valid", "test")))
    assert [len(table.of_split(name)) for name in ("train", "val", "test")] == [12, 12, 12]
    assert "a-train" in table.class_names
    with pytest.raises(DataError, match="train_classes does not go with them"):
        image_folder(tmp_path, train_classes=("a-train",))


def test_folders_inside_an_archive_are_the_same_table(tmp_path):
    trees.folders(tmp_path / "tree")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted((tmp_path / "tree").rglob("*.*")):
            archive.write(file, "top/" + file.relative_to(tmp_path / "tree").as_posix())
    packed, plain = image_folder(tmp_path, archive="all.zip"), image_folder(tmp_path / "tree")
    assert packed.paths.tolist() == [f"all.zip::top/{path}" for path in plain.paths]
    assert packed.labels.tolist() == plain.labels.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train_classes": ("x",)}, DataError, "there is no class 'x'; valid: "),
        ({"train_fraction": 1.5}, ConfigError, "train_fraction must be from 0 to 1, got 1.5"),
        ({"archive": "../x.zip"}, DataError, "is outside the root"),
        ({"archive": "x.zip"}, DataError, r"x\.zip: No such file"),
    ],
)
def test_folders_that_cannot_be_split_as_asked_are_refused(tmp_path, arguments, error, message):
    trees.folders(tmp_path)
    with pytest.raises(error, match=message):
        image_folder(tmp_path, **arguments)


def test_folders_without_images_or_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no images in class folders"):
        image_folder(tmp_path)
    trees.write(tmp_path / "a" / "x.jpg", trees.picture(1))
    trees.write(tmp_path / "loose.jpg", trees.picture(1))
    with pytest.raises(DataError, match=r"loose\.jpg is in no class folder \(1 images are not\)"):
        image_folder(tmp_path)


def test_a_linked_class_folder_is_refused_and_not_left_out(tmp_path):
    trees.folders(tmp_path / "tree")
    (tmp_path / "tree" / "e").symlink_to(tmp_path / "tree" / "a")
    with pytest.raises(DataError, match="tree/e is a symbolic link to a folder, which is not followed"):
        image_folder(tmp_path / "tree")


FULL = """\
path,label,split,role,domain,x,y,w,h,class_name,else
a.jpg,7,train,,photo,0,0,4,4,seven,1
b.jpg,7,train,,sketch,0,0,4,4,seven,2
c.jpg,9,test,query,photo,1,2,3.5,4,nine,3
d.jpg,9,test,gallery,photo,1,2,3,4,nine,4
"""


def test_a_table_gives_all_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text(FULL)
    table = table_file(tmp_path, file="t.csv")
    assert table.paths.tolist() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert table.labels.tolist() == [7, 7, 9, 9]
    assert table.class_names.tolist() == ["seven", "nine"]
    assert table.role.tolist() == ["", "", "query", "gallery"]
    assert table.domain.tolist() == ["photo", "sketch", "photo", "photo"]
    assert table.boxes.tolist()[2] == [1, 2, 3.5, 4]


def test_csv_and_parquet_give_the_same_table(tmp_path):
    import pyarrow.csv

    (tmp_path / "t.csv").write_text(FULL)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    first, second = (table_file(tmp_path, file=f"t.{kind}") for kind in ("csv", "parquet"))
    for column in ("paths", "labels", "split", "class_names", "role", "domain", "boxes"):
        assert getattr(first, column).tolist() == getattr(second, column).tolist()


def test_labels_may_be_names_or_large_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.jpg,zebra\nb.jpg,ant\nc.jpg,zebra\n")
    table = table_file(tmp_path, file="t.csv")
    assert table.labels.tolist() == [1, 0, 1]
    assert table.class_names.tolist() == ["ant", "zebra"]
    assert table.split.tolist() == ["test", "train", "test"]
    ids = pa.table({"path": ["a", "b"], "label": pa.array([2**40, 2**40 + 1])})
    pyarrow.parquet.write_table(ids, tmp_path / "t.parquet")
    assert table_file(tmp_path, file="t.parquet").labels.tolist() == [2**40, 2**40 + 1]
    coded = pa.table({"path": ["a", "b"], "label": pa.array(["y", "x"]).dictionary_encode()})
    pyarrow.parquet.write_table(coded, tmp_path / "t.parquet")
    assert table_file(tmp_path, file="t.parquet").labels.tolist() == [1, 0]


def test_paths_of_a_table_may_be_in_an_archive(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\nimages/train/00001.jpg,1\nimages/train/00002.jpg,2\n")
    table = table_file(tmp_path, file="t.csv", archive="a.zip", train_classes=(2,))
    assert table.paths.tolist() == ["a.zip::images/train/00001.jpg", "a.zip::images/train/00002.jpg"]
    assert table.split.tolist() == ["test", "train"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path\na.jpg\n", "column label is missing, found path"),
        ("file,label\na.jpg,1\n", "column path is missing, found file, label"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,1.5\n", "column label must hold whole numbers or names, it is of type double"),
        ("path,label\na.jpg,1\nb.jpg,\n", "row 1: label is missing"),
        ("path,label\na.jpg,1\n,2\n", "row 1: path '' is empty"),
        ("path,label\na.jpg,1\n../b.jpg,2\n", r"row 1: path '\.\./b\.jpg' is outside the root"),
        ("path,label\n/b.jpg,2\n", "row 0: path '/b.jpg' is outside the root"),
        ("path,label,split\na,1,train\nb,2,dev\n", "row 1: split must be one of train, val, test, found 'dev'"),
        ("path,label,role\na,1,\nb,2,probe\n", "row 1: role must be one of empty, query, gallery, found 'probe'"),
        ("path,label,x,y\na,1,2,3\n", "a box needs the columns x, y, w and h, found only x, y"),
        ("path,label,x,y,w,h\na,1,2,3,4,0\n", "row 0: a box must have finite numbers and a width and height above 0"),
        ("path,label,x,y,w,h\na,1,2,3,4,wide\n", "columns x, y, w and h must be numbers"),
        ("path,label\na,1,2\n", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        table_file(tmp_path, file="t.csv")
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [("no.csv", r"no\.csv does not exist"), ("t.txt", "must be .csv or .parquet"), ("../t.csv", "outside the root")],
)
def test_a_table_that_cannot_be_opened_is_refused(tmp_path, file, message):
    with pytest.raises(DataError, match=message):
        table_file(tmp_path, file=file)


def test_a_long_table_is_read_in_chunks_without_loss(tmp_path):
    n = 150_000
    rows = pa.table({"path": [f"images/{i:09d}.jpg" for i in range(n)], "label": np.arange(n) % 1000})
    pyarrow.parquet.write_table(rows, tmp_path / "t.parquet")
    table = table_file(tmp_path, file="t.parquet")
    assert table.paths[[0, 65535, 65536, n - 1]].tolist() == [f"images/{i:09d}.jpg" for i in (0, 65535, 65536, n - 1)]
    assert (table.split == "train").sum() == n // 2
