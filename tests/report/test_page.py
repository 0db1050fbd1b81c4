"""The report of a run: its figures are the run's, its text is escaped, and it depends on the run's folder alone."""

from __future__ import annotations

import html
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from markupsafe import escape
from PIL import Image

from tests.report.runs import reported_run
from tests.run_folder.handwritten import (
    eval_line,
    make_run,
    save_line,
    some_inputs,
    some_predictions,
    start_line,
    train_line,
)
from vit_dist import UserError
from vit_dist.cli import main
from vit_dist.files import read_json
from vit_dist.formatting import big, duration, loss_text
from vit_dist.report.drawing import short
from vit_dist.report.page import write_report
from vit_dist.run_folder.figures import figures_of
from vit_dist.run_folder.metrics import read_metrics
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    read_inputs,
    read_predictions,
    write_inputs,
    write_predictions,
)
from vit_dist.run_folder.record import RunRecord, read_run

CURVES = {"loss", "accuracy", "rate", "gradient_norm", "throughput", "utilisation", "memory", "seconds"}
PREDICTION_DRAWINGS = {"confusion", "mistakes"}
MARKUP = "<b>&\"'</b><script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes a second, in a test of text alone."""
    monkeypatch.setattr("vit_dist.report.page._drawings", lambda run: {})


def figures(page: str) -> dict[str, str]:
    """Return the headline figures of a page: label → text."""
    return {
        html.unescape(name): html.unescape(value)
        for name, value in re.findall(r"<div><span>(.*?)</span><b>(.*?)</b>", page)
    }


def words(page: str) -> list[tuple[str, str]]:
    """Return the lists of words of a page or section: (name, text)."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    return [(html.unescape(name), html.unescape(text)) for name, text in found]


def verdict_of(page: str) -> str:
    match = re.search(r'<p class="verdict">(.*?)</p>', page)
    assert match is not None
    return html.unescape(match[1]).replace("\u00a0", " ")


def section(page: str, title: str) -> str:
    """Return what follows a heading or a summary, up to the next one of its kind."""
    match = re.search(rf"<(h2|h3|summary)>{title}.*?</\1>(.*?)(?=<h2>|<h3>|<summary>|</body>)", page, re.DOTALL)
    assert match is not None, title
    return match[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the first table in `text`, row by row."""
    [table, *_] = re.findall(r"<table.*?</table>", text, re.DOTALL)
    lines = ElementTree.fromstring(table).iter("tr")
    return [["".join(cell.itertext()) for cell in line] for line in lines]


def test_headline_figures_are_those_of_the_summary(run: Path, page: str) -> None:
    summary, shown, saved = read_json(run / "summary.json"), figures(page), read_predictions(run / PREDICTIONS)
    test = summary["test"]
    assert saved is not None
    of_test = figures_of(saved.predictions, 10)
    assert shown["accuracy on test"] == f"{test['top1']:.2f} %"
    assert shown["baseline"] == f"{of_test.baseline:.2f} %"
    assert shown["macro F1"] == f"{of_test.macro['f1']:.2f} %"
    assert shown["balanced accuracy"] == f"{of_test.balanced_accuracy:.2f} %"
    assert shown["images wrong"] == str(of_test.seen - of_test.correct)
    assert shown["loss on test"] == loss_text(test["loss"])
    assert len(shown) == 6
    low, high = of_test.top1_interval
    margin = max(test["top1"] - low, high - test["top1"])
    assert verdict_of(page).startswith(f"{test['top1']:.1f} % on test (±{margin:.1f}): ")
    assert verdict_of(page).endswith(f" the {of_test.baseline:.1f} % of always answering the commonest class.")


def test_the_run_is_described_in_words(run: Path, page: str) -> None:
    summary, about = read_json(run / "summary.json"), dict(words(page.partition("<section>")[0]))
    splits = "1,294 training, 144 validation and 359 test images of 10 classes (0, 1, 2, 3 …)"
    assert about["Data"] == f"digits: {splits}; the model sees 8 × 8 pixels in grey"
    assert about["Model"] == f"vit_tiny, {big(summary['parameters'])} parameters, trained from scratch"
    assert about["Recipe"].startswith("digits, with ")
    assert "train.duration 60 updates (recipe: 120 epochs)" in about["Recipe"]
    assert about["Training"].startswith(
        f"60 updates of 48 images = {summary['epochs']:.4g} epochs, in {duration(summary['train_seconds'])} "
        f"({duration(summary['seconds_per_epoch'])} an epoch, {summary['samples_per_second']:,.0f} images/s)"
    )
    memory = f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB of memory at most"
    goodput = f"{summary['goodput']:.0%} of the time went to updates"
    assert about["Machine"] == f"1 × {summary['device']}, {summary['precision']}; {memory}; {goodput}"
    assert re.search(r'<p class="note">Started \d{4}-\d\d-\d\d \d\d:\d\d\. This page: ', page)
    assert "; resumed on " in page.partition("<section>")[0]
    assert "from update 30 (epoch 1.11), with train.duration 60 updates." in page


