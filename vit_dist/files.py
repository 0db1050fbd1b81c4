"""Write files and folders atomically, and read and write small JSON files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_dist.errors import UserError, one_line

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# Hidden names in the folder of a path: what is being built for it, and what it replaces.
WRITING, REPLACED = ".writing_", ".replaced_"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden path in the folder of `path` to write to; at the end it becomes `path`.

    Readers see the old file or the new one, never half of either; after an error nothing is left. Not forced to the
    disk. A device, such as /dev/null, is written to as it is. Raises OSError.
    """
    if is_device(path):
        yield path
        return
    hidden = path.with_name(f"{WRITING}{path.name}")
    try:
        yield hidden
        hidden.replace(path)
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()


def is_device(path: Path) -> bool:
    """Return whether a path leads to a device, which must never be replaced by a file."""
    return path.is_char_device() or path.is_block_device()


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 text file atomically. Raises OSError."""
    with replacing(path) as hidden:
        hidden.write_text(text, encoding="utf-8")


def write_durably(path: Path, text: str) -> None:
    """Replace a UTF-8 text file atomically, unless it holds the text, and force it to the disk. Raises OSError."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    with replacing(path) as hidden:
        hidden.write_text(text, encoding="utf-8")
        fsync(hidden)
    fsync(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically. Raises OSError."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises OSError, ValueError."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; an empty one if the file is missing or broken."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def json_number(value: float) -> float | str:
    """Return a number as JSON holds it: NaN and infinity, which JSON does not have, as text."""
    return value if abs(value) < float("inf") else str(value)


def json_values(value: Any) -> Any:
    """Return a value as JSON holds it: `json_number` of every float in it, lists and mappings included."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Mapping):
        return {name: json_values(inner) for name, inner in value.items()}
    return [json_values(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yield a hidden path in the folder of `path` at which to build a file or folder; `publish` gives it its name.

    Whatever is left at the hidden path at the end is removed. Raises UserError, naming `path`, for an OSError.
    """
    if is_device(path):
        raise UserError(f"{path}: is a device: name a file or a folder")
    hidden = path.with_name(f"{WRITING}{path.name}")
    remove(hidden)
    try:
        yield hidden
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"{path}: cannot be written: {reason}: name a place in a folder of yours that exists") from None
    finally:
        remove(hidden)


def publish(hidden: Path, path: Path, *, replace: bool = False) -> None:
    """Force what was built at `hidden` to the disk and rename it to `path`.

    A file replaces a file, and a folder an empty folder; with `replace`, any folder, which keeps a hidden name until
    the new one has its own. Raises OSError.
    """
    for file in hidden.iterdir() if hidden.is_dir() else ():
        fsync(file)
    fsync(hidden)
    replaced = path.with_name(f"{REPLACED}{path.name}")
    if hidden.is_dir() and path.is_dir():
        path.rename(replaced) if replace else path.rmdir()  # Windows replaces no folder
    hidden.replace(path)
    fsync(path.parent)
    if replace and replaced.is_dir():
        shutil.rmtree(replaced)


def fsync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk. Raises OSError."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output_path(path: Path, flag: str) -> None:
    """Check, before the work rather than after it, that a file can be written to `path`.

    Raises UserError that names the flag.
    """
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder: name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{flag}: {path} cannot be written: there is no folder {path.parent}")


def user_path(name: str, field: str) -> Path:
    """Return a path that a user wrote, with ~ as their home. Raises UserError, naming the field, if it can be none."""
    try:
        os.stat(name)
    except ValueError:  # a null byte
        raise UserError(f"{field}: {name} is no path") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{field}: {name[:40]}… is too long for a path") from None
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{field}: {name}: there is no such user: write the path out") from None


def pickle_problem(path: str | Path) -> str | None:
    """Return that a file of this name is a pickle, which is never read, and the command that converts it, or None."""
    if Path(path).suffix.lower() not in PICKLES or os.path.isdir(os.path.expanduser(path)):
        return None
    converted = str(Path(path).with_suffix(".safetensors"))
    code = (
        f"import torch, safetensors.torch as s; w = torch.load({str(path)!r}, weights_only=True); "
        "w = w.get('model', w.get('state_dict', w)); "
        f"s.save_file({{k: v.clone() for k, v in w.items()}}, {converted!r})"
    )
    return f"{path}: a pickle is never read: convert it to safetensors: python -c {json.dumps(code)}"


def check_place(folder: Path, field: str) -> None:
    """Check that a folder can be made, or written to if it is there. Raises UserError that names the field."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = (
            f": {there} is no folder"
            if not there.is_dir()
            else ""
            if there == folder.absolute()
            else f": {there} is not"
        )
        raise UserError(f"{field}: {folder} cannot be written{why}: set another")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
