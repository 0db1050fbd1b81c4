"""Read data.json, what a run keeps of its data: classes, images of each in each split, sizes, what was left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.errors import UserError
from vit_dist.files import read_json_or_empty
from vit_dist.plan.keys import Ints
from vit_dist.run_folder.lines import is_count

FACTS = "data.json"


@dataclass(frozen=True)
class DataFacts:
    """The facts of a run's data. counts: split → images of each class, int64 [classes], train among them.

    sizes: smallest, median and largest side in pixels; None if they are not known.
    """

    classes: list[str]
    counts: dict[str, Ints]
    sizes: tuple[int, int, int] | None

    @property
    def totals(self) -> dict[str, int]:
        """The images of each split."""
        return {split: int(counts.sum()) for split, counts in self.counts.items()}


def read_data_facts(path: Path) -> DataFacts | None:
    """Read a data.json; None if there is none, as in runs of earlier versions. Raises UserError if it is damaged."""
    if not path.is_file():
        return None
    content = read_json_or_empty(path)
    classes, counts = content.get("classes"), content.get("counts")
    if not (isinstance(classes, list) and isinstance(counts, dict) and _are_counts(counts, classes)):
        raise UserError(f"{path}: is damaged: what it says of the data is left out")
    arrays = {split: np.asarray([each[name] for name in classes], np.int64) for split, each in counts.items()}
    return DataFacts(classes, arrays, _sides(content.get("sizes")))


def _sides(sizes: Any) -> tuple[int, int, int] | None:
    if not isinstance(sizes, dict) or not all(is_count(sizes.get(name)) for name in ("smallest", "median", "largest")):
        return None
    return sizes["smallest"], sizes["median"], sizes["largest"]


def _are_counts(counts: dict[str, Any], classes: list[Any]) -> bool:
    """Return whether the classes are names, and each split, train among them, has a count of each."""
    if not classes or not all(isinstance(name, str) for name in classes) or "train" not in counts:
        return False
    return all(isinstance(each, dict) and all(is_count(each.get(name)) for name in classes) for each in counts.values())