@pytest.mark.parametrize(
    ("summary_mib", "line_mib", "expected"),
    [
        (200, (100, 150), "200 MiB"),
        (100, (150, 2048), "2,048 MiB"),
        (None, (100, 150), "150 MiB"),
        (200, (None, None), "200 MiB"),
        (200, (), "200 MiB"),
        (None, (None, 70), "70 MiB"),
        (None, (), None),
    ],
)
@pytest.mark.usefixtures("without_drawing")
def test_peak_memory_is_the_larger_of_summary_and_lines(
    tmp_path: Path, summary_mib: int | None, line_mib: tuple[int | None, ...], expected: str | None
) -> None:
    """Values are in MiB. The lines of a run that resumed elsewhere are also of the machine before."""
    lines = [start_line(0, 0.0, planned=20)]
    for number, value in enumerate(line_mib, 1):
        peak = None if value is None else value * 2**20
        lines.append(train_line(10 * number, float(number), peak_memory_bytes=peak))
    summary = {"train_seconds": 1.0, "total_seconds": 1.0}
    if summary_mib is not None:
        summary["peak_memory_bytes"] = summary_mib * 2**20
    folder = make_run(tmp_path / "run", lines, state="finished", summary=summary)
    machine = dict(words(write_report(folder).read_text(encoding="utf-8")))["Machine"]
    assert machine == "1 × cpu, fp32" + (f"; {expected} of memory at most" if expected else "")


def test_the_time_breakdown_adds_up_to_the_summary(run: Path) -> None:
    summary, spent = read_json(run / "summary.json"), read_run(run).seconds
    assert sum(spent.values()) == pytest.approx(sum(summary["seconds"].values()))
    assert sum(spent.values()) - spent["starting"] == pytest.approx(summary["total_seconds"], abs=0.2)
    assert spent["updates"] + spent["waiting for images"] == pytest.approx(summary["train_seconds"], rel=0.02)
    assert spent["evaluating"] == pytest.approx(summary["evaluate_seconds"])
    assert spent["saving"] == pytest.approx(summary["save_seconds"])
    assert min(spent.values()) >= 0
    # The clock of the lines agrees with the summary, which is written a moment before the last line.
    assert read_run(run).metrics.seconds == pytest.approx(summary["total_seconds"], abs=0.5)


def test_predictions_agree_with_the_summary(run: Path, page: str) -> None:
    summary, saved = read_json(run / "summary.json"), read_predictions(run / PREDICTIONS)
    assert saved is not None
    predictions = saved.predictions
    assert predictions.top1() == summary["test"]["top1"]
    in_top5 = (predictions.top == predictions.label[:, None]).any(1)
    assert 100 * int(in_top5.sum()) / len(predictions) == summary["test"]["top5"]
    assert saved.metadata["split"] == "test"
    assert saved.metadata["weights"] == summary["weights"] == "ema"
    assert saved.metadata["update"] == summary["best"]["update"]
    table = rows(page.partition("Confusion matrix: true")[2])
    assert table[0] == ["", *map(str, range(10))]
    assert [[int(cell or 0) for cell in row[1:]] for row in table[1:]] == predictions.confusion(10).tolist()
    of_test = figures_of(predictions, 10)
    shown = rows(section(page, "Classes, lowest F1 first"))
    assert shown[0] == ["class", "images", "precision", "recall", "F1", "", "most often taken for"]
    assert [row[0] for row in shown[1:11]] == [str(number) for number in of_test.worst(10).tolist()]
    for row in shown[1:11]:
        number = int(row[0])
        rates = (of_test.precision[number], of_test.recall[number], of_test.f1[number])
        assert row[1:5] == [str(of_test.support[number]), *("–" if np.isnan(rate) else f"{rate:.1f}" for rate in rates)]
    assert [row[0] for row in shown[11:]] == ["macro mean", "weighted mean"]
    for row, means in zip(shown[11:], (of_test.macro, of_test.weighted), strict=True):
        assert row[1:5] == ["359", *(f"{value:.1f}" for value in means.values())]


