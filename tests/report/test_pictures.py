"""Drawings: curves of few points, SVGs that share a page, grids of images, tables, and the predictions behind them."""

from __future__ import annotations

import math
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tests.report.runs import comparison_page
from tests.run_folder.handwritten import eval_line, make_run, some_inputs, some_predictions, start_line, train_line
from vit_dist.report import curves, drawing, grids
from vit_dist.report.confusion import confusion_matrix, confusions
from vit_dist.report.rendering import macro
from vit_dist.run_folder.predictions import (
    InputExamples,
    Predictions,
    read_inputs,
    read_predictions,
    write_inputs,
    write_predictions,
)
from vit_dist.run_folder.record import read_run

# Curves of few points.


@pytest.mark.parametrize("length", [601, 1000, 1199, 1200, 1201, 7919])
def test_thin_is_exact_for_uneven_sizes(length: int) -> None:
    generator = np.random.default_rng(length)
    x, y = np.arange(length, dtype=np.float64), generator.normal(size=length)
    curve = curves.thin(x, y)
    edges = [math.floor(length * number / 600) for number in range(600)] + [length]
    shares = [slice(a, b) for a, b in pairwise(edges)]
    np.testing.assert_allclose(curve.mean, [y[share].mean() for share in shares], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(curve.x, [x[share].mean() for share in shares], rtol=1e-12)
    np.testing.assert_array_equal(curve.low, [y[share].min() for share in shares])
    np.testing.assert_array_equal(curve.high, [y[share].max() for share in shares])


def test_thin_keeps_every_peak() -> None:
    generator = np.random.default_rng(0)
    for position in generator.integers(0, 50_000, 20).tolist():
        y = np.zeros(50_000)
        y[position], y[(position + 7) % 50_000] = 1000.0, -1000.0
        curve = curves.thin(np.arange(50_000.0), y)
        assert len(curve.x) == len(curve.mean) == len(curve.low) == len(curve.high) == 600
        assert curve.high.max() == 1000
        assert curve.low.min() == -1000
        assert abs(curve.x[int(curve.high.argmax())] - position) <= 50_000 / 600


def test_thin_drops_nan_and_keeps_few_points_unchanged() -> None:
    x, y = np.arange(5.0), np.asarray([np.nan, 3.0, np.nan, 1.0, 2.0])
    curve = curves.thin(x, y)
    assert curve.x.tolist() == [1, 3, 4]
    assert curve.mean.tolist() == curve.low.tolist() == curve.high.tolist() == [3, 1, 2]
    many = np.where(np.arange(2400) % 2 == 0, np.nan, np.arange(2400.0))
    curve = curves.thin(np.arange(2400.0), many)
    np.testing.assert_array_equal(curve.mean, np.arange(600) * 4.0 + 2)
    np.testing.assert_array_equal(curve.mean, curve.x)
    assert len(curves.thin(np.arange(9.0), np.full(9, np.nan)).x) == 0
    assert len(curves.thin(np.zeros(0), np.zeros(0)).x) == 0


def test_thin_ignores_an_infinity_among_finite_values() -> None:
    y = np.ones(1200)
    y[10] = np.inf
    curve = curves.thin(np.arange(1200.0), y)
    assert curve.mean.tolist() == [1.0] * 600
    assert curve.high.tolist() == [1.0] * 600


def test_an_interval_of_infinities_alone_is_nan() -> None:
    """The line then has a gap there."""
    y = np.ones(1200)
    y[10], y[11] = np.inf, -np.inf
    curve = curves.thin(np.arange(1200.0), y)
    for values in (curve.mean, curve.low, curve.high):
        assert np.isnan(values[5])
        assert np.delete(values, 5).tolist() == [1.0] * 599
    assert curve.x[5] == 10.5


@pytest.mark.parametrize(("seconds", "unit"), [(0, "seconds"), (180, "seconds"), (181, "minutes"), (7201, "hours")])
def test_the_unit_of_time_fits_its_length(seconds: float, unit: str) -> None:
    assert curves.time_unit(seconds) == ({"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}[unit], unit)


def labels(figure: Figure) -> list[str]:
    legend = figure.axes[0].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_curves_show_the_logged_values_and_the_restarts(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0, loss=3.0, lr=0.2), start_line(10, 5.0)]
    lines += [train_line(20, 6.0, loss=2.0, lr=0.1), train_line(30, 7.0, loss="nan", lr=0.0)]
    run = read_run(make_run(tmp_path / "run", lines, optimizer__clip_norm=0.5))
    loss, restart = curves.loss_curve(run).axes[0].lines
    assert [loss.get_xdata().tolist(), loss.get_ydata().tolist()] == [[1.0, 2.0], [3.0, 2.0]]
    assert list(restart.get_xdata()) == [1.0, 1.0]
    assert labels(curves.loss_curve(run)) == ["train", "resumed"]
    rate = curves.rate_curve(run).axes[0]
    assert rate.lines[0].get_ydata().tolist() == [0.2, 0.1, 0.0]
    assert rate.get_ylim()[0] == 0
    assert "clipped at 0.5" in labels(curves.norm_curve(run))
    images = curves.throughput_curve(run).axes[0]
    assert images.lines[0].get_xdata().tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert images.get_xlabel() == "seconds of training"
    busy = curves.utilisation_curve(run)
    assert [line.get_ydata().tolist() for line in busy.axes[0].lines] == [[50.0] * 3, [25.0] * 3]
    assert len(labels(busy)) == 2
    assert labels(busy)[1] == "waiting for images"


def test_a_value_that_was_not_logged_is_not_in_the_legend(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0, top1=None), start_line(10, 5.0), train_line(20, 6.0, top1=None)]
    assert "train" not in labels(curves.accuracy_curve(read_run(make_run(tmp_path / "run", lines))))


def test_the_training_loss_is_smoothed_and_a_spike_does_not_stretch_the_axis(tmp_path: Path) -> None:
    losses = [2.0 + 0.1 * (-1) ** number for number in range(100)]
    losses[50] = 1000.0
    lines = [train_line(10 * number, float(number), loss=loss) for number, loss in enumerate(losses, 1)]
    best = eval_line(500, 51.0, loss=1.5, best=True)
    lines = [start_line(0, 0.0), *lines[:50], best, *lines[50:], eval_line(1000, 101.0, loss=2.5)]
    axes = curves.loss_curve(read_run(make_run(tmp_path / "run", lines)), best).axes[0]
    raw, smoothed, val, _, mark = axes.lines
    assert raw.get_ydata().tolist() == losses
    assert raw.get_alpha() < 0.5
    assert set(np.round(smoothed.get_ydata(), 9)) <= {1.9, 2.0, 2.1}
    assert val.get_ydata().tolist() == [1.5, 2.5]
    assert [mark.get_xdata().tolist(), mark.get_ydata().tolist()] == [[50.0], [1.5]]
    assert mark.get_label() == "best, epoch 50"
    assert 1.0 < axes.get_ylim()[0] < 1.5
    assert 2.5 < axes.get_ylim()[1] < 3.0
    assert labels(curves.loss_curve(read_run(tmp_path / "run"))) == ["train, smoothed", "val"]


def test_peak_memory_is_in_mebibytes(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0, peak_memory_bytes=3 * 2**20), train_line(20, 2.0)]
    axes = curves.memory_curve(read_run(make_run(tmp_path / "run", lines))).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [3.0, 1.0]
    assert axes.get_ylim()[0] == 0


