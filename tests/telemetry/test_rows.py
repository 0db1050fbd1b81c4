"""The rows of a run and the time that is left, from scripted lines of metrics."""

from __future__ import annotations

from typing import Any

import pytest

from vit_dist.config.config import Config
from vit_dist.config.fields import BatchConfig, TrainConfig
from vit_dist.config.output_fields import EvaluateConfig
from vit_dist.plan.plan import Plan
from vit_dist.telemetry.rows import MOST_ROWS, Rows, aligned_row, heading, labelled_row, waiting_text


def plan(duration: str, every: str = "1 epochs", samples: int = 100) -> Plan:
    config = Config(
        batch=BatchConfig(global_size=10, micro_size=10),
        train=TrainConfig(duration=duration),
        evaluate=EvaluateConfig(every=every),
    )
    return Plan.from_config(config, samples, 1)


def train(update: int, loss: float | str = 1.0, top1: float | None = 50.0, seconds: float = 1.0) -> dict[str, Any]:
    return {"update": update, "loss": loss, "top1": top1, "update_seconds": seconds}


def evaluation(update: int, best: bool = False, seconds: float = 2.0) -> dict[str, Any]:
    return {"update": update, "split": "val", "weights": "raw", "loss": 0.5, "top1": 75.0, "best": best,
            "seen": 20, "seconds": seconds}  # fmt: skip


def test_a_row_holds_the_means_since_the_row_before() -> None:
    rows = Rows(plan("3 epochs"), 0, {"val": 20}, ema=False)
    rows.add_train(train(4, 2.0, 10.0, 0.5))
    rows.add_train(train(10, 1.0, 60.0, 0.25))
    rows.add_evaluation(evaluation(10, best=True))
    first = rows.row(10)
    rows.add_train(train(20, "nan", None, 0.5))
    rows.add_evaluation(evaluation(20))
    second = rows.row(20)
    assert first is not None
    assert second is not None
    assert labelled_row(first) == (
        "epoch 1.0  update 10/30  train loss 1.4000  train top1 40.00 %  val loss 0.5000  val top1 75.00 %  "
        "training 3.5 s  evaluation 2.0 s  best"
    )
    assert labelled_row(second) == (
        "epoch 2.0  update 20/30  val loss 0.5000  val top1 75.00 %  training 5.0 s  evaluation 2.0 s"
    )
    assert [heading(first), aligned_row(first), aligned_row(second)] == [
        "epoch  update  train loss  train top1  val loss  val top1      training  evaluation",
        "  1.0   10/30      1.4000     40.00 %    0.5000   75.00 %         3.5 s       2.0 s  best",
        "  2.0   20/30                            0.5000   75.00 %         5.0 s       2.0 s",
    ]


def test_a_row_does_not_depend_on_which_updates_a_line_covers() -> None:
    losses, weights = [4.0, 1.0, 2.0, 8.0], [1.0, 3.0, 0.5, 0.0]  # of the last one no image counts

    def row(*lines: range) -> str:
        rows = Rows(plan("3 epochs"), 0, {"val": 20}, ema=False)
        for updates in lines:
            weight = sum(weights[update] for update in updates)
            loss = sum(weights[update] * losses[update] for update in updates) / weight if weight else "nan"
            rows.add_train({**train(updates.stop, loss, top1=loss if weight else None), "weight": weight})
        rows.add_evaluation(evaluation(4))
        cells = rows.row(4)
        assert cells is not None
        return labelled_row(cells[:4])

    mean = (4 * 1 + 1 * 3 + 2 * 0.5) / 4.5
    expected = f"epoch 0.4  update 4/30  train loss {mean:.4f}  train top1 {mean:.2f} %"
    assert row(range(4)) == row(range(1), range(1, 4)) == row(*(range(n, n + 1) for n in range(4))) == expected


@pytest.mark.parametrize(("epochs", "every"), [(100, 1), (101, 2), (250, 3), (5000, 50)])
def test_a_run_has_at_most_100_rows_and_its_last(epochs: int, every: int) -> None:
    rows = Rows(plan(f"{epochs} epochs"), 0, {"val": 20}, ema=False)
    shown = []
    for epoch in range(1, epochs + 1):
        rows.add_train(train(10 * epoch))
        rows.add_evaluation(evaluation(10 * epoch))
        if rows.row(10 * epoch) is not None:
            shown.append(epoch)
    assert len(shown) <= MOST_ROWS + 1
    assert shown == sorted({*range(every, epochs + 1, every), epochs})


