"""argv and YAML → `Config`: every field as a dotted flag. The only importer of jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from vit_dist.cli.habits import TRAIN_ALIASES
from vit_dist.config.config import Config
from vit_dist.config.recipe import RECIPES
from vit_dist.config.values import merged
from vit_dist.errors import UserError, one_line

# Fields that hold names of others' own.
_MAPPINGS = ("model.args", "optimizer.args", "optimizer.overrides", "schedule.args")


_DESCRIPTIONS = {
    "train": "Trains a Vision Transformer.",
    "plan": "Shows what `train` with the same flags would do: every number of the run, its memory, the curve of its "
    "rate; trains nothing and leaves the run's folder alone.",
}


def parse(arguments: Sequence[str], command: str = "train") -> Config | None:
    """The config that the flags of a command ask for; None where they asked for something to be printed.

    `--config` works wherever it stands. Raises UserError with all that is wrong, a line each.
    """
    given = list(arguments)
    recipe = take(given, "--config")
    mappings = take_mappings(given)
    parser = _parser(command)
    known = {action.dest for action in parser._actions}
    refuse_unknown(given, known, TRAIN_ALIASES)
    try:
        space = parser.parse_args(given)
    except argparse.ArgumentError as error:
        raise UserError(one_line(error)) from None
    flat = {key: value for key, value in vars(space.as_flat()).items() if "." in key and value not in (_UNSET, {})}
    config = Config.load(recipe, {**flat, **mappings})
    if space.print_config:
        values = config.to_dict()
        if config.run.name.endswith(f"-{config.identity()}"):
            values["run"]["name"] = ""  # it follows from the rest, also after an edit
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return None
    return config


_UNSET = "<the recipe's>"


def _parser(command: str) -> ArgumentParser:
    """Every field as a dotted flag. Values are typed and checked by `Config`, all at once."""
    recipes = ", ".join(path.stem for path in sorted(RECIPES.glob("*.yaml")))
    own = " [--processes N] [--png FILE]" if command == "plan" else ""
    parser = ArgumentParser(
        prog=f"vit-dist {command}",
        usage=f"vit-dist {command} [--config RECIPE|FILE] [--print_config]{own} [--section.field VALUE …]",
        description=f"{_DESCRIPTIONS[command]} --config takes a shipped recipe ({recipes}) or a YAML file; "
        "without one, that of data.name, finetune where model.pretrained is set, folder where data.root is, "
        "else digits. Recipes set other values than the defaults below; "
        "--print_config shows what a command means.",
        exit_on_error=False,
        print_config=None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if command == "plan":
        parser.add_argument("--processes", metavar="N", help="processes to plan for (default: 1)")
        parser.add_argument("--png", metavar="FILE", help="where the curve's picture goes (default: plan.png)")
    parser.add_argument("--config", metavar="RECIPE|FILE", help="where the run's fields come from")
    parser.add_argument("--print_config", action="store_true", help="print the whole config as YAML and stop")
    for flag, field, kind in config_flags():
        group = next((g for g in parser._action_groups if g.title == flag.split(".")[0]), None)
        group = group or parser.add_argument_group(flag.split(".")[0])
        default = "" if field.default is dataclasses.MISSING else field.default
        text = "empty" if default in ("", (), None, {}) else f"{default}"
        nested = get_origin(kind) is dict
        group.add_argument(
            f"--{flag}",
            # A text stays as it was typed; what else there is, YAML reads and the config checks.
            type=str if kind is str or get_origin(kind) is Literal else dict[str, Any] if nested else Any,
            default={} if nested else _UNSET,
            metavar="X",
            help=f"{field.metadata['meaning']} (default: {text})".replace("%", "%%"),
        )
    return parser


def config_flags() -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(section.field, the dataclass's field, its type) of every field of the config."""
    for section, kind in get_type_hints(Config).items():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield f"{section}.{field.name}", field, hints[field.name]


def take(arguments: list[str], flag: str) -> str | None:
    """Removes a flag and its value from the arguments, wherever it stands; the last one counts. Raises UserError."""
    value = None
    while True:
        at = next((i for i, one in enumerate(arguments) if one == flag or one.startswith(f"{flag}=")), None)
        if at is None:
            return value
        if "=" in arguments[at]:
            value = arguments.pop(at).split("=", 1)[1]
        elif at + 1 < len(arguments):
            value = arguments.pop(at + 1)
            arguments.pop(at)
        else:
            raise UserError(
                f"{flag}: needs a value" if flag != "--config" else f"{flag}: needs a recipe's name or a file"
            )


def take_mappings(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Removes the flags of fields that are mappings; each gives one name or several, and later ones add to earlier.

    As `--schedule.args.gamma 0.5`, `--schedule.args "{gamma: 0.5}"`, `--optimizer.overrides.head.lr 1e-4`. Raises
    UserError.
    """
    taken: dict[str, dict[str, Any]] = {}
    at = 0
    while at < len(arguments):
        flag, equals, text = arguments[at].partition("=")
        field = next((one for one in _MAPPINGS if flag == f"--{one}" or flag.startswith(f"--{one}.")), None)
        if field is None:
            at += 1
            continue
        del arguments[at]
        if not equals:
            if at == len(arguments) or arguments[at].startswith("--"):
                raise UserError(f"{flag}: needs a value")
            text = arguments.pop(at)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{flag}: not YAML: {one_line(error)}") from None
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


def refuse_unknown(arguments: Sequence[str], known: set[str], habits: Mapping[str, str]) -> None:
    """Every flag that is not one of ours, with the one that does it here. Raises UserError, a line each."""
    problems = []
    for i, argument in enumerate(arguments):
        if not re.match(r"-[^\d.]", argument) or argument == "-h":  # a number is some flag's value
            continue
        flag, _, value = argument.partition("=")
        name = flag[2:]
        if name in known or name == "help":
            continue
        if flag in habits:
            following = arguments[i + 1] if i + 1 < len(arguments) and not arguments[i + 1].startswith("--") else ""
            problems.append(f"{flag}: here it is {habits[flag].replace('{}', value or following or 'X')}")
            continue
        close = difflib.get_close_matches(name, sorted(known), 1) or [
            one for one in sorted(known) if one.split(".")[-1] == name.split(".")[-1]
        ]
        hint = f"did you mean --{close[0]}?" if close else "see --help for all flags"
        problems.append(f"{flag}: no such flag; {hint}")
    if problems:
        raise UserError("\n".join(problems))