def test_time_bars_are_labelled_with_seconds_and_percentages() -> None:
    axes = curves.time_bars({"updates": 30.0, "saving": 10.0}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [10.0, 30.0]
    assert [text.get_text().strip() for text in axes.texts] == ["10 s, 25%", "30 s, 75%"]
    empty = curves.time_bars({"updates": 0.0, "saving": 0.0}).axes[0]
    assert [bar.get_width() for bar in empty.patches] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("norms", "scale"),
    [
        ([1.0, 2.0, 10.0], "linear"),
        ([1.0, 2.0, 10.1], "log"),
        ([0.0, 2.0, 10.0], "linear"),  # a logarithmic axis has no place for 0
        (["inf", 2.0, None], "linear"),
        ([None, "nan", "inf"], "linear"),
    ],
)
def test_gradient_norms_have_a_log_axis_only_beyond_a_factor_of_ten(
    tmp_path: Path, norms: list[Any], scale: str
) -> None:
    lines = [train_line(number, float(number), grad_norm=norm) for number, norm in enumerate(norms, 1)]
    axes = curves.norm_curve(read_run(make_run(tmp_path / "run", [start_line(0, 0.0), *lines]))).axes[0]
    assert axes.get_yscale() == scale


def test_the_accuracy_axis_includes_100_percent(tmp_path: Path) -> None:
    lines = [start_line(0, 0.0), train_line(10, 1.0, top1=30.0), train_line(20, 1.0, top1=100.0)]
    axes = curves.accuracy_curve(read_run(make_run(tmp_path / "run", lines))).axes[0]
    assert axes.get_ylim()[1] == 101
    assert 0 < axes.get_ylim()[0] < 30


