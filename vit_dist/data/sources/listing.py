"""Listings of image files with their labels, from a table or a list of pairs: their columns, paths and rows."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_dist.data.sources.captions import Captions, plain_captions
from vit_dist.data.sources.file_sizes import FileSizes
from vit_dist.data.sources.image_files import FilePaths
from vit_dist.errors import UserError, visible
from vit_dist.files import user_path

# Names of columns → what they hold, in any case; the first that a table has is taken.
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "class", "target", "category", "labels")
CAPTIONS = ("caption", "captions", "text", "sentence", "sentences", "title", "description")
_KNOWN: dict[str, tuple[Sequence[str], str]] = {
    "path": (PATHS, "image files"),
    "label": (LABELS, "labels"),
    "caption": (CAPTIONS, "captions"),
    "split": (("split",), "splits"),
    "weight": ((), "weights"),  # only where it is named: a column called weight may hold kilograms
}
# Paths that are no plain names: of a home, with parts that mean nothing, or that no system takes.
_ODD = re.compile(r"^~|^\./|//|/\.|/$|\0")


class Rows(NamedTuple):
    """Name the rows of a listing, for messages.

    place: the field, and the file if there is one. columns: what (path, label …) → the column's name. first: the
    number of the first row. blank: after how many rows each empty one stood. form: of a row's place, if no table's.
    kept: the rows that are left, where some have been put together; empty: all.
    """

    place: str
    columns: Mapping[str, str] = {}
    first: int = 0
    blank: Sequence[int] = ()
    form: str = ", row {}"
    kept: Sequence[int] = ()

    def at(self, index: int, what: str = "") -> str:
        """Return the place of a row, and of one of its columns."""
        index = self.kept[index] if self.kept else index
        number = self.first + index + bisect_right(self.blank, index)
        column = f", column {self.columns[what]}" if what in self.columns else ""
        return visible(self.place + self.form.format(number) + column)


class Listing(NamedTuple):
    """Image files with their labels (names or numbers), and the split of each, if the listing says it.

    rows: where they stand. notes: lines for the user on how the listing was read. weights: of the images in training's
    loss, float32, if the listing says them. captions: of the images, where they are read.
    """

    paths: FilePaths
    labels: list[Any]
    splits: list[str] | None
    rows: Rows
    notes: tuple[str, ...] = ()
    weights: NDArray[np.float32] | None = None
    captions: Captions | None = None

    def take(self, rows: Sequence[int]) -> Listing:
        """Return some rows, all of one split, with what is known of their files."""
        bytes_, regular = self.paths.sizes
        paths = FilePaths([self.paths.names[row] for row in rows], FileSizes(bytes_[rows], regular[rows]))
        weights = None if self.weights is None else self.weights[rows]
        captions = self.captions and self.captions.take(np.asarray(rows, np.int64))
        return Listing(paths, [self.labels[row] for row in rows], None, self.rows, self.notes, weights, captions)


def column(names: Iterable[str], known: Sequence[str], field: str, what: str, fix: str = "") -> str:
    """Return the column that holds something, by its name in any case. Raises UserError."""
    names = [str(name) for name in names]
    found = usual_column(names, known)
    if found is None:
        there = visible(", ".join(names)) or "none"
        raise UserError(f"{field}: has no column of {what}: name one {known[0]}{fix}; it has {there}")
    return found


def usual_column(names: Iterable[str], known: Sequence[str]) -> str | None:
    """Return the first column that has one of these names, in any case; None if there is none."""
    of_lower = {name.lower().strip(): name for name in reversed(list(names))}
    return next((of_lower[name] for name in known if name in of_lower), None)


def choose_columns(names: Sequence[Any], chosen: Mapping[str, str], place: str, table: str) -> dict[str, str]:
    """Return what (path, label and, if they are there, split and weight) → the name of its column.

    With captions, which `columns_read` asks for, these too, and labels only if they are there. chosen: `data.columns`,
    which goes before the usual names. place, table: how messages begin, and call the table. Raises UserError that lists
    the columns.
    """
    texts, found = [str(name) for name in names], {}
    for what, (known, words) in _KNOWN.items():
        if what == "caption" and what not in chosen:
            continue
        if chosen.get(what):
            name = chosen[what] if chosen[what] in texts else usual_column(texts, (chosen[what].lower().strip(),))
            if name is None:
                there = visible(", ".join(texts))
                raise UserError(f"data.columns.{what}: {table} has no column {chosen[what]}: it has {there}")
            found[what] = name
        elif what in ("split", "weight") or (what == "label" and "caption" in chosen):
            if (name := usual_column(texts, known)) is not None:
                found[what] = name
        else:
            found[what] = column(texts, known, place, words, f", or set data.columns.{what}")
    return found


def from_table(table: Any, names: Sequence[Any], field: str, chosen: Mapping[str, str]) -> Listing:
    """Return the listing in a table, which gives a column of values by its name. Raises UserError."""
    columns = choose_columns(names, chosen, field, field)
    values = {what: list(table[name]) for what, name in columns.items()}
    return made(values, Rows(field, columns), Path())


def columns_read(columns: Mapping[str, str], captions: bool) -> dict[str, str]:
    """Return `data.columns` as they are read: with captions or without. An empty name stands for the usual ones."""
    others = {what: name for what, name in columns.items() if what != "caption"}
    return {**others, "caption": columns.get("caption", "")} if captions else others


def from_pairs(pairs: Sequence[Any], field: str, second: str = "label") -> Listing:
    """Return the listing in a list of (path, label), or with another column second. Raises UserError."""
    for number, pair in enumerate(pairs):
        if isinstance(pair, (str, Mapping)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise UserError(f"{field}[{number}]: must be a pair of a path and a {second}")
        if not isinstance(pair[0], (str, Path)):
            kind = type(pair[0]).__name__
            raise UserError(f"{field}[{number}]: must begin with the path of an image, not with {kind}")
    values = {"path": [path for path, _ in pairs], second: [value for _, value in pairs]}
    return made(values, Rows(field, form="[{}]"), Path())


def made(values: Mapping[str, list[Any]], rows: Rows, folder: Path, notes: Sequence[str] = ()) -> Listing:
    """Return the listing of these columns (path, label, split, weight, caption), whose files are there and have labels.

    With captions, rows of one file are one image with the captions of all, and without a column of labels all images
    have the label "". folder: what paths are relative to. Raises UserError that names the row and the column.
    """
    if not values["path"]:
        raise UserError(f"{rows.place}{'' if rows.first else ':'} lists no images")
    located, captions = _located(values["path"], folder, rows), None
    if "caption" in values:
        captions, located, values, rows = _together(values, located, rows)
    names, splits = FilePaths(located), values.get("split")
    missing = names.sizes.missing()
    if missing:
        more = f", nor are {len(missing) - 1:,} more" if missing[1:] else ""
        raise UserError(f"{rows.at(missing[0], 'path')}: {visible(names.names[missing[0]])} is not there{more}")
    labels = [plain_label(label) for label in values.get("label", [])]
    empty = next((number for number, label in enumerate(labels) if label in ("", None) or label != label), None)
    if empty is not None:
        raise UserError(f"{rows.at(empty, 'label')}: {visible(names.names[empty])} has no label: give it one")
    weights, said = None, list(notes)
    if "weight" in values:
        weights = _weights(values["weight"], rows)
        span = f"from {weights.min():g} to {weights.max():g}, on average {weights.mean():.3g}"
        said.append(f"images have weights in the training loss, {span}")
    labels = labels or [""] * len(located)
    return Listing(names, labels, None if splits is None else [*map(str, splits)], rows, tuple(said), weights, captions)


def _together(
    values: Mapping[str, list[Any]], located: list[str], rows: Rows
) -> tuple[Captions, list[str], dict[str, list[Any]], Rows]:
    """Return the captions of each image, and the rows' paths, other columns and places, one for each image.

    Raises UserError for a row without a caption, and for two rows of an image that say other things of it.
    """
    texts: list[list[str]] = []
    kept: list[int] = []
    place_of: dict[str, int] = {}
    others = [(what, column) for what, column in values.items() if what not in ("path", "caption")]
    for row, (name, value) in enumerate(zip(located, values["caption"], strict=True)):
        place = place_of.setdefault(name, len(kept))
        if place == len(kept):
            kept.append(row)
            texts.append([])
        for what, column in others:
            if column[row] != (first := column[kept[place]]):
                shown, before = visible(str(column[row]))[:40], visible(str(first))[:40]
                raise UserError(
                    f"{rows.at(row, what)}: says {shown} of {visible(name)}, and {rows.at(kept[place])} says {before}: "
                    "make them alike"
                )
        texts[place] += plain_captions(value, partial(rows.at, row, "caption"))
    taken = {what: [column[row] for row in kept] for what, column in others}
    return Captions.of(texts), [located[row] for row in kept], taken, rows._replace(kept=kept)


def _weights(values: Sequence[Any], rows: Rows) -> NDArray[np.float32]:
    """Return weights, each a number from 0 on and not all 0. Raises UserError."""
    found = np.empty(len(values), np.float32)
    for number, value in enumerate(values):
        try:
            found[number] = float(value)
        except (TypeError, ValueError, OverflowError):
            found[number] = np.nan
        if not 0 <= found[number] < np.inf:
            shown = visible(str(value))[:40] or "an empty cell"
            raise UserError(f"{rows.at(number, 'weight')}: must be a number, 0 or more, not {shown}")
    if not found.any():
        raise UserError(f"data.columns.weight: all weights in {rows.place} are 0: nothing would be learned")
    return found


def _located(paths: Sequence[Any], folder: Path, rows: Rows) -> list[str]:
    """Return the paths as text, from where the program runs. Raises UserError for what is none."""
    before = "" if folder == Path() else os.path.join(folder, "")
    found = []
    for number, path in enumerate(paths):
        if not isinstance(path, (str, Path)) or path == "":
            kind = "it is empty" if path in ("", None) or path != path else f"not {type(path).__name__}"
            raise UserError(f"{rows.at(number, 'path')}: must be the path of an image: {kind}")
        text = str(path)
        if os.sep != "/" or _ODD.search(text):
            found.append(str(folder / user_path(text, rows.at(number, "path"))))
        else:
            found.append(text if text[0] == "/" else before + text)
    return found


def plain_label(label: Any) -> Any:
    """Return a label as a plain value of Python: NumPy's and others' numbers have item()."""
    if isinstance(label, (str, int)):
        return label
    item = getattr(label, "item", None)
    try:
        return item() if callable(item) else label
    except (ValueError, RuntimeError):  # it holds several numbers
        return label
