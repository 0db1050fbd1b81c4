"""The look of pictures: a figure written as PNG, and as SVG in the colours of the page."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_dist.errors import visible
from vit_dist.files import replacing

INK, FAINT = "#1c2128", "#8b949e"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0969da", "#bc4c00", "#1a7f37", "#cf222e", "#8250df"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED)
# Their names in the page's style sheet.
_VARIABLES = {INK: "ink", FAINT: "faint", BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", PURPLE: "purple"}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "path.simplify": True,
}


def new_figure(width: float = 5.4, height: float = 2.9) -> tuple[Figure, Axes]:
    """Return a figure, in inches, and its axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def save_png(figure: Figure, path: Path, dpi: int = 150, title: str = "") -> None:
    """Write a PNG atomically, with a title in its metadata if there is one. Raises OSError."""
    with replacing(path) as hidden, _drawing(_STYLE):
        metadata = {"Title": title} if title else None
        figure.savefig(hidden, dpi=dpi, format="png", facecolor="white", metadata=metadata)


def short(text: str, length: int = 22) -> str:
    """Cut a name in its middle to a length, since the ends tell names apart."""
    head = (length - 1) // 2
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - length + 1 + head :]}"


def literal(text: str) -> str:
    """Protect a name from Matplotlib, which takes dollars for mathematics and hides what begins with an underscore."""
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


@contextlib.contextmanager
def _drawing(style: Any) -> Iterator[None]:
    """Draw in a style, without warnings of glyphs that the font lacks: they are drawn as boxes."""
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def to_svg(figure: Figure, name: str, label: str = "") -> str:
    """Return the figure as an SVG element, as wide as its place and in the page's colours.

    name: of its own on the page. label: what a screen reader says of it, `name` by default.
    """
    text = io.StringIO()
    with _drawing({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg class="chart" role="img" aria-label="{label or name}" viewBox="\1">',
        svg,
    )
    prefix = re.sub(r"\W", "_", name)
    svg = re.sub(r"<[^>]+>", lambda tag: _adapt_tag(tag[0], prefix), svg)
    return svg.replace("xlink:href", "href")


def _adapt_tag(tag: str, prefix: str) -> str:
    """Make a tag's ids unique to its picture, and give it the page's colours and font."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", tag)
