"""The help texts: `vit-dist` alone, and `--help` of each command with its examples and its flags."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Mapping
from typing import Literal, NoReturn, get_origin

from vit_dist.cli.commands import Usage
from vit_dist.config.option import Option
from vit_dist.config.schema import sections
from vit_dist.config.values import describe

Examples = tuple[tuple[str, str], ...]

COMMANDS = {
    "train": "train a Vision Transformer, or go on with a run that was stopped",
    "plan": "show what train would do, without training",
    "check": "look at all images before they are trained on, or measure how fast they are read",
    "runs": "list the runs in a folder with their results, sorted and filtered",
    "report": "draw the report of a run, or compare several runs",
    "evaluate": "measure a model on a split or on a folder of images",
    "predict": "classify images",
    "export": "export a model to ONNX, or to a folder for timm and the Hugging Face Hub",
    "checkpoint": "list, verify or prune the checkpoints of a run",
    "shards": "pack images into shards, index those of others, verify them",
    "config": "print the JSON schema of the config, for editors",
}
_START: Examples = (
    ("vit-dist train", "handwritten digits that come with it: a minute"),
    ("vit-dist train --data.root photos", "your own images, in a folder for each class"),
    ("vit-dist predict runs/photos-1a2b3c new.jpg", "classify images with a trained run"),
)
# Command → commands to type, and what they do.
EXAMPLES: dict[str, Examples] = {
    "train": (
        ("vit-dist train --data.root photos", "your own images, in a folder for each class"),
        ('vit-dist train --data.root photos --train.duration "40 epochs"', "longer"),
        ("vit-dist train --data.root photos --model.pretrained timm", "start from weights that timm downloads"),
    ),
    "plan": (
        ("vit-dist plan --data.root photos", "what train would do with these images"),
        ("vit-dist plan --config mnist --batch.global_size 256", "with a recipe and another batch"),
        ("vit-dist plan --config imagenet_deit3_s16 --processes 8", "on eight processes"),
    ),
    "check": (
        ("vit-dist check --data.root photos", "whether images can be read, are there twice, or are odd"),
        ("vit-dist check --data.root photos --data.leave_out check/leave_out.txt", "is anything else broken?"),
        ("vit-dist check --data.root photos --speed --devices 8 --rate 900", "whether 8 GPUs would wait for images"),
    ),
    "runs": (
        ("vit-dist runs", "all runs in the folder runs"),
        ("vit-dist runs --sort test --state finished", "the finished ones, the best first"),
        ("vit-dist runs runs pets --csv pets.csv", "those with pets in their name, as a table for other programs"),
    ),
    "report": (
        ("vit-dist report runs/photos-1a2b3c", "write runs/photos-1a2b3c/report/index.html"),
        ("vit-dist report runs/photos-1a2b3c runs/photos-4d5e6f", "compare two runs"),
        ("vit-dist report runs/photos-*", "compare all of them"),
    ),
    "evaluate": (
        ("vit-dist evaluate runs/photos-1a2b3c", "on the test split, or on val if there is none"),
        ("vit-dist evaluate runs/photos-1a2b3c --split val --json val.json", "on val, with the result as a file"),
        ("vit-dist evaluate runs/photos-1a2b3c --folder more", "on other images, in a folder for each class"),
    ),
    "predict": (
        ("vit-dist predict runs/photos-1a2b3c new.jpg", "one image"),
        ("vit-dist predict runs/photos-1a2b3c holiday --out holiday.csv", "a folder, as a table"),
        ("vit-dist predict runs/photos-1a2b3c", "16 images of the test split, drawn to predictions.png"),
    ),
    "export": (
        ("vit-dist export runs/photos-1a2b3c photos.onnx", "for onnxruntime and other programs"),
        ("vit-dist export runs/photos-1a2b3c photos.onnx --preprocess", "takes pixels of 0 to 255"),
        ("vit-dist export runs/photos-1a2b3c photos-vit", "for timm and the Hugging Face Hub"),
    ),
    "checkpoint list": (("vit-dist checkpoint list runs/photos-1a2b3c", "what there is to go on from"),),
    "checkpoint verify": (("vit-dist checkpoint verify runs/photos-1a2b3c", "whether all files are whole"),),
    "shards build": (
        ("vit-dist shards build photos photos-shards", "pack a folder of images"),
        ("vit-dist shards build list.csv shards --shard_size 1GiB", "those in a table, into larger shards"),
    ),
    "shards index": (("vit-dist shards index webdataset", "make tar files of others readable"),),
    "shards verify": (("vit-dist shards verify photos-shards", "compare every byte with its hash"),),
    "checkpoint prune": (("vit-dist checkpoint prune runs/photos-1a2b3c --keep 1", "free space"),),
}
_BARE = (
    "Those of model and data, as --model.name and --data.image_size, are for weights alone (FILE.safetensors, "
    "timm/NAME): a run and an export know their own. vit-dist train --help lists them."
)
# Fields for the first hour, shown before the others.
_FIRST = (
    *("data.root", "data.image_size", "data.val_fraction", "model.name", "model.pretrained", "train.duration"),
    *("batch.global_size", "batch.micro_size", "optimizer.lr", "run.name", "run.device", "log.trackers"),
)


def overview() -> str:
    """Return what `vit-dist` prints alone."""
    commands = "\n".join(f"  {name:<12}{meaning}" for name, meaning in COMMANDS.items())
    return (
        "usage: vit-dist COMMAND [--help]\n       vit-dist --version\n\n"
        f"Train Vision Transformers that classify images, and use them.\n\n{_listed(_START)}\n\n"
        f"commands:\n{commands}\n\nvit-dist COMMAND --help shows examples and all flags of a command."
    )


def _listed(examples: Examples) -> str:
    width = max(len(command) for command, _ in examples)
    return "\n".join(f"  {command:<{width}}  # {meaning}" for command, meaning in examples)


class Parser(argparse.ArgumentParser):
    """Raises its errors, in all versions of Python, instead of printing them."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def build_parser(command: str, usage: Usage, fields: Mapping[str, Option]) -> Parser:
    """Return the parser of a command; its help shows examples, then the flags for the first hour, then all others."""
    width = max([8, *map(len, usage.positionals)])
    meanings = "\n".join(f"  {name:<{width}} {meaning}" for name, meaning in usage.positionals.items())
    description = textwrap.fill(usage.description, _width(), break_on_hyphens=False)
    examples = f"{_listed(EXAMPLES[command])}\n\n" if command in EXAMPLES else ""
    parser = Parser(
        prog=f"vit-dist {command}",
        usage=f"vit-dist {command} {usage}",
        description=f"{examples}{description}\n\n{meanings}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("positionals", nargs="*", help=argparse.SUPPRESS)
    for flag, (value, meaning) in usage.flags.items():
        if value:
            parser.add_argument(flag, dest=flag, metavar=value, help=meaning)
        else:
            parser.add_argument(flag, dest=flag, action="store_true", help=meaning)
    groups: dict[str, argparse._ArgumentGroup] = {}
    first = () if usage.positionals else _FIRST
    for name in [*first, *(name for name in fields if name not in first)]:
        title, about = ("for a start", None) if name in first else _group(name, usage, fields)
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title, about))
        text = help_text(fields[name], default=not usage.positionals).replace("%", "%%")
        shown = not usage.positionals or fields[name].at_inference
        group.add_argument(f"--{name}", dest=name, metavar="X", help=text if shown else argparse.SUPPRESS)
    return parser


def _group(name: str, usage: Usage, fields: Mapping[str, Option]) -> tuple[str, str | None]:
    """Return title and description of the group of flags that a field is shown in."""
    if not usage.positionals:
        section = name.split(".")[0]
        return section, sections()[section].__doc__
    return "fields of the config", textwrap.fill(_BARE, _width() - 2, break_on_hyphens=False)


def _width() -> int:
    return shutil.get_terminal_size().columns - 2


def help_text(option: Option, *, default: bool) -> str:
    """Return the description of a field with its bounds or choices and, if asked for, its default."""
    limits = describe(option.type) if get_origin(option.type) is Literal else str(option.bounds)
    shown = f"default: {option.shown_default() or 'empty'}" if default else ""
    details = "; ".join(part for part in (limits, shown) if part)
    return f"{option.description} ({details})" if details else option.description
