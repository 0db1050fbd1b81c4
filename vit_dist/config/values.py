"""Types of plain values from YAML, JSON and flags: numbers, lengths of time, import paths."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from vit_dist.config import limits
from vit_dist.errors import UserError, either, has_hidden, one_line

# The type of pydantic's errors whose text says all.
REFUSED = "refused"


_MOST_DIGITS = 30


class TooLongError(ValueError):
    """A length of time that no run has."""


class WrittenInt(int):
    """A whole number of a YAML file, with its text there: `run.name: 007` is meant as a text."""

    written: str

    @classmethod
    def of(cls, value: int, written: str) -> WrittenInt:
        """Return a number with its text."""
        number = cls(value)
        number.written = written
        return number


class WrittenFloat(float):
    """A number of a YAML file, with its text there: `run.name: 1.10` is meant as a text."""

    written: str

    @classmethod
    def of(cls, value: float, written: str) -> WrittenFloat:
        """Return a number with its text."""
        number = cls(value)
        number.written = written
        return number


@dataclass(frozen=True)
class Length:
    """A length of time: an amount of epochs, updates, samples or % of the run."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Length:
        """Parse "20 epochs", "20epochs", "5000 updates", "1e6 samples" or "5%". Raises ValueError."""
        match = re.fullmatch(r"\s*([0-9.]+)(?:[eE]\+?([0-9]+))?\s*(epochs?|updates?|samples?|%)\s*", str(text))
        if not match:
            raise ValueError(f"not a length of time: {text!r}")
        # A fraction is exact: that of 1e999999999 would take all memory.
        digits, exponent, unit = match[1], match[2] or "0", match[3]
        short = len(digits) <= _MOST_DIGITS and len(exponent.lstrip("0")) <= 2
        amount = Fraction(digits) * 10 ** int(exponent) if short else Fraction(limits.LENGTH + 1)
        if amount > limits.LENGTH:
            raise TooLongError(f"longer than a run can be: {limits.LENGTH:.0e} at most")
        return cls(amount, unit if unit == "%" or unit.endswith("s") else unit + "s")


def parse_seconds(text: str) -> float | None:
    """Return the seconds of a time on the clock, as "90 minutes" or "1.5 hours"; None for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(seconds?|s|minutes?|min|hours?|h)\s*", text)
    if not match or float(match[1]) == 0:
        return None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2][0]]


def parse_profile(text: str) -> tuple[int | None, int]:
    """Parse "10 updates" or "10 updates from 500" into the number of the first update, or None, and how many they are.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"\s*(\d{1,15})\s*updates?(?:\s+from\s+(\d{1,15}))?\s*", text)
    if not match or int(match[1]) == 0 or (match[2] and int(match[2]) == 0):
        raise ValueError(f"not a number of updates: {text!r}")
    return int(match[2]) if match[2] else None, int(match[1])


def parse_size(text: str) -> tuple[int, Length]:
    """Parse "128 for 40%" into the side of the images in pixels and for how long they have it. Raises ValueError."""
    side, word, length = text.partition(" for ")
    if not word or not side.strip().isdigit() or int(side) == 0:
        raise ValueError(f"not a size for a length of time: {text!r}")
    return int(side), Length.parse(length)


_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Parse a size with its unit, as 64MB or 1GiB, into bytes. Raises ValueError."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size in bytes: {text!r}")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " kmgt".index(match[2].lower() or " "))


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings, nested ones too; the second's values win."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def coerce(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`; numbers are read from text too, as YAML's 3e-4 needs. Raises ValueError."""
    return _adapter(kind).validate_python(value)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(readable(kind))


def readable(kind: Any, **constraints: Any) -> Any:
    """Return the pydantic type that reads a field of type `kind`, with constraints on its numbers."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        choices = tuple(readable(choice, **constraints) for choice in args)
        return Annotated[Union[choices], Field(union_mode="left_to_right")]
    if origin is tuple:
        return Annotated[tuple[readable(args[0], **constraints), ...], BeforeValidator(_sequence)]  # type: ignore[misc]
    if origin is dict:
        return Annotated[dict[str, Any], BeforeValidator(_mapping), WithJsonSchema({"type": "object"})]
    if kind is int:
        return Annotated[int, Field(**constraints), BeforeValidator(_whole)]
    if kind is float:
        return Annotated[float, Field(allow_inf_nan=False, **constraints), BeforeValidator(_not_bool)]
    if kind is Length:
        return Annotated[Length, PlainValidator(lambda value: Length.parse(str(value)))]
    kinds = {
        bool: Annotated[bool, Field(strict=True)],
        str: Annotated[str, Field(coerce_numbers_to_str=True), BeforeValidator(_as_written), AfterValidator(_plain)],
        type(None): Annotated[None, BeforeValidator(lambda value: None if value == "" else value)],
    }
    return kinds.get(kind, kind)


