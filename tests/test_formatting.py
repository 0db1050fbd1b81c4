"""Numbers, durations and curves as text for people."""

from __future__ import annotations

import pytest

from vit_dist.formatting import big, data_text, duration, loss_text, sketch, weights_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-9, "<0.1 s"),
        (0.0499, "<0.1 s"),
        (0.05, "0.1 s"),
        (0.25, "0.2 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (3660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (7_850, "7.85 k"),
        (1_797_130, "1.8 M"),
        (62_100_000, "62.1 M"),
        (17.58e9, "17.6 G"),
        (989e12, "989 T"),
    ],
)
def test_big(value: float, text: str) -> None:
    assert big(value) == text


def test_sketch_of_a_ramp() -> None:
    assert sketch([1, 2, 3, 4, 5, 6, 7, 8], width=8, height=2) == [
        "   8.0e+00 ┤    ▂▄▆█",
        "         0 ┤▂▄▆█████",
    ]
    assert sketch([0.0, 0.5e-3, 1e-3], width=72, height=4) == [
        "   1.0e-03 ┤  █",
        "           ┤  █",
        "           ┤ ██",
        "         0 ┤ ██",
    ]
    assert sketch([1.0, 0.95, 0.9, 0.05], height=1) == ["   1.0e+00 ┤██▇ "]


def test_a_column_of_a_sketch_is_the_mean_of_its_share() -> None:
    # Columns of 1, 1 and 2 values: 0, 8 and the mean of 0 and 8.
    assert sketch([0.0, 8.0, 0.0, 8.0], width=3, height=1) == ["   8.0e+00 ┤ █▄"]
    assert sketch([2.0, 4.0] * 50, width=5, height=2) == ["   3.0e+00 ┤█████", "         0 ┤█████"]
    assert [len(line) for line in sketch(range(1000))] == [12 + 72] * 8


def test_sketch_of_nothing_and_of_one() -> None:
    assert sketch([0.0, 0.0], height=2) == ["   1.0e+00 ┤  ", "         0 ┤  "]
    assert sketch([3e-4], height=3) == ["   3.0e-04 ┤█", "           ┤█", "         0 ┤█"]


def test_losses_weights_and_data_in_words() -> None:
    assert (loss_text(0.51236), loss_text("nan")) == ("0.5124", "nan")
    assert weights_text("ema") == "EMA weights"
    assert data_text(["a", "b"], 1) == "2 classes (a, b) in 1 channel"
    assert data_text(["a", "b", "c", "d"], 3) == "4 classes (a, b, c …) in 3 channels"
