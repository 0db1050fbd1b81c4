"""Walk a folder once: the images in and below it, and what is no image, by kind."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import escape, glob
from itertools import islice
from pathlib import Path

from vit_dist.data.sources.names import EXTENSIONS, HEIF, NOT_DECODED, composed, ending, is_hidden, is_image, is_table
from vit_dist.data.sources.splits import LeftOut
from vit_dist.errors import UserError

_TREE_DEPTH = 3
_USUAL = frozenset({*EXTENSIONS, *map(str.upper, EXTENSIONS)})
HIDDEN, LOOPS, EMPTY = "hidden or system files or folders", "links to a folder above them", "folders without images"
RUNS = "folders of runs"


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder with images in or below it.

    path: as it was reached; real: without links. name: in Unicode's composed form (NFC). entries: its images (name,
    None) and such folders in it (name, folder), sorted by name. count: images in and below it. links: image that is
    a link → the file it leads to. empty: names of the folders in it without images.
    """

    path: str
    real: str
    name: str
    entries: tuple[tuple[str, Folder | None], ...]
    count: int
    links: dict[str, str]
    empty: tuple[str, ...]

    @property
    def images(self) -> list[str]:
        """Return the names of the images in this folder itself."""
        return [name for name, folder in self.entries if folder is None]

    @property
    def folders(self) -> list[Folder]:
        """Return the folders in this one that have images in or below them."""
        return [folder for _, folder in self.entries if folder is not None]

    def files(self, below: str = "") -> Iterator[tuple[str, str]]:
        """Yield all images in and below it, sorted: (path, path from this folder on, with slashes)."""
        for name, folder in self.entries:
            if folder is None:
                yield f"{self.path}{os.sep}{name}", below + name
            else:
                yield from folder.files(f"{below}{name}/")

    def real_files(self) -> Iterator[str]:
        """Yield, in the order of `files`, the file that each image is when links are followed."""
        for name, folder in self.entries:
            if folder is None:
                yield self.links.get(name) or os.path.join(self.real, name)
            else:
                yield from folder.real_files()

    def tree(self, most: int = 4, depth: int = 0) -> Iterator[str]:
        """Yield lines that show its folders, three levels deep and `most` of each, with the images in them."""
        images = len(self.images) if depth < _TREE_DEPTH else self.count
        yield f"{'  ' * depth}{self.name}/" + (f"  {images:,} image{'s' * (images != 1)}" if images else "")
        if depth < _TREE_DEPTH:
            for folder in self.folders[:most]:
                yield from folder.tree(max(2, most - 1), depth + 1)
            if len(self.folders) > most:
                yield f"{'  ' * (depth + 1)}… and {len(self.folders) - most:,} more folders"


@dataclass
class Scan:
    """Hold what a walk found: the root, whether it met links, and what it left out, by kind.

    undecoded: folders beside class folders whose images are all of kinds that are not read → their endings.
    """

    root: Folder
    linked: bool
    left_out: list[LeftOut]
    undecoded: dict[str, list[str]]


