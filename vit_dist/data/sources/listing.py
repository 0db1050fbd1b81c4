"""Listings of image files with their labels: a CSV file, a table of any library, a list of pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_dist.errors import UserError
from vit_dist.files import user_path

# Names of columns → what they hold, in any case; the first that a table has is taken.
PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "class", "target", "category", "labels")
_SPLIT = "split"


class Listing(NamedTuple):
    """Image files with their labels (names or numbers), and the split of each, if the listing says it."""

    paths: list[Path]
    labels: list[Any]
    splits: list[str] | None = None


def column(names: Iterable[str], known: Sequence[str], field: str, what: str) -> str:
    """Return the column that holds something, by its name in any case. Raises UserError."""
    names = [str(name) for name in names]
    of_lower = {name.lower().strip(): name for name in names}
    for name in known:
        if name in of_lower:
            return of_lower[name]
    raise UserError(f"{field}: has no column of {what}: name one {known[0]}; it has {', '.join(names) or 'none'}")


def read_csv(path: Path, field: str) -> Listing:
    """Read a CSV file with a head: columns path and label, and split if there is one; paths are relative to its folder.

    Raises UserError.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
            names = list(rows[0]) if rows else []
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{field}: {path} cannot be read as a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{field}: {path} lists no images")
    short = next((number for number, row in enumerate(rows, 2) if None in row.values() or None in row), None)
    if short is not None:
        raise UserError(f"{field}: {path}, row {short}: must have {len(names)} cells, as its head has")
    table = {name: [row[name] for row in rows] for name in names}
    return from_table(table, names, field, path.parent)


def from_table(table: Any, names: Sequence[str], field: str, folder: Path = Path()) -> Listing:
    """Return the listing in a table, which gives a column of values by its name. Raises UserError."""
    paths = list(table[column(names, PATHS, field, "image files")])
    labels = [plain_label(label) for label in table[column(names, LABELS, field, "labels")]]
    split = next((name for name in names if str(name).lower() == _SPLIT), None)
    wrong = next((number for number, path in enumerate(paths) if not isinstance(path, (str, Path))), None)
    if wrong is not None:
        raise UserError(f"{field}: row {wrong} has no path of a file, but {type(paths[wrong]).__name__}")
    splits = None if split is None else [str(name) for name in table[split]]
    return _checked(Listing([folder / user_path(str(path), field) for path in paths], labels, splits), field)


def from_pairs(pairs: Sequence[Any], field: str) -> Listing:
    """Return the listing in a list of (path, label). Raises UserError."""
    for number, pair in enumerate(pairs):
        if isinstance(pair, (str, Mapping)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise UserError(f"{field}[{number}]: must be a pair of a path and a label")
        if not isinstance(pair[0], (str, Path)):
            raise UserError(
                f"{field}[{number}]: must begin with the path of an image, not with {type(pair[0]).__name__}"
            )
    paths = [user_path(str(path), field) for path, _ in pairs]
    return _checked(Listing(paths, [plain_label(label) for _, label in pairs]), field)


def _checked(listing: Listing, field: str) -> Listing:
    """Return a listing whose files are there. Raises UserError."""
    if not listing.paths:
        raise UserError(f"{field}: lists no images")
    missing = [path for path in listing.paths if not path.exists()]
    if missing:
        more = f", nor are {len(missing) - 1:,} more" if missing[1:] else ""
        raise UserError(f"{field}: {missing[0]} is not there{more}")
    empty = next((number for number, label in enumerate(listing.labels) if label in ("", None) or label != label), None)
    if empty is not None:
        raise UserError(f"{field}: {listing.paths[empty]} has no label")
    return listing


def plain_label(label: Any) -> Any:
    """Return a label as a plain value of Python: NumPy's and others' numbers have item()."""
    item = getattr(label, "item", None)
    try:
        return item() if callable(item) else label
    except (ValueError, RuntimeError):  # it holds several numbers
        return label
