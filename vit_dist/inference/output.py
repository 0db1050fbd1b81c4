"""What a model said of an image, and how that is written: as a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

FORMATS = ("table", "jsonl", "csv")


_WIDEST_NAME, _WIDEST_CLASS = 60, 24


@dataclass(frozen=True)
class ImagePrediction:
    """Of one image: the likeliest classes with their probabilities, best first; or why it could not be read.

    label: its true class, where it is known; right: whether that is the likeliest (names may be of two classes).
    """

    image: str
    top: tuple[tuple[str, float], ...] = ()
    label: str | None = None
    right: bool | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        known = {} if self.label is None else {"label": self.label, "right": self.right}
        top = [{"class": name, "probability": round(share, 6)} for name, share in self.top]
        return {"image": self.image, **known, "top": top}


class PredictionWriter:
    """Writes answers one by one. form: table, jsonl or csv; the names of images and classes set a table's widths."""

    def __init__(
        self, file: TextIO, format: str, *, top: int, labelled: bool, images: Sequence[str], classes: Sequence[str]
    ) -> None:
        assert format in FORMATS
        self.file, self.format, self.labelled, self.top = file, format, labelled, top
        self.widths = (
            min(max(map(len, [*images, "image"])), _WIDEST_NAME),
            min(max(map(len, [*classes, "label"])), _WIDEST_CLASS),
        )
        if format == "csv":
            pairs = [name for i in range(1, top + 1) for name in (f"class_{i}", f"probability_{i}")]
            csv.writer(file).writerow(["image", *(["label", "right"] if labelled else []), *pairs, "error"])
        elif format == "table":
            self._table_row("image", "label", [f"{i}." for i in range(1, top + 1)], "")

    def write(self, answer: ImagePrediction) -> None:
        """One row."""
        if self.format == "jsonl":
            self.file.write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
        elif self.format == "csv":
            known = [answer.label or "", "" if answer.right is None else str(answer.right).lower()]
            pairs = [cell for name, share in answer.top for cell in (name, f"{share:.6f}")]
            pairs += [""] * (2 * self.top - len(pairs))
            csv.writer(self.file).writerow(
                [answer.image, *(known if self.labelled else []), *pairs, answer.error or ""]
            )
        elif answer.error is not None:
            self.file.write(f"{answer.image:<{self.widths[0]}}  {answer.error}\n")
        else:
            cells = [f"{name:<{self.widths[1]}.{self.widths[1]}} {share:6.1%}" for name, share in answer.top]
            self._table_row(answer.image, answer.label or "", cells, "  wrong" if answer.right is False else "")

    def _table_row(self, image: str, label: str, cells: Sequence[str], mark: str) -> None:
        name, known = self.widths
        image = image if len(image) <= name else "…" + image[1 - name :]
        labels = [f"{label:<{known}.{known}}"] if self.labelled else []
        row = [f"{image:<{name}}", *labels, *(f"{cell:<{known + 7}}" for cell in cells)]
        self.file.write(("  ".join(row) + mark).rstrip() + "\n")
