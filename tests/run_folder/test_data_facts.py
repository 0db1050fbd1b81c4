"""What a run keeps of its data, and files of it that are damaged or of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vit_dist.errors import UserError
from vit_dist.run_folder.data_facts import FACTS, read_data_facts

SIZES = {"sampled": 4, "smallest": 28, "median": 32, "largest": 500, "grey": 0.0}
WHOLE: dict[str, Any] = {
    "classes": ["ant", "bee"],
    "counts": {"train": {"ant": 3, "bee": 40}, "val": {"ant": 0, "bee": 1}},
    "sizes": SIZES,
}


def write(folder: Path, content: Any) -> Path:
    path = folder / FACTS
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_counts_are_in_the_order_of_the_classes(tmp_path: Path) -> None:
    facts = read_data_facts(write(tmp_path, {**WHOLE, "classes": ["bee", "ant"]}))
    assert facts is not None
    assert facts.classes == ["bee", "ant"]
    assert {split: counts.tolist() for split, counts in facts.counts.items()} == {"train": [40, 3], "val": [1, 0]}
    assert facts.totals == {"train": 43, "val": 1}
    assert facts.sizes == (28, 32, 500)


@pytest.mark.parametrize("sizes", [None, {}, 5, {**SIZES, "median": "32"}, {**SIZES, "largest": -1}])
def test_sizes_may_be_unknown(sizes: Any, tmp_path: Path) -> None:
    facts = read_data_facts(write(tmp_path, {**WHOLE, "sizes": sizes}))
    assert facts is not None
    assert facts.sizes is None
    assert facts.totals["train"] == 43


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []}, {"classes": "ab"}, {"classes": [1, 2]}, {"counts": None}, {"counts": {}},
        {"counts": {"val": {"ant": 1, "bee": 1}}}, {"counts": {"train": {"ant": 1}}},
        {"counts": {"train": {"ant": 1, "bee": "2"}}}, {"counts": {"train": {"ant": 1, "bee": -2}}},
        {"counts": {"train": [1, 2]}},
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, {**WHOLE, **change})
    with pytest.raises(UserError) as caught:
        read_data_facts(path)
    assert str(caught.value) == f"{path}: is damaged: what it says of the data is left out"


def test_a_missing_file_says_nothing_and_one_of_another_type_is_damaged(tmp_path: Path) -> None:
    assert read_data_facts(tmp_path / FACTS) is None
    with pytest.raises(UserError):
        read_data_facts(write(tmp_path, [1, 2]))
