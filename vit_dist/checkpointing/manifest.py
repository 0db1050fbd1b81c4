"""A checkpoint's manifest: which files it holds, with their sizes and SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vit_dist.checkpointing.fields import read_fields
from vit_dist.checkpointing.formats import MANIFEST_FORMAT, check_format
from vit_dist.errors import UserError, visible

MANIFEST = "manifest.json"
# The files that a checkpoint must hold, and the one that it may.
FILES, AVERAGE = ("model.safetensors", "optimizer.safetensors", "state.json"), "ema.safetensors"
_MOST_BYTES = 2**20


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not whole; its text names the file and what is wrong with it, on one line."""

    def __str__(self) -> str:
        """Return the text, safe to show: a name in it may hold anything."""
        return visible(super().__str__())


def verify_files(path: Path, *, hashes: bool = True) -> dict[str, int]:
    """Check that the files of a checkpoint are those of its manifest; return the size in bytes of each.

    hashes: False: compare sizes alone. Raises DamagedCheckpointError; UserError for a manifest of a later format.
    """
    entries = _read_manifest(path / MANIFEST)
    for name, (size, digest) in entries.items():
        file = path / name
        problem = why_unreadable(file)
        if problem is None and file.stat().st_size != size:
            problem = f"{file.stat().st_size} bytes, not {size}"
        if problem is None and hashes and sha256_of(file) != digest:
            problem = "its SHA-256 is not the manifest's"
        if problem is not None:
            raise DamagedCheckpointError(f"{file}: {problem}")
    return {name: size for name, (size, _) in entries.items()}


def why_unreadable(file: Path) -> str | None:
    """Return why a file of a checkpoint cannot be read: no regular file inside its folder; None if it can."""
    try:
        inside = file.resolve(strict=True).parent == file.parent.resolve()
    except (OSError, RuntimeError):  # it is missing, or a link to itself
        return "missing"
    if not inside:
        return "a link that leads out of the checkpoint"
    if not file.is_file():
        return "not a regular file"
    return None if os.access(file, os.R_OK) else "not readable"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def errors_as_damage(file: Path) -> Iterator[None]:
    """Raise what reading a file of a checkpoint raises as DamagedCheckpointError that names it; UserError as it is."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise DamagedCheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DamagedCheckpointError(f"{file}: {error}") from None


def _read_manifest(file: Path) -> dict[str, tuple[int, str]]:
    """Return (bytes, SHA-256) by name of file. Raises DamagedCheckpointError; UserError for a later format."""
    problem = why_unreadable(file)
    if problem is not None:
        raise DamagedCheckpointError(f"{file}: {problem}")
    with errors_as_damage(file):
        fields = read_fields(file, _MOST_BYTES)
        check_format(file, fields, MANIFEST_FORMAT)
        files = fields.fields("files")
        files.only(*FILES, AVERAGE)
        entries = {}
        for name in (*FILES, *([AVERAGE] if files.has(AVERAGE) else [])):
            entry = files.fields(name)
            entries[name] = (entry.integer("bytes"), entry.sha256("sha256"))
    return entries
