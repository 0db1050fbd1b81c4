"""The section on speed: machines, paces, and how far the losses of equal runs diverge, for runs written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.report.runs import finished_run, finished_run_on
from tests.run_folder.handwritten import eval_line, make_run, start_line, train_line
from vit_dist.report.comparison import write_comparison
from vit_dist.report.curves import divergence_curve
from vit_dist.report.measures import divergence, loss_divergence, run_figures, same_stream, speed_sentence
from vit_dist.report.speed import compare_speed
from vit_dist.run_folder.record import RunRecord, read_run

NAMES = ["cpu", "gpu"]
MACHINE = "1 × cpu, fp32"


def two_runs(tmp_path: Path, first: dict[str, Any] | None = None, **second: Any) -> list[RunRecord]:
    return [
        read_run(finished_run(tmp_path / "cpu", **(first or {}))),
        read_run(finished_run(tmp_path / "gpu", **second)),
    ]


def on_device(folder: Path, device: str) -> Path:
    """Write another device into the lines of a run."""
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"device": "cpu"', f'"device": "{device}"'), "utf-8")
    return folder


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes a second, in a test of text alone."""
    monkeypatch.setattr("vit_dist.report.speed._pictures", lambda *arguments: {})


@pytest.mark.usefixtures("without_pictures")
def test_runs_on_two_devices_have_a_section_of_their_own(tmp_path: Path) -> None:
    first = read_run(finished_run(tmp_path / "cpu", total_seconds=180.0))
    fast = read_run(on_device(finished_run(tmp_path / "gpu", train_seconds=1.5, total_seconds=60.0), "NVIDIA H100"))
    section = compare_speed([first, fast], NAMES, [0, 1])
    assert section.title == "CPU against GPU"
    assert section.rows == [
        ["", "cpu", "gpu"],
        ["machine", MACHINE, "1 × NVIDIA H100, fp32"],
        ["updates", "30", "30"],
        ["seconds an epoch", "1", "0.5"],
        ["training", "3.0 s", "1.5 s"],
        ["in all", "3 min 00 s", "1 min 00 s"],
        ["images/s", "480", "480"],
        ["peak memory, MiB", "1", "1"],
        ["speed, times the first", "1", "2"],
        ["minutes saved", "0.0", "2.0"],
    ]
    assert section.notes == [
        f"gpu (1 × NVIDIA H100, fp32) trains an epoch 2 times as fast as cpu ({MACHINE}): 0.5 s against 1 s.",
        "gpu and cpu have one identity: the same batches, augmentations and learning rates, update for update.",
        "The training loss of gpu is exactly that of cpu at all 3 lines.",
    ]
    third = read_run(on_device(finished_run(tmp_path / "tpu"), "TPU"))
    assert compare_speed([first, fast, third], [*NAMES, "tpu"], [0, 1, 2]).title == "Devices"


@pytest.mark.usefixtures("without_pictures")
def test_runs_of_other_configs_on_one_machine_have_figures_alone(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, optimizer__lr=1e-4)
    section = compare_speed(runs, NAMES, [0, 1])
    assert (section.title, section.notes) == ("Speed", [])
    assert [row[0] for row in section.rows][-2:] == ["images/s", "peak memory, MiB"]


def test_equal_configs_on_the_same_data_have_the_same_stream(tmp_path: Path) -> None:
    first, same = two_runs(tmp_path, {"log__every": "10 updates"}, log__every="5 updates", every=5)
    assert same_stream(first, same)
    assert not same_stream(first, read_run(finished_run(tmp_path / "seed", run__seed=7)))
    assert not same_stream(first, read_run(finished_run_on(tmp_path / "more", samples=2000)))


def test_divergence_matches_a_calculation_by_hand(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, {"losses": (4.0, 2.0, 1.0)}, losses=(4.0, 2.5, 0.9))
    result = divergence(*runs)
    assert result.subject == "the training loss"
    assert result.updates.tolist() == [10, 20, 30]
    assert result.differences.tolist() == pytest.approx([0, 0.25, 0.1])
    assert list(loss_divergence(NAMES, [result])) == [
        "The training loss of gpu differs from that of cpu by 0.0e+00, relative, at update 10, "
        "by 1.0e-01 at update 30, and by 2.5e-01 at most, at update 20."
    ]


def test_only_lines_of_the_same_updates_are_compared(tmp_path: Path) -> None:
    """A line is the mean of the updates since the line before it, so lines over other updates are not comparable."""
    lines = [start_line(0, 0.0), train_line(10, 1.0, loss=4.0), train_line(20, 2.0, loss=2.0)]
    lines.append(train_line(30, 3.0, loss=1.0))
    first = read_run(make_run(tmp_path / "one", lines))
    resumed = [start_line(0, 0.0), train_line(10, 1.0, loss=5.0), start_line(15, 5.0)]
    resumed += [train_line(20, 6.0, loss=9.0), train_line(30, 7.0, loss=0.5)]
    result = divergence(first, read_run(make_run(tmp_path / "two", resumed)))
    assert result.updates.tolist() == [10, 30]
    assert result.differences.tolist() == pytest.approx([0.25, 0.5])


def test_divergence_falls_back_to_the_validation_loss(tmp_path: Path) -> None:
    result = divergence(*two_runs(tmp_path, {"val_loss": 1.25}, losses=(3.0,) * 5, every=6, val_loss=1.0))
    assert result.subject == "the loss on val"
    assert result.updates.tolist() == [15, 30]
    assert result.differences.tolist() == pytest.approx([0, 0.2])
    [sentence] = loss_divergence(NAMES, [result])
    assert sentence.startswith("The loss on val of gpu differs from that of cpu by ")


