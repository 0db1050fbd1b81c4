"""The `evaluate` command: measure a model on a split or a folder, on any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_dist.errors import UserError, visible
from vit_dist.files import check_output_path, json_number, write_json
from vit_dist.formatting import aligned, loss_text, weights_text
from vit_dist.inference.evaluation import Evaluation, evaluate_subset, precision_of
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.splits import Split, open_split
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console

_LISTED = 30


def run_evaluate(
    trained: TrainedModel, name: str, console: Console, *, split: str, folder: Path | None, out: Path | None
) -> dict[str, Any]:
    """Evaluate a model, print the result, and write it as JSON to `out`, if given; every process calls it.

    name: the model's, as the user wrote it. Raises UserError.
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
        result = evaluate_subset(trained, opened.subset, runtime, keep=1)
        values = _values(trained, name, opened, result, runtime)
        _show(trained, values, console)
        if out is not None:
            runtime.run_on_main(lambda: _write(out, values))
        return values
    finally:
        runtime.end()


def _values(trained: TrainedModel, name: str, split: Split, result: Evaluation, runtime: Runtime) -> dict[str, Any]:
    """Return the content of --json."""
    assert result.predictions is not None
    seen, correct = result.predictions.per_class(len(trained.classes))
    return {
        "model": name,
        "weights": trained.weights,
        "update": trained.update,
        "data": split.name,
        **result.to_dict(),
        "loss": json_number(result.loss),
        "images_per_second": result.seen / result.seconds,
        "device": runtime.device_name,
        "world_size": runtime.world_size,
        "precision": runtime.precision,
        "classes": [
            {"class": label, "seen": int(total), "top1": 100 * int(hits) / int(total) if total else None}
            for label, total, hits in zip(split.classes, seen, correct, strict=True)
        ],
    }


def _show(trained: TrainedModel, values: dict[str, Any], console: Console) -> None:
    """Print the result, and the classes from the worst on."""
    weights = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
    top5 = f", top5 {values['top5']:.2f} %" if values["top5"] is not None else ""
    plural = "es" if values["world_size"] > 1 else ""
    console.table(
        {
            "model": f"{values['model']}{weights}",
            "data": f"{values['data']}: {values['seen']:,} images",
            "result": f"top1 {values['top1']:.2f} %{top5}, loss {loss_text(values['loss'])}",
            "speed": f"{values['images_per_second']:,.0f} images/s, reading included; {values['world_size']} process"
            f"{plural} on {values['device']}, {values['precision']}",
        }
    )
    tested = sorted((each for each in values["classes"] if each["seen"]), key=lambda each: float(each["top1"]))
    head = ["class, worst first", "images", "top1"]
    rows = [[visible(each["class"]), f"{each['seen']:,}", f"{each['top1']:.2f} %"] for each in tested[:_LISTED]]
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
