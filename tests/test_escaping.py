"""Names that hold anything are shown in each place as what they are: they neither command nor break it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.export.models import small_model
from tests.report.runs import comparison_page
from vit_dist.errors import HIDDEN, UserError, visible
from vit_dist.export.model_card import model_card
from vit_dist.formatting import code_span, json_line, markdown, spreadsheet_cell
from vit_dist.inference.output import ImagePrediction, PredictionWriter
from vit_dist.report.advice import Hint
from vit_dist.report.confusion import confusion_matrix
from vit_dist.report.drawing import short, to_svg
from vit_dist.report.quality import class_rows
from vit_dist.report.rendering import macro
from vit_dist.run_folder.figures import figures_of
from vit_dist.run_folder.predictions import Predictions
from vit_dist.run_folder.progress import write_progress
from vit_dist.telemetry.console import Console

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "a\nb\rc\td",
    "\u202egnp.exe",
    "\ud800",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2",
    "@SUM(1)",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt;",
    r"$\frac{1}{0}$",
    "$x",
    "`rm`",
    "``",
    "[x](javascript:alert(1))",
    "| a | b |",
    "**bold** _it_ ~~no~~",
    "---",
    "\0",
)
PREDICTIONS = [ImagePrediction(name, ((name, 0.5),), name, right=False) for name in HOSTILE]
PREDICTIONS.append(ImagePrediction("\x1b.png", error="\x1b[31m broken"))


def written(format: str) -> str:
    file = io.StringIO(newline="")
    writer = PredictionWriter(file, format, top=1, labelled=True, images=HOSTILE, classes=HOSTILE)
    for prediction in PREDICTIONS:
        writer.write(prediction)
    return file.getvalue()


def test_what_a_terminal_obeys_is_shown_as_text() -> None:
    assert visible("é ä 猫 🐈 a\tb\x1b\x9b\u202e\ud800\\x1b") == r"é ä 猫 🐈 a\tb\x1b\x9b\u202e\ud800" + r"\x1b"
    assert str(UserError("\x1b[2J: no\nsecond line")) == "\\x1b[2J: no\nsecond line"
    file = io.StringIO()
    Console(speaks=True, stream=file).say("\x1b[2J\u2028 é\nnext")
    assert file.getvalue() == "\\x1b[2J\\u2028 é\nnext\n"


def test_a_table_has_one_row_for_each_image_and_commands_no_terminal() -> None:
    lines = written("table").split("\n")
    assert len(lines) == 1 + len(PREDICTIONS) + 1
    assert not any(HIDDEN.search(line) for line in lines)
    assert r"\x1b[2J" in lines[1]


def test_no_cell_of_a_csv_is_a_formula() -> None:
    text = written("csv")
    assert not HIDDEN.search(text.replace("\r\n", "").replace("\n", ""))
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 1 + len(PREDICTIONS)
    assert not any(cell[:1] in tuple("=+-@\t\r") for row in rows for cell in row if cell)
    assert [row[0] for row in rows if row[0].startswith("'")] == [
        "'=1+1",
        "'+cmd|' /C calc'!A0",
        "'-2",
        "'@SUM(1)",
        "'---",
    ]
    assert [spreadsheet_cell(text) for text in ("a=1", "\n=1", "\t=1", "＝1")] == ["a=1", "'\n=1", "\\t=1", "'＝1"]


def test_json_lines_keep_names_exactly() -> None:
    lines = written("jsonl").splitlines()
    assert len(lines) == len(PREDICTIONS)
    assert [json.loads(line)["image"] for line in lines] == [prediction.image for prediction in PREDICTIONS]
    assert not any(HIDDEN.search(line) for line in lines)
    assert json_line({"é": "猫"}) == '{"é": "猫"}'


class Page(HTMLParser):
    """Collects the tags of a page, and their attributes' names."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_pages_and_pictures_show_names_as_text(tmp_path: Path) -> None:
    count = len(HOSTILE)
    places = np.arange(count)
    predictions = Predictions(places, places, places[::-1, None].copy(), np.full((count, 1), 0.5, np.float32))
    svg = to_svg(confusion_matrix(predictions, HOSTILE), "confusion")
    class_table, means = class_rows(figures_of(predictions, count), list(HOSTILE), count)
    html = comparison_page(HOSTILE[9], HOSTILE[10], HOSTILE)
    html += macro("confusion_matrix", predictions.confusion(count).tolist(), HOSTILE)
    html += macro("class_table", class_table, means) + macro("words", [(name, name) for name in HOSTILE])
    html += macro("hints", [Hint(name, name, name, name, name) for name in HOSTILE])
    page = Page()
    page.feed(svg + html)
    assert not {"script", "img", "b"} & page.tags
    assert not {"onerror", "onload", "src"} & page.attributes
    assert not HIDDEN.search((svg + html).replace("\n", "").encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
    assert short(r"$\frac{1}{0}$", 12) in svg


def test_markdown_shows_names_as_text() -> None:
    assert markdown("digits-abc_1 98.5 % (1 × cpu)") == "digits-abc_1 98.5 % (1 × cpu)"
    assert markdown("a|b`c[d](e)<f>*g* _h_ \\") == "a\\|b\\`c\\[d\\](e)\\<f\\>\\*g\\* \\_h\\_ \\\\"
    assert [code_span(text) for text in ("cat", "a`b", "`", "``a")] == ["`cat`", "``a`b``", "`` ` ``", "``` ``a ```"]


def test_a_model_card_has_no_markup_but_its_own() -> None:
    trained = small_model()
    trained = dataclasses.replace(trained, names=list(HOSTILE), classes=list(HOSTILE))
    for name in HOSTILE:
        card = model_card(trained, None, name)
        _, front, body = card.split("---\n", 2)
        assert yaml.safe_load(front)["library_name"] == "timm"
        assert not HIDDEN.search(card.replace("\n", ""))
        title = body.splitlines()[1]
        assert title.startswith("# ")
        assert not re.search(r"(?<!\\)[`\[\]<>|]", title.replace("\\\\", ""))
        assert [line for line in body.splitlines() if line.startswith("#")][1:] == ["## Data", "## Usage"]


def test_the_title_of_progress_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "a|b`[c](d)<e>\x1b"
    folder.mkdir()
    write_progress(folder, [], "top1")
    assert (folder / "progress.md").read_text().splitlines()[0] == "# a\\|b\\`\\[c\\](d)\\<e\\>\\\\x1b"


@pytest.mark.parametrize("name", HOSTILE)
def test_an_error_about_a_name_is_safe_on_a_terminal(name: str) -> None:
    assert not HIDDEN.search(str(UserError(f"{name}: no image is there")).replace("\n", ""))
