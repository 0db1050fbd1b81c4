"""Parse the command line of every command: positionals, its own flags, and fields of the config as dotted flags."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from vit_dist.cli.advice import is_known, spaced_path, unknown_flags, word_advice
from vit_dist.cli.commands import RUN_COLUMNS, RUN_STATES, USAGES, Usage
from vit_dist.cli.help import build_parser
from vit_dist.config.config import Config
from vit_dist.config.option import Option
from vit_dist.config.recipe import parse_yaml
from vit_dist.config.schema import all_options
from vit_dist.config.values import merged
from vit_dist.errors import UserError, either, one_line
from vit_dist.files import user_path
from vit_dist.inference.output import FORMATS

_CHOICES = {"--weights": ("raw", "ema"), "--format": FORMATS, "--sort": RUN_COLUMNS, "--state": RUN_STATES}
_COUNTS = ("--top", "--processes", "--keep", "--devices")


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: positionals, the command's own flags, fields of the config by dotted name."""

    positionals: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def path(self, flag: str) -> Path | None:
        """Return the value of a flag as a path; None if the flag was not used. Raises UserError."""
        return user_path(self.flags[flag], flag) if flag in self.flags else None

    def load_config(self) -> Config:
        """Load the config of `--config` and the fields. Raises UserError with every problem, a line each."""
        return Config.load(self.flags.get("--config"), self.config)


def parse_arguments(command: str, words: Sequence[str]) -> Arguments:
    """Parse the words after a command. Raises UserError with every problem, a line each; `--help` ends the process."""
    usage = USAGES[command]
    fields = {name: option for name, option in all_options() if usage.takes(name)}
    rest, after = list(words), []
    if "--" in rest:  # all words after it are positionals, also those that begin with a dash
        after = rest[rest.index("--") + 1 :]
        del rest[rest.index("--") :]
        if not after:
            raise UserError(f"{command}: nothing follows --: leave it out, or name what follows")
    mappings = _take_mappings(rest, [name for name, option in fields.items() if get_origin(option.type) is dict])
    wrong = list(unknown_flags(rest, usage, fields))
    if wrong:
        raise UserError("\n".join([*wrong, *_further_problems(command, usage, fields, rest, mappings)]))
    try:
        space = vars(build_parser(command, usage, fields).parse_intermixed_args(rest))
    except argparse.ArgumentError as error:
        if error.argument_name is None:
            raise UserError(f"{one_line(error)}: words that begin with a dash go after --") from None
        flag = error.argument_name
        if not usage.flags.get(flag, ("X", ""))[0]:
            raise UserError(f"{flag}: takes no value: leave it out") from None
        what = "a recipe's name or a file" if flag == "--config" else "a value"
        raise UserError(f"{flag}: needs {what}") from None
    positionals: list[str] = [*space.pop("positionals"), *after]
    flags = {flag: space[flag] for flag in usage.flags if space[flag] not in (None, False)}
    config = {name: _value(space[name], option, name) for name, option in fields.items() if space[name] is not None}
    given = {**flags, **config}
    wrong = list(_positional_problems(command, usage, positionals, given, fields))
    problems = [*_value_problems(usage, flags, config), *wrong]
    if problems:
        raise UserError("\n".join(problems))
    return Arguments(positionals, flags, {**config, **mappings})


def _value_problems(usage: Usage, flags: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield which flags have no value, or none that they take. A training may empty a field, a trained model cannot."""
    filled = {**flags, **(config if usage.positionals else {})}
    empty = [flag for flag, value in filled.items() if value in ("", None)]
    yield from (f"{flag}: needs a value" for flag in empty)
    listed = {flag: value.split("|") for flag, (value, _) in usage.flags.items() if "|" in value and value.islower()}
    for flag, choices in {**_CHOICES, **listed}.items():
        if flag in flags and flag not in empty and flags[flag] not in choices:
            yield f"{flag}: must be {either(choices)}, not {flags[flag]}"
    for flag in _COUNTS:
        value = flags.get(flag)
        if value and not (value.isdecimal() and int(value) > 0):
            yield f"{flag}: must be a whole number above 0, not {value}"


def _positional_problems(
    command: str,
    usage: Usage,
    positionals: Sequence[str],
    given: Mapping[str, Any],
    fields: Mapping[str, Option],
) -> Iterator[str]:
    """Yield which words are missing or too many. given: the values of flags."""
    names = list(usage.positionals)
    too_many = usage.max is not None and len(positionals) > usage.max
    if too_many and (problem := spaced_path(given, positionals)):
        yield problem
        return
    if len(positionals) < usage.min:
        missing = names[len(positionals)]
        yield f"{command}: needs {missing}: {usage.positionals[missing]}"
    extra = positionals[usage.max :] if usage.max is not None else []
    if extra and names:
        folder = f": images go after --folder: --folder {shlex.quote(extra[0])}" if "--folder" in usage.flags else ""
        yield f"{command}: takes {' '.join(names)} alone, not {' '.join(extra)} too{folder}"
    for word in [] if names else extra:
        yield f"{word}: {word_advice(word, usage, fields)}"


def _further_problems(
    command: str, usage: Usage, fields: Mapping[str, Option], words: Sequence[str], mappings: Mapping[str, Any]
) -> list[str]:
    """Return what is wrong besides flags that do not exist; of a model's commands nothing, whose words may be both."""
    if usage.positionals:
        return []
    kept: list[str] = []
    known = True
    for word in words:
        if word.startswith("--"):
            known = is_known(word.partition("=")[0], usage, fields)
        if known:
            kept.append(word)
    try:
        given = parse_arguments(command, kept)
        Config.load(given.flags.get("--config"), {**given.config, **mappings})
    except UserError as error:
        return str(error).splitlines()
    return []


def _value(text: str, option: Option, name: str) -> Any:
    """Return a string as it was typed, and anything else as YAML reads it; the config checks it.

    A list may be typed without its brackets: one string, or numbers with commas between them.
    """
    if option.type is str or get_origin(option.type) is Literal:
        return text
    if get_origin(option.type) is tuple and not text:
        return []
    if get_origin(option.type) is tuple and not text.lstrip().startswith("["):
        return [text] if get_args(option.type)[0] is str else parse_yaml(f"[{text}]", f"--{name}")
    return parse_yaml(text, f"--{name}")


def _take_mappings(words: list[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Remove the flags of fields that are mappings, and return their values; later flags add to earlier ones.

    Such as `--schedule.args.gamma 0.5`, `--schedule.args "{gamma: 0.5}"`, `--optimizer.overrides.head.lr 1e-4`.
    Raises UserError.
    """
    taken: dict[str, dict[str, Any]] = {}
    at = 0
    while at < len(words):
        flag, equals, text = words[at].partition("=")
        field = next((name for name in names if flag == f"--{name}" or flag.startswith(f"--{name}.")), None)
        if field is None:
            at += 1
            continue
        del words[at]
        if not equals:
            if at == len(words) or words[at].startswith("--"):
                raise UserError(f"{flag}: needs a value")
            text = words.pop(at)
        value = parse_yaml(text, flag)
        path = flag.removeprefix(f"--{field}").removeprefix(".")
        if path and field == "optimizer.overrides" and "." in path and not isinstance(value, dict):
            pattern, _, name = path.rpartition(".")  # the pattern may have dots of its own
            value = {pattern: {name: value}}
        elif path:
            value = {path: value}
        elif not isinstance(value, dict):
            raise UserError(f"{flag}: must be a mapping, as {{name: value}}, not {text!r}")
        taken[field] = merged(taken.get(field, {}), value)
    return taken
