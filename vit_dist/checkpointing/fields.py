"""Read the fields of a JSON object by name, type and range."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_dist.errors import one_line

# The largest whole number that JSON readers agree on.
_LARGEST = 2**53
# Of a name in an error, in characters.
_LONGEST_NAME = 100


class Fields:
    """The fields of a JSON object. Every reader raises ValueError: where, what is wanted, what is there.

    place: dotted path of the object in its file, for the errors; empty: the file itself.
    """

    def __init__(self, values: object, place: str = "") -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{place or 'its content'} must be an object, not {shown(values)}")
        self.values: dict[str, Any] = values
        self.place = place

    def integer(self, name: str, low: int = 0, high: int = _LARGEST) -> int:
        """Return a whole number from `low` to `high`."""
        value = self._value(name)
        if type(value) is not int or not low <= value <= high:
            limit = f" to {high:,}" if high != _LARGEST else " or more"
            raise ValueError(f"{self._path(name)} must be a whole number of {low:,}{limit}, not {shown(value)}")
        return value

    def number(self, name: str, low: float = -math.inf, *, finite: bool = True) -> float:
        """Return a number of `low` or more; with `finite` False also nan, inf and -inf, which JSON holds as text."""
        value = self._value(name)
        if not finite and value in ("nan", "inf", "-inf"):
            return float(value)
        if type(value) not in (int, float) or not (low <= value and abs(value) <= 1e308):
            least = f" of {low:g} or more" if low != -math.inf else ""
            raise ValueError(f"{self._path(name)} must be a number{least}, not {shown(value)}")
        return float(value)

    def text(self, name: str, choices: Sequence[str] = (), longest: int = 1000) -> str:
        """Return a text, one of `choices` if there are any, of `longest` characters at most."""
        value = self._value(name)
        if not isinstance(value, str) or len(value) > longest or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"a text of {longest:,} characters at most"
            raise ValueError(f"{self._path(name)} must be {wanted}, not {shown(value)}")
        return value

    def boolean(self, name: str) -> bool:
        """Return a truth value."""
        value = self._value(name)
        if not isinstance(value, bool):
            raise ValueError(f"{self._path(name)} must be true or false, not {shown(value)}")
        return value

    def numbers(self, name: str, low: float = -math.inf) -> list[float]:
        """Return a list of numbers of `low` or more."""
        entries = self._list(name)
        items = Fields({str(i): entry for i, entry in enumerate(entries)}, self._path(name))
        return [items.number(place, low) for place in items.values]

    def integers(self, name: str, low: int, high: int) -> list[int]:
        """Return a list of whole numbers from `low` to `high`, each larger than the one before."""
        entries = self._list(name)
        items = Fields({str(i): entry for i, entry in enumerate(entries)}, self._path(name))
        numbers = [items.integer(place, low, high) for place in items.values]
        if numbers != sorted(set(numbers)):
            raise ValueError(f"{self._path(name)} must rise")
        return numbers

    def sha256(self, name: str) -> str:
        """Return a SHA-256 in hex digits."""
        value = self.text(name)
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise ValueError(f"{self._path(name)} must be 64 hex digits, not {shown(value)}")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        entries = self._list(name)
        items = Fields({str(i): entry for i, entry in enumerate(entries)}, self._path(name))
        return [items.text(place) for place in items.values]

    def scalars(self) -> dict[str, int | float]:
        """Return the object itself, whose values are all numbers, whole or not as they are there."""
        for name in self.values:
            self.number(name)
        return self.values

    def fields(self, name: str) -> Fields:
        """Return the fields of an object inside this one."""
        return Fields(self._value(name), self._path(name))

    def objects(self, name: str) -> list[Fields]:
        """Return the fields of each object in a list."""
        return [Fields(entry, f"{self._path(name)}.{i}") for i, entry in enumerate(self._list(name))]

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self.values.get(name) is not None

    def only(self, *names: str) -> None:
        """Refuse fields of other names. Raises ValueError."""
        for name in self.values:
            if name not in names:
                raise ValueError(f"{self._path(shown(name))} is not one of {', '.join(names) or 'none'}")

    def _list(self, name: str) -> list[Any]:
        value = self._value(name)
        if not isinstance(value, list):
            raise ValueError(f"{self._path(name)} must be a list, not {shown(value)}")
        return value

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self._path(name)} is missing")
        return self.values[name]

    def _path(self, name: str) -> str:
        name = name[:_LONGEST_NAME]
        return f"{self.place}.{name}" if self.place else name


def read_fields(path: Path, limit: int) -> Fields:
    """Read the object in a regular JSON file of `limit` bytes at most. Raises OSError, ValueError in one line."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("is not a regular file")
    if size > limit:
        raise ValueError(f"has {size:,} bytes, and {limit:,} is the most that is read")
    try:
        values = json.loads(
            path.read_bytes().decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return Fields(values)


def shown(value: object) -> str:
    """Return a value as an error shows it: on one line, short."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    return one_line(text, 40)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Raises ValueError if a key is there twice: readers would differ on which counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {shown(double)} twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON")
