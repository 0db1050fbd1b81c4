"""Open a run's data, choose the fields that follow from it, and name the run: the same for `train` and `plan`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vit_dist.config.config import Config
from vit_dist.data.fingerprint import fingerprint
from vit_dist.data.sources.source import Source
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.components import open_splits
from vit_dist.training.defaults import Choice, choose_defaults

_LONGEST_NAME = 40


@dataclass(frozen=True)
class Resolved:
    """A run whose data is open.

    config: with the values that were chosen from the data, and with a name unless `run.dir` is set. samples: the
    fingerprint of the data. choices: the fields that were chosen, and why.
    """

    config: Config
    data: LabelledSplits
    samples: Mapping[str, Any]
    choices: list[Choice]


def resolve(config: Config, source: Source | LabelledSplits | None = None, runtime: Runtime | None = None) -> Resolved:
    """Open the data, choose the fields that `run.auto` lists, and name the run.

    source: used in place of the config's data. runtime: of the ranks that do this together, if it is there; rank 0
    opens the data first, and chooses for all. Raises UserError.
    """
    if runtime is None:
        data = open_splits(config, source)
        samples, chosen, choices = _describe(config, data)
    else:
        with runtime.main_first():
            data = open_splits(config, source)
        samples, chosen, choices = runtime.run_on_main(lambda: _describe(config, data))
    config = Config.from_dict(chosen)
    if not config.run.name and not config.run.dir:
        name = f"{_data_name(config, source)}-{config.identity([samples, data.classes])}"
        config = replace(config, run=replace(config.run, name=name))
    return Resolved(config, data, samples, [Choice(**choice) for choice in choices])


def _describe(config: Config, data: LabelledSplits) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return (fingerprint of the data, config with the chosen values, choices), as JSON can hold them."""
    config, choices = choose_defaults(config, data)
    return fingerprint(data), config.to_dict(), [asdict(choice) for choice in choices]


def _data_name(config: Config, source: Source | LabelledSplits | None) -> str:
    """Return what a run on this data is called: after its folder, data set or class, in characters for a file name."""
    if source is not None:
        kind = source.splits["train"].source if isinstance(source, LabelledSplits) else source
        name = type(kind).__name__
    elif config.data.source == "folder":
        name = Path(os.path.abspath(Path(config.data.root).expanduser())).name
    else:
        name = config.data.source
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name.lower())
    return kept[:_LONGEST_NAME].strip("._-") or "data"
