"""Tables of image files and labels on the disk: CSV, TSV, JSON lines, Parquet. Only the columns needed are kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_dist.data.sources.listing import CAPTIONS, LABELS, PATHS, Listing, Rows, choose_columns, made, usual_column
from vit_dist.data.sources.names import JSON_LINES, PARQUET, TEXT, ending, is_image
from vit_dist.errors import UserError, one_line

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
_BATCH = 65_536


def read_table(path: Path, field: str, chosen: Mapping[str, str]) -> Listing:
    """Read a table: columns of paths and labels, and of splits if there is one; paths are relative to its folder.

    chosen: `data.columns`. Raises UserError that names file, row and column.
    """
    end = ending(path.name)
    if end in PARQUET:
        return _read_parquet(path, field, chosen)
    kind = "JSON lines" if end in JSON_LINES else "a CSV file"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            read = _read_json_lines if end in JSON_LINES else _read_text
            return read(file, path, field, chosen)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{field}: {path} cannot be read as {kind}: {one_line(error)}: write it as UTF-8") from None


class _Cells:
    """The cells of the columns that are needed, added row by row; equal labels and splits are kept once."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self.lists: dict[str, list[Any]] = {what: [] for what in columns}
        self.blank: list[int] = []
        self._kept: dict[str, str] = {}

    def add(self, what: str, value: Any) -> None:
        """Add a cell."""
        if what not in ("path", "caption") and isinstance(value, str):
            value = self._kept.setdefault(value, value)
        self.lists[what].append(value)

    def skip(self) -> None:
        """Note that an empty row stands here."""
        self.blank.append(len(self.lists["path"]))

    def listing(self, path: Path, field: str, first: int, notes: tuple[str, ...] = ()) -> Listing:
        """Return the listing. first: the number of its first row. Raises UserError."""
        rows = Rows(f"{field}: {path}", self.columns, first, self.blank)
        lists = self.lists
        return made(lists, rows, path.parent, notes)


def _read_text(file: Any, path: Path, field: str, chosen: Mapping[str, str]) -> Listing:
    """Read a table of text with a head; what separates its cells is told by the head."""
    head = file.readline()
    separator = _separator(head, path, chosen)
    names = next(csv.reader([head], delimiter=separator), [])
    if any(map(is_image, names)):
        raise UserError(
            f"{field}: {path}, row 1: must name the columns, as path,{_second(chosen)}; it has {one_line(head)}"
        )
    if not names:
        raise UserError(f"{field}: {path} lists no images")
    columns = choose_columns(names, chosen, f"{field}: {path}", str(path))
    cells, places = _Cells(columns), [(what, names.index(name)) for what, name in columns.items()]
    file.seek(0)
    reader = csv.reader(file, delimiter=separator)
    next(reader)
    for row in reader:
        if len(row) == len(names):
            for what, place in places:
                cells.add(what, row[place])
        elif row:
            number = len(cells.lists["path"]) + len(cells.blank) + 2
            raise UserError(
                f"{field}: {path}, row {number}: must have {len(names)} cells, as its head has, not {len(row)}"
            )
        else:
            cells.skip()
    said = separator != TEXT.get(ending(path.name), ",")
    notes = (f"{field}: {path.name} is read as separated by {_SEPARATORS[separator]}",) if said else ()
    return cells.listing(path, field, 2, notes)


def _separator(head: str, path: Path, chosen: Mapping[str, str]) -> str:
    """Return what separates the cells: that which finds the columns in the head, else most columns."""
    usual = TEXT.get(ending(path.name), ",")

    def found(separator: str) -> tuple[int, int, bool]:
        names = next(csv.reader([head], delimiter=separator), [])
        wanted = [(chosen.get("path"), PATHS), (chosen.get("label"), LABELS)]
        wanted += [(chosen["caption"], CAPTIONS)] if "caption" in chosen else []
        columns = [name in names if name else usual_column(names, known) is not None for name, known in wanted]
        return sum(columns), len(names), separator == usual

    return max(_SEPARATORS, key=found)


def _read_json_lines(file: Any, path: Path, field: str, chosen: Mapping[str, str]) -> Listing:
    """Read a table of one JSON object a line; the first says the columns."""
    cells: _Cells | None = None
    blank = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            blank += cells is None
            if cells:
                cells.skip()
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = one_line(error) if isinstance(error, ValueError) else "it is nested too deeply"
            raise UserError(f"{field}: {path}, row {number}: is no JSON: {why}") from None
        if not isinstance(row, dict):
            example = json.dumps({"path": "cat/1.jpg", _second(chosen): "cat"})
            raise UserError(f"{field}: {path}, row {number}: must be an object, as {example}, alone on its line")
        if cells is None:
            cells = _Cells(choose_columns(list(row), chosen, f"{field}: {path}", str(path)))
        for what, name in cells.columns.items():
            if name not in row:
                has = ", ".join(row) or "none"
                raise UserError(f"{field}: {path}, row {number}: has no column {name}, as row 1 has; it has {has}")
            cells.add(what, row[name])
    if cells is None:
        raise UserError(f"{field}: {path} lists no images")
    return cells.listing(path, field, blank + 1)


def _second(chosen: Mapping[str, str]) -> str:
    """Return the column that a table must have beside the paths."""
    return "caption" if "caption" in chosen else "label"


def _read_parquet(path: Path, field: str, chosen: Mapping[str, str]) -> Listing:
    """Read the columns that are needed of a Parquet file, a part at a time."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{field}: {path} is read by pyarrow, which is not installed: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = choose_columns(names, chosen, f"{field}: {path}", str(path))
            kind = str(file.schema_arrow.field(columns["path"]).type)
            if kind.startswith(("struct", "binary", "large_binary")):
                raise UserError(
                    f"{field}: {path}, column {columns['path']}: holds images, not paths: give the folder {path.parent}"
                )
            cells = _Cells(columns)
            for batch in file.iter_batches(_BATCH, columns=list(columns.values())):
                for what, values in _columns(batch, columns):
                    for value in values:
                        cells.add(what, value)
    except (OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{field}: {path} cannot be read as Parquet: {one_line(error)}") from None
    return cells.listing(path, field, 1)


def _columns(batch: Any, columns: Mapping[str, str]) -> Iterator[tuple[str, list[Any]]]:
    for what, name in columns.items():
        yield what, batch.column(batch.schema.get_field_index(name)).to_pylist()
