"""Several runs side by side: what is said of them, and by how much they part, of runs written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.run_folder.test_record import eval_line, make_run, some_inputs, start_line, train_line
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
    """For a test of words: drawing takes a second."""
    monkeypatch.setattr("vit_dist.report.comparison._pictures", lambda runs, names, divergences: {})


def summary(**changes: Any) -> dict[str, Any]:
    return {
        **{"updates": 30, "epochs": 3.0, "train_seconds": 3.0, "total_seconds": 60.0, "samples_per_second": 480.0},
        **{"test": {"loss": 0.5, "top1": 90.0, "top5": 99.0}, "peak_memory_bytes": 2**20, **changes},
    }


def finished(folder: Path, *, losses: Any = (3.0, 2.0, 1.0), every: int = 10, **more: Any) -> Path:
    """A finished run of 30 updates; more: of the summary, but for fields of the config, as optimizer__lr."""
    lines = [start_line(0, 0.0)]
    for number, loss in enumerate(losses, 1):
        lines.append(train_line(every * number, float(number), loss=loss))
    lines.append(eval_line(15, 4.0, loss=1.5, top1=80.0, best=True))
    lines.append(eval_line(30, 5.0, loss=more.pop("val_loss", 1.25), top1=more.pop("val_top1", 81.0), best=True))
    fields = {name: more.pop(name) for name in list(more) if "__" in name}
    return make_run(folder, lines, state="finished", summary=summary(**more), **fields)


def two(tmp_path: Path, first: dict[str, Any] | None = None, **second: Any) -> list[RunRecord]:
    return [read_run(finished(tmp_path / "cpu", **(first or {}))), read_run(finished(tmp_path / "gpu", **second))]


NAMES = ["cpu", "gpu"]
MACHINE = "1 × cpu, fp32"


def test_one_identity(tmp_path: Path) -> None:
    runs = two(tmp_path, {"log__every": "10 updates"}, log__every="5 updates", every=5)
    assert list(compare_configs(runs, NAMES)) == [
        f"gpu and cpu have one identity ({runs[0].config.identity()}): the same batches, augmentations and learning "
        "rates, update for update."
    ]


def test_fields_that_differ_are_named(tmp_path: Path) -> None:
    runs = two(tmp_path, {"optimizer__lr": 1e-3}, optimizer__lr=2e-3, run__seed=7)
    assert list(compare_configs(runs, NAMES)) == [
        "gpu is another run than cpu: run.seed 0 → 7, optimizer.lr 0.001 → 0.002."
    ]
    many = {"run__seed": 1, "model__width": 32, "model__depth": 1, "model__heads": 2, "model__patch_size": 2}
    many |= {"model__dropout": 0.1, "model__drop_path": 0.0, "optimizer__lr": 0.5}
    [said] = compare_configs([runs[0], read_run(finished(tmp_path / "other", **many))], ["cpu", "other"])
    assert said.startswith("other is another run than cpu: ")
    assert said.count("→") == 6
    assert said.endswith(" and 2 more.")


def test_other_data_under_one_identity(tmp_path: Path) -> None:
    first = finished(tmp_path / "one")
    second = make_run(tmp_path / "two", [start_line(0, 0.0, plan={"samples": 2000, "updates": 30})])
    assert list(compare_configs([read_run(first), read_run(second)], ["one", "two"])) == [
        "two has 2,000 training images, one 480: the streams are not the same."
    ]


def test_drift_by_hand(tmp_path: Path) -> None:
    runs = two(tmp_path, {"losses": (4.0, 2.0, 1.0)}, losses=(4.0, 2.5, 0.9))
    found = divergence(*runs)
    assert found.subject == "the training loss"
    assert found.updates.tolist() == [10, 20, 30]
    assert found.differences.tolist() == pytest.approx([0, 0.25, 0.1])
    assert list(loss_divergence(NAMES, [found])) == [
        "The training loss of gpu differs from that of cpu by 0.0e+00, relative, at update 10, "
        "by 1.0e-01 at update 30, and by 2.5e-01 at most, at update 20."
    ]


def test_only_lines_of_the_same_updates_are_held_against_each_other(tmp_path: Path) -> None:
    """A line is the mean of the updates since the one before it: of other updates it cannot be compared."""
    lines = [start_line(0, 0.0), train_line(10, 1.0, loss=4.0), train_line(20, 2.0, loss=2.0)]
    lines.append(train_line(30, 3.0, loss=1.0))
    first = read_run(make_run(tmp_path / "one", lines))
    went_on = [start_line(0, 0.0), train_line(10, 1.0, loss=5.0), start_line(15, 5.0)]
    went_on += [train_line(20, 6.0, loss=9.0), train_line(30, 7.0, loss=0.5)]
    found = divergence(first, read_run(make_run(tmp_path / "two", went_on)))
    assert found.updates.tolist() == [10, 30]
    assert found.differences.tolist() == pytest.approx([0.25, 0.5])


def test_other_lines_fall_back_to_the_loss_on_val(tmp_path: Path) -> None:
    found = divergence(*two(tmp_path, {"val_loss": 1.25}, losses=(3.0,) * 5, every=6, val_loss=1.0))
    assert found.subject == "the loss on val"
    assert found.updates.tolist() == [15, 30]
    assert found.differences.tolist() == pytest.approx([0, 0.2])
    [said] = loss_divergence(NAMES, [found])
    assert said.startswith("The loss on val of gpu differs from that of cpu by ")


def test_nothing_in_common(tmp_path: Path) -> None:
    one = read_run(make_run(tmp_path / "one", [start_line(0, 0.0), train_line(10, 1.0)]))
    other = read_run(make_run(tmp_path / "two", [start_line(0, 0.0), train_line(7, 1.0)]))
    found = divergence(one, other)
    assert found.updates.tolist() == []
    assert list(loss_divergence(["one", "two"], [found])) == []
    _, text = write_comparison([one.folder, other.folder], tmp_path / "out")
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
def test_verdicts(tmp_path: Path, first: dict[str, Any], second: dict[str, Any], expected: str) -> None:
    assert verdict(two(tmp_path, first, **second), NAMES) == expected


def test_the_verdict_of_what_is_not_finished(tmp_path: Path) -> None:
    done = read_run(finished(tmp_path / "done"))
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
def test_a_pace_within_a_twentieth_is_the_same(tmp_path: Path, seconds: float, pace: str) -> None:
    said = verdict(two(tmp_path, train_seconds=seconds), NAMES)
    assert said.startswith(f"gpu ({MACHINE}) {pace} cpu ({MACHINE}): ")


OTHER_DATA = "speeds and accuracies cannot be compared."


def changed(folder: Path, samples: int = 480, classes: str = "", **fields: Any) -> Path:
    """A finished run on so many images, and with inputs of these classes where some are given."""
    finished(folder, **fields)
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
    first = read_run(changed(tmp_path / "cpu", classes="abc"))
    last = read_run(changed(tmp_path / "gpu", **{"classes": "abc", **other}))
    assert verdict([first, last], NAMES) == f"gpu has other data than cpu: {OTHER_DATA}"
    assert verdict([last, first], NAMES[::-1]) == f"cpu has other data than gpu: {OTHER_DATA}"


def test_runs_on_the_same_data_are_compared(tmp_path: Path) -> None:
    runs = [read_run(changed(tmp_path / name, classes="abc")) for name in NAMES]
    assert verdict(runs, NAMES).startswith(f"gpu ({MACHINE}) trains an epoch as fast as cpu ({MACHINE}): ")


@pytest.mark.usefixtures("without_pictures")
def test_each_run_has_its_sentence_against_the_first(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "one"),
        finished(tmp_path / "two", train_seconds=1.5),
        changed(tmp_path / "three", samples=2000),
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


def test_a_run_that_is_named_twice_is_reported_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = finished(tmp_path / "run"), finished(tmp_path / "other")
    asked: list[Any] = []

    def report(run: Path, out: Path | None) -> str:
        asked.append(run)
        return "a page"

    def comparison(runs: list[Path], out: Path) -> tuple[Path, str]:
        asked.append(runs)
        return out / "comparison.html", "a table"

    monkeypatch.setattr("vit_dist.report.page.write_report", report)
    monkeypatch.setattr("vit_dist.report.comparison.write_comparison", comparison)
    for words in ([folder, folder], [folder, f"{folder}/", folder]):
        assert main(["report", *map(str, words)]) == 0
    assert capsys.readouterr().out == "a page\na page\n"
    assert main(["report", str(folder), str(other), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert asked == [folder, folder, [folder, other]]


def test_the_last_run_is_held_against_the_first(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    runs = [
        read_run(finished(tmp_path / name, train_seconds=seconds))
        for name, seconds in zip(names, (8, 1, 2), strict=True)
    ]
    assert verdict(runs, names).startswith(f"three ({MACHINE}) trains an epoch 4 times as fast as one ({MACHINE}): ")


def test_measures_of_a_run_that_goes_on(tmp_path: Path) -> None:
    lines = [start_line(0, 100.0), train_line(10, 102.0), train_line(20, 104.0, update_seconds=0.3)]
    lines.append(eval_line(20, 105.0, top1=71.0, best=True))
    found = run_figures(read_run(make_run(tmp_path / "run", lines, evaluate__metric="top1")))
    assert [found.updates, found.planned_updates, found.total_seconds, found.samples_per_second] == [20, 30, 5.0, 100.0]
    assert found.seconds == pytest.approx(4.0)
    assert found.epoch_seconds == pytest.approx(2.0)
    assert found.best is not None
    assert found.best["value"] == 71.0
    assert [found.test_top1, found.test_top5, found.mfu, found.memory_bytes] == [None, None, None, 2**20]
    empty = run_figures(read_run(make_run(tmp_path / "empty", [start_line(0, 0.0)])))
    assert [empty.updates, empty.seconds, empty.epoch_seconds, empty.total_seconds, empty.best] == [
        0,
        None,
        None,
        0.0,
        None,
    ]


def cells(text: str) -> dict[str, list[str]]:
    """The table of the Markdown: first cell → the others. Every row has as many."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    assert rows[1] == ["---", *["---:"] * (len(rows[0]) - 1)]
    return {row[0]: row[1:] for row in rows}


