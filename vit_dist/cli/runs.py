"""The `runs` command: a table of the runs in a folder."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vit_dist.cli.arguments import parse_arguments
from vit_dist.cli.runs_table import Row, table_lines
from vit_dist.config.recipe import parse_yaml
from vit_dist.config.schema import all_options
from vit_dist.errors import UserError, nearest, one_line
from vit_dist.files import check_output_path, user_path, write_text
from vit_dist.formatting import spreadsheet_cell
from vit_dist.report.differences import changed_fields, data_names, same_images
from vit_dist.report.measures import run_figures
from vit_dist.run_folder.finding import run_folders
from vit_dist.run_folder.record import read_run


def runs(words: Sequence[str]) -> int:
    """Run the command and return its exit code. Raises UserError."""
    arguments = parse_arguments("runs", words)
    names, flags = arguments.positionals, arguments.flags
    place = user_path(names[0], "runs") if names and (Path(names[0]).is_dir() or "/" in names[0]) else None
    list_runs(
        place,
        names if place is None else names[1:],
        sort=flags.get("--sort", "when"),
        state=flags.get("--state", ""),
        where=flags.get("--where", ""),
        out=flags.get("--csv", ""),
    )
    return 0


def list_runs(
    place: Path | None,
    words: Sequence[str] = (),
    *,
    sort: str = "when",
    state: str = "",
    where: str = "",
    out: str = "",
) -> None:
    """Print the runs in a folder as a table, or write them as CSV.

    place: runs/ if it is None. words: that a run's name must have. sort: a key of `SORTS`. state: as running; empty for
    all. where: conditions as `model.name=vit_tiny,optimizer.lr=1e-3`. out: a file for CSV, or - for standard output.
    Raises UserError.
    """
    conditions = _conditions(where)
    if place is not None and not place.is_dir():
        raise UserError(f"runs: {place}: {'is a file' if place.exists() else 'there is no such folder'}: name a folder")
    place = place or Path("runs")
    folders = list(run_folders(place))
    rows = [_read(folder, _name(folder, place)) for folder in folders]
    rows = [row for row in rows if _is_meant(row, words, state, conditions)]
    if not rows:
        nothing = f"none of its {len(folders)} runs has these words and values" if folders else "no runs are in it yet"
        todo = "" if folders else ": vit-dist train makes them; vit-dist train --data.root FOLDER, of your images"
        print(f"{place}: {nothing}{todo}", file=sys.stderr)
        return
    rows = sorted(_compared(rows), key=SORTS[sort])
    if out:
        _write_csv(rows, out)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(table_lines(rows, width)))


def _name(folder: Path, place: Path) -> str:
    return folder.relative_to(place).as_posix() if folder != place else folder.resolve().name


def _read(folder: Path, name: str) -> Row:
    """Read a run; one that cannot be read is a row too."""
    try:
        run = read_run(folder, images=False)
        return Row(name, run, run_figures(run))
    except UserError as error:
        problem = one_line(error).removeprefix(f"{folder}").lstrip("/: ")
        return Row(name, None, None, problem=f"unreadable: {problem}")
    except Exception as error:  # a damaged file may hold anything: the other runs are shown all the same
        return Row(name, None, None, problem=f"unreadable: {type(error).__name__}: {one_line(error, 100)}")


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, oldest first, with the names of their data, and what differs among runs on the same images."""
    rows = sorted(rows, key=lambda row: (row.when, row.name))
    runs = [row.run for row in rows if row.run is not None]
    names = data_names(runs)
    changed: dict[Path, str] = {}
    for run in runs:
        if run.folder not in changed:
            group = [other for other in runs if same_images(run, other)]
            fields = changed_fields(group, without=("model.name",))
            for number, each in enumerate(group):
                changed[each.folder] = ", ".join(f"{name} {values[number]}" for name, values in fields.items())
    named = iter(names)
    return [
        row if row.run is None else Row(row.name, row.run, row.figures, next(named), changed[row.run.folder])
        for row in rows
    ]


def _conditions(where: str) -> dict[str, str]:
    """Return field → value of `--where`. Raises UserError."""
    known = [name for name, _ in all_options()]
    conditions: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in where.split(","))):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals:
            raise UserError(f"--where: {part}: write it as FIELD=VALUE, as in model.name=vit_tiny")
        if name not in known:
            raise UserError(f"--where: {name}: no such field{nearest(name, known)}")
        conditions[name] = value
    return conditions


def _is_meant(row: Row, words: Sequence[str], state: str, conditions: dict[str, str]) -> bool:
    """Return whether a run has the words in its name, the state and the values in its config."""
    if not all(word in row.name for word in words):
        return False
    if row.run is None:
        return not state and not conditions
    if state and row.run.state_word != state:
        return False
    fields = row.run.config.fields() if conditions else {}
    return all(_is_value(fields[name], text) for name, text in conditions.items())


def _is_value(value: Any, text: str) -> bool:
    """Return whether a text, as typed, is a value of the config."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(text) == value
    return text == str(value) or bool(parse_yaml(text, "--where") == value)


def _metric(row: Row) -> tuple[bool, str, float]:
    """Return the key that sorts by the best evaluation: the same metrics together, the best first."""
    best = row.figures.best if row.figures else None
    if best is None:
        return True, "", 0.0
    value = float(best["value"])
    value = value if best["metric"].endswith("loss") else -value
    return False, str(best["metric"]), math.inf if math.isnan(value) else value


def _falling(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0.0)


SORTS: dict[str, Callable[[Row], Any]] = {
    "when": lambda row: (-row.when, row.name),
    "name": lambda row: row.name,
    "data": lambda row: (row.data, _metric(row)),
    "model": lambda row: (row.run.config.model.name if row.run else "", _metric(row)),
    "best": _metric,
    "test": lambda row: _falling(row.figures.test_top1 if row.figures else None),
    "seconds": lambda row: _falling(row.figures.total_seconds if row.figures else None),
    "epochs": lambda row: _falling(row.figures.epochs if row.figures else None),
    "state": lambda row: (row.run.state_word if row.run else "unreadable", -row.when),
}


def _write_csv(rows: Sequence[Row], name: str) -> None:
    """Write the runs as CSV to a file, or for - to standard output. Raises UserError."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["name", "folder", "data", "model", "changed", "metric", "best", "best_update", "test_top1", "test_low"]
    head += ["test_high", "epochs", "updates", "planned_updates", "seconds", "state", "when", "problem"]
    writer.writerow(head)
    writer.writerows([spreadsheet_cell(cell) for cell in _csv_cells(row)] for row in rows)
    if name == "-":
        print(text.getvalue(), end="")
        return
    path = user_path(name, "--csv")
    check_output_path(path, "--csv")
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UserError(f"--csv: {path} cannot be written: {error.strerror}") from None
    print(path)


def _csv_cells(row: Row) -> list[str]:
    run, figures = row.run, row.figures
    if run is None or figures is None:
        return [row.name, *[""] * 16, row.problem]
    best = figures.best or {}
    low, high = figures.test_interval or (None, None)
    values = [row.name, run.folder, row.data, run.config.model.name, row.changed, best.get("metric"), best.get("value")]
    values += [best.get("update"), figures.test_top1, low, high, figures.epochs, figures.updates]
    values += [figures.planned_updates, round(figures.total_seconds, 3), run.state_word]
    values.append(time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(row.when)) if row.when else None)
    return ["" if value is None else str(value) for value in [*values, "; ".join(run.problems)]]
