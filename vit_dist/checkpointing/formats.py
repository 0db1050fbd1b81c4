"""The formats of state.json: which are read, and how an older one becomes the current one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_dist.checkpointing.fields import Fields
from vit_dist.errors import UserError

# Numbers of the formats of state.json and manifest.json that are written; older ones are read for ever.
FORMAT, MANIFEST_FORMAT = 2, 1

# Format 1's names of fields → today's.
_RENAMED = {
    "train": "train_state",
    "form": "preprocessing",
    "train.applied": "applied_updates",
    "train.skipped": "skipped_updates",
    "train.bar": "patience_baseline",
    "train.stale": "evaluations_without_improvement",
    "train.tracker_id": "tracker_run_id",
    "plan.window": "micro_batches_per_rank",
}


def check_format(file: Path, fields: Fields, known: int) -> int:
    """Return the format's number in a JSON file.

    Raises ValueError if it is no number of a format, and UserError if it is that of a later version: to pass such a
    checkpoint over would silently lose updates.
    """
    number = fields.integer("format", 1)
    if number > known:
        raise UserError(
            f"{file}: format {number}, and this version of vit_dist reads formats up to {known}: "
            "use the version that wrote it"
        )
    return number


def to_current(fields: Fields, number: int) -> Fields:
    """Return the content of a state.json of format `number` as the current format has it. Raises ValueError."""
    return _from_1(fields) if number == 1 else fields


def _from_1(fields: Fields) -> Fields:
    """Rename the fields of format 1; its `form` also had the depth of drop-path, which the model says itself."""
    values: dict[str, Any] = {}
    for section, value in fields.values.items():
        if section in ("train", "form", "plan"):
            inside = fields.fields(section).values
            value = {_RENAMED.get(f"{section}.{name}", name): entry for name, entry in inside.items()}
        values[_RENAMED.get(section, section)] = value
    if isinstance(values.get("preprocessing"), dict):
        values["preprocessing"] = {"crop": 0.875, **values["preprocessing"]}
        values["preprocessing"].pop("drop_path_depth", None)
    return Fields({"optimizer": {"state": {}, "groups": []}, **values, "format": FORMAT})