def test_a_best_whose_row_is_left_out_is_named_in_the_next() -> None:
    rows = Rows(plan("200 epochs"), 0, {"val": 20}, ema=False)
    rows.add_train(train(10))
    rows.add_evaluation(evaluation(10, best=True))
    assert rows.row(10) is None
    rows.add_train(train(20, 3.0))
    rows.add_evaluation(evaluation(20))
    cells = rows.row(20)
    assert cells is not None
    assert cells[-1] == ("", "best: update 10")
    assert dict(cells)["train loss"] == "2.0000"


def test_a_run_without_val_has_a_row_an_epoch() -> None:
    rows = Rows(plan("3 epochs"), 0, {"test": 20}, ema=False)
    due = []
    for update in range(4, 31, 4):
        rows.add_train(train(update))
        if rows.row_is_due_without_val(update):
            due.append(update)
            cells = rows.row(update)
            assert cells is not None
            assert "val loss" not in dict(cells)
    assert due == [12, 20]  # 30, the end, is not among these
    assert Rows(plan("3 epochs"), 0, {"val": 20}, ema=False).row_is_due_without_val(10) is False


def test_the_time_left_counts_updates_evaluations_and_test() -> None:
    rows = Rows(plan("3 epochs"), 0, {"val": 20, "test": 50}, ema=False)
    assert rows.seconds_left(0) is None
    rows.add_train(train(5, seconds=0.3))
    # Before an evaluation: a third of an image's time in an update, 0.3 s / 10 / 3, for 3 × 20 + 50 images.
    assert rows.seconds_left(5) == pytest.approx(25 * 0.3 + 0.01 * 110)
    rows.add_evaluation(evaluation(10, seconds=4.0))  # 0.2 s an image
    assert rows.seconds_left(10) == pytest.approx(20 * 0.3 + 0.2 * (2 * 20 + 50))
    assert rows.seconds_left(30) == pytest.approx(0.2 * 50)
    assert rows.left_text(30) == "10 s left"
    assert rows.left_text(29) == "15 s left"
    twice = Rows(plan("3 epochs"), 0, {"val": 20, "test": 50}, ema=True)
    twice.add_train(train(5, seconds=0.3))
    assert twice.seconds_left(5) == pytest.approx(25 * 0.3 + 2 * 0.01 * 110)


def test_the_time_of_an_update_is_smoothed() -> None:
    rows = Rows(plan("3 epochs"), 0, {}, ema=False)
    rows.add_train(train(1, seconds=10.0))
    rows.add_train(train(2, seconds=1.0))
    assert rows.update_seconds == pytest.approx(7.3)


def test_what_updates_wait_for_is_shown_of_all_ranks() -> None:
    line = {"data_wait_fraction": 0.02}
    assert waiting_text(line) == ["data wait 2%"]
    line |= {"data_wait_fraction_min": 0.02, "data_wait_fraction_max": 0.351, "communication_fraction": 0.08}
    assert waiting_text(line) == ["data wait 2% to 35%", "communication 8%"]
    assert waiting_text({**line, "data_wait_fraction_max": 0.024, "communication_fraction": None}) == ["data wait 2%"]


def test_images_and_captions_have_columns_of_their_own() -> None:
    rows = Rows(plan("3 epochs"), 0, {"val": 20}, ema=False)
    rows.add_train(train(10, 1.5, None, 0.25))
    found = {"zero_shot_top1": 75.0, "mean_recall_at_1": 15.0}
    found |= {f"{way}_recall_at_1": at for way, at in (("image_to_text", 10.0), ("text_to_image", 20.0))}
    line = {**evaluation(10, best=True), **found}
    del line["top1"]
    rows.add_evaluation(line)
    row = rows.row(10)
    assert row is not None
    assert labelled_row(row) == (
        "epoch 1.0  update 10/30  train loss 1.5000  val loss 0.5000  val zero-shot top1 75.00 %  "
        "val image→text R@1 10.00 %  val text→image R@1 20.00 %  training 2.5 s  evaluation 2.0 s  best"
    )
    rows.add_evaluation({name: value for name, value in line.items() if name != "zero_shot_top1"})
    without = rows.row(20)
    assert without is not None
    assert "zero-shot" not in labelled_row(without)