# SVGs that share a page, and PNGs.


def all_ids(svg: str) -> list[str]:
    return re.findall(r'\bid="([^"]*)"', svg)


def example_figures() -> dict[str, Figure]:
    """Return a figure with curves, filled spans and a legend, and one with an image in it."""
    figure = curves.divergence_curve([(name, np.arange(1.0, 900), np.linspace(0.1, 1, 899)) for name in ("one", "two")])
    predictions = some_predictions(["ant", "bee & <b>", "cat"]).predictions
    return {"drift": figure, "confusion": confusion_matrix(predictions, ["ant", "bee & <b>", "cat"])}


def test_an_svg_is_well_formed_and_uses_the_colours_of_the_page() -> None:
    for name, figure in example_figures().items():
        svg = drawing.to_svg(figure, name)
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert [root.get("class"), root.get("role"), root.get("aria-label")] == ["chart", "img", name]
        left, top, width, height = map(float, str(root.get("viewBox")).split())
        assert [left, top, width, height] == pytest.approx([0, 0, *(72 * figure.get_size_inches())])
        assert [root.get("width"), root.get("height")] == [None, None]
        for colour in (drawing.INK, drawing.FAINT, *drawing.SERIES):
            assert colour not in svg
        assert "var(--ink)" in svg
        assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
        for reference in re.findall(r'(?:href|src)="([^"]*)"', svg):
            assert reference.startswith(("#", "data:image/png;base64,"))
        assert "<metadata" not in svg
        assert "Matplotlib" not in svg