def test_three_runs_in_a_table(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "one", total_seconds=180.0, evaluate__metric="top1"),
        finished(tmp_path / "two", train_seconds=1.5, total_seconds=60.0, evaluate__metric="top1"),
        make_run(tmp_path / "three", [start_line(0, 0.0), train_line(10, 1.0, mfu=0.25)], evaluate__metric="top1"),
    ]
    page, text = write_comparison(folders, tmp_path / "out" / "of three")
    assert page == tmp_path / "out" / "of three" / "comparison.html"
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
    found = cells(text)
    del found["---"]
    assert found == expected
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
def test_two_runs_of_one_name_are_called_by_their_folders(tmp_path: Path) -> None:
    folders = [finished(tmp_path / one / "run") for one in ("first", "second")]
    _, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)[""] == ["first/run", "second/run"]
    assert "second/run and first/run have one identity" in text


@pytest.mark.parametrize(
    ("names", "folders", "expected"),
    [
        (["a", "b"], ["x/one", "y/one"], ["a", "b"]),
        (["run", "run"], ["a/one", "b/two"], ["one", "two"]),
        (["run", "run"], ["/shared/a/x/run", "/shared/b/x/run"], ["a/x/run", "b/x/run"]),
        # As much of each as tells all of them apart, also of those whose names do.
        (["run", "run", "other"], ["a/run", "b/run", "c/other"], ["a/run", "b/run", "c/other"]),
        (["run", "run"], ["run", "a/run"], ["run", "a/run"]),
        (["run", "run"], ["a/run/", "a/run"], ["a/run/ (1)", "a/run (2)"]),
    ],
)
def test_names_are_the_shortest_ends_of_the_folders(names: list[str], folders: list[str], expected: list[str]) -> None:
    assert distinct_names(names, folders) == expected


