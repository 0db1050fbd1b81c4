"""The `evaluate` command for runs on images and captions: recall both ways, zero-shot accuracy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_dist.data.sources.folder import find_class_folders
from vit_dist.errors import visible
from vit_dist.files import json_number
from vit_dist.formatting import loss_text, weights_text
from vit_dist.inference.contrastive import ContrastiveEvaluation, evaluate_pairs
from vit_dist.inference.load import TrainedModel
from vit_dist.inference.splits import Split
from vit_dist.inference.zero_shot import zero_shot
from vit_dist.run_folder.figures import interval
from vit_dist.run_folder.pair_figures import RECALLS, WAYS, ZERO_SHOT
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console


def classifier_of_folders(trained: TrainedModel, folder: Path, runtime: Runtime, console: Console) -> TrainedModel:
    """Return the zero-shot classifier of the classes that a folder's class folders are named after. Raises UserError.

    Their names are put into text.prompts, with spaces for underscores.
    """
    names = find_class_folders(folder, trained.classes).names
    words = [name.rpartition("/")[2].replace("_", " ") for name in names]
    prompts = trained.config.text.prompts
    console.note(f"  note: zero-shot: the {len(names)} folders' names in {', '.join(map(repr, prompts[:2]))}")
    made = zero_shot(trained, words, runtime.device, runtime.autocast, prompts)
    return replace(made, classes=names, names=names)


def measure_pairs(trained: TrainedModel, name: str, split: Split, runtime: Runtime, console: Console) -> dict[str, Any]:
    """Evaluate a model on a split that is open, print the result, and return what --json holds."""
    console.phase(f"evaluating {len(split.subset):,} images")
    result = evaluate_pairs(trained, split.subset, runtime)
    console.stop()
    values = {
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
    }
    console.table(_rows(trained, values, result))
    return values


def _rows(trained: TrainedModel, values: dict[str, Any], result: ContrastiveEvaluation) -> dict[str, str]:
    weights = f", {weights_text(trained.weights)} of update {trained.update}" if trained.update is not None else ""
    plural = "es" if values["world_size"] > 1 else ""
    rows = {
        "model": f"{values['model']}{weights}",
        "data": f"{visible(values['data'])}: {values['seen']:,} images"
        + (f", {result.bad:,} left out" if result.bad else ""),
    }
    top1, top5 = values.get(ZERO_SHOT), values.get("zero_shot_top5")
    if top1 is not None:
        low, high = interval(round(top1 * result.seen / 100), result.seen)
        rows["zero-shot"] = f"top1 {top1:.2f} % (95 % interval {low:.1f} to {high:.1f})" + (
            f", top5 {top5:.2f} %" if top5 is not None else ""
        )
    for way, title in WAYS.items():
        found = {k: values[f"{way}_recall_at_{k}"] for k in RECALLS}
        rows[title] = ", ".join(f"R@{k} {value:.2f} %" for k, value in found.items() if value is not None)
    rows["loss"] = loss_text(values["loss"])
    rows["speed"] = (
        f"{values['images_per_second']:,.0f} images/s, reading included; {values['world_size']} process{plural} on "
        f"{values['device']}, {values['precision']}"
    )
    return rows
