"""Small copies of the benchmark data sets, in exactly the layouts they come in, litter of file managers included."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {
    "cub200": {"train": (12, 4), "test": (12, 4)},
    "cars196": {"train": (12, 4), "test": (12, 4)},
    "sop": {"train": (12, 4), "test": (12, 4)},
    "inshop": {"train": (12, 4), "query": (8, 4), "gallery": (8, 4)},
    "omniglot": {"train": (40, 2), "test": (40, 2)},
}
"""What the trees below have: stands in for ``dmlkd.data.counts.DUE`` in tests."""


def picture(seed: int, *, size: tuple[int, int] = (40, 32), kind: str = "JPEG") -> bytes:
    """An image file whose content depends on the seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, content: bytes | str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def cub(root: Path) -> Path:
    """``CUB_200_2011/``: images.txt in another order than the labels, a ``._`` file beside the images."""
    base = root / "CUB_200_2011"
    classes = {**{c: f"{c:03d}.Bird_{c}" for c in range(1, 201)}}
    rows = [(c, n) for c in (1, 2, 99, 100, 101, 102, 199, 200) for n in range(3)]
    names = {i: f"{classes[c]}/Bird_{c}_{n:04d}_{i}.jpg" for i, (c, n) in enumerate(rows, 1)}
    for i, name in names.items():
        write(base / "images" / name, picture(i))
    write(base / "images" / classes[1] / "._Bird_1_0000_1.jpg", b"\x00\x05\x16\x07")
    write(base / "images.txt", "".join(f"{i} {name}\n" for i, name in names.items()))
    labels = "".join(f"{i} {c}\n" for i, (c, _) in reversed(list(enumerate(rows, 1))))
    write(base / "image_class_labels.txt", labels)
    write(base / "bounding_boxes.txt", "".join(f"{i} 10.0 4.0 20.0 24.0\n" for i in names))
    write(base / "classes.txt", "".join(f"{c} {name}\n" for c, name in classes.items()))
    write(base / "train_test_split.txt", "".join(f"{i} {i % 2}\n" for i in names))
    return root


_CARS = [(c, n) for c in (1, 2, 97, 98, 99, 100, 195, 196) for n in range(3)]
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _annotations(fields: list[str], rows: list[tuple]) -> np.ndarray:
    out = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for place, row in enumerate(rows):
        out[0, place] = row
    return out


def _car_names() -> np.ndarray:
    names = np.empty((1, 196), object)
    names[0] = [f"Maker Model {c} 2012" for c in range(1, 197)]
    return names


def cars_of_one_file(root: Path) -> Path:
    """``cars_annos.mat`` and ``car_ims/``."""
    from scipy.io import savemat

    rows = []
    for i, (c, _) in enumerate(_CARS, 1):
        path = f"car_ims/{i:06d}.jpg"
        write(root / path, picture(i))
        rows.append((path, 11, 5, 30, 28, c, i % 2))
    annotations = _annotations(["relative_im_path", *_CORNERS, "class", "test"], rows)
    savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": _car_names()})
    return root


def cars_devkit(root: Path) -> Path:
    """The devkit's three files, ``cars_train/`` and ``cars_test/``."""
    from scipy.io import savemat

    (root / "devkit").mkdir(parents=True)
    rows: dict[str, list[tuple]] = {"train": [], "test": []}
    for i, (c, n) in enumerate(_CARS):
        part = "test" if n == 2 else "train"
        name = f"{len(rows[part]) + 1:05d}.jpg"
        write(root / f"cars_{part}" / name, picture(i))
        rows[part].append((11, 5, 30, 28, c, name))
    fields = [*_CORNERS, "class", "fname"]
    savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": _annotations(fields, rows["train"])})
    test = root / "devkit" / "cars_test_annos_withlabels.mat"
    savemat(test, {"annotations": _annotations(fields, rows["test"])})
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": _car_names()})
    return root


def cars_table(root: Path) -> Path:
    """``cars196.csv`` and a zip."""
    lines = ["path,label,class_name,official_split"]
    with zipfile.ZipFile(root / "cars196-64px.zip", "w") as archive:
        for i, (c, n) in enumerate(_CARS):
            part = "test" if n == 2 else "train"
            archive.writestr(f"images/{part}/{i:05d}.jpg", picture(i))
            lines.append(f"images/{part}/{i:05d}.jpg,{c},Maker Model {c} 2012,{part}")
        archive.writestr("__MACOSX/images/._train", b"\x00\x05\x16\x07")
    write(root / "cars196.csv", "\n".join(lines) + "\n")
    return root


def sop(root: Path) -> Path:
    """``Ebay_train.txt`` and ``Ebay_test.txt``, test classes from 11319 on."""
    base = root / "Stanford_Online_Products"
    number = 0
    for part, first in (("train", 1), ("test", 11319)):
        lines = ["image_id class_id super_class_id path"]
        for label in range(first, first + 4):
            for view in range(3):
                number += 1
                path = f"bicycle_final/11108512{label}_{view}.JPG"
                write(base / path, picture(number))
                lines.append(f"{number} {label} 1 {path}")
        write(base / f"Ebay_{part}.txt", "\n".join(lines) + "\n")
    return root


def inshop(root: Path) -> Path:
    """``Eval/list_eval_partition.txt`` with its count, header and padded columns; ``Img/img/``."""
    rows = []
    for item in range(1, 9):
        for view in range(3 if item <= 4 else 4):
            status = "train" if item <= 4 else "query" if view < 2 else "gallery"
            path = f"img/WOMEN/Dresses/id_{item:08d}/{view:02d}_1_front.jpg"
            write(root / "Img" / path, picture(100 * item + view))
            rows.append(f"{path:<70} id_{item:08d} {status}")
    header = f"{len(rows)}\nimage_name{' ' * 61}item_id     evaluation_status\n"
    write(root / "Eval" / "list_eval_partition.txt", header + "\n".join(rows) + "\n")
    return root


def omniglot(root: Path) -> Path:
    """``images_background.zip`` and ``images_evaluation/``."""
    with zipfile.ZipFile(root / "images_background.zip", "w") as archive:
        archive.writestr("images_background/", b"")
        for c in (1, 2):
            for d in range(1, 21):
                name = f"images_background/Korean/character{c:02d}/{c:04d}_{d:02d}.png"
                archive.writestr(name, picture(100 * c + d, kind="PNG"))
    for c in (1, 2):
        for d in range(1, 21):
            file = root / f"images_evaluation/Tengwar/character{c:02d}/{c:04d}_{d:02d}.png"
            write(file, picture(1000 * c + d, kind="PNG"))
    write(root / "images_evaluation/Tengwar/character01/._0001_01.png", b"\x00\x05\x16\x07")
    return root


TREES = {
    "cub200": cub,
    "cars196": cars_table,
    "sop": sop,
    "inshop": inshop,
    "omniglot": omniglot,
}


def folders(root: Path, *, splits: tuple[str, ...] = ()) -> Path:
    """Four class folders of three images, below folders of splits if asked for; hidden files among them."""
    number = 0
    for split in splits or ("",):
        for name in "abcd":
            label = f"{name}-{split}" if split else name
            for view in range(3):
                number += 1
                write(root / split / label / f"{view}.jpg", picture(number))
            write(root / split / label / "._0.jpg", b"\x00\x05\x16\x07")
            write(root / split / label / ".DS_Store", b"\x00")
            write(root / split / label / "notes.txt", "no image")
    return root
