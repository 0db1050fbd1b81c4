"""The `predict` command: classify files, folders, patterns or a split."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from vit_dist.data.sources.folder import image_files
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.names import is_image
from vit_dist.data.sources.splits import Subset, all_of
from vit_dist.data.stream import pictures
from vit_dist.errors import UserError
from vit_dist.files import check_output_path, replacing
from vit_dist.inference.evaluation import precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.output import ImagePrediction, PredictionWriter
from vit_dist.inference.predict import SAMPLE_SIZE, find_images, predict_files, predict_split, sample_of_split
from vit_dist.inference.splits import open_split
from vit_dist.report.grids import Tile, draw_tiles
from vit_dist.run_folder.finding import newest_run
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_MOST_PICTURES = 64


def predict(
    trained: TrainedModel,
    names: Sequence[str],
    console: Console,
    *,
    split: str = "",
    top: int = 5,
    format: str = "table",
    out: Path | None = None,
    png: Path | None = None,
    prepare: Callable[[TrainedModel, Runtime], TrainedModel] | None = None,
) -> bool:
    """Predict images by name, or a split if no name is given; 16 keyed samples of test if neither is.

    format: table, jsonl or csv, to `out` or to the standard output. png: a grid of the first 64. prepare: makes the
    classifier of a model that is none, on the device. Notes and a summary go to `console`. Return whether all images
    could be read. Raises UserError.
    """
    png = png or (None if names or split else Path("predictions.png"))
    _check_flags(names, split, out, png)
    runtime = Runtime(trained.config.run, precision_of(trained))
    try:
        if prepare is not None:
            trained = prepare(trained, runtime)
        top = min(top, len(trained.classes))
        images = [str(path) for path in find_images(names)]
        start = time.perf_counter()
        opened = None
        if names:
            predictions = predict_files(trained, [Path(image) for image in images], runtime, top=top)
        else:
            opened = open_split(trained, split, None) if split else sample_of_split(trained)
            for note in opened.notes:
                console.note(f"note: {note}")
            opened, of_split = predict_split(trained, opened, runtime, top=top)
            predictions, images = iter(of_split), [prediction.image for prediction in of_split]
        console.stop()  # before the rows, which may be on the same terminal
        with open_output(out) as file:
            classes = opened.classes if opened else trained.names
            writer = PredictionWriter(file, format, top=top, labelled=not names, images=images, classes=classes)
            first, bad, accuracy = _write(console.counted(predictions, len(images), printed=out is None), writer)
        seconds = time.perf_counter() - start
        if png is not None:
            _draw(trained, first, png, opened.subset if opened else None)
            count = f"the first {len(first)}" if len(first) < len(images) else f"all {len(first)}"
            console.say(f"{png}: {count} as a picture")
        speed = speed_text(len(images), seconds, f" from {opened.name}" if opened else "")
        console.say("; ".join(part for part in (f"{out}: written" if out else "", accuracy, speed) if part))
        return not bad
    finally:
        runtime.end()


def without_run(names: Sequence[str]) -> str | None:
    """Return what is wrong if the first of the words, which no model could be loaded from, names images."""
    path = Path(names[0]).expanduser()
    images = is_image(path.name) if path.is_file() else path.is_dir() and bool(image_files(path))
    if not images or newest_run(path) is not None:
        return None
    run = newest_run(Path("runs"))
    run_text = shlex.quote(str(run)) if run else "RUN"
    return f"{names[0]}: holds images: give the run first: vit-dist predict {run_text} {shlex.join(names)}"


def _check_flags(names: Sequence[str], split: str, out: Path | None, png: Path | None) -> None:
    """Reject flags that contradict each other, and outputs that cannot be written. Raises UserError."""
    if names and split:
        raise UserError("--split: is of the model's data and images are named too: give one of them")
    for flag, path in (("--out", out), ("--png", png)):
        if path is not None:
            check_output_path(path, flag)
    if png is not None and png.suffix.lower() != ".png":
        raise UserError(f"--png: the picture is a PNG: name it so, not {png}")


def speed_text(count: int, seconds: float, origin: str) -> str:
    """Return how many images were predicted in what time, with the rate if there were enough to measure it."""
    rate = f", {count / seconds:,.0f} images/s" if count >= SAMPLE_SIZE else ""
    return f"{count:,} image{'s' if count > 1 else ''}{origin} in {seconds:.2f} s{rate}"


@contextlib.contextmanager
def open_output(out: Path | None) -> Iterator[TextIO]:
    """Yield the standard output, or a file that gets its name only once it is whole. Raises UserError."""
    if out is None:
        try:
            yield sys.stdout
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(f"standard output: cannot be written: {error.strerror}") from None
        return
    try:
        with replacing(out) as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None


def _write(predictions: Iterable[ImagePrediction], writer: PredictionWriter) -> tuple[list[ImagePrediction], int, str]:
    """Write all predictions; return the first that could be read, how many could not, and both figures in words.

    Raises UserError if no image could be read.
    """
    first: list[ImagePrediction] = []
    bad = right = labelled = good = 0
    for prediction in predictions:
        writer.write(prediction)
        bad += prediction.error is not None
        good += prediction.error is None
        labelled += prediction.label is not None
        right += bool(prediction.right)
        if prediction.error is None and len(first) < _MOST_PICTURES:
            first.append(prediction)
    if not good:
        raise UserError("predict: none of the images could be read")
    parts = [f"{right:,} of {labelled:,} right, {right / labelled:.2%}"] if labelled else []
    parts += [f"{bad:,} could not be read"] if bad else []
    return first, bad, ", ".join(parts)


def _draw(trained: TrainedModel, predictions: Sequence[ImagePrediction], png: Path, subset: Subset | None) -> None:
    """Draw each image with its likeliest class: green if right, red with the true class if wrong. Raises UserError."""
    places = np.arange(len(predictions))
    if subset is None:
        paths = [Path(prediction.image) for prediction in predictions]
        mode = "L" if trained.channels == 1 else "RGB"
        subset = all_of(FileSource(paths, np.zeros(len(paths), np.int64), mode, trained.config.data.max_pixels))
    tiles = [
        Tile(pixels, f"{prediction.top[0][0]} {prediction.top[0][1]:.0%}", prediction.right, prediction.label or "")
        for pixels, prediction in zip(pictures(subset, places, trained.preprocessing), predictions, strict=True)
    ]
    try:
        draw_tiles(png, tiles)
    except OSError as error:
        raise UserError(f"--png: {png} cannot be written: {error.strerror}") from None
