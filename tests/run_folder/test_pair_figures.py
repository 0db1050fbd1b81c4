"""The figures of images and captions: which lines are whole, what is shown of them."""

from __future__ import annotations

from typing import Any

import pytest

from vit_dist.run_folder.lines import is_whole
from vit_dist.run_folder.pair_figures import PAIR_FIGURES, figures_text, headlines, is_of_pairs, top1_of
from vit_dist.run_folder.summary import is_sound

LINE: dict[str, Any] = {
    **{"kind": "eval", "time": 1.0, "epoch": 1.0, "split": "val", "weights": "raw", "weights_update": 3, "loss": 2.0},
    **{"seen": 20, "seconds": 1.0, "best": False},
    **{name: 10.0 + number for number, name in enumerate(PAIR_FIGURES)},
}


def test_a_line_with_all_recalls_is_whole() -> None:
    assert is_whole(LINE)
    assert is_whole({**LINE, "image_to_text_recall_at_10": None})  # of ten captions all are among the first ten
    assert is_whole({name: value for name, value in LINE.items() if "zero_shot" not in name})


@pytest.mark.parametrize(
    ("name", "value"),
    [("text_to_image_recall_at_5", "high"), ("image_to_text_recall_at_1", 101.0), ("mean_recall_at_1", True)],
)
def test_a_damaged_figure_is_none(name: str, value: Any) -> None:
    assert not is_whole({**LINE, name: value})
    if name != "mean_recall_at_1":  # by which such a line is known
        assert not is_whole({key: each for key, each in LINE.items() if key != name})


def test_the_accuracy_of_a_line_is_zero_shot() -> None:
    assert (top1_of(LINE), top1_of({"top1": 3}), top1_of({"mean_recall_at_1": 3.0})) == (10.0, 3.0, None)
    assert is_of_pairs(LINE)
    assert not is_of_pairs({"top1": 3})
    assert headlines([]) == headlines([{"top1": 3}]) == {"top1": "top1"}
    assert list(headlines([LINE])) == ["zero_shot_top1", "image_to_text_recall_at_1", "text_to_image_recall_at_1"]


def test_figures_in_words() -> None:
    assert figures_text({**LINE, "image_to_text_recall_at_10": None}) == (
        "zero-shot top1 10.00 %, top5 11.00 %; image→text R@1 12.00 %, R@5 13.00 %; "
        "text→image R@1 15.00 %, R@5 16.00 %, R@10 17.00 %"
    )


def test_a_summary_with_a_figure_that_is_no_number_is_damaged() -> None:
    assert is_sound({"test": {"loss": 1.0, "mean_recall_at_1": 3.0}})
    assert not is_sound({"test": {"loss": 1.0, "mean_recall_at_1": "3"}})
