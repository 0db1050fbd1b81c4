"""The `predict` command for runs on images and captions: rank texts for images, images for a text; keep embeddings."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.cli.predict import open_output, predict, speed_text
from vit_dist.data.sources.image_files import FileSource
from vit_dist.data.sources.splits import all_of
from vit_dist.data.stream import pictures
from vit_dist.errors import UserError, visible
from vit_dist.files import check_output_path, json_number
from vit_dist.formatting import json_line, spreadsheet_cell
from vit_dist.inference.encode import EmbeddedFiles, check_embeddings_path, encode_files, write_embeddings
from vit_dist.inference.evaluation import precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.predict import find_images
from vit_dist.inference.zero_shot import encode_texts, has_two_towers, of_run_classes, zero_shot
from vit_dist.report.grids import Tile, draw_tiles
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_MOST_PICTURES = 64
_FOUND = 10
# Flags that only runs on images and captions have.
ONLY_PAIRS = ("--labels", "--text", "--folder", "--embeddings")


@dataclass(frozen=True)
class Output:
    """Say where results go, and how. format: table, jsonl or csv. top: rows or columns to show; None: the usual."""

    format: str
    out: Path | None
    png: Path | None
    top: int | None


def predict_any(
    trained: TrainedModel,
    name: str,
    names: Sequence[str],
    flags: Mapping[str, str],
    output: Output,
    console: Console,
) -> bool:
    """Classify images by a classifier, or do what the flags ask of a model of two towers. name: the model's.

    Return whether all images could be read. Raises UserError.
    """
    if has_two_towers(trained):
        return predict_pairs(trained, name, names, flags, output, console)
    for flag in ONLY_PAIRS:
        if flag in flags:
            why = f"is for runs on images and captions (loss.name clip or siglip), and {name} is a classifier"
            raise UserError(f"{flag}: {why}: leave it out")
    settings: dict[str, Any] = {"format": output.format, "out": output.out, "png": output.png}
    return predict(trained, names, console, split=flags.get("--split", ""), top=output.top or 3, **settings)


def predict_pairs(
    trained: TrainedModel,
    name: str,
    names: Sequence[str],
    flags: Mapping[str, str],
    output: Output,
    console: Console,
) -> bool:
    """Do what the flags ask for; return whether all images could be read. name: the model's. Raises UserError."""
    names = [*names, *([flags["--folder"]] if "--folder" in flags else [])]
    _check_flags(flags, names)
    labels = _labels(flags["--labels"]) if "--labels" in flags else []
    split, embeddings = flags.get("--split", ""), flags.get("--embeddings")
    if embeddings is not None or "--text" in flags:
        texts = labels or ([flags["--text"]] if "--text" in flags else [])
        target = None if embeddings is None else Path(embeddings).expanduser()
        whole = _embed(trained, name, names, texts, target, output, console, finds="--text" in flags)
        if not labels:
            return whole

    def classifier(trained: TrainedModel, runtime: Runtime) -> TrainedModel:
        if labels:
            return zero_shot(trained, labels, runtime.device, runtime.autocast)
        return of_run_classes(trained, runtime.device, runtime.autocast, 'give --labels "a cat,a dog"')

    settings: dict[str, Any] = {"format": output.format, "out": output.out, "png": output.png}
    return predict(trained, names, console, split=split, top=output.top or 3, prepare=classifier, **settings)


def _check_flags(flags: Mapping[str, str], names: Sequence[str]) -> None:
    """Reject flags that contradict each other. Raises UserError."""
    if "--labels" in flags and "--text" in flags:
        raise UserError("--text: ranks images for a text and --labels texts for images: give one of them")
    for flag in ("--labels", "--text", "--embeddings"):
        if flag in flags and "--split" in flags:
            raise UserError(f"--split: its samples are classified by the run's classes: leave out it or {flag}")
        if flag in flags and not names:
            raise UserError(f"{flag}: name images too: files, patterns or --folder DIR")


def _labels(text: str) -> list[str]:
    """Return the texts in a flag: with commas between them, or the lines of a .txt file. Raises UserError."""
    path = Path(text).expanduser()
    if path.suffix == ".txt":
        try:
            parts = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise UserError(f"--labels: {path} cannot be read: {getattr(error, 'strerror', 'is not UTF-8')}") from None
    else:
        parts = text.split(",")
    labels = list(dict.fromkeys(filter(None, map(str.strip, parts))))
    if len(labels) < 2:
        raise UserError("--labels: takes two texts or more, with commas between them; --text ranks images for one")
    return labels


