"""How good a trained model is on a split or a folder: exact, on any number of processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_dist.data.reader import worker_count
from vit_dist.data.sources.folder import class_folders, read_classes
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import SPLITS, Subset
from vit_dist.data.stream import EvaluationStream
from vit_dist.errors import UserError, nearest
from vit_dist.evaluation import Evaluation, evaluate
from vit_dist.files import check_output_path, json_number, write_json
from vit_dist.formatting import aligned, loss_text
from vit_dist.runtime.devices import resolve_precision
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console
from vit_dist.trained import Trained

_LISTED = 30


@dataclass(frozen=True)
class Split:
    """A part of data that a model is asked about: what to call it, its samples, the classes' names for people.

    notes: what a person should know of it.
    """

    name: str
    subset: Subset
    classes: list[str]
    notes: tuple[str, ...] = ()


def open_split(trained: Trained, split: str, folder: Path | None) -> Split:
    """Class folders, or a split of the model's data; empty: test, else val.

    A model whose classes have no names, only numbers, takes as many others in their sorted order, as timm does.
    Raises UserError where the data is not of the model's classes.
    """
    if folder is not None:
        found = class_folders(folder, trained.classes)
        others = _unnamed(trained, found)
        subset = read_classes(folder, others or trained.classes, trained.channels)
        return Split(str(folder), subset, others or trained.names)
    config = trained.config.data
    in_files = config.name in ("", "folder")
    if in_files and not config.root and trained.update is None:
        raise UserError(
            "data.root: this model does not say its data: name images (predict) or --folder DIR (evaluate), "
            "or set data.root or data.name"
        )
    if in_files and config.root and not Path(config.root).expanduser().is_dir():
        raise UserError(f"data.root: no folder {config.root} here: set --data.root to where the data is now")
    data = open_data(config)
    others = _unnamed(trained, data.classes)
    classes = others or trained.classes
    if data.channels != trained.channels or set(data.classes) != set(classes):
        theirs, known = _kind(data.classes, data.channels), _kind(trained.classes, trained.channels)
        raise UserError(
            f"data: has {theirs}, the model knows {known}: give it the data that it was trained on, "
            "or --folder with folders named like its classes"
        )
    name = SPLITS.get(split, split) if split else next(one for one in ("test", "val", "train") if one in data.splits)
    if name not in data.splits:
        raise UserError(f"--split: there is no split {split}{nearest(split, sorted(data.splits))}")
    subset = data.splits[name]
    number_of = {one: number for number, one in enumerate(classes)}
    numbers = np.asarray([number_of[one] for one in data.classes], np.int64)
    source = replace(subset.source, labels=numbers[subset.source.labels])
    notes = []
    if trained.samples is not None and len(data.splits["train"]) != trained.samples:
        notes = [
            f"the run had {trained.samples:,} training images, and here are {len(data.splits['train']):,}: "
            "a split that was held out of them may be another now"
        ]
    return Split(name, Subset(source, subset.indices), others or trained.names, tuple(notes))


def _unnamed(trained: Trained, found: Sequence[str]) -> list[str]:
    """The classes found, in timm's order (9 before 10), where the model's are as many and mere numbers; else none."""
    numbers = [str(number) for number in range(len(found))]
    if trained.update is not None or trained.classes != numbers or set(found) == set(numbers):
        return []
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _kind(classes: Sequence[str], channels: int) -> str:
    """Of data, for people."""
    more = " …" if len(classes) > 3 else ""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{more}) in {channels} channel{'s' if channels > 1 else ''}"


def precision_of(trained: Trained) -> str:
    """The one asked for, else that of the training where it runs here, else fp32. Raises UserError."""
    cpu = trained.config.run.device == "cpu" or not torch.cuda.is_available()
    asked = trained.config.train.precision
    if asked not in ("auto", trained.precision):
        return resolve_precision(asked, cpu=cpu)
    return "fp32" if trained.precision == "fp16" and cpu else resolve_precision(trained.precision, cpu=cpu)


def judged(trained: Trained, subset: Subset, runtime: Runtime, *, keep: int) -> Evaluation:
    """One exact pass of the model over a part of its data, by all processes."""
    config = trained.config
    workers = worker_count(config.data.workers, runtime)
    size = min(config.evaluate.batch_size, max(2, len(subset)))
    stream = EvaluationStream(subset, trained.form, runtime, batch_size=size, workers=workers)
    model = trained.model.to(runtime.device)
    try:
        with runtime.autocast():
            return evaluate(model, stream, stream.length, runtime, keep=keep)
    finally:
        stream.close()


def score(
    trained: Trained, called: str, console: Console, *, split: str, folder: Path | None, out: Path | None
) -> dict[str, Any]:
    """Evaluates, prints what it found, and writes it as JSON to `out`, if there is one. Raises UserError.

    Every process of a launch calls it.
    """
    if split and folder is not None:
        raise UserError("--split: is of the model's data and --folder is other data: give one of them")
    if folder is not None and (trained.config.data.root and trained.update is None):
        raise UserError("data.root: --folder is other data: give one of them")
    if out is not None:
        check_output_path(out, "--json")
    runtime = Runtime(trained.config.run, precision_of(trained))
    try:
        console.speaks = runtime.is_main
        with runtime.main_first():
            opened = open_split(trained, split, folder)
        for note in opened.notes:
            console.note(f"  note: {note}")
        found = judged(trained, opened.subset, runtime, keep=1)
        values = _values(trained, called, opened, found, runtime)
        _show(trained, values, console)
        if out is not None:
            runtime.on_main(lambda: _write(out, values))
        return values
    finally:
        runtime.end()


def _values(trained: Trained, called: str, opened: Split, found: Evaluation, runtime: Runtime) -> dict[str, Any]:
    assert found.predictions is not None
    seen, right = found.predictions.per_class(len(trained.classes))
    return {
        "model": called,
        "weights": trained.weights,
        "update": trained.update,
        "data": opened.name,
        **found.to_dict(),
        "loss": json_number(found.loss),
        "images_per_second": found.seen / found.seconds,
        "device": runtime.device_name,
        "world_size": runtime.world_size,
        "precision": runtime.precision,
        "classes": [
            {"class": name, "seen": int(of), "top1": 100 * int(hit) / int(of) if of else None}
            for name, of, hit in zip(opened.classes, seen, right, strict=True)
        ],
    }


def _show(trained: Trained, values: dict[str, Any], console: Console) -> None:
    kind = "averaged weights" if trained.weights == "ema" else "weights"
    of = f", {kind} of update {trained.update}" if trained.update is not None else ""
    fifth = f", top5 {values['top5']:.2f} %" if values["top5"] is not None else ""
    plural = "es" if values["world_size"] > 1 else ""
    console.table(
        {
            "model": f"{values['model']}{of}",
            "data": f"{values['data']}: {values['seen']:,} images",
            "result": f"top1 {values['top1']:.2f} %{fifth}, loss {loss_text(values['loss'])}",
            "speed": f"{values['images_per_second']:,.0f} images/s, reading included; {values['world_size']} process"
            f"{plural} on {values['device']}, {values['precision']}",
        }
    )
    tested = sorted((one for one in values["classes"] if one["seen"]), key=lambda one: float(one["top1"]))
    head = ["class, worst first", "images", "top1"]
    rows = [[one["class"], f"{one['seen']:,}", f"{one['top1']:.2f} %"] for one in tested[:_LISTED]]
    console.say("")
    for line in aligned([head, *rows]):
        console.say(f"  {line}")
    if len(tested) > _LISTED:
        console.say(f"  … the other {len(tested) - _LISTED} of {len(tested)} classes are no worse: --json has all")


def _write(path: Path, values: dict[str, Any]) -> None:
    try:
        write_json(path, values)
    except OSError as error:
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from None
