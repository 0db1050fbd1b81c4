"""The `shards` command: pack images into shards, write the index of those that others made, verify them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from vit_dist.cli.arguments import Arguments, parse_arguments
from vit_dist.config.config import Config
from vit_dist.config.values import parse_bytes
from vit_dist.data.shards.build import build, plan_shards
from vit_dist.data.shards.foreign import index_tars, is_sorted
from vit_dist.data.shards.index import ShardIndex
from vit_dist.data.shards.source import open_index
from vit_dist.data.shards.verify import verify
from vit_dist.data.sources.splits import UNLABELLED, LabelledSplits
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError
from vit_dist.files import user_path
from vit_dist.formatting import size_text
from vit_dist.telemetry.console import Console

_HELP = """usage: vit-dist shards build IMAGES OUT [--shard_size SIZE] [--processes N]
       vit-dist shards index FOLDER [--processes N]
       vit-dist shards verify FOLDER [--processes N]

Pack images into shards, which are read faster than millions of files, also over a network; make tar files that others
packed readable; or compare all bytes with their hashes. `vit-dist shards build --help` and so on say more."""

_DEFAULT_SIZE = "128MiB"
_SMALLEST = 20_480


def shards(words: list[str]) -> int:
    """Run `shards build`, `index` or `verify`; return the exit code. Raises UserError."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    commands = {"build": _build, "index": _index, "verify": _verify}
    if words[0] not in commands:
        raise UserError(f"shards: takes build, index or verify first, not {words[0]}; see vit-dist shards --help")
    arguments = parse_arguments(f"shards {words[0]}", words[1:])
    with Console(speaks=True) as console:
        return commands[words[0]](arguments, console)


def _shard_size(text: str) -> int:
    """Return the size of a shard in bytes. Raises UserError."""
    with contextlib.suppress(ValueError):
        if (size := parse_bytes(text)) >= _SMALLEST:
            return size
    raise UserError(f"--shard_size: must be a size of {_SMALLEST:,} bytes or more, as 64MB or 1GiB, not {text}")


def _build(arguments: Arguments, console: Console) -> int:
    images, out = (user_path(name, "shards build") for name in arguments.positionals)
    size = _shard_size(arguments.flags.get("--shard_size", _DEFAULT_SIZE))
    if out.resolve() == images.resolve() or images.resolve() in out.resolve().parents:
        raise UserError(f"shards build: {out} is in {images}, where it would be taken for images: name another folder")
    data = _open(images, arguments.config)
    facts = survey(data)
    console.table({"images": ", ".join(f"{split} {facts.total(split):,}" for split in data.splits), **facts.rows()})
    plan = plan_shards(data, size)
    written = build(plan, out, _processes(arguments), lambda items, count: console.counted(items, count, printed=True))
    bytes_ = sum(shard.bytes for shard in open_index(out).shards)
    count = len(plan.shards)
    if not written:
        console.say(f"{out}: is complete already, {count:,} shard{'s'[: count != 1]}, {size_text(bytes_)}")
        return 0
    before = f", {count - written:,} of them earlier" if written < count else ""
    console.say(f"{out}: {count:,} shard{'s' * (count > 1)}{before}, {size_text(bytes_)}")
    loss = " --loss.name clip" if plan.captioned else ""
    console.say(f"train on them: vit-dist train --data.root {quote(str(out))}{loss}")
    return 0


def _open(images: Path, fields: Mapping[str, Any]) -> LabelledSplits:
    """Return the splits of a folder of images or a table as they are, with nothing held out. Raises UserError.

    fields: `data.columns` and the like, as given. Captions are read where they name a column of them.
    """
    from vit_dist.data.sources.open import open_data

    config = Config.load("folder", {**fields, "data.root": str(images), "data.val_fraction": 0.0}).data
    return open_data(config, captions="caption" in config.columns)


def _index(arguments: Arguments, console: Console) -> int:
    folder = _folder(arguments)
    notes: list[str] = []
    index = index_tars(folder, _processes(arguments), partial(console.counted, printed=True), notes.append)
    captions = ", with captions" if index.captions is not None else ""
    classes = f", {len(index.classes):,} classes" if index.classes != UNLABELLED else ""
    console.say(f"{folder}: {_text(index)}{classes}{captions}")
    for text in notes:
        console.note(f"note: {text}")
    if is_sorted(index):
        console.note(
            "note: the images are sorted by class, so that batches will have few classes: shuffle them (unpack the tar "
            "files, and vit-dist shards build), or at least set data.shard_window 100"
        )
    loss = " --loss.name clip" if index.classes == UNLABELLED else ""
    console.say(f"train on them: vit-dist train --data.root {quote(str(folder))}{loss}")
    return 0


def _verify(arguments: Arguments, console: Console) -> int:
    folder = _folder(arguments)
    index = open_index(folder)
    problems = verify(folder, _processes(arguments), lambda items, count: console.counted(items, count, printed=True))
    for problem in problems:
        console.note(problem)
    if problems:
        print(f"{folder}: {len(problems):,} lines on what is wrong; build the shards anew, or bring them back",
              file=sys.stderr)  # fmt: skip
        return 1
    console.say(f"{folder}: {_text(index)}: all bytes are as they were written")
    return 0


def _folder(arguments: Arguments) -> Path:
    folder = user_path(arguments.positionals[0], "shards")
    if not folder.is_dir():
        raise UserError(f"shards: no folder {folder}")
    return folder


def _text(index: ShardIndex) -> str:
    """Return how many shards, images and bytes there are, in words."""
    count, size = len(index.shards), sum(shard.bytes for shard in index.shards)
    return f"{count:,} shard{'s' * (count > 1)}, {len(index):,} images, {size_text(size)}"


def _processes(arguments: Arguments) -> int:
    """Return the number of processes to use."""
    if "--processes" in arguments.flags:
        return int(arguments.flags["--processes"])
    available = getattr(os, "sched_getaffinity", None)
    return min(16, len(available(0)) if available else os.cpu_count() or 1)
