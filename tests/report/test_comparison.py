"""The comparison of several runs: its sentences, table and curves, for runs written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.report.runs import finished_run
from tests.run_folder.handwritten import eval_line, make_run, some_inputs, start_line, train_line
from vit_dist import UserError
from vit_dist.cli import main
from vit_dist.report.comparison import distinct_names, write_comparison
from vit_dist.report.curves import comparison_curve, divergence_curve
from vit_dist.report.drawing import save_png
from vit_dist.report.measures import compare_configs, divergence, loss_divergence, run_figures, verdict
from vit_dist.run_folder.predictions import INPUTS, write_inputs
from vit_dist.run_folder.record import RunRecord, read_run


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes a second, in a test of text alone."""
    monkeypatch.setattr("vit_dist.report.comparison._pictures", lambda runs, names, divergences: {})


def two_runs(tmp_path: Path, first: dict[str, Any] | None = None, **second: Any) -> list[RunRecord]:
    return [
        read_run(finished_run(tmp_path / "cpu", **(first or {}))),
        read_run(finished_run(tmp_path / "gpu", **second)),
    ]


NAMES = ["cpu", "gpu"]
MACHINE = "1 × cpu, fp32"


def test_an_equal_identity_is_stated(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, {"log__every": "10 updates"}, log__every="5 updates", every=5)
    assert list(compare_configs(runs, NAMES)) == [
        f"gpu and cpu have one identity ({runs[0].config.identity()}): the same batches, augmentations and learning "
        "rates, update for update."
    ]


def test_fields_that_differ_are_named(tmp_path: Path) -> None:
    runs = two_runs(tmp_path, {"optimizer__lr": 1e-3}, optimizer__lr=2e-3, run__seed=7)
    assert list(compare_configs(runs, NAMES)) == [
        "gpu is another run than cpu: run.seed 0 → 7, optimizer.lr 0.001 → 0.002."
    ]
    many = {"run__seed": 1, "model__width": 32, "model__depth": 1, "model__heads": 2, "model__patch_size": 2}
    many |= {"model__dropout": 0.1, "model__drop_path": 0.0, "optimizer__lr": 0.5}
    [sentence] = compare_configs([runs[0], read_run(finished_run(tmp_path / "other", **many))], ["cpu", "other"])
    assert sentence.startswith("other is another run than cpu: ")
    assert sentence.count("→") == 6
    assert sentence.endswith(" and 2 more.")


def test_other_data_under_the_same_identity_is_stated(tmp_path: Path) -> None:
    first = finished_run(tmp_path / "one")
    second = make_run(tmp_path / "two", [start_line(0, 0.0, plan={"samples": 2000, "updates": 30})])
    assert list(compare_configs([read_run(first), read_run(second)], ["one", "two"])) == [
        "two has 2,000 training images, one 480: the streams are not the same."
    ]


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
    ("first", "second", "expected"),
    [
        (
            {},
            {"train_seconds": 1.5},
            f"gpu ({MACHINE}) trains an epoch 2 times as fast as cpu ({MACHINE}): 0.5 s against 1 s, "
            "to the same accuracy within 0.5 points (90.00 % against 90.00 % on test).",
        ),
        (
            {},
            {"train_seconds": 6.0, "test": {"loss": 0.5, "top1": 90.5, "top5": None}},
            f"gpu ({MACHINE}) needs 2 times as long for an epoch as cpu ({MACHINE}): 2 s against 1 s, "
            "to the same accuracy within 0.5 points (90.50 % against 90.00 % on test).",
        ),
        (
            {},
            {"test": {"loss": 0.5, "top1": 91.25, "top5": None}},
            f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): 1 s against 1 s, "
            "and ends 1.25 points better (91.25 % against 90.00 % on test).",
        ),
        (
            {},
            {"test": {"loss": 0.5, "top1": 80.0, "top5": None}, "epochs": 1.5},
            f"gpu ({MACHINE}) needs 2 times as long for an epoch as cpu ({MACHINE}): 2 s against 1 s, "
            "and ends 10.00 points worse (80.00 % against 90.00 % on test).",
        ),
        (
            {"test": None, "evaluate__metric": "loss"},
            {"test": None, "evaluate__metric": "loss", "val_loss": 1.0},
            f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): 1 s against 1 s; "
            "loss on val is 1 against 1.25.",
        ),
        (
            {"test": None, "evaluate__metric": "top1"},
            {"test": None, "evaluate__metric": "top1", "val_top1": 70.0},
            f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): 1 s against 1 s, "
            "and ends 11.00 points worse (70.00 % against 81.00 % on val).",
        ),
        (
            {},
            {"test": None},
            f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): 1 s against 1 s.",
        ),
    ],
)
def test_the_verdict_compares_speed_and_accuracy(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], expected: str
) -> None:
    assert verdict(two_runs(tmp_path, first, **second), NAMES) == expected


