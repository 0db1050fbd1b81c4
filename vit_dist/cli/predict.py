"""The `predict` command: classify files, folders, patterns or a split."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from vit_dist.data.sources.source import FileSource
from vit_dist.data.sources.splits import Subset, all_of
from vit_dist.data.stream import pictures
from vit_dist.errors import UserError
from vit_dist.files import check_output_path, replacing
from vit_dist.inference.evaluation import precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.output import ImagePrediction, PredictionWriter
from vit_dist.inference.predict import GRID, find_images, grid_sample, predict_files, predict_split
from vit_dist.inference.splits import open_split
from vit_dist.report.grids import Tile, draw_tiles
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_PICTURED = 64


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
) -> None:
    """Answers for files, or for a split where no name is given; for 16 of test, by key, where no split is either.

    form: table, jsonl or csv, to `out` or to the standard output. png: a grid of the first 64.
    What else there is to say goes to `console`. Raises UserError.
    """
    if names and split:
        raise UserError("--split: is of the model's data and images are named too: give one of them")
    png = png or (None if names or split else Path("predictions.png"))
    for flag, path in (("--out", out), ("--png", png)):
        if path is not None:
            check_output_path(path, flag)
    if png is not None and png.suffix.lower() != ".png":
        raise UserError(f"--png: the picture is a PNG: name it so, not {png}")
    runtime = Runtime(trained.config.run, precision_of(trained))
    try:
        if runtime.world_size > 1:
            raise UserError("predict: runs in one process; vit-dist evaluate uses several")
        top = min(top, len(trained.classes))
        answers: Iterator[ImagePrediction]
        opened, images = None, [str(path) for path in find_images(names)]
        start = time.perf_counter()
        if names:
            answers = predict_files(trained, [Path(image) for image in images], runtime, top=top)
        else:
            opened = open_split(trained, split, None) if split else grid_sample(trained)
            for note in opened.notes:
                console.note(f"note: {note}")
            said = predict_split(trained, opened, runtime, top=top)
            answers, images = iter(said), [answer.image for answer in said]
        with _opened(out) as file:
            classes = opened.classes if opened else trained.names
            writer = PredictionWriter(file, format, top=top, labelled=not names, images=images, classes=classes)
            first, tally = _written(console.counted(answers, len(images)), writer)
        seconds = time.perf_counter() - start
        if png is not None:
            _draw(trained, first, png, opened.subset if opened else None)
            few = f"the first {len(first)}" if len(first) < len(images) else f"all {len(first)}"
            console.say(f"{png}: {few} as a picture")
        plural = "s" if len(images) > 1 else ""
        rate = f", {len(images) / seconds:,.0f} images/s" if len(images) >= GRID else ""
        told = f"{len(images):,} image{plural} in {seconds:.2f} s{rate}"
        console.say("; ".join(part for part in (f"{out}: written" if out else "", tally, told) if part))
    finally:
        runtime.end()


@contextlib.contextmanager
def _opened(out: Path | None) -> Iterator[TextIO]:
    """The standard output, or a file that takes its place only once it is whole. Raises UserError."""
    if out is None:
        yield sys.stdout
        return
    try:
        with replacing(out) as hidden, hidden.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None


def _written(answers: Iterable[ImagePrediction], writer: PredictionWriter) -> tuple[list[ImagePrediction], str]:
    """Writes them all; the first that could be read, and what to say of all. Raises UserError where none could be."""
    first: list[ImagePrediction] = []
    bad = right = known = good = 0
    for answer in answers:
        writer.write(answer)
        bad += answer.error is not None
        good += answer.error is None
        known += answer.label is not None
        right += bool(answer.right)
        if answer.error is None and len(first) < _PICTURED:
            first.append(answer)
    if not good:
        raise UserError("predict: none of the images could be read")
    told = [f"{right:,} of {known:,} right, {right / known:.2%}"] if known else []
    told += [f"{bad:,} could not be read"] if bad else []
    return first, ", ".join(told)


def _draw(trained: TrainedModel, answers: Sequence[ImagePrediction], png: Path, subset: Subset | None) -> None:
    """A picture of each, with what the model says of it: green where right, red with the true class where wrong."""
    places = np.arange(len(answers))
    if subset is None:
        paths = [Path(answer.image) for answer in answers]
        mode = "L" if trained.channels == 1 else "RGB"
        subset = all_of(FileSource(paths, np.zeros(len(paths), np.int64), mode))
    tiles = [
        Tile(pixels, f"{answer.top[0][0]} {answer.top[0][1]:.0%}", answer.right, answer.label or "")
        for pixels, answer in zip(pictures(subset, places, trained.preprocessing), answers, strict=True)
    ]
    try:
        draw_tiles(png, tiles)
    except OSError as error:
        raise UserError(f"--png: {png} cannot be written: {error.strerror}") from None
