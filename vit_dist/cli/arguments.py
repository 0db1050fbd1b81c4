"""What the commands that use a trained model are given: words, flags of their own, fields of the config."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_origin

import yaml

from vit_dist.cli.flags import config_flags, refuse_unknown, take_mappings
from vit_dist.cli.habits import MODEL_ALIASES
from vit_dist.config.catalog import BESIDE_A_RUN
from vit_dist.errors import UserError, one_line
from vit_dist.inference.output import FORMATS

_MODEL = "a run's folder, a checkpoint's, that of an export, FILE.safetensors, or timm/NAME"


# What only a training reads.
_OF_TRAINING = (
    *("model.init", "model.dropout", "model.attention_dropout", "model.drop_path", "model.freeze"),
    "model.linear_probe",
)


_FIELDS = ("model.", "data.", "evaluate.batch_size", "run.device", "run.threads", "train.precision")


@dataclass(frozen=True)
class Usage:
    """A command: its words with their meaning and how many it takes, its flags, the fields of the config it takes.

    flags: name → (what its value is called, its meaning); a flag without a value has an empty name for it.
    """

    description: str
    words: Mapping[str, str]
    least: int
    most: int | None
    flags: Mapping[str, tuple[str, str]]
    fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given:
    """What was typed: words, the command's own flags, dotted fields."""

    words: list[str]
    own: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    def path(self, flag: str) -> Path | None:
        """A flag's value as a path."""
        return Path(self.own[flag]).expanduser() if flag in self.own else None


_WEIGHTS = ("raw|ema", "the last weights or their average; default: what the run chose by")


USAGES = {
    "report": Usage(
        "Draws a run's curves, mistakes and inputs on a page that opens from the disk (RUN/report/index.html), "
        "with PNGs beside it, also while it runs. Of several runs: a comparison, as a page, Markdown and PNGs.",
        {"RUN": "a run's folder; several: compared with the first"},
        1,
        None,
        {"--out": ("DIR", "where the page goes; default: RUN/report, or comparison for several runs")},
    ),
    "evaluate": Usage(
        "Counts every sample of a split or of a folder once, on any number of processes.",
        {"MODEL": _MODEL},
        1,
        1,
        {
            "--split": ("NAME", "train, val or test of the model's data; default: test, else val"),
            "--folder": ("DIR", "all images in folders named like the classes, instead of a split"),
            "--weights": _WEIGHTS,
            "--json": ("FILE", "write what was found, every class included"),
        },
        _FIELDS,
    ),
    "predict": Usage(
        "Says what images show, with the preprocessing that the model was trained with. Without IMAGE and --split: "
        "16 of the test split, chosen by key, and a picture of them. Samples without a file are named by their number "
        "in their source.",
        {"MODEL": _MODEL, "IMAGE": "files, folders, patterns"},
        1,
        None,
        {
            "--split": ("NAME", "all of train, val or test of the model's data"),
            "--top": ("N", "classes to name, default 3"),
            "--format": ("|".join(FORMATS), "default: by the ending of --out, else table"),
            "--out": ("FILE", "default: the standard output"),
            "--png": ("FILE", "also draw the first 64; default: predictions.png for the 16 of test"),
            "--weights": _WEIGHTS,
        },
        (*_FIELDS, "run.seed"),
    ),
    "export": Usage(
        "Writes a model as ONNX (tensors input and output, any batch), checked against torch; or as a folder that "
        "timm and the Hugging Face hub load.",
        {"MODEL": _MODEL, "OUT": "FILE.onnx, or a folder that is not there yet"},
        2,
        2,
        {
            "--preprocess": ("", "ONNX: take uint8 pixels and normalise them inside"),
            "--weights": _WEIGHTS,
        },
        ("model.", "data.image_size", "data.mean", "data.std", "data.crop"),
    ),
}


_CHOICES = {"--weights": ("raw", "ema"), "--format": FORMATS}


