"""The prediction for an image, and how it is written: as a table, JSON lines or CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from vit_dist.errors import visible
from vit_dist.files import json_number
from vit_dist.formatting import json_line, spreadsheet_cell

FORMATS = ("table", "jsonl", "csv")

_WIDEST_NAME, _WIDEST_CLASS = 60, 24


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image: the likeliest classes with their probabilities, best first; or an error.

    label: its true class, if it is known; right: whether that is the likeliest (two classes may have one name).
    """

    image: str
    top: tuple[tuple[str, float], ...] = ()
    label: str | None = None
    right: bool | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        known = {} if self.label is None else {"label": self.label, "right": self.right}
        top = [{"class": name, "probability": json_number(round(probability, 6))} for name, probability in self.top]
        return {"image": self.image, **known, "top": top}


class PredictionWriter:
    """Writes predictions one by one; the names of images and classes set the widths of a table."""

    def __init__(
        self, file: TextIO, format: str, *, top: int, labelled: bool, images: Sequence[str], classes: Sequence[str]
    ) -> None:
        """Write the head. format: table, jsonl or csv. labelled: whether true classes are known."""
        assert format in FORMATS
        self.file, self.format, self.labelled, self.top = file, format, labelled, top
        self.widths = (
            min(max(len(visible(name)) for name in (*images, "image")), _WIDEST_NAME),
            min(max(len(visible(name)) for name in (*classes, "label")), _WIDEST_CLASS),
        )
        if format == "csv":
            pairs = [name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}")]
            csv.writer(file).writerow(["image", *(["label", "right"] if labelled else []), *pairs, "error"])
        elif format == "table":
            self._table_row("image", "label", [f"{i}." for i in range(1, top + 1)], "")

    def write(self, prediction: ImagePrediction) -> None:
        """Write one row."""
        if self.format == "jsonl":
            self.file.write(json_line(prediction.to_dict()) + "\n")
        elif self.format == "csv":
            known = [prediction.label or "", "" if prediction.right is None else str(prediction.right).lower()]
            pairs = [cell for name, probability in prediction.top for cell in (name, f"{probability:.6f}")]
            pairs += [""] * (2 * self.top - len(pairs))
            row = [prediction.image, *(known if self.labelled else []), *pairs, prediction.error or ""]
            csv.writer(self.file).writerow(map(spreadsheet_cell, row))
        elif prediction.error is not None:
            self.file.write(f"{visible(prediction.image):<{self.widths[0]}}  {visible(prediction.error)}\n")
        else:
            cells = [
                f"{visible(name):<{self.widths[1]}.{self.widths[1]}} {probability:6.1%}"
                for name, probability in prediction.top
            ]
            self._table_row(
                visible(prediction.image),
                visible(prediction.label or ""),
                cells,
                "  wrong" if prediction.right is False else "",
            )

    def _table_row(self, image: str, label: str, cells: Sequence[str], mark: str) -> None:
        name, known = self.widths
        image = image if len(image) <= name else "…" + image[1 - name :]
        labels = [f"{label:<{known}.{known}}"] if self.labelled else []
        row = [f"{image:<{name}}", *labels, *(f"{cell:<{known + 7}}" for cell in cells)]
        self.file.write(("  ".join(row) + mark).rstrip() + "\n")