@dataclass
class _Walk:
    root: str
    linked: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    endings: dict[str, Counter[str]] = field(default_factory=lambda: {"other": Counter(), "not decoded": Counter()})
    undecoded: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, path: str) -> None:
        self.counts[kind] += 1
        self.examples.setdefault(kind, os.path.relpath(path, self.root))

    def visit(self, path: str, real: str, name: str, above: frozenset[str]) -> Folder | None:
        """Return a folder with all that is below it, None if it only holds runs.

        above: the real paths of it and the folders it lies in.
        """
        listing, runs = _listing(path), self.counts[RUNS]
        if path != self.root and _is_run({entry.name for entry in listing}):
            self.leave_out(RUNS, path)
            return None
        entries: list[tuple[str, Folder | None]] = []
        links: dict[str, str] = {}
        empty: dict[str, list[str]] = {}
        count = 0
        for entry in listing:
            if _is_plainly_image(entry):
                entries.append((entry.name, None))
                count += 1
            elif is_hidden(entry.name):
                self.leave_out(HIDDEN, entry.path)
            elif _is_folder(entry):
                before = self.endings["not decoded"].copy()
                folder = self._enter(entry, real, above)
                if folder is not None and folder.count:
                    entries.append((entry.name, folder))
                    count += folder.count
                elif folder is not None:
                    empty[entry.name] = sorted(self.endings["not decoded"] - before)
            elif self._is_image(entry):
                entries.append((entry.name, None))
                count += 1
                if entry.is_symlink():
                    self.linked = True
                    links[entry.name] = os.path.realpath(entry.path)
        if count:  # of a folder without any, it alone is named
            for lost, endings in empty.items():
                self.leave_out(EMPTY, os.path.join(path, lost))
                if endings and all(folder is not None for _, folder in entries):
                    self.undecoded[os.path.relpath(os.path.join(path, lost), self.root)] = endings
        elif self.counts[RUNS] > runs and path != self.root:
            return None
        return Folder(path, real, name, tuple(entries), count, links, tuple(empty))

    def _enter(self, entry: os.DirEntry[str], real: str, above: frozenset[str]) -> Folder | None:
        inside = os.path.join(real, entry.name)
        if entry.is_symlink():
            self.linked = True
            inside = os.path.realpath(entry.path)
            if any(folder.startswith(os.path.join(inside, "")) for folder in above):
                above |= {inside}
        if inside in above:
            self.leave_out(LOOPS, entry.path)
            return None
        return self.visit(entry.path, inside, composed(entry.name), above | {inside})

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        end = ending(entry.name)
        if is_image(entry.name):
            return True
        kind = "not decoded" if end in NOT_DECODED else "other"
        self.endings[kind][end or "none"] += 1
        self.examples.setdefault(kind, os.path.relpath(entry.path, self.root))
        return False

    def left_out(self) -> list[LeftOut]:
        found = []
        texts = {
            "not decoded": "images of kinds that are not read, convert them to .jpg or .png",
            "other": "files that are no images by their ending",
        }
        for kind, text in texts.items():
            endings = self.endings[kind]
            if endings.keys() & HEIF:
                text += ", or pip install pillow-heif"
            if endings:
                common = [end for end, _ in sorted(endings.items(), key=lambda item: (-item[1], item[0]))]
                named = ", ".join(common[:3]) + (" …" if len(common) > 3 else "")
                found.append(LeftOut(f"{text} ({named})", endings.total(), self.examples[kind]))
        return found + [LeftOut(kind, count, self.examples[kind]) for kind, count in self.counts.items()]


def scan(root: Path) -> Scan:
    """Walk a folder, following links, and sort what is in it: images by their endings, and what is left out.

    Hidden files and folders, and those that systems make, are passed over. A dead link or a pipe with the ending of an
    image counts as one, so that reading it says what it is: left out here, nobody would miss it. A link to a folder
    that it lies in is not followed, and a run's folder is not entered. Raises UserError if a folder cannot be opened.
    """
    path, real = str(root), os.path.realpath(root)
    walk = _Walk(path)
    folder = walk.visit(path, real, composed(os.path.basename(real)), frozenset({real}))
    assert folder is not None
    if not folder.count:
        for name in folder.empty:
            walk.leave_out(EMPTY, os.path.join(path, name))
    return Scan(folder, walk.linked, walk.left_out(), walk.undecoded)


def _is_run(names: set[str]) -> bool:
    """Return whether a folder with these names in it is a run's."""
    return "config.yaml" in names and bool(names & {"checkpoints", "metrics.jsonl"})


def _listing(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened: {error.strerror}: mend its permissions, or move it away") from None


def _is_plainly_image(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is an image, and no link, as nearly all are; others are looked at in turn."""
    name = entry.name
    known = name[name.rfind(".") :] in _USUAL and name[0] != "."
    return known and entry.is_file(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def folders_beside(folder: Folder) -> list[str]:
    """Return the names of the first three folders beside one, if all folders there look like those of classes.

    Their first entries are looked at: at least half are images.
    """
    found = []
    parent = os.path.dirname(folder.real)
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in sorted(islice(entries, 1000), key=lambda entry: entry.name):
            if entry.name != os.path.basename(folder.real) and not is_hidden(entry.name) and entry.is_dir():
                with os.scandir(entry.path) as inner:
                    images = [is_image(other.name) for other in islice(inner, 20)]
                if not images or 2 * sum(images) < len(images):
                    return []
                found.append(entry.name)
    return found[:3]


def table_beside(folder: str) -> str:
    """Return what to do with a table in a folder or beside it, which may hold labels; empty if there is none."""
    for base in (folder, os.path.dirname(folder)):
        for path in sorted(glob(os.path.join(escape(base), "*"))):
            if is_table(path) and not path.endswith((".txt", ".json")):
                return f"if {path} has their labels, set data.root to it"
    return ""