def test_mistakes_are_shown_with_their_predictions(run: Path, page: str) -> None:
    saved = read_predictions(run / PREDICTIONS)
    assert saved is not None
    wrong = np.flatnonzero(saved.predictions.top[:, 0] != saved.predictions.label)
    assert len(saved.picture_rows) == min(24, len(wrong))
    probabilities = saved.predictions.probability[saved.picture_rows, 0]
    assert probabilities.tolist() == sorted(saved.predictions.probability[wrong, 0].tolist(), reverse=True)[:24]
    tiles = re.findall(
        r'<figure class="wrong">.*?<figcaption>(.*?)<br>is (.*?)(?:<br><em>label\?</em>)?</figcaption>',
        section(page, "Most confident mistakes"),
    )
    assert tiles == saved.captions()
    assert len(tiles) == len(saved.picture_rows) > 0
    frequent = rows(page.partition("Most frequent mistakes")[2])
    assert sum(int(row[2]) for row in frequent[1:]) <= len(wrong)
    assert [int(row[2]) for row in frequent[1:]] == sorted((int(row[2]) for row in frequent[1:]), reverse=True)


def test_inputs_are_shown_with_their_classes(run: Path, page: str) -> None:
    inputs = read_inputs(run / INPUTS)
    assert inputs is not None
    shown = section(page, "Model inputs")
    assert len(inputs.captions()) == 16
    assert re.findall(r"<figcaption>(.*?)</figcaption>", shown) == inputs.captions()
    assert ">The first training images, augmented, exactly as the model gets them.<" in shown


def test_evaluations_and_starts_are_those_of_the_metrics(run: Path, page: str) -> None:
    history = read_metrics(run / "metrics.jsonl")
    evaluations = [line for line in history if line["kind"] == "eval"]
    table = rows(section(page, "Evaluations"))[1:]
    assert len(table) == len(evaluations) == 14
    for row, line in zip(table, evaluations, strict=True):
        weights = {"raw": "raw", "ema": "EMA"}[line["weights"]]
        assert row[:3] == [line["split"], weights, str(line["weights_update"])]
        assert row[4:7] == [loss_text(line["loss"]), f"{line['top1']:.2f}", f"{line['top5']:.2f}"]
        assert row[7] == ("best" if line["best"] else "")
    first, second = rows(section(page, "Starts"))[1:]
    assert [first[0], first[-1], second[0], second[-1]] == ["0", "", "30", "train.duration 60 updates"]


def test_the_config_is_escaped_yaml(tmp_path: Path) -> None:
    name = MARKUP.replace("/", "")  # a run's name has no slash
    folder = make_run(tmp_path / "run", [start_line(0, 0.0)], run__name=name)
    page = write_report(folder).read_text(encoding="utf-8")
    match = re.search(r"<pre>(.*?)</pre>", section(page, "Config"), re.DOTALL)
    assert match is not None
    assert yaml.safe_load(html.unescape(match[1])) == read_run(folder).config.to_dict()
    assert "<b>" not in match[1]
    assert f"<h1>{escape(name)}</h1>" in page
    assert f"<title>{escape(name)}: report</title>" in page


def test_drawings_are_in_the_folder_of_the_page(run: Path) -> None:
    out = run / "report"
    assert {path.name for path in out.iterdir()} == {
        "index.html",
        *(f"{name}.png" for name in CURVES | PREDICTION_DRAWINGS | {"inputs"}),
    }
    for name in sorted(CURVES):
        with Image.open(out / f"{name}.png") as image:
            assert image.format == "PNG"
            large = name in ("loss", "accuracy")
            assert image.size == ((810, 330) if name == "seconds" else (810, 510) if large else (810, 435))
            assert len(image.convert("RGB").getcolors(2**20) or []) > 2