def parse_usage(command: str, arguments: Sequence[str]) -> Given:
    """What was typed behind a command. Raises UserError with all that is wrong, a line each; --help ends it all."""
    usage = USAGES[command]
    rest, behind = list(arguments), []
    if "--" in rest:  # what is behind it are words, whatever they begin with
        behind = rest[rest.index("--") + 1 :]
        del rest[rest.index("--") :]
    mappings = take_mappings(rest)
    kinds = {
        name: (one, kind)
        for name, one, kind in config_flags()
        if usage.fields and name.startswith(usage.fields) and name not in _OF_TRAINING
    }
    parser = _parser(command, usage, kinds)
    known = {*kinds, *(flag[2:] for flag in usage.flags)}
    habits = {
        flag: ours for flag, ours in MODEL_ALIASES.items() if not ours.startswith("--") or ours.split()[0][2:] in known
    }
    refuse_unknown(rest, known, habits)
    try:
        space = vars(parser.parse_intermixed_args(rest))
    except argparse.ArgumentError as error:
        flag = error.argument_name
        raise UserError(f"{flag}: needs a value" if flag else one_line(error)) from None
    words: list[str] = [*space.pop("words"), *behind]
    own = {flag: space[flag] for flag in usage.flags if space[flag] not in (None, False)}
    fields = {name: _value(space[name], kinds[name][1], name) for name in kinds if space[name] is not None}
    empty = [flag for flag, value in {**own, **fields}.items() if value in ("", None)]
    problems = [f"{flag}: needs a value" for flag in empty]
    problems += [
        f"{flag}: must be {' or '.join(allowed)}, not {own[flag]}"
        for flag, allowed in _CHOICES.items()
        if flag in own and flag not in empty and own[flag] not in allowed
    ]
    if own.get("--top") and not (own["--top"].isdecimal() and int(own["--top"]) > 0):
        problems.append(f"--top: must be a whole number above 0, not {own['--top']}")
    names = list(usage.words)
    if len(words) < usage.least:
        missing = names[len(words)]
        problems.append(f"{command}: needs {missing}: {usage.words[missing]}")
    if usage.most is not None and len(words) > usage.most:
        problems.append(f"{command}: takes {' '.join(names)} alone, not {' '.join(words[usage.most :])} too")
    if problems:
        raise UserError("\n".join(problems))
    return Given(words, own, {**fields, **mappings})


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as all of vit_dist does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: words that begin with a dash go behind --")


def _parser(command: str, usage: Usage, kinds: Mapping[str, tuple[Any, Any]]) -> _Parser:
    named = " ".join(f"[{word} …]" if number >= usage.least else word for number, word in enumerate(usage.words))
    meanings = "\n".join(f"  {word:<8} {meaning}" for word, meaning in usage.words.items())
    parser = _Parser(
        prog=f"vit-dist {command}",
        usage=f"vit-dist {command} {named} [--flag VALUE …]",
        description=f"{usage.description}\n\n{meanings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    for flag, (value, meaning) in usage.flags.items():
        if value:
            parser.add_argument(flag, dest=flag, metavar=value, help=meaning)
        else:
            parser.add_argument(flag, dest=flag, action="store_true", help=meaning)
    if not kinds:
        return parser
    allowed = ", ".join(name for name in BESIDE_A_RUN if name in kinds)
    about = f"beside a run, which says the others itself: {allowed}" if allowed else "not beside a run, which says them"
    group = parser.add_argument_group("fields of the config", about)
    for name, (one, _) in kinds.items():
        group.add_argument(f"--{name}", dest=name, metavar="X", help=one.metadata["meaning"].replace("%", "%%"))
    return parser


def _value(text: str, kind: Any, name: str) -> Any:
    """A text stays as it was typed; what else there is, YAML reads and the config checks."""
    if kind is str or get_origin(kind) is Literal:
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{name}: not YAML: {one_line(error)}") from None
