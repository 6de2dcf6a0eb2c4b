"""``dmlkd data`` as a user meets it: one report of everything, and an exit code."""

import json
import shutil

import pytest
import small_trees as trees
from PIL import Image

pytestmark = pytest.mark.usefixtures("small_counts")


@pytest.mark.parametrize("name", trees.TREES)
def test_a_sound_data_set_is_called_sound(dmlkd, tmp_path, name):
    code, out, err = dmlkd("data", "verify", name, "--root", trees.TREES[name](tmp_path))
    assert (code, err) == (0, "")
    assert out.endswith(f"{name} is sound\n")
    assert "as published" in out
    assert "FAIL" not in out


def test_everything_that_is_wrong_is_said_at_once(dmlkd, tmp_path):
    trees.cub(tmp_path)
    base = tmp_path / "CUB_200_2011"
    one, two, three = sorted((base / "images" / "001.Bird_1").glob("[!.]*.jpg"))
    one.unlink()
    two.write_bytes(two.read_bytes()[:200])
    test_image = next((base / "images" / "200.Bird_200").glob("*.jpg"))
    shutil.copy(three, test_image)
    rows = (base / "images.txt").read_text().splitlines(keepends=True)
    rows[5] = rows[4].replace("5 ", "6 ", 1)
    (base / "images.txt").write_text("".join(rows))
    labels = (base / "image_class_labels.txt").read_text().replace("24 200\n", "24 100\n")
    (base / "image_class_labels.txt").write_text(labels)
    code, out, err = dmlkd("data", "verify", "cub200", "--root", tmp_path)
    assert (code, err) == (1, "")
    for expected in (
        "FAIL  counts    found 13 images of 4 classes for train, 12 of 4 are due",
        "found 11 images of 4 classes for test, 12 of 4 are due",
        "FAIL  paths     1 paths are listed more than once",
        "(2 times, first in row 4)",
        "FAIL  files     1 of 24 files are missing or cannot be opened",
        "row 0: images/001.Bird_1/Bird_1_0000_1.jpg: the file does not exist",
        "FAIL  images    1 of 24 images cannot be decoded",
        "row 1: images/001.Bird_1/Bird_1_0001_2.jpg: ",
        "note  contents  1 pairs of equal images across training and test",
        "images/001.Bird_1/Bird_1_0002_3.jpg = images/200.Bird_200/",
        "cub200 is not sound: 4 of 7 checks failed",
    ):
        assert expected in out, expected


def test_queries_with_nothing_to_find_are_listed(dmlkd, tmp_path):
    trees.inshop(tmp_path)
    file = tmp_path / "Eval" / "list_eval_partition.txt"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not ("id_00000007" in line and "gallery" in line)]
    file.write_text("".join(["26\n", *kept[1:]]))
    code, out, _ = dmlkd("data", "verify", "inshop", "--root", tmp_path)
    assert code == 1
    assert "FAIL  counts    found 6 images of 3 classes for gallery, 8 of 4 are due" in out
    assert "FAIL  gallery   1 classes of queries are not in the gallery: 2 queries have nothing to find" in out
    assert "id_00000007" in out


@pytest.mark.parametrize(
    ("options", "level", "expected"), [((), "FAIL", 1), (("--set", "seen_classes=true"), "note", 0)]
)
def test_classes_of_training_in_the_test_are_reported(dmlkd, tmp_path, options, level, expected):
    for split in ("train", "test"):
        for number, name in enumerate("ab"):
            trees.write(tmp_path / split / name / "0.jpg", trees.picture(number + 2 * (split == "test")))
    code, out, _ = dmlkd("data", "verify", "folder", "--root", tmp_path, *options)
    assert code == expected
    assert f"{level:<4}  classes   2 classes are both in the training and in the test" in out


def test_a_layout_that_is_not_there_is_one_finding(dmlkd, tmp_path):
    code, out, err = dmlkd("data", "verify", "sop", "--root", tmp_path)
    assert (code, err) == (1, "")
    assert "FAIL  layout" in out
    assert "holds neither Ebay_train.txt nor Stanford_Online_Products/Ebay_train.txt" in out


def test_a_quick_look_opens_no_image(dmlkd, tmp_path):
    trees.sop(tmp_path)
    for file in tmp_path.rglob("*.JPG"):
        file.write_bytes(b"")
    assert dmlkd("data", "verify", "sop", "--root", tmp_path, "--quick")[0] == 0
    assert "24 of 24 images cannot be decoded" in dmlkd("data", "verify", "sop", "--root", tmp_path)[1]


def test_the_findings_are_there_as_json(dmlkd, tmp_path):
    code, out, _ = dmlkd("data", "verify", "sop", "--root", trees.sop(tmp_path), "--json")
    found = json.loads(out)
    assert (code, found["sound"]) == (0, True)
    assert found["findings"][0]["level"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "cub"), "unknown data set 'cub'; did you mean 'cub200'"),
        (("verify", "cub200"), "set data.root or the environment variable DMLKD_DATA"),
        (("verify", "cub200", "--root", "nowhere"), "folder nowhere does not exist"),
        (("verify", "digits", "--set", "rot=1"), "unknown key 'rot'"),
        (("verify", "digits", "--set", "corrupt=maybe"), "--set corrupt=maybe: corrupt: must be 'error' or 'skip'"),
        (("describe", "digits", "--sheet", "a.jpg"), "--sheet a.jpg: must end in .png"),
        (("describe", "digits", "--sheet", "no/a.png"), "folder no does not exist"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(dmlkd, monkeypatch, arguments, message):
    monkeypatch.delenv("DMLKD_DATA", raising=False)
    code, out, err = dmlkd("data", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_data_set_is_described_with_a_sheet(dmlkd, tmp_path):
    root = trees.inshop(tmp_path / "inshop")
    (root / "Img/img/WOMEN/Dresses/id_00000001/00_1_front.jpg").write_bytes(b"")
    code, out, err = dmlkd("data", "describe", "inshop", "--root", root, "--sheet", tmp_path / "sheet.png")
    assert (code, err) == (0, "")
    for expected in (
        "train         12 images       4 classes   3 to 3 a class, median 3",
        "query          8 images       4 classes   2 to 2 a class, median 2",
        "width 40 to 40, median 40; height 32 to 32, median 32 (28 images looked at)",
        "1 of 28 images looked at cannot be read",
    ):
        assert expected in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (960, 8 * 110)


def test_digits_and_domains_are_described(dmlkd, tmp_path):
    found = json.loads(dmlkd("data", "describe", "digits", "--sheet", tmp_path / "d.png", "--json")[1])
    assert found["parts"]["train"]["images"] == 901
    assert found["sizes"]["width"] == [8, 8, 8]
    (tmp_path / "t.csv").write_text("path,label,domain\na.jpg,1,photo\nb.jpg,2,sketch\nc.jpg,2,photo\n")
    out = dmlkd("data", "describe", "table", "--root", tmp_path, "--set", "file=t.csv")[1]
    assert "domain photo: 2 images" in out