def test_charts_and_images_have_texts_for_those_who_cannot_see_them(run: Path, page: str) -> None:
    labels = [html.unescape(text) for text in re.findall(r'<svg class="chart" role="img" aria-label="(.*?)"', page)]
    last = read_run(run).evaluations("val", "ema")[-1]
    assert re.fullmatch(rf"Loss over epochs; at the end [\d.]+ on train, {last['loss']:.3g} on val", labels[0])
    assert labels[1] == f"Accuracy over epochs; at the end {last['top1']:.3g} % on val"
    assert len(labels) == len(CURVES)
    assert all(labels)
    images = re.findall(r"<img[^>]*>", page)
    assert len(images) > 16
    assert all(re.search(r' alt="[^"]+"', image) for image in images)


def test_ids_on_the_page_are_unique_and_nothing_is_fetched(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 50
    for reference in re.findall(r'\b(?:href|src|srcset|action|poster|data)="([^"]*)"', page):
        assert reference.startswith(("data:", "#")), reference[:80]
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "<script" not in page


def test_the_page_depends_on_the_run_folder_alone(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("report", "checkpoints"))

    def without_time(path: Path) -> str:
        text, count = re.subn(r"This page: [\d-]+ [\d:]+", "", path.read_text(encoding="utf-8"))
        assert count == 1
        return text

    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    out = tmp_path / "out" / "report"
    assert write_report(other, out) == out / "index.html"
    assert without_time(out / "index.html") == without_time(run / "report" / "index.html")
    for name in ("loss.png", "mistakes.png"):
        with Image.open(out / name) as mine, Image.open(run / "report" / name) as theirs:
            assert mine.tobytes() == theirs.tobytes()
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_any_class_name_is_escaped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.report.page._write_grids", lambda run, out: None)
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report", "checkpoints"))
    saved, inputs = read_predictions(folder / PREDICTIONS), read_inputs(folder / INPUTS)
    assert saved is not None
    assert inputs is not None
    names = [f"{MARKUP}{number}" for number in range(10)]
    write_predictions(folder / PREDICTIONS, replace(saved, metadata={**saved.metadata, "classes": names}))
    write_inputs(folder / INPUTS, replace(inputs, metadata={**inputs.metadata, "classes": names}))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<b>&" not in page
    assert "<script" not in page
    matrix = page.partition("Confusion matrix: true")[2]
    table = rows(matrix)
    assert table[0] == ["", *(short(name, 14) for name in names)]
    assert [row[0] for row in table] == table[0]
    titles = re.findall(r'<span title="([^"]*)">', matrix)
    assert [html.unescape(title) for title in titles] == 2 * names
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    assert "<b>&amp;" not in page
    assert page.count(str(escape(MARKUP))) > 40
    assert 'alt="&lt;b&gt;&amp;&#34;' in page


def test_confusion_is_a_table_then_a_drawing_then_a_list_as_classes_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_dist.report.page._LEARNING", {})
    monkeypatch.setattr("vit_dist.report.page._TRAINING", {})
    monkeypatch.setattr("vit_dist.report.page._MACHINE", {})
    lines = [start_line(0, 0.0), train_line(10, 1.0)]
    for count, has_picture in ((25, False), (26, True), (101, False)):
        folder = make_run(tmp_path / f"{count}", lines)
        write_predictions(folder / PREDICTIONS, some_predictions([f"class {number}" for number in range(count)]))
        page = write_report(folder).read_text(encoding="utf-8")
        assert ('<table class="confusion">' in page) == (count <= 25)
        assert ('aria-label="Confusion matrix"' in page) == has_picture
        assert (folder / "report" / "confusion.png").exists() == (count <= 100)
        assert rows(page.split("Most frequent mistakes")[1])[1:] == [
            ["class 1", "class 2", "1"],
            ["class 2", "class 0", "1"],
        ]


def test_the_report_of_an_unfinished_run(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0, planned=30), train_line(10, 1.0, samples_per_second=123.0), eval_line(10, 1.5)]
    lines += [train_line(20, 2.0, samples_per_second=125.0), save_line(20, 2.5, 0.1)]
    folder = make_run(tmp_path / "run", lines, evaluate__metric="top1")
    page = write_report(folder).read_text(encoding="utf-8")
    assert '<p class="state running">running</p>' in page
    training = dict(words(page))["Training"]
    assert training.startswith("20 of 30 updates of 32 images = 2 epochs, in 2.0 s (1.0 s an epoch, 124 images/s)")
    assert verdict_of(page) == (
        "60.0 % on val (±13.7). Val is small: 48 images, each of 2.1 points. "
        "The same images chose the best weights, so expect a little less on new ones."
    )
    assert figures(page) == {"accuracy on val": "60.00 %", "images wrong": "19"}
    for title in ("Most confident mistakes", "Model inputs", "Classes, lowest F1 first", "Confusion matrix: true"):
        assert title not in page
    assert {path.stem for path in (folder / "report").glob("*.png")} == CURVES


