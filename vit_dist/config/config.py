"""The config of a run: load it from a recipe, YAML or Python values, compare it, write it down."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.config.checking import checked
from vit_dist.config.option import options
from vit_dist.config.recipe import find_recipe, read_yaml, recipe_for
from vit_dist.config.schema import Schema, all_options
from vit_dist.config.text_fields import TextConfig
from vit_dist.config.values import merged
from vit_dist.errors import UserError

# Fields that came after the names of runs: they count only where they are set, so that a run keeps its name.
LATER = (
    *("data.fit", "data.interpolation", "data.columns", "data.lanes", "data.shard_window"),
    "model.residual",
    *(f"text.{name}" for name in options(TextConfig)),
    "loss.duplicates",
)


@dataclass(frozen=True)
class Config(Schema):
    """The config of one run. Build it with `Config.load`, or from its sections in Python."""

    def __post_init__(self) -> None:
        """Check and convert the sections. Raises `UserError` with every problem, a line each."""
        sections = {section.name: vars(getattr(self, section.name)) for section in dataclasses.fields(self)}
        vars(self).update(vars(checked(sections)))

    @classmethod
    def load(cls, recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
        """Load a shipped recipe or a YAML file, by default that of `recipe_for`, with dotted overrides on top.

        A field that an override sets is taken out of `run.auto`: what a person sets is not decided by the data.
        Raises `UserError` with every problem, a line each.
        """
        overrides = dict(overrides or {})
        if recipe is None:
            recipe = recipe_for(overrides)
        values = read_yaml(find_recipe(recipe))
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if values.get(section) is None:
                values[section] = {}
            fields = values[section]
            if not name or not isinstance(fields, dict):
                raise UserError(f"{key}: no such field; write it as section.field, as in optimizer.lr")
            both = isinstance(value, Mapping) and isinstance(fields.get(name), Mapping)
            fields[name] = merged(fields[name], value) if both else value
        run = values.get("run")
        if isinstance(run, dict) and isinstance(run.get("auto"), list):
            run["auto"] = [field for field in run["auto"] if field not in overrides]
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a config from nested plain values, as in YAML or JSON; missing fields take their defaults.

        Raises `UserError` with every unknown key, wrong type, number out of bounds and contradiction, a line each.
        """
        return cls(**vars(checked(values)))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return nested plain values that YAML and JSON can hold."""
        plain: dict[str, dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    def fields(self, *, changes_result: bool = False) -> dict[str, Any]:
        """Return plain values by dotted name; with `changes_result`, only those that can change the result."""
        values = self.to_dict()
        return {
            name: values[name.split(".")[0]][option.name]
            for name, option in all_options()
            if option.changes_result or not changes_result
        }

    def identity(self, data: object = None) -> str:
        """Return six hex digits that name everything in the config that can change the result, and the data if given.

        data: what tells it from other data, as JSON can hold it. How a batch is split counts only where torch's or
        timm's own random draws are made for each part.
        """
        fields = self.fields(changes_result=True)
        for name, default in Config().fields().items():
            if name in LATER and fields.get(name) == default:
                del fields[name]
        model, dropout = self.model, self.model.dropout or self.model.attention_dropout or self.text.dropout
        if not (dropout or "/" in model.name or ":" in model.name):
            del fields["batch.micro_size"]
        text = json.dumps(fields if data is None else [fields, data], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    @property
    def folder(self) -> Path:
        """The folder of the run. Raises ValueError if it has no name yet: `resolve` gives it one, from the data."""
        if not self.run.dir and not self.run.name:
            raise ValueError("run.name: is empty until the data has been opened")
        return Path(self.run.dir or f"runs/{self.run.name}")


def check_config(given: object) -> None:
    """Check that what was given as the config of a training is one. Raises UserError that says what to write."""
    if isinstance(given, Config):
        return
    folder = isinstance(given, (str, Path)) and Path(given).is_dir()
    fields = f'{{"data.root": "{given}"}}' if folder else "{…}"
    recipe = "folder" if folder else "digits"
    raise UserError(f'train: takes a Config, not {type(given).__name__}: train(Config.load("{recipe}", {fields}))')
