"""The comparison of several runs: its sentences, table and curves, for runs written by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.report.runs import finished_run
from tests.report.test_ranking import evaluated, keep
from tests.run_folder.handwritten import make_run, start_line, train_line
from vit_dist import UserError
from vit_dist.cli import main
from vit_dist.formatting import markdown
from vit_dist.report.comparison import class_differences, distinct_names, write_comparison
from vit_dist.report.curves import comparison_curve
from vit_dist.report.drawing import save_png
from vit_dist.run_folder.record import read_run


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes a second, in a test of text alone."""
    monkeypatch.setattr("vit_dist.report.comparison._pictures", lambda *arguments: {})
    monkeypatch.setattr("vit_dist.report.speed._pictures", lambda *arguments: {})


def cells(text: str, heading: str = "# Comparison") -> dict[str, list[str]]:
    """Return the Markdown table under a heading: first cell → others; check that all rows have as many cells."""
    part = text[text.index(f"{heading}\n") + len(heading) :]
    lines = [line for line in re.split(r"\n## ", part)[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    assert rows[1] == ["---", *["---:"] * (len(rows[0]) - 1)]
    return {row[0]: row[1:] for row in [rows[0], *rows[2:]]}


def test_the_page_begins_with_a_table_of_the_runs_the_best_first(tmp_path: Path) -> None:
    fields = {"evaluate__metric": "top1"}
    folders = [
        evaluated(tmp_path / "one", 1.0, 380, val_top1=90.0, model__width=64, **fields),
        evaluated(tmp_path / "two", 1.0, 384, val_top1=92.0, model__width=128, optimizer__name="muon", **fields),
        make_run(tmp_path / "three", [start_line(0, 0.0), train_line(10, 1.0, mfu=0.25)], state="stopped", **fields),
    ]
    keep(folders[0], range(20))
    keep(folders[1], range(4, 20))
    page, text = write_comparison(folders, tmp_path / "out" / "three runs")
    assert page == tmp_path / "out" / "three runs" / "comparison.html"
    assert (page.parent / "comparison.md").read_text(encoding="utf-8") == text
    assert text.startswith(
        "# Comparison\n\n**Not finished yet, so shown as far as it went: three. two is the best of 3, by top1 on val: "
        "92.00 %. On test it has 96.00 %, one 95.00 %: of the same 400 images, two alone is right on 4, one alone on "
        "0, a difference that chance alone could make (McNemar's test, p = 0.12).**\n\n| run |"
    )
    expected = {
        "run": ["width", "optimizer.name", "best top1 on val", "loss on val", "top1 on test (95 % interval)",
                "against the best", "epochs", "time", "state"],
        "two": ["128", "muon", "92.00 % (80.4 to 96.7)", "1.0000", "96.00 % (93.6 to 97.5)", "best", "3",
                "1 min 00 s", "finished"],
        "one": ["64", "adamw", "90.00 % (77.8 to 95.5)", "1.0000", "95.00 % (92.4 to 96.7)",
                "−1.00 points, within noise", "3", "1 min 00 s", "finished"],
        "three": ["96", "adamw", "–", "–", "–", "–", "1", "1.0 s", "stopped"],
    }  # fmt: skip
    assert cells(text) == expected
    assert list(cells(text)) == list(expected)
    assert "- Beyond noise: by McNemar's test on the images that both classified, at 95 %." in text
    assert cells(text, "## Speed") == {
        "": ["one", "two", "three"],
        "machine": ["1 × cpu, fp32"] * 3,
        "updates": ["30", "30", "10 of 30"],
        "seconds an epoch": ["1", "1", "1"],
        "training": ["3.0 s", "3.0 s", "1.0 s"],
        "in all": ["1 min 00 s", "1 min 00 s", "1.0 s"],
        "images/s": ["480", "480", "100"],
        "MFU": ["–", "–", "25.0 %"],
        "peak memory, MiB": ["1", "1", "1"],
    }
    html = page.read_text(encoding="utf-8")
    tables = [ElementTree.fromstring(table) for table in re.findall(r"<table.*?</table>", html, re.DOTALL)]
    rows = [[cell.text or "" for cell in row] for row in tables[0].iter("tr")]
    assert {row[0]: row[1:] for row in rows} == expected
    assert [row.get("class") for row in tables[0].iter("tr")] == [None, "best", None, None]
    assert [cell.get("class") for cell in tables[0].iter("td")].count("noise") == 1
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == ["loss.png", "accuracy.png", "classes.png", "loss_over_time.png"]
    for name in shown:
        with Image.open(page.parent / name) as image:
            assert image.format == "PNG"
    assert {path.name for path in page.parent.iterdir()} == {*shown, "comparison.html", "comparison.md"}
    assert html.count("<svg") == 4
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)


def test_classes_of_the_best_two_are_compared(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / "one", 1.0, 380), evaluated(tmp_path / "two", 1.2, 384)]
    keep(folders[0], [0, 2, 4, 6])
    keep(folders[1], [0, 1])
    runs = [read_run(folder) for folder in folders]
    assert class_differences(*runs) == [("a", 200, pytest.approx(-1.5)), ("b", 200, pytest.approx(0.5))]
    assert class_differences(runs[0], runs[0]) == []
    keep(folders[1], [0, 1], split="val")
    assert class_differences(runs[0], read_run(folders[1])) == []