@pytest.mark.usefixtures("without_pictures")
def test_a_run_may_be_held_against_itself(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    _, text = write_comparison([folder, folder], tmp_path / "out")
    names = [f"{folder} (1)", f"{folder} (2)"]
    assert cells(text)[""] == names
    assert f"The training loss of {names[1]} is exactly that of {names[0]} at all 3 lines." in text


def test_long_names_leave_the_curves_room(tmp_path: Path) -> None:
    both = (np.arange(3.0), np.arange(3.0))
    names = ["/some/where/runs/of/somebody/on/shared/storage/" + name + "/deit-small-imagenet" for name in ("a", "b")]
    figure = comparison_curve([(name, (both, both)) for name in names], "update", "loss")
    save_png(figure, tmp_path / "curve.png")
    assert figure.axes[0].get_position().width > 0.5


@pytest.mark.usefixtures("without_pictures")
def test_a_name_is_escaped(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "one", run__name="<b>&"), finished(tmp_path / "two")]
    page, text = write_comparison(folders, tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert "<b>" not in html
    assert "<h1>&lt;b&gt;&amp; · two</h1>" in html
    assert "<b>& have one identity" in text


@pytest.mark.usefixtures("without_pictures")
def test_a_name_with_a_bar_breaks_no_table(tmp_path: Path) -> None:
    page, text = write_comparison([finished(tmp_path / "a|b"), finished(tmp_path / "two")], tmp_path / "out")
    assert cells(text)[""] == ["a\\|b", "two"]
    assert "<h1>a|b · two</h1>" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_the_same_time_saves_nothing(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "one", total_seconds=60.0), finished(tmp_path / "two", total_seconds=60.5)]
    _, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)["minutes saved"] == ["0.0", "0.0"]


