"""Plain values → typed ones: what YAML, JSON and flags hold, lengths of time, import paths."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Union, get_args, get_origin

from vit_dist.errors import UserError


@dataclass(frozen=True)
class Length:
    """A length of time: an amount of a unit (epochs, updates, samples or %)."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Length:
        """Of "20 epochs", 20epochs, "5000 updates", "1e6 samples" or "5%". Raises ValueError."""
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE]\+?[0-9]+)?)\s*(epochs?|updates?|samples?|%)\s*", str(text))
        if not match:
            raise ValueError(f"not a length of time: {text!r}")
        unit = match[2]
        return cls(Fraction(match[1]), unit if unit == "%" or unit.endswith("s") else unit + "s")


def parse_size(text: str) -> tuple[int, Length]:
    """Of "128 for 40%": a side in pixels and the length for which images have it. Raises ValueError."""
    side, word, length = text.partition(" for ")
    if not word or not side.strip().isdigit() or int(side) == 0:
        raise ValueError(f"not a size for a length of time: {text!r}")
    return int(side), Length.parse(length)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, the second's values where both have one; mappings inside them likewise."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def coerce(value: Any, kind: Any) -> Any:
    """`value` as `kind`, reading numbers from text as YAML's 3e-4 needs.

    Raises TypeError, ValueError or OverflowError where it does not fit.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return coerce(value, choice)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        raise ValueError
    if kind is Length:
        return Length.parse(str(value))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(coerce(item, item_kind) for item, item_kind in zip(value, kinds, strict=True))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        json.dumps(value)
        return {str(name): _numbers(one) for name, one in value.items()}
    if kind is type(None):
        if value is None or value == "":
            return None
        raise TypeError
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise TypeError
    if isinstance(value, bool) or value is None:
        raise TypeError
    if kind is int:
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return int(value) if isinstance(value, (int, str)) and not _has_point(value) else int(number)
    if kind is float:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError


def _numbers(value: Any) -> Any:
    """Texts such as 1e-4, which YAML does not take for numbers, as numbers; inside lists and mappings too."""
    if isinstance(value, Mapping):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(one) for one in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    return value


def _has_point(value: int | str) -> bool:
    return isinstance(value, str) and not value.strip().lstrip("+-").isdigit()


def describe(kind: Any) -> str:
    """A type in a person's words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(choice) for choice in args)
    if origin is Literal:
        return " or ".join(args)
    if origin is tuple:
        items = {float: "numbers", Length: "lengths with their units, as [30 epochs, 60 epochs]"}.get(args[0], "texts")
        return f"a list of {items}" + ("" if args[-1] is Ellipsis else f", {len(args)} of them")
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "empty"}
    names[Length] = 'a length with its unit, as "30 epochs"'
    return names.get(kind, "fields with values")


def import_function(path: str, name: str) -> Any:
    """The object at "package.module:function", looked for in the working folder too. Raises UserError with `name`."""
    module, _, attribute = path.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name}: {path} cannot be imported: {error}; write it as package.module:function") from None
