"""The exact text of predictions as a table, JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json

import pytest

from vit_dist.inference.output import FORMATS, ImagePrediction, PredictionWriter

PLAIN = [
    ImagePrediction("a.png", (("cat", 0.5), ("dog", 0.25))),
    ImagePrediction("folder/b.png", (("dog", 0.999), ("cat", 0.001))),
]
LABELLED = [
    ImagePrediction("a.png", (("cat", 0.5), ("dog", 0.25)), "cat", right=True),
    ImagePrediction("b.png", (("dog", 1.0), ("cat", 0.0)), "cat", right=False),
]
BROKEN = ImagePrediction("broken.png", error="cannot be decoded (it is a text)")


def format_predictions(
    format: str,
    predictions: list[ImagePrediction],
    *,
    labelled: bool = False,
    top: int = 2,
    classes: tuple[str, ...] = ("cat", "dog"),
) -> str:
    file = io.StringIO(newline="")
    writer = PredictionWriter(
        file,
        format,
        top=top,
        labelled=labelled,
        images=[prediction.image for prediction in predictions],
        classes=classes,
    )
    for prediction in predictions:
        writer.write(prediction)
    return file.getvalue()


def test_the_formats_are_table_json_lines_and_csv() -> None:
    assert FORMATS == ("table", "jsonl", "csv")


def test_right_does_not_depend_on_the_names_of_classes() -> None:
    assert [prediction.right for prediction in (*PLAIN, *LABELLED, BROKEN)] == [None, None, True, False, None]
    crane = (("crane", 0.5), ("crane", 0.25))
    cranes = [
        ImagePrediction("bird.png", crane, "crane", right=True),
        ImagePrediction("machine.png", crane, "crane", right=False),
    ]
    assert [prediction.to_dict()["right"] for prediction in cranes] == [True, False]
    assert format_predictions("table", cranes, labelled=True, classes=("crane", "crane")) == (
        "image        label  1.            2.\n"
        "bird.png     crane  crane  50.0%  crane  25.0%\n"
        "machine.png  crane  crane  50.0%  crane  25.0%  wrong\n"
    )
    rows = csv.DictReader(io.StringIO(format_predictions("csv", cranes, labelled=True), newline=""))
    assert [row["right"] for row in rows] == ["true", "false"]


def test_a_table_has_aligned_columns() -> None:
    assert format_predictions("table", PLAIN) == (
        "image         1.            2.\n"
        "a.png         cat    50.0%  dog    25.0%\n"
        "folder/b.png  dog    99.9%  cat     0.1%\n"
    )


def test_a_table_with_labels_marks_mistakes() -> None:
    assert format_predictions("table", LABELLED, labelled=True) == (
        "image  label  1.            2.\n"
        "a.png  cat    cat    50.0%  dog    25.0%\n"
        "b.png  cat    dog   100.0%  cat     0.0%  wrong\n"
    )


def test_a_table_shows_the_error_of_an_unreadable_image_in_its_row() -> None:
    assert format_predictions("table", [PLAIN[0], BROKEN, PLAIN[1]]).splitlines()[1:] == [
        "a.png         cat    50.0%  dog    25.0%",
        "broken.png    cannot be decoded (it is a text)",
        "folder/b.png  dog    99.9%  cat     0.1%",
    ]


def test_a_table_cuts_the_front_of_long_paths_and_the_end_of_long_classes() -> None:
    path, name = f"start{'x' * 60}/end.png", "abcdefghijklmnopqrstuvwxyz"
    head, row, short = format_predictions(
        "table",
        [
            ImagePrediction(path, ((name, 0.5),), name, right=True),
            ImagePrediction("a.png", (("dog", 0.5),), name, right=False),
        ],
        labelled=True, top=1, classes=("dog", name),
    ).splitlines()  # fmt: skip
    cut = "abcdefghijklmnopqrstuvwx"
    assert row == f"…{path[-59:]}  {cut}  {cut}  50.0%"
    assert len(f"…{path[-59:]}") == 60
    assert short == f"{'a.png':<60}  {cut}  {'dog':<24}  50.0%  wrong"
    assert head == f"{'image':<60}  {'label':<24}  1."


def test_a_name_of_exactly_the_width_is_not_cut() -> None:
    path = "p" * 60
    assert (
        format_predictions("table", [ImagePrediction(path, (("cat", 0.5),))], top=1).splitlines()[1]
        == f"{path}  cat    50.0%"
    )


def test_json_lines_have_one_object_per_image() -> None:
    lines = format_predictions(
        "jsonl", [*LABELLED, PLAIN[0], BROKEN, ImagePrediction("naïve.png", (("Käse", 1 / 3),))]
    ).splitlines()
    assert lines == [
        '{"image": "a.png", "label": "cat", "right": true, "top": [{"class": "cat", "probability": 0.5}, '
        '{"class": "dog", "probability": 0.25}]}',
        '{"image": "b.png", "label": "cat", "right": false, "top": [{"class": "dog", "probability": 1.0}, '
        '{"class": "cat", "probability": 0.0}]}',
        '{"image": "a.png", "top": [{"class": "cat", "probability": 0.5}, {"class": "dog", "probability": 0.25}]}',
        '{"image": "broken.png", "error": "cannot be decoded (it is a text)"}',
        '{"image": "naïve.png", "top": [{"class": "Käse", "probability": 0.333333}]}',
    ]
    assert [json.loads(line)["image"] for line in lines] == ["a.png", "b.png", "a.png", "broken.png", "naïve.png"]


def test_csv_has_a_header_and_one_row_per_image() -> None:
    assert format_predictions("csv", [*PLAIN, BROKEN]).split("\r\n") == [
        "image,class_1,probability_1,class_2,probability_2,error",
        "a.png,cat,0.500000,dog,0.250000,",
        "folder/b.png,dog,0.999000,cat,0.001000,",
        "broken.png,,,,,cannot be decoded (it is a text)",
        "",
    ]
    assert format_predictions("csv", LABELLED, labelled=True).split("\r\n") == [
        "image,label,right,class_1,probability_1,class_2,probability_2,error",
        "a.png,cat,true,cat,0.500000,dog,0.250000,",
        "b.png,cat,false,dog,1.000000,cat,0.000000,",
        "",
    ]


def test_csv_of_names_with_commas_quotes_and_line_breaks_is_read_back() -> None:
    names = ['great white shark, "man-eater"', "two\nlines"]
    predictions = [
        ImagePrediction('a, "b".png', ((names[0], 0.75), (names[1], 0.25)), names[0], right=True),
        ImagePrediction("c;d.png", ((names[1], 0.5), (names[0], 0.5)), names[0], right=False),
        ImagePrediction("e.png", error='no "image", at all'),
    ]
    text = format_predictions("csv", predictions, labelled=True, classes=tuple(names))
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == [prediction.image for prediction in predictions]
    assert [(row["label"], row["right"], row["class_1"], row["class_2"]) for row in rows] == [
        (names[0], "true", names[0], names[1]),
        (names[0], "false", names[1], names[0]),
        ("", "", "", ""),
    ]
    assert [row["probability_1"] for row in rows] == ["0.750000", "0.500000", ""]
    assert [row["error"] for row in rows] == ["", "", 'no "image", at all']


@pytest.mark.parametrize("format", FORMATS)
def test_every_prediction_is_a_line_of_its_own(format: str) -> None:
    assert len(format_predictions(format, [*PLAIN, BROKEN]).splitlines()) == 3 + (format != "jsonl")
