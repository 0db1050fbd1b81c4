"""Choose the fields of `run.auto` from the data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_dist.config.config import Config
from vit_dist.data.sources.splits import LabelledSplits


@dataclass(frozen=True)
class Choice:
    """The value that a field was given, and why. JSON can hold it."""

    field: str
    value: Any
    reason: str


def choose_defaults(config: Config, data: LabelledSplits) -> tuple[Config, list[Choice]]:
    """Return the config with the values chosen for this data, and the choices. Reads the config and the data alone."""
    return config, []
