"""Tell whether a config and its data are those of a run that has begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.config.config import Config
from vit_dist.data.fingerprint import SAMPLES, TEXTS, difference, same_samples
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError

# Fields of the identity that may change in a run all the same: the first may grow, the second changes no result
# unless dropout draws by micro-batch. Both are noted.
MAY_CHANGE = ("train.duration", "batch.micro_size")


def compare(before: Config, now: Config, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return (fields that differ and their new values, notes). Raises UserError if a field of the identity differs."""
    then, identity = before.fields(), now.fields(changes_result=True)
    changed = {name: value for name, value in now.fields().items() if then[name] != value and name != "run.resume"}
    refused = [
        f"{name}: {then[name]!r} there, {value!r} now"
        for name, value in changed.items()
        if name in identity and name not in MAY_CHANGE
    ]
    if refused:
        raise UserError(
            f"{path}: holds a run of another config: {'; '.join(refused)}: set another run.dir, or change these back"
        )
    notes = [f"{name}: {then[name]} before, {changed[name]} now" for name in MAY_CHANGE if name in changed]
    return changed, notes


def check_same_data(saved: Checkpoint, data: LabelledSplits, samples: Mapping[str, Any]) -> None:
    """Check that data is what a checkpoint was trained on: classes, and the samples of each split.

    samples: the fingerprint of the data. Raises UserError that says what differs.
    """
    state, what = saved.state, []
    before = state.data or {"train": {"samples": state.samples}}
    for name, split in before.items():
        now = samples.get(name, {"samples": 0})
        if now["samples"] != split["samples"]:
            what.append(f"{split['samples']:,} images of {name} before, {now['samples']:,} now")
        elif not same_samples(split, now):
            what.append(f"other images of {name}")
    folder = saved.path.parent.parent if saved.path.parent.name == "checkpoints" else saved.path
    if what:
        what = [difference(folder / SAMPLES, data) or "; ".join(what)]
    if state.classes != list(data.classes):
        new, gone = (
            [name for name in these if name not in those]
            for these, those in ((data.classes, state.classes), (state.classes, data.classes))
        )
        kinds = [f"{_few(names)} {kind}" for names, kind in ((new, "added"), (gone, "removed")) if names]
        what.append(f"classes: {', '.join(kinds) or 'in another order'}")
    if not what and (texts := _other_texts(before, samples)):
        raise UserError(
            f"data: {folder} was trained with {' and '.join(texts)}: bring the old ones back, or set another run.dir "
            "or run.name, or none, for a new run"
        )
    if what:
        raise UserError(
            f"data: not what {folder} was trained on: {'; '.join(what)}: bring the old images (or data.leave_out) "
            "back, or set another run.dir or run.name, or none, for a new run"
        )


def _other_texts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words which texts differ between two fingerprints of the same images."""
    other = {kind: [name for name in before if before[name].get(kind) != now[name].get(kind)] for kind in TEXTS}
    found = [f"other captions of {' and '.join(other['captions'])}"] if other["captions"] else []
    return [*found, *["another text.tokenizer"] * bool(other["tokenizer"])]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
