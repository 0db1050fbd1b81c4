"""The `evaluate` command: measure a model on a split or a folder, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_dist.errors import UserError
from vit_dist.files import check_output_path, json_number, write_json
from vit_dist.formatting import aligned, loss_text, weights_text
from vit_dist.inference.evaluation import Evaluation, evaluate_subset, precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.splits import Split, open_split
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_LISTED = 30


def run_evaluate(
    trained: TrainedModel, called: str, console: Console, *, split: str, folder: Path | None, out: Path | None
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
        found = evaluate_subset(trained, opened.subset, runtime, keep=1)
        values = _values(trained, called, opened, found, runtime)
        _show(trained, values, console)
        if out is not None:
            runtime.run_on_main(lambda: _write(out, values))
        return values
    finally:
        runtime.end()


def _values(trained: TrainedModel, called: str, opened: Split, found: Evaluation, runtime: Runtime) -> dict[str, Any]:
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


def _show(trained: TrainedModel, values: dict[str, Any], console: Console) -> None:
    of = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
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
