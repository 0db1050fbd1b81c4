"""The JSON schema that editors check a config by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from vit_dist.config.checking import json_schema
from vit_dist.config.config import Config
from vit_dist.config.recipe import RECIPES
from vit_dist.config.schema import all_options, sections
from vit_dist.config.values import numbers

SCHEMA = json_schema()
MODELINE = "# yaml-language-server: $schema=schema.json"


def section(name: str) -> dict[str, Any]:
    """Return the schema of a section."""
    reference = SCHEMA["properties"][name]["anyOf"][0]["$ref"]
    schema: dict[str, Any] = SCHEMA["$defs"][reference.removeprefix("#/$defs/")]
    return schema


def errors(values: Any) -> list[str]:
    problems = jsonschema.Draft202012Validator(SCHEMA).iter_errors(values)
    return sorted(f"{error.json_path}: {error.message}" for error in problems)


def test_the_shipped_schema_is_current() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    shipped = json.loads((RECIPES / "schema.json").read_text(encoding="utf-8"))
    assert shipped == SCHEMA, "vit-dist config schema > vit_dist/config/recipes/schema.json"


def test_every_field_is_in_the_schema_with_its_description_and_default() -> None:
    assert list(SCHEMA["properties"]) == list(sections())
    assert SCHEMA["additionalProperties"] is False
    for name in sections():
        assert section(name)["additionalProperties"] is False
    defaults = Config().fields()
    for name, option in all_options():
        field = section(name.split(".")[0])["properties"][option.name]
        assert field["description"] == option.description
        assert field["default"] == defaults[name]


def test_types_choices_and_bounds_are_in_the_schema() -> None:
    fields = {name: section(name.split(".")[0])["properties"][option.name] for name, option in all_options()}
    assert fields["optimizer.lr"].items() >= {"type": "number", "exclusiveMinimum": 0}.items()
    assert fields["model.dropout"].items() >= {"type": "number", "minimum": 0, "maximum": 1}.items()
    assert fields["run.device"]["enum"] == ["auto", "cpu", "cuda", "mps"]
    whole = {"type": "integer", "exclusiveMinimum": 0}
    assert fields["model.width"]["anyOf"] == [{**whole, "maximum": 65536}, {"type": "null"}]
    assert fields["batch.micro_size"]["anyOf"][0] == {**whole, "maximum": 1_000_000, "multipleOf": 2}
    assert fields["run.threads"]["anyOf"][0] == {**whole, "maximum": 4096}
    assert fields["optimizer.betas"]["items"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert fields["model.args"]["type"] == "object"
    assert fields["log.report"]["type"] == "boolean"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_names_the_schema_and_is_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == MODELINE
    assert (path.parent / MODELINE.partition("=")[2]).is_file()
    # Editors read YAML 1.2, in which 1e-3 is a number.
    assert errors(numbers(yaml.safe_load(text))) == []


def test_what_the_config_refuses_the_schema_refuses_too() -> None:
    assert errors({"optimzer": {}, "optimizer": {"lr": 0, "lrr": 1}, "run": {"device": "gpu"}, "log": None}) == [
        "$.optimizer: {'lr': 0, 'lrr': 1} is not valid under any of the given schemas",
        "$.run: {'device': 'gpu'} is not valid under any of the given schemas",
        "$: Additional properties are not allowed ('optimzer' was unexpected)",
    ]