def _embed(
    trained: TrainedModel,
    name: str,
    names: Sequence[str],
    texts: Sequence[str],
    target: Path | None,
    output: Output,
    console: Console,
    *,
    finds: bool,
) -> bool:
    """Embed images and texts, write them to `target` and, if asked to, the images that are most like the text."""
    if target is not None:
        check_embeddings_path(target, "--embeddings")
    for flag, path in (("--out", output.out), ("--png", output.png)):
        if path is not None:
            check_output_path(path, flag)
    runtime = Runtime(trained.config.run, precision_of(trained))
    try:
        start = time.perf_counter()
        files = encode_files(trained, find_images(names), runtime)
        embedded: dict[str, Any] = {}
        if texts:
            embedded = dict(zip(texts, encode_texts(trained, texts, runtime.device, runtime.autocast), strict=True))
        embedded = {text: embedding.cpu().numpy() for text, embedding in embedded.items()}
    finally:
        runtime.end()
    seconds = time.perf_counter() - start
    console.stop()
    if finds:
        _find(trained, files, embedded[texts[0]], texts[0], output, console)
    if target is not None:
        about = {"model": name, "weights": trained.weights, "update": trained.update}
        try:
            write_embeddings(target, files, embedded, about)
        except OSError as error:
            raise UserError(f"--embeddings: {target} cannot be written: {error.strerror}") from None
        of_text = f" and {len(texts)} text{'s' * (len(texts) > 1)}" if texts else ""
        console.say(f"{target}: {len(files.paths):,} images{of_text}, float32 × {files.embeddings.shape[1]}")
    if not finds:
        for image, why in files.bad.items():
            console.note(f"{visible(image)}: {why}")
    console.say(speed_text(len(files.paths) + len(files.bad), seconds, ""))
    return not files.bad


def _find(
    trained: TrainedModel,
    files: EmbeddedFiles,
    of_text: Any,
    text: str,
    output: Output,
    console: Console,
) -> None:
    """Write the images that are most like a text, best first, and draw them. Raises UserError."""
    cosines = files.embeddings @ of_text
    order = np.argsort(-cosines, kind="stable")[: output.top or _FOUND]
    found = [(str(files.paths[at]), float(cosines[at])) for at in order.tolist()]
    with open_output(output.out) as file:
        if output.format == "jsonl":
            rows: list[dict[str, Any]] = [
                {"image": image, "cosine": json_number(round(cosine, 6))} for image, cosine in found
            ]
            rows += [{"image": image, "error": why} for image, why in files.bad.items()]
            file.writelines(json_line(row) + "\n" for row in rows)
        elif output.format == "csv":
            writer = csv.writer(file)
            writer.writerow(["image", "cosine", "error"])
            cells = [(image, f"{cosine:.6f}", "") for image, cosine in found]
            cells += [(image, "", why) for image, why in files.bad.items()]
            writer.writerows([spreadsheet_cell(cell) for cell in row] for row in cells)
        else:
            file.write(f"cosine  image, most like: {visible(text)}\n")
            file.writelines(f"{cosine:6.3f}  {visible(image)}\n" for image, cosine in found)
            file.writelines(f"     –  {visible(image)}: {visible(why)}\n" for image, why in files.bad.items())
    if output.png is not None:
        _draw(trained, found[:_MOST_PICTURES], output.png)
        console.say(f"{output.png}: the first {min(len(found), _MOST_PICTURES)} as a picture")


def _draw(trained: TrainedModel, found: Sequence[tuple[str, float]], png: Path) -> None:
    """Draw images with their cosines. Raises UserError."""
    paths = [Path(image) for image, _ in found]
    mode = "L" if trained.channels == 1 else "RGB"
    subset = all_of(FileSource(paths, np.zeros(len(paths), np.int64), mode, trained.config.data.max_pixels))
    made = pictures(subset, np.arange(len(paths)), trained.preprocessing)
    tiles = [Tile(pixels, f"{cosine:.3f}") for pixels, (_, cosine) in zip(made, found, strict=True)]
    try:
        draw_tiles(png, tiles)
    except OSError as error:
        raise UserError(f"--png: {png} cannot be written: {error.strerror}") from None