@pytest.mark.usefixtures("without_pictures")
def test_runs_on_other_data_have_no_best(tmp_path: Path) -> None:
    folders = [evaluated(tmp_path / "one", 1.0, 380), evaluated(tmp_path / "two", 1.2, 300, data__val_fraction=0.3)]
    page, text = write_comparison(folders, tmp_path / "out")
    assert "**These runs are on different data (digits: one; digits (2): two): " in text
    table = cells(text)
    assert "against the best" not in table["run"]
    assert (table["one"][0], table["two"][0]) == ("digits", "digits (2)")
    assert 'class="best"' not in page.read_text(encoding="utf-8")


@pytest.mark.usefixtures("without_pictures")
def test_more_fields_than_columns_are_named(tmp_path: Path) -> None:
    many = {"run__seed": 1, "model__width": 32, "model__depth": 1, "model__heads": 2, "model__patch_size": 2}
    many |= {"model__dropout": 0.1, "model__drop_path": 0.2, "optimizer__lr": 0.5, "optimizer__weight_decay": 0.3}
    folders = [finished_run(tmp_path / "one"), finished_run(tmp_path / "two", **many)]
    _, text = write_comparison(folders, tmp_path / "out")
    assert len(cells(text)["run"]) == 8 + 6
    assert "- Also different: weight_decay." in text
    assert "The configs differ in nothing" not in text
    _, text = write_comparison([folders[0], finished_run(tmp_path / "again")], tmp_path / "out")
    assert "- The configs differ in nothing that can change the result." in text


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
    assert capsys.readouterr().out == "a page: open it in a browser\n" * 2
    assert main(["report", str(folder), str(other), str(folder), "--out", str(tmp_path / "out")]) == 0
    assert calls == [folder, folder, [folder, other]]


@pytest.mark.usefixtures("without_pictures")
def test_runs_of_the_same_name_are_named_by_their_folders(tmp_path: Path) -> None:
    folders = [finished_run(tmp_path / parent / "run") for parent in ("first", "second")]
    _, text = write_comparison(folders, tmp_path / "out")
    assert [*cells(text)][1:] == ["first/run", "second/run"]
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
    assert [*cells(text)][1:] == [markdown(name) for name in names]
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
    assert "<h1>Comparison of &lt;b&gt;&amp; · two</h1>" in html
    assert "two and \\<b\\>\\& have one identity" in text


@pytest.mark.usefixtures("without_pictures")
def test_a_vertical_bar_in_a_name_is_escaped_in_the_table(tmp_path: Path) -> None:
    page, text = write_comparison([finished_run(tmp_path / "a|b"), finished_run(tmp_path / "two")], tmp_path / "out")
    assert [*cells(text)][1:] == ["a\\|b", "two"]
    assert "<h1>Comparison of a|b · two</h1>" in page.read_text(encoding="utf-8")


def test_runs_without_training_lines_are_compared(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, [start_line(0, 0.0)]) for name in ("one", "two")]
    page, text = write_comparison(folders, tmp_path / "out")
    assert cells(text, "## Speed")["updates"] == ["0 of 30", "0 of 30"]
    assert "Not finished yet, so shown as far as it went: one, two." in page.read_text(encoding="utf-8")


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
