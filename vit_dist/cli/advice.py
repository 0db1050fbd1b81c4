"""Answer flags, words and commands that do not exist here with what to type in their place."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vit_dist.cli.aliases import (
    COMMAND_ALIASES,
    EXPORT_ALIASES,
    MODEL_ALIASES,
    TRAIN_ALIASES,
    answer,
    find_in_any_section,
    normalised,
)
from vit_dist.cli.commands import Usage
from vit_dist.config.option import Option
from vit_dist.config.recipe import RECIPES
from vit_dist.errors import ALIKE


def is_known(flag: str, usage: Usage, fields: Mapping[str, Option]) -> bool:
    """Return whether a command takes a flag."""
    return flag in usage.flags or flag[2:] in fields or flag in ("-h", "--help")


def unknown_flags(words: Sequence[str], usage: Usage, fields: Mapping[str, Option]) -> Iterator[str]:
    """Yield a line for each flag that does not exist, with the one that does the same here."""
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not re.match(r"-[^\d.]", word) or is_known(flag, usage, fields):  # a number is the value of some flag
            continue
        values = [value] if equals else []
        for following in [] if equals else words[number + 1 :]:
            if re.match(r"-[^\d.]", following):
                break
            values.append(following)
        yield f"{flag}: {flag_advice(flag, values, usage, fields)}"


def flag_advice(flag: str, values: list[str], usage: Usage, fields: Mapping[str, Option]) -> str:
    """Return what to use in place of a flag that does not exist. values: the words that follow it."""
    aliases = EXPORT_ALIASES if "OUT" in usage.positionals else MODEL_ALIASES if usage.positionals else TRAIN_ALIASES
    name = normalised(flag)
    takes = {alias: text for alias, text in aliases.items() if _takes(text, usage, fields)}
    template = takes.get(name)
    if template is None and (close := _close(flag, usage, fields)):
        return f"no such flag; did you mean {close}?"
    if template is None:
        template = find_in_any_section(flag, takes)
    if template is None and (only := _only(flag[2:].rpartition(".")[2], fields)):
        return f"no such flag; did you mean {only}?"
    if template is None:
        near = difflib.get_close_matches(name, [alias for alias in takes if len(alias) > 3], 1, 0.85)
        template = takes[near[0]] if near else None
    if template is None:
        return "no such flag; see --help for all flags"
    text = answer(template, values)
    return text if text.startswith("not needed") else f"here it is {text}"


def _takes(text: str, usage: Usage, fields: Mapping[str, Option]) -> bool:
    """Return whether an answer suits a command: it names no flag, or flags that the command takes."""
    named = [word.rstrip(",") for word in re.findall(r"(?<!\S)--[\w.]+", text)]
    return not text.startswith("--") or all(_is_field(flag[2:], fields) or flag in usage.flags for flag in named)


def _is_field(name: str, fields: Mapping[str, Option]) -> bool:
    return name in fields or any(name.startswith(f"{field}.") for field in fields)


def _close(flag: str, usage: Usage, fields: Mapping[str, Option]) -> str | None:
    """Return the flag that is spelled alike: one of the command's own, or a field of the same section."""
    section, dot, name = flag[2:].replace("-", "_").partition(".")
    if not dot:
        own = difflib.get_close_matches(flag, usage.flags, 1, ALIKE)
        return own[0] if own else None
    meant = difflib.get_close_matches(section, {field.partition(".")[0] for field in fields}, 1, ALIKE)
    inside = [field for field in fields if meant and field.startswith(f"{meant[0]}.")]
    spelled = {field.partition(".")[2]: field for field in inside}
    close = difflib.get_close_matches(name.partition(".")[0], spelled, 1, ALIKE)
    return f"--{spelled[close[0]]}" if close else None


def _only(name: str, fields: Mapping[str, Option]) -> str | None:
    """Return the flag of the only field of this name; that of the text tower is not meant where another has it too."""
    named = [field for field in fields if field.partition(".")[2] == name.replace("-", "_")]
    named = [field for field in named if not field.startswith("text.")] or named
    return f"--{named[0]}" if len(named) == 1 else None


def spaced_path(given: Mapping[str, object], words: Sequence[str]) -> str | None:
    """Return what is wrong if words are the rest of a path with spaces that begins in the value of a flag.

    given: flag, with or without its dashes → value.
    """
    rests = [words[begin:end] for begin in range(len(words)) for end in range(begin + 1, len(words) + 1)]
    for flag, value in given.items():
        for rest in rests if isinstance(value, str) else ():
            path = " ".join([str(value), *rest])
            if Path(path).expanduser().exists():
                return (
                    f"{' '.join(rest)}: belongs to a path with a space, which stands in quotes: "
                    f"--{flag.removeprefix('--')} {shlex.quote(path)}"
                )
    return None


def word_advice(word: str, usage: Usage, fields: Mapping[str, Option]) -> str:
    """Return what to type in place of a word among flags: `epochs=10`, a folder of images, a recipe."""
    name, equals, value = word.partition("=")
    if name in fields:
        return f"flags begin with two dashes: --{name} {value}"
    if equals:
        return flag_advice(f"--{name}", [value], usage, fields)
    if Path(word).expanduser().is_dir():
        return f"flags alone are taken: a folder of images goes after --data.root: --data.root {shlex.quote(word)}"
    if word.endswith((".yaml", ".yml")) or (RECIPES / f"{word}.yaml").is_file():
        return f"flags alone are taken: a recipe or file goes after --config: --config {shlex.quote(word)}"
    return "flags alone are taken: a recipe or file goes after --config, a folder of images after --data.root"


def command_advice(words: Sequence[str], commands: Sequence[str]) -> str:
    """Return what to type in place of a command that does not exist."""
    word = words[0]
    if word.startswith("-"):
        return f"a command comes first: vit-dist train {shlex.join(words)}"
    if name := COMMAND_ALIASES.get(word.lower()):
        rest = words[1:]
        if rest and rest[0] in commands:  # a task before the command: classify train
            return f"leave it out: vit-dist {shlex.join(rest)}"
        return f"no such command; here it is vit-dist {name} {shlex.join(rest)}".rstrip()
    if close := difflib.get_close_matches(word, commands, 1, ALIKE):
        return f"no such command; did you mean vit-dist {close[0]}?"
    if Path(word).expanduser().is_dir():
        return f"a command comes first: vit-dist train --data.root {shlex.quote(word)}"
    return f"no such command; known: {', '.join(commands)}"