def test_the_style_sheet_defines_the_colours_of_the_figures() -> None:
    style = (Path(drawing.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark = style.split("prefers-color-scheme: dark")
    used = set()
    for name, figure in example_figures().items():
        used |= set(re.findall(r"var\(--(\w+)\)", drawing.to_svg(figure, name)))
    assert {"ink", "faint", "blue", "orange"} - used <= {"blue"}
    for variable in used:
        assert f"--{variable}: #" in light
        assert f"--{variable}: #" in dark


def test_ids_are_unique_across_figures_and_every_reference_resolves() -> None:
    svgs = [drawing.to_svg(figure, name) for name, figure in example_figures().items()]
    svgs.append(drawing.to_svg(example_figures()["drift"], "drift again"))
    ids = [identifier for svg in svgs for identifier in all_ids(svg)]
    assert len(ids) > 20
    assert len(ids) == len(set(ids))
    for svg in svgs:
        own = set(all_ids(svg))
        references = {*re.findall(r'href="#([^"]*)"', svg), *re.findall(r"url\(#([^)]*)\)", svg)}
        assert references
        assert references <= own


def test_the_same_figure_gives_the_same_svg() -> None:
    first, second = (drawing.to_svg(example_figures()["drift"], "drift") for _ in range(2))
    assert first == second


def test_all_text_of_a_dark_page_is_light(tmp_path: Path) -> None:
    """Matplotlib's own text is black and its legends are white, also on a dark page."""
    lines = [start_line(0, 0.0), train_line(10, 1.0), start_line(10, 5.0), train_line(20, 6.0)]
    run = read_run(make_run(tmp_path / "run", lines))
    for name, figure in {"loss": curves.loss_curve(run), "seconds": curves.time_bars({"updates": 3.0})}.items():
        root = ElementTree.fromstring(drawing.to_svg(figure, name))
        texts = [element for element in root.iter() if element.tag.endswith("text")]
        assert len(texts) > 1
        for text in texts:
            assert "var(--ink)" in str(text.get("style")), text.text
        assert not [element for element in root.iter() if re.search(r"fill: (#ffffff|white)", element.get("style", ""))]


def test_a_png_has_its_size_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    figure, axes = drawing.new_figure(3.0, 2.0)
    axes.plot([0, 1], [0, 1], color=drawing.BLUE)
    path = tmp_path / "picture.png"
    path.write_bytes(b"an older one")
    drawing.save_png(figure, path, dpi=100)
    with Image.open(path) as image:
        assert [image.format, image.size] == ["PNG", (300, 200)]
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert (9, 105, 218) in {colour for _, colour in image.convert("RGB").getcolors(60_000)}
    drawing.save_png(figure, path)
    with Image.open(path) as image:
        assert image.size == (450, 300)
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    with pytest.raises(OSError, match="missing"):
        drawing.save_png(figure, tmp_path / "missing" / "picture.png")


# Grids.


def colour_centre(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Return the mean row and column of all pixels of a colour, as fractions of the height and width."""
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - colour) <= 2).all(-1))
    assert len(rows) > 1000, colour
    return float(rows.mean() / len(pixels)), float(columns.mean() / pixels.shape[1])


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (1, 3), (5, 1), (5, 3), (16, 3)])
def test_tiles_are_in_a_square_grid_with_their_own_colours(tmp_path: Path, count: int, channels: int) -> None:
    tones = [(40 + 10 * number,) * 3 if channels == 1 else (200, 10 * number, 77) for number in range(count)]
    tiles = []
    for number, tone in enumerate(tones):
        pixels = np.empty((channels, 8, 8), np.uint8)
        pixels[:] = np.asarray(tone[:channels], np.uint8)[:, None, None]
        tiles.append(grids.Tile(pixels, f"class {number}", [None, True, False][number % 3], "the true one"))
    grids.draw_tiles(tmp_path / "tiles.png", tiles)
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    with Image.open(tmp_path / "tiles.png") as image:
        grid = np.asarray(image.convert("RGB"))
    title = 0.42 if count > 2 else 0.26  # two lines of text if any tile is wrong
    assert grid.shape[:2] == (round(150 * (1.7 + title) * rows), round(150 * 1.7 * columns))
    for number, tone in enumerate(tones):
        row, column = colour_centre(grid, tone)
        assert [int(row * rows), int(column * columns)] == [number // columns, number % columns]
    frames = {tuple(colour) for colour in grid.reshape(-1, 3).tolist()}
    assert ((207, 34, 46) in frames) == (count > 2)
    assert ((26, 127, 55) in frames) == (count > 1)


def test_many_tiles_are_smaller(tmp_path: Path) -> None:
    tile = grids.Tile(np.zeros((1, 8, 8), np.uint8), "one")
    for count, side, columns, rows in ((25, 1.7, 5, 5), (26, 1.4, 6, 5), (31, 1.4, 6, 6)):
        grids.draw_tiles(tmp_path / "tiles.png", [tile] * count)
        with Image.open(tmp_path / "tiles.png") as image:
            assert image.size == (round(150 * side * columns), round(150 * (side + 0.26) * rows))


def test_tiles_have_captions_and_marks_of_mistakes(tmp_path: Path) -> None:
    tiles = [*grids.mistake_tiles(some_predictions("abc")), *grids.input_tiles(some_inputs("abc"))]
    assert [(tile.caption, tile.right, tile.truth) for tile in tiles] == [
        ("a 70%", False, "c"),
        ("c 50%", False, "b"),
        ("a 75%, b 25%", None, ""),
        ("c", None, ""),
    ]
    assert tiles[1].pixels.tolist() == some_predictions("abc").pictures[1].tolist()
    assert tiles[3].pixels.tolist() == some_inputs("abc").pixels[1].tolist()


def make_predictions(
    pairs: list[tuple[int, int]], classes: int, probabilities: list[float] | None = None
) -> Predictions:
    """Return predictions for pairs (true class, predicted class), of probability 0.5 unless others are passed."""
    label, predicted = (np.asarray([pair[column] for pair in pairs]) for column in (0, 1))
    top = np.stack([predicted, (predicted + 1) % classes], 1)
    probability = np.asarray([[value, 0.0] for value in probabilities or [0.5] * len(pairs)], np.float32)
    return Predictions(np.arange(len(pairs)), label, top, probability)


def test_confusions_are_the_most_frequent_pairs() -> None:
    pairs = [(0, 1)] * 3 + [(2, 0)] * 5 + [(1, 2)] * 3 + [(0, 0)] * 9 + [(1, 0)]
    names = ["a", "b", "c"]
    expected = [("c", "a", 5), ("a", "b", 3), ("b", "c", 3), ("b", "a", 1)]
    assert confusions(make_predictions(pairs, 3), names) == expected
    assert confusions(make_predictions(pairs, 3), names, count=2) == expected[:2]
    assert confusions(make_predictions([(1, 1)], 3), names) == []


def test_the_confusion_matrix_is_in_percent_of_its_rows() -> None:
    figure = confusion_matrix(make_predictions([(0, 0), (0, 1), (0, 1), (0, 1), (2, 2)], 3), ["a", "b", "c"])
    assert figure.axes[0].images[0].get_array().tolist() == [[25, 75, 0], [0, 0, 0], [0, 0, 100]]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "1", "3"]
    assert [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()] == ["predicted", "true class"]


def test_long_names_are_shortened_in_the_middle() -> None:
    """Both ends are kept, so names that begin or end alike remain different."""
    letters = "abcdefghijklmnopqrstuvw"
    assert drawing.short(letters[:22]) == letters[:22]
    assert drawing.short(letters) == "abcdefghij…mnopqrstuvw"
    assert drawing.short("golden retriever", 6) == "go…ver"
    assert drawing.short("golden retriever", 7) == "gol…ver"
    assert drawing.short("") == ""
    for length in range(2, 30):
        for size in range(40):
            name = "".join(chr(0x4E00 + number) for number in range(size))
            shortened = drawing.short(name, length)
            assert len(shortened) == min(size, length)
            head, _, tail = shortened.partition("…")
            assert shortened == name or (name.startswith(head) and tail and name.endswith(tail))


def test_class_names_are_shortened_in_drawings(tmp_path: Path) -> None:
    names = ["a class of a rather long name, 1", "a class of a rather long name, 2", "c"]
    saved = some_predictions(names)
    shortened = ["a class of…ong name, 1", "a class of…ong name, 2", "c"]
    axes = confusion_matrix(saved.predictions, names).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a cla…ame, 1", "a cla…ame, 2", "c"]
    both = (np.arange(3.0), np.arange(1.0, 4.0))
    assert labels(curves.comparison_curve([(name, (both, both)) for name in names], "x", "y")) == shortened
    assert labels(curves.divergence_curve([(name, *both) for name in names])) == shortened


@pytest.mark.parametrize(
    "name", ["$x^2$", "$\\frac$", "a_$b$", '50 % <b>&"', "a_b", "5 $", "$", "$$", "\\$x\\$", "_a$b$", "_", "back\\"]
)
def test_names_are_drawn_literally(tmp_path: Path, name: str) -> None:
    """Matplotlib would take text between dollar signs for a formula."""
    saved = some_predictions([name, "bee", "cat"])
    svg = drawing.to_svg(confusion_matrix(saved.predictions, saved.metadata["classes"]), "classes")
    texts = [element.text.strip() for element in ElementTree.fromstring(svg).iter() if element.text]
    assert name in texts
    grids.draw_tiles(tmp_path / "tiles.png", grids.mistake_tiles(saved))
    both = (np.arange(3.0), np.arange(1.0, 4.0))
    for figure in (
        curves.comparison_curve([(name, (both, both)), ("two", (both, both))], "x", "y"),
        curves.divergence_curve([(name, *both), ("two", *both)]),
    ):
        texts = [element.text for element in ElementTree.fromstring(drawing.to_svg(figure, "runs")).iter()]
        assert [text.strip() for text in texts if text and text.strip() in (name, "two")] == [name, "two"]


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend() -> None:
    """Matplotlib leaves such labels out."""
    both = (np.arange(3.0), np.arange(1.0, 4.0))
    assert labels(curves.comparison_curve([("_1", (both, both)), ("2", (both, both))], "x", "y")) == [" _1", "2"]
    assert labels(curves.divergence_curve([("_1", *both), ("2", *both)])) == [" _1", "2"]


def test_letters_that_the_font_lacks_cause_no_warning(tmp_path: Path) -> None:
    saved = some_predictions(["猫", "🐝", "cat"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = confusion_matrix(saved.predictions, saved.metadata["classes"])
        assert "猫" in drawing.to_svg(figure, "classes")
        drawing.save_png(figure, tmp_path / "classes.png")
        grids.draw_tiles(tmp_path / "tiles.png", grids.mistake_tiles(saved))


# Tables.


def test_the_confusion_table_is_escaped_and_shaded_by_row() -> None:
    html = macro("confusion_matrix", [[3, 1], [0, 0]], ["<b>", "bee"])
    rows = ElementTree.fromstring(html).findall(".//tbody/tr")
    assert ["".join(cell.itertext()) for cell in rows[0]] == ["<b>", "3", "1"]
    assert ["".join(cell.itertext()) for cell in rows[1]] == ["bee", "", ""]
    assert [cell.get("class") for cell in rows[0]][1:] == ["right dark", "wrong"]
    assert [cell.get("style") for cell in rows[0]][1:] == ["--share:75.00", "--share:25.00"]


def test_confusion_cells_are_right_or_wrong_or_empty() -> None:
    """Letters are light on dark cells only: right predictions of more than half of the row."""
    html = macro("confusion_matrix", [[2, 2, 0], [0, 0, 5], [1, 0, 3]], ["a", "b", "c"])
    rows = ElementTree.fromstring(html).findall(".//tbody/tr")
    assert [[cell.get("class") for cell in row.iter("td")] for row in rows] == [
        ["right", "wrong", "none"],
        ["none", "right", "wrong"],
        ["wrong", "none", "right dark"],
    ]


@pytest.mark.parametrize(
    ("names", "shown", "upright"),
    [
        (["0", "1"], ["0", "1"], False),
        (["four", "1"], ["four", "1"], False),
        (["longer", "1"], ["longer", "1"], True),
        (["golden retriever", '<a "dog" here>'], ["golden…triever", '<a "dog" here>'], True),
    ],
)
def test_class_names_in_the_confusion_table(names: list[str], shown: list[str], upright: bool) -> None:
    root = ElementTree.fromstring(macro("confusion_matrix", [[1, 0], [0, 1]], names))
    heads = root.findall(".//thead/tr/th")
    sides = [row[0] for row in root.findall(".//tbody/tr")]
    assert ["".join(head.itertext()) for head in heads] == ["", *shown]
    assert ["".join(side.itertext()) for side in sides] == shown
    for cells in (heads[1:], sides):
        assert [cell[0].get("title") for cell in cells] == names
    assert [head.get("class") for head in heads] == [None, *["upright" if upright else None] * 2]
    assert [side.get("class") for side in sides] == [None, None]


def test_a_table_and_a_page_are_escaped() -> None:
    table = ElementTree.fromstring(macro("table", [["a", "<i>"], ["1", "&"]], text=(1,)))
    assert [cell.text for cell in table.iter("th")] == ["a", "<i>"]
    assert [(cell.text, cell.get("class")) for cell in table.iter("td")] == [("1", None), ("&", "text")]
    page = comparison_page("<b>&", "", ["<p>"])
    assert '<p class="note">&lt;p&gt;</p>' in page
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert page.startswith("<!doctype html>")
    assert 'name="viewport"' in page


# Predictions and input examples.


def test_confusion_accuracy_and_mistakes_match_a_count_by_hand() -> None:
    predictions = make_predictions([(0, 0), (0, 1), (2, 1), (1, 1), (2, 0)], 4, [0.9, 0.4, 0.7, 0.8, 0.4])
    assert len(predictions) == 5
    assert predictions.confusion(4).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert [part.tolist() for part in predictions.per_class(4)] == [[2, 1, 2, 0], [1, 1, 0, 0]]
    assert predictions.mistakes(24).tolist() == [2, 1, 4]
    assert predictions.mistakes(2).tolist() == [2, 1]
    assert predictions.mistakes(0).tolist() == []
    assert predictions.mistakes(5).dtype == np.int64
    assert predictions.top1() == 40.0


def test_right_predictions_have_no_mistakes() -> None:
    predictions = make_predictions([(0, 0), (1, 1)], 2)
    assert predictions.top1() == 100.0
    assert predictions.mistakes(24).tolist() == []


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "predictions.safetensors"
    assert read_predictions(path) is None
    saved = some_predictions(["ant", "é 猫", '"'])
    write_predictions(path, saved)
    write_predictions(path, saved)
    loaded = read_predictions(path)
    assert loaded is not None
    assert loaded.metadata == saved.metadata
    for name in ("index", "label", "top", "probability"):
        before, after = getattr(saved.predictions, name), getattr(loaded.predictions, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    np.testing.assert_array_equal(loaded.picture_rows, saved.picture_rows)
    np.testing.assert_array_equal(loaded.pictures, saved.pictures)
    assert loaded.pictures.dtype == np.uint8
    assert loaded.captions() == [("ant 70%", '"'), ('" 50%', "é 猫")]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_inputs_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "inputs.safetensors"
    assert read_inputs(path) is None
    parts = np.asarray([[0.996, 0.004], [0.99, 0.01], [0.5, 0.5], [1, 0]], np.float32)
    pairs = np.asarray([[0, 1], [1, 2], [2, 0], [2, 1]])
    pixels = np.arange(4 * 4, dtype=np.uint8).reshape(4, 1, 2, 2)
    examples = InputExamples(pixels.transpose(0, 1, 3, 2), pairs, parts, {"position": 7, "classes": ["a", "b", "c"]})
    write_inputs(path, examples)
    loaded = read_inputs(path)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.pixels, pixels.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(loaded.parts, parts)
    assert loaded.metadata == examples.metadata
    assert loaded.captions() == ["a", "b 99%, c 1%", "c 50%, a 50%", "c"]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_values_that_are_not_finite_cause_no_warning(tmp_path: Path) -> None:
    lines = [
        start_line(0, 0.0),
        *(train_line(update, float(update), loss="inf", grad_norm="inf") for update in range(1, 30)),
    ]
    run = read_run(make_run(tmp_path / "run", lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (curves.loss_curve, curves.norm_curve, curves.utilisation_curve):
            drawing.save_png(draw(run), tmp_path / "picture.png")
    assert to_rgb(drawing.BLUE) == pytest.approx((9 / 255, 105 / 255, 218 / 255))
