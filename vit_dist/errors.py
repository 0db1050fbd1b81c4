"""Errors shown to the user: `UserError`, how errors are worded in one line, and how texts of others are shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

# Control characters (C0, DEL, C1), separators of lines and paragraphs, changes of direction, halves of characters.
HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """A mistake of the user: one line per problem, shown without a traceback; exit code 2.

    speaks: whether this process shows it, of those of a run; None: it is left to the first.
    """

    exit_code = 2
    speaks: bool | None = None

    def __str__(self) -> str:
        """Return the lines, safe to show: a name in them may hold anything."""
        return visible_lines(super().__str__())


def visible(text: str) -> str:
    r"""Return a text on one line that a terminal shows and does not obey: control characters as \x1b, \u202e."""
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def has_hidden(text: str) -> bool:
    """Return whether a text has control characters or others that `visible` replaces."""
    return HIDDEN.search(text) is not None


def visible_lines(text: str) -> str:
    """Return a text of several lines, each as `visible` shows it."""
    return "\n".join(map(visible, text.split("\n")))


class ModelError(UserError):
    """A model that gives no answers, as one of NaN: no mistake of the command's; exit code 1."""

    exit_code = 1


class PeerError(UserError):
    """Another process of the run has failed, in its words, or does not answer; exit code: as that process's."""

    def __init__(self, text: str, exit_code: int, *, speaks: bool) -> None:
        super().__init__(text)
        self.exit_code, self.speaks = exit_code, speaks


# How alike two spellings of one word are, at least, for one to be suggested for the other.
ALIKE = 0.75


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` if a known name is close to `name`, else `; known: X, Y`."""
    names = list(known)
    spelled = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(spelled), 1, ALIKE)
    close = close or [other for other in spelled if sorted(other) == sorted(name.lower())]  # esp for eps
    return f" (did you mean {spelled[close[0]]}?)" if close else f"; known: {', '.join(names)}"


def either(words: Sequence[str]) -> str:
    """Return `a, b or c`."""
    return _listed(words, " or ")


def every(words: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return _listed(words, " and ")


def _listed(words: Sequence[str], last: str) -> str:
    return last.join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def one_line(error: object, limit: int | None = None) -> str:
    """Return an error's text on one line, cut to `limit` characters; the name of its type if it has none."""
    try:
        return " ".join(str(error).split())[:limit] or type(error).__name__
    except Exception:  # of the error's own __str__
        return type(error).__name__


def described(error: BaseException, limit: int | None = None) -> str:
    """Return an error's type and text on one line, the text cut to `limit` characters; of a UserError the text."""
    text, name = one_line(error, limit), type(error).__name__
    return text if isinstance(error, UserError) or text == name else f"{name}: {text}"
