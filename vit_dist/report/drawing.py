"""How pictures look: one figure, written as a PNG and as an SVG whose colours follow the page's."""

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

from vit_dist.files import replacing

INK, FAINT = "#1c2128", "#8b949e"
BLUE, ORANGE, GREEN, RED, PURPLE = "#0969da", "#bc4c00", "#1a7f37", "#cf222e", "#8250df"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED)
# What the page's style sheet calls them.
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


def new_figure(width: float = 4.8, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def save_png(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Replaces a PNG in one step. Raises OSError."""
    with replacing(path) as hidden, _drawing(_STYLE):
        figure.savefig(hidden, dpi=dpi, format="png", facecolor="white")


def short(text: str, length: int = 22) -> str:
    """A name cut in its middle to a length: the ends tell names apart."""
    head = (length - 1) // 2
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - length + 1 + head :]}"


def plain(text: str) -> str:
    """A name as it is: Matplotlib takes dollars for mathematics and hides what begins with an underscore."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


@contextlib.contextmanager
def _drawing(style: Any) -> Iterator[None]:
    """In a style; a glyph that its font lacks is drawn as a box, and no more is said of it."""
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page: as wide as its place, its colours the page's. name: what it shows."""
    text = io.StringIO()
    with _drawing({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg class="chart" role="img" aria-label="{name}" viewBox="\1">', svg
    )
    prefix = re.sub(r"\W", "_", name)
    svg = re.sub(r"<[^>]+>", lambda tag: _of_the_page(tag[0], prefix), svg)
    return svg.replace("xlink:href", "href")


def _of_the_page(tag: str, prefix: str) -> str:
    """A tag whose ids do not meet those of another picture, with the page's colours and letters."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", tag)
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return re.sub(r"font: (\d+)px [^;\"]*", r"font: \1px system-ui, sans-serif", tag)
