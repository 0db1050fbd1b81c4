"""Format numbers, durations, tables and curves as text for people, and names for the place where they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vit_dist.errors import HIDDEN, visible, visible_lines

_BLOCKS = " ▁▂▃▄▅▆▇█"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of equally many cells as lines: the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(text: str) -> str:
    """Return a text as Markdown shows it literally, on one line, in a paragraph, heading or cell of a table."""
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", lambda match: f"\\{match[0]}", visible(text))


def code_span(text: str) -> str:
    """Return a text as code in Markdown: between more backticks than it has in a row."""
    text = visible(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def json_line(value: Any) -> str:
    """Return JSON on one line with letters of all scripts as they are, and what `visible` replaces escaped."""
    return HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def spreadsheet_cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula: one that begins like it gets an apostrophe."""
    text = visible_lines(text)
    return f"'{text}" if text.lstrip("\n").startswith(tuple("=+-@＝＋－＠")) else text


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds as text, with tenths below ten seconds."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "<0.1 s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def size_text(size: float) -> str:
    """Return bytes as text: 812 KiB, 1.5 GiB."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"


def big(value: float) -> str:
    """Return a count to three digits with its unit: 1.8 M, 62.1 M, 17.6 G."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def loss_text(value: float | str) -> str:
    """Return a loss to four decimals; the text that stands for a non-finite one in JSON as it is."""
    return f"{value:.4f}" if isinstance(value, float) else value


def weights_text(weights: str) -> str:
    """Return the name of a kind of weights (raw, ema) for people: raw ones are a run's weights, if nothing is said."""
    return "EMA weights" if weights == "ema" else "weights"


def data_text(classes: Sequence[str], channels: int) -> str:
    """Return the classes and channels of data in words: 10 classes (0, 1, 2 …) in 1 channel."""
    more = " …" if len(classes) > 3 else ""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{more}) in {channels} channel{'s' if channels > 1 else ''}"


def sketch(values: Sequence[float], width: int = 72, height: int = 8) -> list[str]:
    """Return a curve drawn as text, from 0 to the highest value; each column is the mean of its share of the values."""
    columns = min(width, len(values))
    edges = [len(values) * i // columns for i in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    top = max(means) or 1.0
    eighths = [round(8 * height * max(0.0, mean) / top) for mean in means]
    rows = []
    for row in reversed(range(height)):
        label = f"{top:.1e}" if row == height - 1 else "0" if row == 0 else ""
        rows.append(f"  {label:>8} ┤" + "".join(_BLOCKS[min(8, max(0, level - 8 * row))] for level in eighths))
    return rows
