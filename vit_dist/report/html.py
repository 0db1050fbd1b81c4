"""Pieces of a page that opens from the disk: nothing in it is fetched from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from vit_dist.report.drawing import short
from vit_dist.report.grids import Tile
from vit_dist.run_folder.predictions import Pixels

_STYLE = Path(__file__).with_name("style.css")
_SMALL = 64


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    style, body = _STYLE.read_text(encoding="utf-8"), "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Without it a browser asks the server, or the disk, for one.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head><body>\n{body}\n</body></html>\n"
    )


def figures(values: Mapping[str, str]) -> str:
    """The numbers that matter, large: what they are → their text."""
    cells = (f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items())
    return f'<div class="figures">{"".join(cells)}</div>'


def charts(pictures: Mapping[str, str]) -> str:
    """Captions → SVG elements, side by side where there is room."""
    cells = (f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in pictures.items())
    return f'<div class="charts">{"".join(cells)}</div>'


def table(rows: Sequence[Sequence[str]], *, text: Iterable[int] = ()) -> str:
    """The first row is the head; columns in `text` are of words and may wrap."""
    words = set(text)

    def cells(row: Sequence[str], kind: str) -> str:
        marks = (' class="text"' if column in words else "" for column in range(len(row)))
        return "".join(f"<{kind}{mark}>{escape(cell)}</{kind}>" for cell, mark in zip(row, marks, strict=True))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows[1:])
    return (
        f'<div class="scroll"><table><thead><tr>{cells(rows[0], "th")}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def confusion_table(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Rows are the true classes, columns what they were taken for; each cell as dark as its share of the row."""
    long = any(len(name) > 4 for name in classes)
    kind = ' class="upright"' if long else ""
    named = [f'<span title="{escape(name, quote=True)}">{escape(short(name, 14))}</span>' for name in classes]
    head = "".join(f"<th{kind}>{name}</th>" for name in named)
    rows = []
    for number, (name, row) in enumerate(zip(named, counts, strict=True)):
        total = max(sum(row), 1)
        cells = "".join(_cell(count, total, right=column == number) for column, count in enumerate(row))
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    return (
        '<div class="scroll"><table class="confusion"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(count: int, total: int, *, right: bool) -> str:
    kind = "right" if right else "wrong" if count else "none"
    dark = " dark" if right and 2 * count > total else ""
    return f'<td class="{kind}{dark}" style="--share:{100 * count / total:.2f}">{count or ""}</td>'


def tiles(given: Iterable[Tile]) -> str:
    """Pictures with what is said of them."""
    cells = []
    for tile in given:
        kind = {True: "right", False: "wrong", None: ""}[tile.right]
        truth = f"<br>is {escape(tile.truth)}" if tile.right is False else ""
        small = ' class="small"' if tile.pixels.shape[-1] < _SMALL else ""
        cells.append(
            f'<figure class="{kind}"><img{small} alt="{escape(tile.said, quote=True)}" src="{_embedded(tile.pixels)}">'
            f"<figcaption>{escape(tile.said)}{truth}</figcaption></figure>"
        )
    return f'<div class="tiles">{"".join(cells)}</div>'


def folded(title: str, text: str) -> str:
    """Preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _embedded(pixels: Pixels) -> str:
    """A picture as a data URI: PNG where small, JPEG where large."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    kind = "png" if pixels.shape[-1] < _SMALL else "jpeg"
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