@pytest.mark.usefixtures("without_drawing")
def test_the_best_value_is_of_the_configured_metric(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), eval_line(10, 1.5, best=True, top1=75.0)]
    lines += [eval_line(10, 1.6, weights="ema", top1=99.0), eval_line(20, 2.0, top1=70.0)]
    folder = make_run(tmp_path / "raw", lines, evaluate__metric="raw_top1", train__ema=0.9)
    assert figures(write_report(folder).read_text(encoding="utf-8"))["accuracy on val"] == "75.00 %"
    lines[2]["best"], lines[3]["best"] = False, True
    folder = make_run(tmp_path / "ema", lines, evaluate__metric="top1", train__ema=0.9)
    assert figures(write_report(folder).read_text(encoding="utf-8"))["accuracy on val"] == "99.00 %"


def test_the_report_of_a_run_without_training_lines(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0)])
    write_inputs(folder / INPUTS, some_inputs("abc"))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "No line of training yet." in page
    assert verdict_of(page) == "Not evaluated yet."
    assert "Nothing has been evaluated yet." in page
    assert figures(page) == {}
    assert dict(words(page))["Model"] == "vit_tiny, 18.2 k parameters, trained from scratch"
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "inputs.png"}
    assert "a 75%, b 25%" in page


@pytest.mark.usefixtures("without_drawing")
def test_inputs_of_a_later_update_name_the_update(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(1234, 0.0)])
    inputs = some_inputs("abc")
    write_inputs(folder / INPUTS, replace(inputs, metadata={**inputs.metadata, "position": 1234}))
    page = write_report(folder).read_text(encoding="utf-8")
    assert ">The first training images, of update 1,235, augmented, exactly as the model gets them.<" in page


def test_predictions_are_shown_without_training_lines(tmp_path: Path) -> None:
    """A restart supersedes the last lines of a run, but not the predictions that it has written."""
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0), start_line(5, 2.0)])
    write_predictions(folder / PREDICTIONS, some_predictions("abc"))
    page = write_report(folder).read_text(encoding="utf-8")
    assert figures(page)["accuracy on test"] == "50.00 %"
    assert "No line of training yet." in page
    assert "<svg" not in page
    assert {path.stem for path in (folder / "report").glob("*.png")} == PREDICTION_DRAWINGS


def test_a_run_restarted_before_its_first_checkpoint_has_no_training_lines(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0), start_line(0, 60.0)])
    assert "No line of training yet." in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_drawing")
def test_a_killed_run_is_called_killed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0)])
    (folder / "status.json").write_text(json.dumps({"state": "running", "update": 10, "host": platform.node()}))
    text = '<p class="state killed">killed: the same command goes on from its last checkpoint</p>'
    assert text in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_drawing")
def test_a_failed_run_shows_its_reason(tmp_path: Path) -> None:
    reason = "UserError: data.root: <missing> & gone"
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0)], state="failed", reason=reason)
    text = f'<p class="state failed">failed: {escape(reason)}</p>'
    assert text in write_report(folder).read_text(encoding="utf-8")


def test_a_loss_that_is_not_finite_is_a_warning(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0), train_line(20, 2.0, loss="nan", grad_norm="inf")]
    lines.append(eval_line(20, 3.0, loss="nan"))
    page = write_report(make_run(tmp_path / "run", lines)).read_text(encoding="utf-8")
    assert rows(section(page, "Evaluations"))[1][4] == "nan"
    assert page_warnings(page) == [
        "The training loss is not finite at update 20.",
        "The loss on val is nan: the model gives no answers, and its accuracy says nothing.",
    ]


def page_warnings(page: str) -> list[str]:
    return [text for name, text in words(section(page, "What is wrong")) if name == "Training"]


