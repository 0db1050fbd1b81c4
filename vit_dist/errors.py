"""Errors shown to the user: `UserError`, and how errors are worded in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake of the user: one line per problem, shown without a traceback; exit code 2."""


class ModelError(UserError):
    """A model that gives no answers, as one of NaN: no mistake of the command's; exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` if a known name is close to `name`, else `; known: X, Y`."""
    names = list(known)
    spelled = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(spelled), 1)
    return f" (did you mean {spelled[close[0]]}?)" if close else f"; known: {', '.join(names)}"


def either(words: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def one_line(error: object, limit: int | None = None) -> str:
    """Return an error's text on one line, cut to `limit` characters; the name of its type if it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