def test_runs_without_a_common_update_have_no_divergence(tmp_path: Path) -> None:
    first = read_run(make_run(tmp_path / "one", [start_line(0, 0.0), train_line(10, 1.0)]))
    second = read_run(make_run(tmp_path / "two", [start_line(0, 0.0), train_line(7, 1.0)]))
    result = divergence(first, second)
    assert result.updates.tolist() == []
    assert list(loss_divergence(["one", "two"], [result])) == []
    _, text = write_comparison([first.folder, second.folder], tmp_path / "out")
    assert "differs from" not in text
    assert not (tmp_path / "out" / "divergence.png").exists()


@pytest.mark.parametrize(
    ("seconds", "pace", "values"),
    [
        (3.0 / 1.06, "trains an epoch 1.06 times as fast as", "0.943 s against 1 s"),
        (3.0 / 1.04, "trains an epoch as fast as", "0.962 s against 1 s"),
        (3.0 / 0.96, "trains an epoch as fast as", "1.04 s against 1 s"),
        (6.0, "needs 2 times as long for an epoch as", "2 s against 1 s"),
    ],
)
def test_paces_within_five_percent_count_as_equal(tmp_path: Path, seconds: float, pace: str, values: str) -> None:
    first, second = two_runs(tmp_path, train_seconds=seconds)
    assert speed_sentence(first, second, ("cpu", "gpu")) == f"gpu ({MACHINE}) {pace} cpu ({MACHINE}): {values}."
    empty = read_run(make_run(tmp_path / "empty", [start_line(0, 0.0)]))
    assert speed_sentence(first, empty, ("cpu", "empty")) is None


@pytest.mark.parametrize("lost", ["nan", "inf", None])
def test_a_loss_that_is_not_finite_is_stated(tmp_path: Path, lost: Any) -> None:
    for losses, update in (((4.0, 3.0, lost), 30), ((4.0, lost, lost), 20)):
        runs = two_runs(tmp_path / f"{update}", {"losses": (4.0, 2.0, 1.0)}, losses=losses)
        for first, second, names in ((*runs, NAMES), (*runs[::-1], NAMES[::-1])):
            assert list(loss_divergence(names, [divergence(first, second)])) == [
                f"The training loss of {names[1]} or {names[0]} is not finite at update {update}."
            ]


def test_equal_losses_are_stated(tmp_path: Path) -> None:
    on_train = divergence(*two_runs(tmp_path))
    assert on_train.differences.tolist() == [0, 0, 0]
    assert list(loss_divergence(NAMES, [on_train])) == [
        "The training loss of gpu is exactly that of cpu at all 3 lines."
    ]
    on_val = divergence(*two_runs(tmp_path / "val", losses=(3.0,) * 5, every=6))
    assert list(loss_divergence(NAMES, [on_val])) == ["The loss on val of gpu is exactly that of cpu at all 2 lines."]


def drawn_divergences(
    folders: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[float], list[float]]]:
    """Return the name, updates and differences of each line in the drawing of divergences; draw no other curve."""
    lines: list[tuple[str, list[float], list[float]]] = []

    def keep(divergences: Any) -> Figure:
        lines.extend((name, updates.tolist(), differences.tolist()) for name, updates, differences in divergences)
        return divergence_curve(divergences)

    monkeypatch.setattr("vit_dist.report.curves.divergence_curve", keep)
    monkeypatch.setattr("vit_dist.report.curves.comparison_curve", lambda *lines: Figure(figsize=(1, 1)))
    write_comparison(folders, out)
    assert (out / "divergence.png").exists() == bool(lines)
    assert ("divergence.png" in (out / "comparison.md").read_text(encoding="utf-8")) == bool(lines)
    return lines


def test_divergence_is_drawn_only_where_losses_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logarithmic axis has no place for 0 or for values that are not finite."""
    runs = {
        "first": finished_run(tmp_path / "first", losses=(4.0, 2.0, 1.0)),
        "same": finished_run(tmp_path / "same", losses=(4.0, 2.0, 1.0)),
        "apart": finished_run(tmp_path / "apart", losses=(4.0, 2.5, 1.5)),
        "other": finished_run(tmp_path / "other", losses=(5.0, 5.0, 5.0), optimizer__lr=7e-3),
        "lost": finished_run(tmp_path / "lost", losses=(3.0, "nan", 1.0)),
    }
    # The losses of a run of another learning rate say nothing of rounding.
    assert drawn_divergences(list(runs.values()), tmp_path / "all", monkeypatch) == [
        ("apart", [20, 30], [0.25, 0.5]),
        ("lost", [10], [0.25]),
    ]
    assert drawn_divergences([runs["first"], runs["same"]], tmp_path / "two", monkeypatch) == []


def test_figures_of_an_unfinished_run(tmp_path: Path) -> None:
    lines = [start_line(0, 100.0), train_line(10, 102.0), train_line(20, 104.0, update_seconds=0.3)]
    lines.append(eval_line(20, 105.0, top1=71.0, best=True))
    figures = run_figures(read_run(make_run(tmp_path / "run", lines, evaluate__metric="top1")))
    assert [figures.updates, figures.planned_updates, figures.total_seconds, figures.samples_per_second] == [
        20,
        30,
        5.0,
        100.0,
    ]
    assert figures.seconds == pytest.approx(4.0)
    assert figures.epoch_seconds == pytest.approx(2.0)
    assert figures.best is not None
    assert figures.best["value"] == 71.0
    assert [figures.test_top1, figures.test_top5, figures.mfu, figures.memory_bytes] == [None, None, None, 2**20]
    empty = run_figures(read_run(make_run(tmp_path / "empty", [start_line(0, 0.0)])))
    assert [empty.updates, empty.seconds, empty.epoch_seconds, empty.total_seconds, empty.best] == [
        0,
        None,
        None,
        0.0,
        None,
    ]
