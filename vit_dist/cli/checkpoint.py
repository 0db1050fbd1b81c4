"""The `checkpoint` command: list, verify or prune the checkpoints of a run."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from vit_dist.checkpointing.checkpoint import Checkpoint, open_whole
from vit_dist.checkpointing.folder import best_checkpoint, checkpoint_folders, point_to_known, remove_checkpoint, tidy
from vit_dist.checkpointing.manifest import MANIFEST, DamagedCheckpointError
from vit_dist.cli.arguments import parse_arguments
from vit_dist.errors import UserError, one_line
from vit_dist.formatting import aligned, duration, size_text
from vit_dist.run_folder.lock import FolderLock, is_held

_HELP = """usage: vit-dist checkpoint list RUN [--verify]
       vit-dist checkpoint verify RUN|CHECKPOINT
       vit-dist checkpoint prune RUN --keep N [--damaged]

List the checkpoints of a run, compare their files with their hashes, or remove all but the newest and the best.
`vit-dist checkpoint list --help` and so on say more."""


def checkpoint(words: list[str]) -> int:
    """Run `checkpoint list`, `verify` or `prune`; return the exit code. Raises UserError."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if words[0] not in ("list", "verify", "prune"):
        wrong = f"takes list, verify or prune first, not {words[0]}"
        raise UserError(f"checkpoint: {wrong}; see vit-dist checkpoint --help")
    arguments = parse_arguments(f"checkpoint {words[0]}", words[1:])
    path, flags = Path(arguments.positionals[0]).expanduser(), arguments.flags
    if words[0] == "list":
        return list_checkpoints(path, verify="--verify" in flags)
    if words[0] == "verify":
        return verify_checkpoints(path)
    if "--keep" not in flags:
        raise UserError("checkpoint prune: needs --keep N: complete checkpoints to keep, the best not counted")
    return prune_checkpoints(path, int(flags["--keep"]), damaged="--damaged" in flags)


@dataclass(frozen=True)
class Examined:
    """The checkpoints of a folder, oldest first: opened, or why they are damaged; which of them is the best.

    later: the text on one of a later format, which this version can neither use nor judge.
    """

    complete: dict[Path, Checkpoint]
    damaged: dict[Path, str]
    later: dict[Path, str]
    best: Checkpoint | None

    @property
    def paths(self) -> list[Path]:
        """Return all of them, oldest first."""
        return sorted([*self.complete, *self.damaged, *self.later], key=lambda path: int(path.name[7:]))


def list_checkpoints(run: Path, *, verify: bool) -> int:
    """Print a table of a run's checkpoints. verify: compare hashes too. Raises UserError if there are none."""
    folder = _folder(run)
    examined = _examine(folder, hashes=verify)
    rows = [["checkpoint", "update", "epoch", "size", "age", "", "complete"]]
    for path in examined.paths:
        checkpoint = examined.complete.get(path)
        age = ""
        with contextlib.suppress(FileNotFoundError):  # a run that goes on prunes
            age = duration(max(0.0, time.time() - path.stat().st_mtime))
        if checkpoint is None:
            rows.append([path.name, "", "", "", age, "", "no" if path in examined.damaged else "unknown"])
            continue
        epoch = checkpoint.position * checkpoint.state.config.batch.global_size / checkpoint.state.samples
        marks = ["best"] if checkpoint == examined.best else []
        marks += ["last"] if path == list(examined.complete)[-1] else []
        rows.append([path.name, f"{checkpoint.position:,}", f"{epoch:.2f}", size_text(checkpoint.bytes), age,
                     ", ".join(marks), "yes" if verify else "by size"])  # fmt: skip
    for line in aligned(rows):
        print(line)
    for text in [*examined.damaged.values(), *examined.later.values()]:
        print(text)
    return 0


def verify_checkpoints(path: Path) -> int:
    """Compare the hashes of all files of a run's checkpoints, or of one; return 1 if one is damaged, else 0."""
    single = (path / MANIFEST).is_file() or path.name.startswith("update_")
    bad = 0
    for each in [path] if single else checkpoint_folders(_folder(path)):
        try:
            checkpoint = open_whole(each)
        except (DamagedCheckpointError, UserError) as error:
            bad += 1
            print(f"{each.name}: damaged: {error}" if isinstance(error, DamagedCheckpointError) else error)
        else:
            print(f"{each.name}: complete, {size_text(checkpoint.bytes)}")
    return 1 if bad else 0


def prune_checkpoints(run: Path, keep: int, *, damaged: bool) -> int:
    """Remove all complete checkpoints of a run but the `keep` newest and the best. damaged: and all damaged ones.

    Raises UserError while a process trains there, and if no checkpoint is complete.
    """
    folder = _folder(run)
    if is_held(folder.parent):
        raise UserError(f"{folder.parent}: a process trains there: prune when it has ended, or set checkpoint.keep")
    try:
        lock = FolderLock(folder.parent)
        try:
            return _prune(folder, keep, damaged=damaged)
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"{folder}: cannot be pruned: {error.strerror or one_line(error)}") from None


def _prune(folder: Path, keep: int, *, damaged: bool) -> int:
    tidy(folder)
    examined = _examine(folder, hashes=True)
    if examined.later:  # what these say of the best is not known
        raise UserError(next(iter(examined.later.values())))
    if not examined.complete:
        raise UserError(f"{folder}: holds no complete checkpoint: nothing is removed")
    newest = list(examined.complete)[-keep:]
    best = examined.best.path if examined.best is not None else None
    removed = 0
    for path, checkpoint in examined.complete.items():
        if path not in newest and path != best:
            remove_checkpoint(path)
            removed += checkpoint.bytes
            print(f"{path.name}: removed, {size_text(checkpoint.bytes)}")
    for path, problem in examined.damaged.items():
        if damaged:
            remove_checkpoint(path)
        print(f"{path.name}: {'removed' if damaged else 'left, --damaged removes it'}: {problem}")
    last = examined.complete[newest[-1]]
    point_to_known(folder, last.position, examined.best.position if examined.best is not None else None)
    kept = [path for path in examined.complete if path in newest or path == best]
    names = ", ".join(f"{path.name} (best)" if path == best else path.name for path in kept)
    print(f"kept {names}; {size_text(removed)} removed")
    return 0


def _folder(run: Path) -> Path:
    """Return the folder of a run's checkpoints. Raises UserError if there are none."""
    folder = run if run.name == "checkpoints" and not (run / "checkpoints").is_dir() else run / "checkpoints"
    if not checkpoint_folders(folder):
        raise UserError(f"{run}: holds no checkpoints: name the folder of a run")
    return folder


def _examine(folder: Path, *, hashes: bool) -> Examined:
    """Open all checkpoints of a folder. hashes: compare these too, which reads all files."""
    complete: dict[Path, Checkpoint] = {}
    damaged: dict[Path, str] = {}
    later: dict[Path, str] = {}
    for path in checkpoint_folders(folder):
        try:
            complete[path] = open_whole(path, hashes=hashes)
        except DamagedCheckpointError as error:
            damaged[path] = str(error)
        except UserError as error:
            later[path] = str(error)

    def opened(path: Path) -> Checkpoint:
        if path not in complete:
            raise DamagedCheckpointError(str(path))
        return complete[path]

    return Examined(complete, damaged, later, best_checkpoint(folder, opened=opened)[0])
