"""Open a run's data, choose the fields that follow from it, and name the run: the same for `train` and `plan`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_dist.config.config import Config
from vit_dist.data.fingerprint import SAMPLES, difference
from vit_dist.data.sources.copies import copies_in_train
from vit_dist.data.sources.splits import SPLITS, LabelledSplits
from vit_dist.errors import UserError
from vit_dist.files import check_place
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.captions import run_fingerprint
from vit_dist.training.components import open_splits
from vit_dist.training.defaults import Choice, choose_defaults
from vit_dist.training.identity import MAY_CHANGE
from vit_dist.training.model_selection import selecting_metric
from vit_dist.training.resume import ResumePoint, find_resume_point, holds_run, read_config, stored_config

_LONGEST_NAME = 40
# Of the earlier runs on a folder, so many are looked at: each costs the time to read its config.
_LOOKED_AT = 5


@dataclass(frozen=True)
class Resolved:
    """A run whose data is open.

    config: with the values that were chosen from the data, and with a name unless `run.dir` is set. samples: the
    fingerprint of the data. choices: the fields that were chosen, and why. notes: lines for the user.
    """

    config: Config
    data: LabelledSplits
    samples: Mapping[str, Any]
    choices: list[Choice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def resolve(config: Config, source: Any = None, runtime: Runtime | None = None) -> Resolved:
    """Open the data, choose the fields that `run.auto` lists, and name the run.

    source: used in place of the config's data, in any form that `open_splits` takes. runtime: of the ranks that do this
    together, if there are several; rank 0 opens the data first, and decides for all. Raises UserError.
    """
    if source is not None and not isinstance(source, LabelledSplits):
        config = _without_data(config)
    if runtime is None:
        data = open_splits(config, source)
        decided = _decide(config, data, source)
    else:
        data = runtime.run_main_first(lambda: open_splits(config, source))
        decided = runtime.run_on_main(lambda: _decide(config, data, source))
    choices = [Choice(**choice) for choice in decided["choices"]]
    return Resolved(Config.from_dict(decided["config"]), data, decided["samples"], choices, decided["notes"])


def _without_data(config: Config) -> Config:
    """Return the config of a run on a source: it names no data that could be opened later. Raises UserError."""
    if config.data.root:
        raise UserError(f"data.root: {config.data.root} is set, and a source is given too: leave one of them out")
    return replace(config, data=replace(config.data, name="folder"))


def find_start(resolved: Resolved, runtime: Runtime | None = None) -> tuple[Resolved, ResumePoint]:
    """Find where a run starts; return it with the duration that it was given since, and the point.

    Raises UserError for a folder that it may not, or cannot, go on in.
    """

    def find() -> dict[str, Any]:
        config = resolved.config
        resume = find_resume_point(config, resolved.data, resolved.samples)
        if not resume.finished:
            check_place(config.folder, "run.dir" if config.run.dir else "run.name")
        return resume.to_dict()

    if runtime is None:
        resume = ResumePoint.from_dict(find())
    else:
        found = runtime.run_on_main(find)
        resume = runtime.run_on_all(lambda: ResumePoint.from_dict(found))
    if not resume.duration:
        return resolved, resume
    config = resolved.config
    return replace(resolved, config=replace(config, train=replace(config.train, duration=resume.duration))), resume


def _decide(config: Config, data: LabelledSplits, source: Any) -> dict[str, Any]:
    """Return the fields of `Resolved` but for the data, as JSON can hold them."""
    samples, notes = run_fingerprint(config, data), list(copies_in_train(data))
    resolved, choices = choose_defaults(_with_stored_choices(config), data)
    metric = selecting_metric(resolved, len(data.classes))
    resolved = replace(resolved, evaluate=replace(resolved.evaluate, metric=metric))
    if not config.run.name and not config.run.dir:
        name = _data_name(config, source, data)
        run = replace(resolved.run, name=f"{name}-{resolved.identity([samples, data.classes])}")
        resolved = replace(resolved, run=run)
        if not holds_run(resolved.folder):
            notes += list(_other_images(name, resolved, {choice.field for choice in choices}, data))
    resolved = _with_stored_micro_size(resolved)
    chosen = [asdict(choice) for choice in choices]
    return {"config": resolved.to_dict(), "samples": samples, "choices": chosen, "notes": notes}


def _with_stored_choices(config: Config) -> Config:
    """Return the config with what an earlier start of its run chose: no later rule changes a run that has begun."""
    before = stored_config(config) if config.run.auto else None
    if before is None:
        return config
    values, then = config.to_dict(), before.fields()
    for name in config.run.auto:
        section, _, key = name.partition(".")
        values[section][key] = then[name]
    values["run"]["auto"] = []
    return Config.from_dict(values)


def _with_stored_micro_size(config: Config) -> Config:
    """Return the config of a named run with the size of micro-batches that an earlier start has, in place of auto."""
    if config.batch.micro_size != "auto" or (before := stored_config(config)) is None:
        return config
    return replace(config, batch=replace(config.batch, micro_size=before.batch.micro_size))


def _data_name(config: Config, source: Any, data: LabelledSplits) -> str:
    """Return what a run on this data is called: after its folder, data set or class, in characters for a file name."""
    if source is not None:
        name = data.name or type(data.splits["train"].source).__name__
    elif config.data.source == "folder":
        root = _root(config)
        name = root.parent.name if root.name.lower() in SPLITS else root.name
    else:
        name = config.data.source
    return re.sub(r"[^\w.]+", "-", name.lower())[:_LONGEST_NAME].strip("._-") or "data"


def _root(config: Config) -> Path:
    return Path(os.path.abspath(Path(config.data.root).expanduser()))


def _other_images(name: str, config: Config, chosen: set[str], data: LabelledSplits) -> Iterator[str]:
    """Yield a note if an earlier run with this config is there on other images of the same folder.

    chosen: fields of the config that follow from the data.
    """
    folders = [path.parent for path in Path("runs").glob(f"{name}-??????/{SAMPLES}")]
    folders.sort(key=lambda folder: (folder / SAMPLES).stat().st_mtime, reverse=True)
    for folder in folders[:_LOOKED_AT]:
        try:
            before = read_config(folder)
        except UserError:
            continue
        then, now = (each.fields(changes_result=True) for each in (before, config))
        same = all(then[field] == now[field] for field in now.keys() - chosen - {*MAY_CHANGE})
        what = difference(folder / SAMPLES, data) if same and _root(before) == _root(config) else ""
        if what:
            yield f"{folder} trained on other images of {config.data.root} (since then {what}): this is a new run"
            return
