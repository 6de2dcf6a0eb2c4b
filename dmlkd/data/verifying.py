"""Whether a data set on this disk is what it should be, all of it said at once."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from dmlkd.data.checking import Reading, Readings
from dmlkd.data.counts import DUE, counts, mismatches, parts
from dmlkd.data.images import Preparation
from dmlkd.data.loading import in_order
from dmlkd.data.splits import seen_classes
from dmlkd.data.table import ImageTable

Level = Literal["ok", "note", "FAIL"]
_SHOWN = 10


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        level: "ok"; "note", worth knowing; "FAIL", to be mended.
        check: what was looked at.
        text: what was found, in a line.
        details: rows, classes or paths that show it, the first few.
    """

    level: Level
    check: str
    text: str
    details: tuple[str, ...] = ()


def verify(
    name: str, table: ImageTable, *, zero_shot: bool = True, decode: bool = True, workers: int = 0
) -> list[Finding]:
    """Check counts, paths, files, roles, classes and contents.

    Args:
        name: of a registered data set, for the counts that are due.
        table: read without refusing other counts.
        zero_shot: the test is on unseen classes: refuse those of training.
        decode: read and decode every image; else the files are not looked at.
        workers: processes that decode; 0: this one.
    """
    findings = [_counts(name, table), _paths(table)]
    if decode:
        readings = read_all(table, workers=workers)
        findings += [_missing(table, readings), _decoded(table, readings)]
    findings += [_gallery(table), _classes(table, zero_shot=zero_shot)]
    return findings + ([_twice(table, readings)] if decode else [])


def read_all(table: ImageTable, *, workers: int = 0) -> list[Reading]:
    """Read every image of a table, whose pixels are not kept.

    Args:
        table: images in files or decoded already.
        workers: processes that decode; 0: this one.
    """
    if table.pixels is not None:
        images = (np.asarray(table.pixels[row]) for row in range(len(table)))
        return [
            Reading(row, hashlib.blake2b(i.tobytes(), digest_size=16).digest(), None, (i.shape[2], i.shape[1]))
            for row, i in enumerate(images)
        ]
    preparation = Preparation(3, crop=table.boxes is not None)
    return list(in_order(Readings(table, preparation, keep=False), workers=workers))


def _counts(name: str, table: ImageTable) -> Finding:
    found = ", ".join(f"{part} {n} images of {c} classes" for part, (n, c) in counts(table).items())
    if wrong := mismatches(name, table):
        return Finding("FAIL", "counts", wrong[0], tuple(wrong[1:]))
    return Finding("ok", "counts", f"{found}{', as published' if name in DUE else ''}")


def _paths(table: ImageTable) -> Finding:
    found, first, times = np.unique(table.paths, return_index=True, return_counts=True)
    if not (times > 1).any():
        return Finding("ok", "paths", "no path is listed twice")
    twice = [
        f"{path} ({n} times, first in row {row})" for path, row, n in zip(found, first, times, strict=True) if n > 1
    ]
    return Finding("FAIL", "paths", f"{len(twice)} paths are listed more than once", _few(twice))


def _missing(table: ImageTable, readings: Sequence[Reading]) -> Finding:
    bad = [r for r in readings if r.digest is None and r.reason]
    if not bad:
        return Finding("ok", "files", f"{len(table)} files are there")
    text = f"{len(bad)} of {len(table)} files are missing or cannot be opened"
    return Finding("FAIL", "files", text, _few(_row(table, reading) for reading in bad))


def _decoded(table: ImageTable, readings: Sequence[Reading]) -> Finding:
    bad = [r for r in readings if r.digest is not None and r.reason]
    if not bad:
        return Finding("ok", "images", "every file that is there can be decoded")
    text = f"{len(bad)} of {len(table)} images cannot be decoded"
    return Finding("FAIL", "images", text, _few(_row(table, reading) for reading in bad))


def _row(table: ImageTable, reading: Reading) -> str:
    return f"row {reading.row}: {table.paths[reading.row]}: {reading.reason}"


def _gallery(table: ImageTable) -> Finding:
    by_role = parts(table)
    if "query" not in by_role:
        return Finding("ok", "gallery", "no queries apart: each test image is looked for among the others")
    gallery = by_role["gallery"].labels if "gallery" in by_role else np.empty(0, np.int64)
    queries = by_role["query"]
    absent = np.setdiff1d(queries.labels, gallery)
    if not len(absent):
        return Finding("ok", "gallery", "every query has its class in the gallery")
    names = queries.class_names[np.isin(np.unique(queries.labels), absent)]
    affected = int(np.isin(queries.labels, absent).sum())
    text = f"{len(absent)} classes of queries are not in the gallery: {affected} queries have nothing to find"
    return Finding("FAIL", "gallery", text, _few(map(str, names)))


def _classes(table: ImageTable, *, zero_shot: bool) -> Finding:
    seen = seen_classes(table)
    if not seen:
        return Finding("ok", "classes", "no class of the training is in the test")
    text = f"{len(seen)} classes are both in the training and in the test"
    return Finding("FAIL" if zero_shot else "note", "classes", text, _few(seen))


def _twice(table: ImageTable, readings: Sequence[Reading]) -> Finding:
    """Equal contents in training and test, which make a test easier than it is, or under two labels."""
    rows = np.array([reading.row for reading in readings if reading.digest], np.int64)
    digests = np.array([reading.digest for reading in readings if reading.digest], "V16")
    order = np.argsort(digests.view("S16"), kind="stable") if len(rows) else rows
    same = digests[order][1:] == digests[order][:-1]
    pairs = [(int(rows[order[i]]), int(rows[order[i + 1]])) for i in np.flatnonzero(same)]
    pairs = [(min(pair), max(pair)) for pair in pairs]
    tested = table.split == "test"
    across = [pair for pair in pairs if tested[pair[0]] != tested[pair[1]]]
    relabelled = [pair for pair in pairs if table.labels[pair[0]] != table.labels[pair[1]]]
    if not across and not relabelled:
        return Finding(
            "ok",
            "contents",
            f"no image is twice across training and test ({len(pairs)} are within one, under one label)",
        )
    shown = across + [pair for pair in relabelled if pair not in across]
    text = f"{len(across)} pairs of equal images across training and test, {len(relabelled)} under two labels"
    return Finding("note", "contents", text, _few(f"{table.paths[a]} = {table.paths[b]}" for a, b in shown))


def _few(lines: Iterable[str]) -> tuple[str, ...]:
    all_of_them = list(lines)
    more = len(all_of_them) - _SHOWN
    return (*all_of_them[:_SHOWN], *([f"and {more} more"] if more > 0 else []))