@pytest.mark.usefixtures("without_drawing")
def test_values_that_curves_leave_out_are_warnings(tmp_path: Path) -> None:
    def warnings_for(name: str, losses: list[Any], skipped: list[int]) -> list[str]:
        lines = [start_line(0, 0.0, planned=10**6)]
        for number, (loss, count) in enumerate(zip(losses, skipped, strict=True), 1):
            lines.append(train_line(1000 * number, float(number), loss=loss, skipped_updates=count))
        return page_warnings(write_report(make_run(tmp_path / name, lines)).read_text(encoding="utf-8"))

    assert warnings_for("none", [], []) == []
    assert warnings_for("fine", [2.0, 1.0, 0.0], [0, 0, 0]) == []
    lost = "The training loss is not finite at update 2,000, and in 2 lines in all."
    assert warnings_for("lost", [2.0, "nan", "inf"], [0, 0, 0]) == [lost]
    # Each line has the count since the start, so the last line has the total.
    skipped = "Updates skipped because their loss or gradient was not finite: 1,002."
    assert warnings_for("skipped", [2.0, 1.0, 0.5], [1, 1, 1002]) == [skipped]
    assert warnings_for("both", [2.0, None, "-inf"], [0, 500, 1002]) == [lost, skipped]


def test_the_folder_is_created_before_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unwritable path is reported before seconds of drawing, not after them."""
    folder = make_run(tmp_path / "run", [start_line(0, 0.0)])
    drawn: list[bool] = []
    monkeypatch.setattr("vit_dist.report.page._drawings", lambda run: drawn.append((folder / "report").is_dir()) or {})
    write_report(folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        write_report(folder, tmp_path / "file")
    assert drawn == [True]


def test_an_unwritable_path_is_a_user_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0)])
    out = tmp_path / "file"
    out.touch()
    with pytest.raises(UserError) as caught:
        write_report(folder, out)
    assert str(caught.value) == f"report: {out} cannot be written: File exists"


def test_the_command_writes_the_page_and_imports_no_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [start_line(0, 0.0), train_line(10, 1.0)])
    other = make_run(tmp_path / "other", [start_line(0, 0.0), train_line(10, 1.0)])
    code = (
        "import sys\nfrom vit_dist.cli import main\n"
        f"codes = main(['report', {str(folder)!r}, '--out', {str(tmp_path / 'out')!r}]), "
        f"main(['report', {str(folder)!r}, {str(other)!r}, '--out', {str(tmp_path / 'both')!r}])\n"
        "print(codes, [name for name in ('torch', 'accelerate', 'pandas') if name in sys.modules])\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=80, check=True)
    lines = process.stdout.splitlines()
    assert [lines[0], lines[-2], lines[-1]] == [
        f"{tmp_path / 'out' / 'index.html'}: open it in a browser",
        f"{tmp_path / 'both' / 'comparison.html'}: open it in a browser",
        "(0, 0) []",
    ]
    assert (tmp_path / "out" / "loss.png").is_file()


def test_the_command_rejects_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"vit-dist: {tmp_path}: not a run's folder: it has no config.yaml\n"


@pytest.mark.slow
def test_the_report_of_a_million_lines_is_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 10**6
    folder = make_run(tmp_path / "run", [start_line(0, 0.0, planned=count)])
    # Fill in one template: a million calls of json.dumps would take longer than the report.
    line = json.dumps({**train_line(1, 0.0), "time": "@", "update": "@", "epoch": "@", "loss": "@"})
    line = line.replace("%", "%%").replace('"@"', "%s") + "\n"
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for update in range(1, count + 1):
            file.write(line % (float(update), update, update / 10, 100.0 if update == 654_321 else 2.0))
        for number in range(1, 11):  # without evaluations there are no hints to compute
            update = count // 10 * number
            file.write(json.dumps(eval_line(update, 1e6 + number, best=True, loss=2.0 - 0.1 * number)) + "\n")
    read_seconds: list[float] = []

    def timed_read_run(folder: Path) -> RunRecord:
        begun = time.perf_counter()
        run = read_run(folder)
        read_seconds.append(time.perf_counter() - begun)
        return run

    monkeypatch.setattr("vit_dist.report.page.read_run", timed_read_run)
    begun = time.perf_counter()
    page = write_report(folder)
    seconds = time.perf_counter() - begun
    with capsys.disabled():
        size = page.stat().st_size / 2**20
        print(
            f"\nreport of {count:,} lines: {seconds:.1f} s, of these {read_seconds[0]:.1f} s of reading; {size:.1f} MiB"
        )
    assert dict(words(page.read_text(encoding="utf-8")))["Training"].startswith("1,000,000 updates of 32 images")
    assert page.stat().st_size < 2**21