def _sequence(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError("not a list")
    if len(value) > limits.ENTRIES:
        raise PydanticCustomError(
            REFUSED, "has {count} entries: {most} at most", {"count": len(value), "most": limits.ENTRIES}
        )
    return value


def _mapping(value: Any) -> Any:
    """Return a mapping with text keys and numbers read from text; refuse what JSON cannot hold, such as dates."""
    if not isinstance(value, Mapping):
        raise ValueError("not a mapping")
    _check_entries(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError("not JSON") from error
    return {str(name): numbers(item) for name, item in value.items()}


def _check_entries(value: Any, depth: int = 0, count: int = 0) -> int:
    """Count the entries of nested lists and mappings. Raises PydanticCustomError for too many, and for their texts."""
    if isinstance(value, str):
        _plain(value)
    if depth > limits.LEVELS or count > limits.ENTRIES:
        most = {"most": limits.ENTRIES, "levels": limits.LEVELS}
        raise PydanticCustomError(REFUSED, "is too large: {most} entries in {levels} levels at most", most)
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if not isinstance(value, (list, tuple)):
        return count + 1
    for item in value:
        count = _check_entries(item, depth + 1, count)
    return count


def _check_digits(value: Any) -> None:
    if isinstance(value, int) and abs(value) >= 10**limits.YAML_DIGITS:
        raise PydanticCustomError(REFUSED, "is too long: {most} digits at most", {"most": limits.YAML_DIGITS})


def _as_written(value: Any) -> Any:
    """Return the text of a number as YAML had it. Raises PydanticCustomError for a number that has no text."""
    _check_digits(value)
    return value.written if isinstance(value, (WrittenInt, WrittenFloat)) else value


def _plain(text: str) -> str:
    """Refuse control characters, which no field needs and a terminal obeys, and texts longer than a path can be."""
    if has_hidden(text):
        raise PydanticCustomError(REFUSED, "has a control character: leave it out")
    if len(text) > limits.TEXT:
        raise PydanticCustomError(REFUSED, "is too long: {most} characters at most", {"most": limits.TEXT})
    return text


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("not a number")
    _check_digits(value)
    return value


def _whole(value: Any) -> Any:
    """Let pydantic's integers read 1e2 and 64.0 from text as well."""
    is_text = isinstance(value, str) and not value.strip().lstrip("+-").isdigit()
    return float(value) if is_text else _not_bool(value)


def numbers(value: Any) -> Any:
    """Return texts such as 1e-4, which YAML 1.1 takes for text, as numbers, inside lists and mappings too."""
    if isinstance(value, Mapping):
        return {name: numbers(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    if isinstance(value, (WrittenInt, WrittenFloat)):
        return int(value) if isinstance(value, int) else float(value)
    return value


def describe(kind: Any) -> str:
    """Return a type in words, as errors and the reference name it."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in args)
    if origin is Literal:
        return either(args)
    if origin is tuple:
        return {
            float: "a list of numbers",
            str: "a list of strings",
            Length: "a list of lengths with their units, as [30 epochs, 60 epochs]",
        }[args[0]]
    if origin is dict:
        return "a mapping, as {name: value}"
    return {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "empty",
        Length: 'a length with its unit, as "30 epochs"',
    }[kind]


def import_function(path: str, name: str) -> Callable[..., Any]:
    """Import "package.module:function", from the working folder too. Raises UserError that names the field `name`."""
    module, _, attribute = path.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # of any kind: the module runs its own code
        reason = one_line(error, 300)
        raise UserError(f"{name}: {path} cannot be imported: {reason}; write it as package.module:function") from error
    if not callable(function):
        raise UserError(f"{name}: {path} is no function, but {type(function).__name__}: name a function")
    if f"{module}.".startswith("torch.hub.") or getattr(function, "__module__", "") == "torch.hub":
        raise UserError(f"{name}: {path} runs code from the network: install the package and name its own function")
    return function
