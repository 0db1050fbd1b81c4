"""progress.md: the tables of scripted histories, and atomic replacement of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vit_dist.run_folder.metrics import Line, read_metrics
from vit_dist.run_folder.progress import progress_table, write_progress


def trained(update: int, loss: float | str, top1: float | None, seconds: float) -> Line:
    """Return a train line for the updates since the line before, of `seconds` each."""
    return {"kind": "train", "update": update, "loss": loss, "top1": top1, "update_seconds": seconds}


def evaluated(
    update: int, loss: float | str, top1: float, weights: str = "raw", split: str = "val", best: bool = False
) -> Line:
    values: dict[str, Any] = {"update": update, "epoch": update / 5, "split": split, "weights": weights}
    return {"kind": "eval", **values, "loss": loss, "top1": top1, "top5": None, "seconds": 9.0, "best": best}


# Two of 0.5 s and two of 0.25 s, then one of 1 s and five of 0.2 s; then one line that is not finite.
PLAIN = [
    {"kind": "start", "update": 0},
    trained(2, 2.0, 10.0, 0.5),
    trained(4, 1.0, 30.0, 0.25),
    evaluated(4, 1.25, 40.0, best=True),
    {"kind": "save", "update": 4, "path": "checkpoints/update_00000004"},
    trained(5, 0.5, 60.0, 1.0),
    trained(10, 0.2, None, 0.2),
    evaluated(10, 1.0, 40.0),
    trained(12, "nan", 5.0, 0.5),
    evaluated(12, 1.125, 45.125, best=True),
    evaluated(12, 0.1, 99.0, split="test"),
    {"kind": "stop", "update": 12, "reason": "finished"},
]
HEAD = (
    "| update | epoch | train loss | train top1 | val loss | val top1 | best | seconds |\n"
    "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)
CAPTION = "Train and seconds: since the row above. Val loss: plain cross entropy. Best so far: by top1."


def test_table_of_a_run() -> None:
    assert progress_table(PLAIN) == (
        HEAD + "| 4 | 0.80 | 1.5000 | 20.00 | 1.2500 | 40.00 | best | 1.5 |\n"
        "| 10 | 2.00 | 0.2500 |  | 1.0000 | 40.00 |  | 2.0 |\n"
        "| 12 | 2.40 |  | 5.00 | 1.1250 | 45.12 | best | 1.0 |\n"
    )


def test_a_non_finite_loss_is_shown_as_text() -> None:
    [row] = progress_table([evaluated(4, "nan", 10.0)]).splitlines()[2:]
    assert row == "| 4 | 0.80 |  |  | nan | 10.00 |  | 0.0 |"


def test_a_run_that_starts_from_another_checkpoint_counts_from_there() -> None:
    history = [{"kind": "start", "update": 27}, trained(30, 1.0, 10.0, 0.5), trained(40, 2.0, 20.0, 0.5)]
    [row] = progress_table([*history, evaluated(40, 1.0, 50.0)]).splitlines()[2:]
    assert row == "| 40 | 8.00 | 1.7692 | 17.69 | 1.0000 | 50.00 |  | 6.5 |"


def test_ema_weights_have_columns_of_their_own() -> None:
    history = [
        trained(4, 1.0, 30.0, 0.5),
        evaluated(4, 1.25, 40.0),
        evaluated(4, 2.25, 11.0, "ema", best=True),
        trained(8, 0.5, 60.0, 0.5),
        evaluated(8, 1.5, 45.0),
        evaluated(8, 1.0, 50.0, "ema"),
    ]
    head = (
        "| update | epoch | train loss | train top1 | val loss | val top1 | EMA loss | EMA top1 "
        "| best | seconds |\n" + "|" + " ---: |" * 10 + "\n"
    )
    first = "| 4 | 0.80 | 1.0000 | 30.00 | 1.2500 | 40.00 | 2.2500 | 11.00 | best | 2.0 |\n"
    second = "| 8 | 1.60 | 0.5000 | 60.00 | 1.5000 | 45.00 | 1.0000 | 50.00 | best | 2.0 |\n"
    assert progress_table(history) == head + first + second.replace("best", "")


def test_table_of_a_resumed_run_leaves_out_superseded_lines(tmp_path: Path) -> None:
    superseded = [
        trained(5, 9.0, 1.0, 9.0),
        evaluated(5, 0.001, 99.0),
        {"kind": "start", "update": 4},
    ]
    path = tmp_path / "metrics.jsonl"
    lines = [*PLAIN[:5], *superseded, *PLAIN[5:]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    history = read_metrics(path)
    assert [line["kind"] for line in history if line not in PLAIN] == ["start"]
    assert progress_table(history) == progress_table(PLAIN)


def test_before_the_first_evaluation_the_table_has_only_its_head() -> None:
    assert progress_table(PLAIN[:3]) == HEAD
    # There are no train lines before an evaluation at the start of the run.
    assert progress_table([evaluated(0, 2.5, 10.0, best=True)]) == (
        HEAD + "| 0 | 0.00 |  |  | 2.5000 | 10.00 | best | 0.0 |\n"
    )


def test_the_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my_run"
    folder.mkdir()
    write_progress(folder, PLAIN[:4], "top1")
    old = f"# my_run\n\n{CAPTION}\n\n{progress_table(PLAIN[:4])}"
    assert (folder / "progress.md").read_text(encoding="utf-8") == old
    with (folder / "progress.md").open(encoding="utf-8") as reader:
        write_progress(folder, PLAIN, "top1")
        # A reader that opened the old file reads it to its end.
        assert reader.read() == old
    new = f"# my_run\n\n{CAPTION}\n\n{progress_table(PLAIN)}"
    assert (folder / "progress.md").read_text(encoding="utf-8") == new
    assert [path.name for path in folder.iterdir()] == ["progress.md"]

    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_progress(folder, [], "top1")
    assert (folder / "progress.md").read_text(encoding="utf-8") == new


def test_images_and_captions_have_columns_of_their_own(tmp_path: Path) -> None:
    found = {"zero_shot_top1": 75.0, "mean_recall_at_1": 15.0}
    found |= {f"{way}_recall_at_1": at for way, at in (("image_to_text", 10.0), ("text_to_image", 20.0))}
    line = {name: value for name, value in evaluated(4, 1.25, 0.0, best=True).items() if name != "top1"}
    history = [trained(4, 2.0, None, 0.5), {**line, **found}]
    assert progress_table(history) == (
        "| update | epoch | train loss | val loss | val zero-shot top1 | val image→text R@1 | val text→image R@1 "
        "| best | seconds |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 4 | 0.80 | 2.0000 | 1.2500 | 75.00 | 10.00 | 20.00 | best | 2.0 |\n"
    )
    write_progress(tmp_path, history, "zero_shot_top1")
    assert "Val loss: as in training, without augmentation." in (tmp_path / "progress.md").read_text()
