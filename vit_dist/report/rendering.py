"""Render the pages of a report from their templates, with every text escaped."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vit_dist.errors import visible_lines
from vit_dist.report.drawing import short
from vit_dist.report.grids import Tile

_TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """Return a page: a template of templates/ with its values; only `Markup`, as SVG, is not escaped."""
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **values)


def macro(name: str, *values: Any, **options: Any) -> Markup:
    """Return the HTML of one macro of templates/macros.html."""
    module: Any = _environment().get_template("macros.html").module
    return Markup(getattr(module, name)(*values, **options))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible_lines(value) if type(value) is str else value,
    )
    environment.filters |= {"short": short, "data_uri": data_uri}
    return environment


def data_uri(tile: Tile) -> str:
    """Return a tile's picture as a data URI: PNG if it is small, JPEG if it is large."""
    pixels = tile.pixels
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    kind = "png" if tile.is_small else "jpeg"
    content = io.BytesIO()
    image.save(content, kind, **({} if tile.is_small else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