def test_the_verdict_names_unfinished_runs(tmp_path: Path) -> None:
    done = read_run(finished_run(tmp_path / "done"))
    going = read_run(make_run(tmp_path / "going", [start_line(0, 0.0), train_line(10, 1.0)]))
    empty = read_run(make_run(tmp_path / "empty", [start_line(0, 0.0)]))
    below = "; the figures below are of the updates made so far."
    assert verdict([done, going], ["done", "going"]) == f"Not finished yet: going{below}"
    assert verdict([going, done, empty], ["a", "b", "c"]) == f"Not finished yet: a, c{below}"


@pytest.mark.parametrize(
    ("seconds", "pace"),
    [
        (3.0 / 1.06, "trains an epoch 1.06 times as fast as"),
        (3.0 / 1.04, "trains an epoch as fast as"),
        (3.0 / 0.96, "trains an epoch as fast as"),
        (3.0 / 0.94, "needs 1.06 times as long for an epoch as"),
    ],
)
def test_paces_within_five_percent_count_as_equal(tmp_path: Path, seconds: float, pace: str) -> None:
    sentence = verdict(two_runs(tmp_path, train_seconds=seconds), NAMES)
    assert sentence.startswith(f"gpu ({MACHINE}) {pace} cpu ({MACHINE}): ")


OTHER_DATA = "speeds and accuracies cannot be compared."


def finished_run_on(folder: Path, samples: int = 480, classes: str = "", **fields: Any) -> Path:
    """Write a finished run on `samples` images, with input examples if `classes` has names; return its folder."""
    finished_run(folder, **fields)
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    text = text.replace('"plan": {"samples": 480', f'"plan": {{"samples": {samples}')
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    if classes:
        write_inputs(folder / INPUTS, some_inputs(classes))
    return folder


@pytest.mark.parametrize(
    "other",
    [
        {"samples": 2000},
        {"data__name": "mnist"},
        {"data__name": "folder", "data__root": "/pictures"},
        {"data__val_fraction": 0.3},
        {"classes": "abd"},
    ],
    ids=str,
)
def test_runs_on_other_data_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    first = read_run(finished_run_on(tmp_path / "cpu", classes="abc"))
    last = read_run(finished_run_on(tmp_path / "gpu", **{"classes": "abc", **other}))
    assert verdict([first, last], NAMES) == f"gpu has other data than cpu: {OTHER_DATA}"
    assert verdict([last, first], NAMES[::-1]) == f"cpu has other data than gpu: {OTHER_DATA}"


def test_runs_on_the_same_data_are_compared(tmp_path: Path) -> None:
    runs = [read_run(finished_run_on(tmp_path / name, classes="abc")) for name in NAMES]
    assert verdict(runs, NAMES).startswith(f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): ")


@pytest.mark.usefixtures("without_pictures")
def test_each_run_is_compared_with_the_first(tmp_path: Path) -> None:
    folders = [
        finished_run(tmp_path / "one"),
        finished_run(tmp_path / "two", train_seconds=1.5),
        finished_run_on(tmp_path / "three", samples=2000),
        make_run(tmp_path / "four", [start_line(0, 0.0), train_line(10, 1.0)]),
    ]
    page, text = write_comparison(folders, tmp_path / "out")
    sentence = (
        f"two ({MACHINE}) trains an epoch 2 times as fast as one ({MACHINE}): 0.5 s against 1 s, "
        "to the same accuracy within 0.5 points (90.00 % against 90.00 % on test). "
        f"three has other data than one: {OTHER_DATA} "
        "Not finished yet: four; the figures below are of the updates made so far."
    )
    assert f"\n**{sentence}**\n" in text
    assert sentence in page.read_text(encoding="utf-8")


