"""Typed and checked sections from plain values, by a pydantic model built from the schema; its JSON schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from vit_dist.config.option import options
from vit_dist.config.schema import Schema, sections
from vit_dist.config.validation import contradictions
from vit_dist.config.values import REFUSED, describe, readable
from vit_dist.errors import UserError, nearest, visible

_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_LONGEST = 200


def checked(values: Mapping[str, Any]) -> Schema:
    """Return the sections of nested plain values; missing sections and fields take their defaults.

    Raises UserError with every unknown key, wrong type, number out of bounds and contradiction, a line each.
    """
    problems: dict[str, str] = {}
    try:
        model = _model().model_validate(dict(values))
    except ValidationError as error:
        for details in error.errors(include_url=False, include_context=False):
            path = [str(key) for key in details["loc"][:2]]
            problems.setdefault(".".join(path), _problem(path, details, values))
        model = _model().model_validate(_without(values, problems))
    schema = Schema(
        **{
            name: kind(**{field: getattr(section, field) for field in section.model_fields_set})
            for name, kind in sections().items()
            if (section := getattr(model, name)) is not None
        }
    )
    # A field that was refused has its default here, so a contradiction that it is part of says nothing new.
    others = [line for line in contradictions(schema) if line.partition(":")[0] not in problems]
    if problems or others:
        raise UserError("\n".join(map(visible, [*problems.values(), *others])))
    return schema


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config in YAML."""
    schema = _model().model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "vit_dist config"}


class _WithoutTitles(GenerateJsonSchema):
    """Leaves out titles, which only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def _model() -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (Optional[_section_model(kind)], Field(None, description=kind.__doc__))
        for name, kind in sections().items()
    }
    return create_model("Config", __config__=ConfigDict(extra="forbid"), **fields)


def _section_model(section: Any) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (
            readable(option.type, **option.bounds.constraints()),
            Field(option.default, description=option.description),
        )
        for name, option in options(section).items()
    }
    return create_model(section.__name__, __config__=ConfigDict(extra="forbid"), **fields)


def _problem(path: list[str], details: ErrorDetails, values: Mapping[str, Any]) -> str:
    """Word the first error of a field, or of a section."""
    section, name = path[0], ".".join(path)
    if section not in sections():
        return f"{name}: no such section{nearest(section, sections())}"
    fields = options(sections()[section])
    if len(path) == 1:
        return f"{name}: a section of fields ({', '.join(fields)}), not {_shown(values[section])}"
    if path[1] not in fields:
        return f"{name}: no such field{nearest(path[1], fields)}"
    field, value = fields[path[1]], values[section][path[1]]
    if details["type"] == REFUSED:
        return f"{name}: {details['msg']}, not {_shown(value)}"
    if details["type"] == "multiple_of":
        return f"{name}: must be even, not {value}: set {int(details['input']) + 1}"
    if details["type"] in _BOUNDS:
        over = details["type"] == "less_than_equal" and field.bounds.limit is not None
        range = f"at most {field.bounds.limit:,}" if over else field.bounds
        return f"{name}: must be {range}, not {_shown(list(value) if isinstance(value, tuple) else value, str)}"
    return f"{name}: must be {describe(field.type)}, not {_shown(value)}"


def _shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    try:
        text = write(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a value inside itself
        return f"that {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _without(values: Mapping[str, Any], problems: Mapping[str, str]) -> dict[str, Any]:
    """Return the values without the sections and fields that have problems."""
    return {
        section: {field: value for field, value in (fields or {}).items() if f"{section}.{field}" not in problems}
        for section, fields in values.items()
        if str(section) not in problems
    }
