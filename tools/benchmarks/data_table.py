"""Time and memory of reading and splitting a table of many rows, in a process of its own.

python tools/benchmarks/data_table.py [--rows 1000000] [--kinds csv,parquet] [--out r.json]

A table has paths of about 40 characters, whole-number labels of --classes classes and a split by class. Reading
includes the check of every path; splitting takes the training rows and holds out 15 % of their classes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from harness import in_child, measured, parser, show


def write(folder: Path, rows: int, classes: int, kind: str) -> None:
    numbers = np.arange(rows)
    labels = numbers % classes
    paths = pa.array([f"images/class_{label:06d}/image_{n:09d}.jpg" for n, label in zip(numbers, labels, strict=True)])
    split = pa.array(np.where(labels < classes // 2, "train", "test"))
    table = pa.table({"path": paths, "label": labels, "split": split})
    if kind == "csv":
        pyarrow.csv.write_csv(table, folder / "t.csv")
    else:
        pyarrow.parquet.write_table(table, folder / "t.parquet")


def task(arguments: dict[str, str]) -> None:
    from dmlkd.data import split_classes, table_file

    folder = Path(arguments["place"])
    (folder / "warm.csv").write_text("path,label,split\na,1,train\nb,2,test\n")
    table_file(folder, file="warm.csv")
    held = []

    def read() -> None:
        held.append(table_file(folder, file=f"t.{arguments['kind']}"))

    reading = measured(read)

    def split() -> None:
        train = held[0].of_split("train")
        held.extend([*split_classes(train, 0.15, seed=0), held[0].of_split("test")])

    splitting = measured(split)
    result = {"read": reading["seconds"][0], "split": splitting["seconds"][0]}
    print(json.dumps(result | {"read MB": reading["peak_mb"], "split MB": splitting["peak_mb"]}))


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--rows", type=int, default=1_000_000)
    options_of.add_argument("--classes", type=int, default=50_000)
    options_of.add_argument("--kinds", default="csv,parquet")
    options = options_of.parse_args()
    if options.task:
        task(json.loads(options.arguments))
        return
    rows = []
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), options.rows, options.classes, kind)
            found = in_child(__file__, "table", {}, place=folder, kind=kind)
        rows.append({"kind": kind, "rows": options.rows, **found, "read + split s": found["read"] + found["split"]})
    show(rows, options.out, classes=options.classes)


if __name__ == "__main__":
    main()
