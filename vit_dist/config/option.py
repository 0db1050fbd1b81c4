"""Definition of one field of the config: its default, description and bounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from vit_dist.config.limits import LIMITS


@dataclass(frozen=True)
class Bounds:
    """The range of a number, or of each number in a list.

    limit: what no machine can do more of, in place of `at_most` where the field itself has no end.
    """

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    multiple_of: int | None = None
    unit: str = ""
    limit: int | None = None

    def __str__(self) -> str:
        """Return the range in words, such as `at least 0 and below 1`; empty if there is none."""
        unit = f" {self.unit}" if self.unit else ""
        if self.at_least is not None and self.at_most is not None:
            return f"between {self.at_least} and {self.at_most}{unit}"
        if self.at_least is not None and self.below is None:
            return f"{self.at_least} or more{unit}"
        limits = {"at least": self.at_least, "above": self.above, "below": self.below, "at most": self.at_most}
        parts = [f"{word} {_number(limit)}{unit}" for word, limit in limits.items() if limit is not None]
        return " and ".join([*parts, "even"] if self.multiple_of == 2 else parts)

    def constraints(self) -> dict[str, float]:
        """Return the range as pydantic's constraints."""
        limits = {"gt": self.above, "ge": self.at_least, "lt": self.below, "le": self.at_most}
        limits["le"] = self.limit if self.at_most is None else self.at_most
        limits["multiple_of"] = self.multiple_of
        return {name: limit for name, limit in limits.items() if limit is not None}


def _number(value: float) -> str:
    return f"2^{value.bit_length() - 1}" if isinstance(value, int) and value > 2**31 else str(value)


def option(
    default: Any,
    description: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
    unit: str = "",
    changes_result: bool = True,
    at_inference: bool = False,
) -> Any:
    """Define a field with the bounds of its numbers.

    changes_result: False for a field that cannot change the result of a run, and so is no part of its identity.
    at_inference: True for a field that may be set for a trained run, which fixes the others.
    """
    metadata = {
        "description": description,
        "bounds": Bounds(above, at_least, below, at_most, multiple_of, unit),
        "changes_result": changes_result,
        "at_inference": at_inference,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Option(NamedTuple):
    """A field of a section: its type, default, and what `option` was given."""

    name: str
    type: Any
    default: Any
    description: str
    bounds: Bounds
    changes_result: bool
    at_inference: bool

    def shown_default(self) -> str:
        """Return the default as YAML writes it; an empty string if it is empty."""
        if self.default in ("", (), None, {}):
            return ""
        if isinstance(self.default, tuple):
            return str(list(self.default))
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


@cache
def options(section: Any) -> dict[str, Option]:
    """Return the fields of the dataclass of a section, by name."""
    types, default, name = get_type_hints(section), section(), section.__name__.removesuffix("Config").lower()
    found = {}
    for item in dataclasses.fields(section):
        option = Option(item.name, types[item.name], getattr(default, item.name), **item.metadata)
        bounds = dataclasses.replace(option.bounds, limit=LIMITS.get(f"{name}.{item.name}"))
        found[item.name] = option._replace(bounds=bounds)
    return found
