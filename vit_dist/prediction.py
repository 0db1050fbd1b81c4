"""What a trained model says of images: files, folders, patterns, or a split of its data."""

from __future__ import annotations

import contextlib
import glob
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_dist.answers import Answer, Writer
from vit_dist.data.augmentation.ops import normalise
from vit_dist.data.augmentation.transforms import EvaluationTransform
from vit_dist.data.preprocessing import Form
from vit_dist.data.reader import worker_count
from vit_dist.data.sources.folder import image_files
from vit_dist.data.sources.source import FileSource
from vit_dist.data.sources.splits import Subset, whole
from vit_dist.data.stream import pictures
from vit_dist.errors import UserError
from vit_dist.files import check_output_path, replacing
from vit_dist.models.forward import at_least_float32, evaluating
from vit_dist.plan.keys import Purpose, key
from vit_dist.plan.order import permute
from vit_dist.report.grids import Tile, draw_tiles
from vit_dist.runtime.runtime import Runtime
from vit_dist.scoring import Split, judged, open_split, precision_of
from vit_dist.telemetry.console import Console
from vit_dist.trained import Trained

_GRID, _PICTURED = 16, 64


class ImageFiles(Dataset[Tensor | str]):
    """Files as a model reads them, uint8 [channels, side, side]; the text of what is wrong where one cannot be."""

    def __init__(self, paths: Sequence[Path], form: Form, channels: int) -> None:
        self.source = FileSource(paths, np.zeros(len(paths), np.int64), mode="L" if channels == 1 else "RGB")
        self.transform = EvaluationTransform(form.crop)
        self.side = form.image_size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.transform(self.source.image(index), 0, self.side)
        except UserError as error:
            return str(error)


def find_images(names: Sequence[str]) -> list[Path]:
    """The files of paths, folders (with all below them) and patterns, in this order. Raises UserError, all at once."""
    found: list[Path] = []
    problems = []
    for name in names:
        path = Path(name).expanduser()
        inside = image_files(path) if path.is_dir() else [path] if path.is_file() else _matching(str(path))
        if not inside:
            problems.append(f"{name}: no image is there" + ("" if path.is_dir() else ", nor does any match it"))
        found += inside
    if problems:
        raise UserError("\n".join(problems))
    return found


def predict_files(trained: Trained, paths: Sequence[Path], runtime: Runtime, *, top: int) -> Iterator[Answer]:
    """An answer for each file, in order, batch by batch."""
    config, form = trained.config, trained.form
    size = config.evaluate.batch_size
    workers = worker_count(config.data.workers, runtime)
    reads = DataLoader(
        ImageFiles(paths, form, trained.channels),
        batch_size=size,
        collate_fn=list,
        num_workers=workers if len(paths) > size else 0,  # for a few, starting them takes longer than reading
        pin_memory=False,
    )
    model = trained.model.to(runtime.device)
    mean, std = torch.tensor(form.mean, device=runtime.device), torch.tensor(form.std, device=runtime.device)
    left = iter(paths)
    for read in reads:
        pixels = [one for one in read if isinstance(one, Tensor)]
        said: Iterator[tuple[list[int], list[float]]] = iter(())
        if pixels:
            with evaluating(model), runtime.autocast():
                images = normalise(runtime.to_device(torch.stack(pixels)), form.image_size, mean, std)
                shares, classes = at_least_float32(model(images)).softmax(1).topk(min(top, len(trained.classes)))
            said = zip(classes.tolist(), shares.tolist(), strict=True)
        for one in read:
            image = str(next(left))
            if isinstance(one, str):
                yield Answer(image, error=one.removeprefix(f"{image}: "))
            else:
                yield Answer(image, _named(trained.names, *next(said)))


def predict_split(trained: Trained, split: Split, runtime: Runtime, *, top: int) -> list[Answer]:
    """An answer for each sample of a split, in its order."""
    found = judged(trained, split.subset, runtime, keep=top).predictions
    assert found is not None
    source = split.subset.source
    return [
        Answer(
            str(source.paths[index]) if isinstance(source, FileSource) else f"{split.name}/{index}",
            _named(split.classes, classes, shares),
            split.classes[label],
            right=classes[0] == label,
        )
        for index, label, classes, shares in zip(
            found.index.tolist(), found.label.tolist(), found.top.tolist(), found.probability.tolist(), strict=True
        )
    ]


def predict(
    trained: Trained,
    names: Sequence[str],
    console: Console,
    *,
    split: str = "",
    top: int = 5,
    form: str = "table",
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
        answers: Iterator[Answer]
        opened, images = None, [str(path) for path in find_images(names)]
        start = time.perf_counter()
        if names:
            answers = predict_files(trained, [Path(image) for image in images], runtime, top=top)
        else:
            opened = open_split(trained, split, None) if split else keyed_few(trained)
            for note in opened.notes:
                console.note(f"note: {note}")
            said = predict_split(trained, opened, runtime, top=top)
            answers, images = iter(said), [answer.image for answer in said]
        with _opened(out) as file:
            classes = opened.classes if opened else trained.names
            writer = Writer(file, form, top=top, labelled=not names, images=images, classes=classes)
            first, tally = _written(console.counted(answers, len(images)), writer)
        seconds = time.perf_counter() - start
        if png is not None:
            _draw(trained, first, png, opened.subset if opened else None)
            few = f"the first {len(first)}" if len(first) < len(images) else f"all {len(first)}"
            console.say(f"{png}: {few} as a picture")
        plural = "s" if len(images) > 1 else ""
        rate = f", {len(images) / seconds:,.0f} images/s" if len(images) >= _GRID else ""
        told = f"{len(images):,} image{plural} in {seconds:.2f} s{rate}"
        console.say("; ".join(part for part in (f"{out}: written" if out else "", tally, told) if part))
    finally:
        runtime.end()


def keyed_few(trained: Trained) -> Split:
    """16 samples of test, or of val where there is none, the same ones for a seed. Raises UserError."""
    split = open_split(trained, "", None)
    count = len(split.subset)
    order = permute(np.arange(count), count, key(trained.config.run.seed, Purpose.GRID))
    return replace(split, subset=Subset(split.subset.source, split.subset.indices[order[:_GRID]]))


def _named(names: Sequence[str], classes: Sequence[int], shares: Sequence[float]) -> tuple[tuple[str, float], ...]:
    return tuple((names[one], share) for one, share in zip(classes, shares, strict=True))


def _matching(pattern: str) -> list[Path]:
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]


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


def _written(answers: Iterable[Answer], writer: Writer) -> tuple[list[Answer], str]:
    """Writes them all; the first that could be read, and what to say of all. Raises UserError where none could be."""
    first: list[Answer] = []
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


def _draw(trained: Trained, answers: Sequence[Answer], png: Path, subset: Subset | None) -> None:
    """A picture of each, with what the model says of it: green where right, red with the true class where wrong."""
    places = np.arange(len(answers))
    if subset is None:
        paths = [Path(answer.image) for answer in answers]
        mode = "L" if trained.channels == 1 else "RGB"
        subset = whole(FileSource(paths, np.zeros(len(paths), np.int64), mode))
    tiles = [
        Tile(pixels, f"{answer.top[0][0]} {answer.top[0][1]:.0%}", answer.right, answer.label or "")
        for pixels, answer in zip(pictures(subset, places, trained.form), answers, strict=True)
    ]
    try:
        draw_tiles(png, tiles)
    except OSError as error:
        raise UserError(f"--png: {png} cannot be written: {error.strerror}") from None