def test_a_run_named_twice_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = finished_run(tmp_path / "run"), finished_run(tmp_path / "other")
    calls: list[Any] = []

    def report(run: Path, out: Path | None, say: Any) -> str:
        calls.append(run)
        return "a page"

    def comparison(runs: list[Path], out: Path, say: Any) -> tuple[Path, str]:
        calls.append(runs)
        return out / "comparison.html", "a table"

    monkeypatch.setattr("vit_dist.report.page.write_report", report)
    monkeypatch.setattr("vit_dist.report.comparison.write_comparison", comparison)
    for words in ([folder, folder], [folder, f"{folder}/", folder]):
        assert main(["report", *map(str, words)]) == 0
    assert capsys.readouterr().out == "a page\na page\n"
    assert main(["report", str(folder), str(other), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert calls == [folder, folder, [folder, other]]


def test_the_verdict_compares_the_last_run_with_the_first(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    runs = [
        read_run(finished_run(tmp_path / name, train_seconds=seconds))
        for name, seconds in zip(names, (8, 1, 2), strict=True)
    ]
    assert verdict(runs, names).startswith(f"three ({MACHINE}) trains an epoch 4 times as fast as one ({MACHINE}): ")


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


def cells(text: str) -> dict[str, list[str]]:
    """Return the Markdown table as first cell → other cells; check that all rows have the same number of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    assert rows[1] == ["---", *["---:"] * (len(rows[0]) - 1)]
    return {row[0]: row[1:] for row in rows}


def test_the_table_of_three_runs_has_their_figures(tmp_path: Path) -> None:
    folders = [
        finished_run(tmp_path / "one", total_seconds=180.0, evaluate__metric="top1"),
        finished_run(tmp_path / "two", train_seconds=1.5, total_seconds=60.0, evaluate__metric="top1"),
        make_run(tmp_path / "three", [start_line(0, 0.0), train_line(10, 1.0, mfu=0.25)], evaluate__metric="top1"),
    ]
    page, text = write_comparison(folders, tmp_path / "out" / "three runs")
    assert page == tmp_path / "out" / "three runs" / "comparison.html"
    assert (page.parent / "comparison.md").read_text(encoding="utf-8") == text
    expected = {
        "": ["one", "two", "three"],
        "machine": [MACHINE] * 3,
        "updates": ["30", "30", "10 of 30"],
        "seconds an epoch": ["1", "0.5", "1"],
        "training": ["3.0 s", "1.5 s", "1.0 s"],
        "in all": ["3 min 00 s", "1 min 00 s", "1.0 s"],
        "images/s": ["480", "480", "100"],
        "MFU": ["–", "–", "25.0 %"],
        "peak memory, MiB": ["1", "1", "1"],
        "best top1 on val": ["81", "81", "–"],
        "top1 on test, %": ["90.00", "90.00", "–"],
        "top5 on test, %": ["99.00", "99.00", "–"],
        "speed, times the first": ["1", "2", "1"],
        "minutes saved": ["0.0", "2.0", "–"],
    }
    table_cells = cells(text)
    del table_cells["---"]
    assert table_cells == expected
    html = page.read_text(encoding="utf-8")
    table = ElementTree.fromstring(re.findall(r"<table.*?</table>", html, re.DOTALL)[0])
    rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert {row[0]: row[1:] for row in rows} == expected
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        with Image.open(page.parent / name) as image:
            assert image.format == "PNG"
    names = {"loss_over_updates.png", "loss_over_time.png", "accuracy_over_time.png", "divergence.png"}
    assert {path.name for path in page.parent.iterdir()} == names | {"comparison.html", "comparison.md"}
    assert html.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)


@pytest.mark.usefixtures("without_pictures")
def test_runs_of_the_same_name_are_named_by_their_folders(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / parent / "run") for parent in ("first", "second")]
    _, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)[""] == ["first/run", "second/run"]
    assert "second/run and first/run have one identity" in text


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        (["a", "b"], ["x/one", "y/one"], ["a", "b"]),
        (["run", "run"], ["a/one", "b/two"], ["one", "two"]),
        (["run", "run"], ["/shared/a/x/run", "/shared/b/x/run"], ["a/x/run", "b/x/run"]),
        # Each path keeps as many parts as make all of them unique, also where the name alone is.
        (["run", "run", "other"], ["a/run", "b/run", "c/other"], ["a/run", "b/run", "c/other"]),
        (["run", "run"], ["run", "a/run"], ["run", "a/run"]),
        (["run", "run"], ["a/run/", "a/run"], ["a/run/ (1)", "a/run (2)"]),
    ],
)
def test_names_are_the_shortest_unique_ends_of_the_folders(
    names: list[str], folders: list[str], expected: list[str]
) -> None:
    assert distinct_names(names, folders) == expected


@pytest.mark.usefixtures("without_pictures")
def test_a_run_can_be_compared_with_itself(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    _, text = write_comparison([folder, folder], tmp_path / "out")
    names = [f"{folder} (1)", f"{folder} (2)"]
    assert cells(text)[""] == names
    assert f"The training loss of {names[1]} is exactly that of {names[0]} at all 3 lines." in text


def test_long_names_leave_room_for_the_curves(tmp_path: Path) -> None:
    both = (np.arange(3.0), np.arange(3.0))
    names = ["/some/where/runs/of/somebody/on/shared/storage/" + name + "/deit-small-imagenet" for name in ("a", "b")]
    figure = comparison_curve([(name, (both, both)) for name in names], "update", "loss")
    save_png(figure, tmp_path / "curve.png")
    assert figure.axes[0].get_position().width > 0.5


@pytest.mark.usefixtures("without_pictures")
def test_run_names_are_escaped(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / "one", run__name="<b>&"), finished_run(tmp_path / "two")]
    page, text = write_comparison(folders, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "<h1>&lt;b&gt;&amp; · two</h1>" in html
    assert "\\<b\\>\\& have one identity" in text


@pytest.mark.usefixtures("without_pictures")
def test_a_vertical_bar_in_a_name_is_escaped_in_the_table(tmp_path: Path) -> None:
    page, text = write_comparison([finished_run(tmp_path / "a|b"), finished_run(tmp_path / "two")], tmp_path / "out")
    assert cells(text)[""] == ["a\\|b", "two"]
    assert "<h1>a|b · two</h1>" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_nearly_equal_times_save_no_minutes(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / "one", total_seconds=60.0), finished_run(tmp_path / "two", total_seconds=60.5)]
    _, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)["minutes saved"] == ["0.0", "0.0"]


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
        "lost": finished_run(tmp_path / "lost", losses=(3.0, "nan", 1.0)),
    }
    assert drawn_divergences(list(runs.values()), tmp_path / "all", monkeypatch) == [
        ("apart", [20, 30], [0.25, 0.5]),
        ("lost", [10], [0.25]),
    ]
    assert drawn_divergences([runs["first"], runs["same"]], tmp_path / "two", monkeypatch) == []


def test_runs_without_training_lines_are_compared(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, [start_line(0, 0.0)]) for name in ("one", "two")]
    page, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)["updates"] == ["0 of 30", "0 of 30"]
    assert "Not finished yet: one, two" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_a_missing_run_and_an_unwritable_folder_are_user_errors(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / "one"), tmp_path / "missing"]
    with pytest.raises(UserError) as caught:
        write_comparison(folders, tmp_path / "out")
    assert str(caught.value) == f"{tmp_path / 'missing'}: not a run's folder: no folder is there"
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(UserError) as caught:
        write_comparison([folders[0], folders[0]], tmp_path / "out")
    assert str(caught.value) == f"--out: {tmp_path / 'out'} cannot be written: File exists"
