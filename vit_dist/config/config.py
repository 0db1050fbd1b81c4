"""The config of a run: load it from a recipe, YAML or Python values, compare it, write it down."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from vit_dist.config import validation
from vit_dist.config.recipe import find_recipe, read_yaml, recipe_for
from vit_dist.config.schema import (
    Schema,
)
from vit_dist.config.values import coerce, describe, merged
from vit_dist.errors import UserError, nearest


@dataclass(frozen=True)
class Config(Schema):
    """The config of one run. Build it with `Config.load`, or from its sections in Python."""

    def __post_init__(self) -> None:
        """Raises `UserError` with every problem of the fields, a line each."""
        problems = list(validation.problems(self))
        if problems:
            raise UserError("\n".join(problems))

    @classmethod
    def load(cls, recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
        """The config of a recipe's name or a YAML file (by default `recipe_for`'s), with dotted overrides on top.

        Raises `UserError` with all that is wrong, a line each.
        """
        overrides = dict(overrides or {})
        if recipe is None:
            recipe = recipe_for(overrides)
        path = find_recipe(recipe)
        values = read_yaml(path)
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if values.get(section) is None:
                values[section] = {}
            fields = values[section]
            if not name or not isinstance(fields, dict):
                raise UserError(f"{key}: no such field; write it as section.field, as in optimizer.lr")
            both = isinstance(value, Mapping) and isinstance(fields.get(name), Mapping)
            fields[name] = merged(fields[name], value) if both else value
        config = cls.from_dict(values)
        if not config.run.name and not config.run.dir:
            name = f"{path.stem}-{config.identity()}"
            config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The config of nested plain values, as YAML or JSON give them; missing fields take their defaults.

        Raises `UserError` with every unknown key, wrong type and contradiction, a line each.
        """
        problems: list[str] = []
        sections: dict[str, Any] = {}
        known = get_type_hints(cls)
        for name, given in values.items():
            if name not in known:
                problems.append(f"{name}: no such section{nearest(str(name), known)}")
                continue
            kind = known[name]
            hints = get_type_hints(kind)
            if given is not None and not isinstance(given, Mapping):
                problems.append(f"{name}: a section of fields ({', '.join(hints)}), not {given!r}")
                continue
            section: dict[str, Any] = {}
            for key, value in (given or {}).items():
                if key not in hints:
                    problems.append(f"{name}.{key}: no such field{nearest(str(key), hints)}")
                    continue
                try:
                    section[key] = coerce(value, hints[key])
                except (TypeError, ValueError, OverflowError):
                    problems.append(f"{name}.{key}: must be {describe(hints[key])}, not {value!r}")
            sections[name] = kind(**section)
        try:
            config = cls(**sections)
        except UserError as error:
            raise UserError("\n".join([*problems, str(error)])) from None
        if problems:
            raise UserError("\n".join(problems))
        return config

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Nested plain values that YAML and JSON hold."""
        plain: dict[str, dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def fields(self, *, free: bool = True) -> dict[str, Any]:
        """Dotted names and plain values; without `free`, only what can change the result."""
        values = self.to_dict()
        return {
            f"{section.name}.{f.name}": values[section.name][f.name]
            for section in dataclasses.fields(self)
            for f in dataclasses.fields(getattr(self, section.name))
            if free or not f.metadata["free"]
        }

    def identity(self) -> str:
        """Six hex digits that name everything that can change the result."""
        text = json.dumps(self.fields(free=False), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.run.dir or f"runs/{self.run.name or f'{self.data.name}-{self.identity()}'}")
