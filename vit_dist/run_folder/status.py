"""status.json: whether a run is running, finished, stopped or failed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vit_dist.files import read_json_or_empty, write_json
from vit_dist.run_folder.summary import read_summary
from vit_dist.version import __version__


def write_status(
    folder: Path, state: str, position: int, reason: str | None = None, problems: Sequence[str] = ()
) -> None:
    """Replace status.json. state: running, finished, stopped or failed, this with a `reason`. Raises OSError.

    problems: outputs that cannot be written at the moment.
    """
    values: dict[str, Any] = {"state": state, "update": position, "pid": os.getpid()}
    values |= {"host": platform.node(), "time": time.time()}
    values |= {"reason": reason} if reason else {}
    write_json(folder / "status.json", {**values, **({"problems": list(problems)} if problems else {})})


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results: the last two decide the pixels of image files."""
    return {
        "vit_dist": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("accelerate", "pillow", "torchvision")},
    }


def status(folder: Path) -> dict[str, Any]:
    """Return the content of status.json, empty if there is none."""
    return read_json_or_empty(folder / "status.json")


def summary_of(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the summary of the finished run that `path`, its folder or a checkpoint in it, belongs to, if any.

    If there is one that is damaged, return None and why on a line.
    """
    for folder in [path, *path.resolve().parents[:3]]:
        if (folder / "summary.json").is_file() and status(folder).get("state") == "finished":
            return read_summary(folder)
    return None, None