@pytest.mark.parametrize("lost", ["nan", "inf", None])
def test_a_loss_that_is_no_number_is_told(tmp_path: Path, lost: Any) -> None:
    for losses, at in (((4.0, 3.0, lost), 30), ((4.0, lost, lost), 20)):
        runs = two(tmp_path / f"{at}", {"losses": (4.0, 2.0, 1.0)}, losses=losses)
        for one, other, names in ((*runs, NAMES), (*runs[::-1], NAMES[::-1])):
            assert list(loss_divergence(names, [divergence(one, other)])) == [
                f"The training loss of {names[1]} or {names[0]} is not finite at update {at}."
            ]


def test_losses_that_are_the_same_are_said_to_be(tmp_path: Path) -> None:
    found = divergence(*two(tmp_path))
    assert found.differences.tolist() == [0, 0, 0]
    assert list(loss_divergence(NAMES, [found])) == ["The training loss of gpu is exactly that of cpu at all 3 lines."]
    of_val = divergence(*two(tmp_path / "val", losses=(3.0,) * 5, every=6))
    assert list(loss_divergence(NAMES, [of_val])) == ["The loss on val of gpu is exactly that of cpu at all 2 lines."]


def drawn_drifts(
    folders: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, list[float], list[float]]]:
    """(name, updates, differences) of each line in the picture of the drifts; nothing else is drawn."""
    given: list[tuple[str, list[float], list[float]]] = []

    def keep(drifts: Any) -> Figure:
        given.extend((name, updates.tolist(), differences.tolist()) for name, updates, differences in drifts)
        return divergence_curve(drifts)

    monkeypatch.setattr("vit_dist.report.curves.divergence_curve", keep)
    monkeypatch.setattr("vit_dist.report.curves.comparison_curve", lambda *given: Figure(figsize=(1, 1)))
    write_comparison(folders, out)
    assert (out / "divergence.png").exists() == bool(given)
    assert ("divergence.png" in (out / "comparison.md").read_text(encoding="utf-8")) == bool(given)
    return given


def test_a_drift_is_drawn_where_losses_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logarithm has no place for 0, and none for what is no number."""
    runs = {
        "first": finished(tmp_path / "first", losses=(4.0, 2.0, 1.0)),
        "same": finished(tmp_path / "same", losses=(4.0, 2.0, 1.0)),
        "apart": finished(tmp_path / "apart", losses=(4.0, 2.5, 1.5)),
        "lost": finished(tmp_path / "lost", losses=(3.0, "nan", 1.0)),
    }
    assert drawn_drifts(list(runs.values()), tmp_path / "all", monkeypatch) == [
        ("apart", [20, 30], [0.25, 0.5]),
        ("lost", [10], [0.25]),
    ]
    assert drawn_drifts([runs["first"], runs["same"]], tmp_path / "two", monkeypatch) == []


def test_runs_that_have_not_trained_yet(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, [start_line(0, 0.0)]) for name in ("one", "two")]
    page, text = write_comparison(folders, tmp_path / "out")
    assert cells(text)["updates"] == ["0 of 30", "0 of 30"]
    assert "Not finished yet: one, two" in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_mistakes_of_people(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "one"), tmp_path / "missing"]
    with pytest.raises(UserError) as found:
        write_comparison(folders, tmp_path / "out")
    assert str(found.value) == f"{tmp_path / 'missing'}: not a run's folder: no folder is there"
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    with pytest.raises(UserError) as found:
        write_comparison([folders[0], folders[0]], tmp_path / "out")
    assert str(found.value) == f"--out: {tmp_path / 'out'} cannot be written: File exists"
