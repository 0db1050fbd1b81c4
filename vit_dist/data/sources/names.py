"""Tell what the names of files and folders mean: images, splits, classes, and what systems leave behind."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from vit_dist.data.sources.splits import SPLITS

EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".ppm", ".pgm"),
}
# Decoded where the package pillow-heif is installed.
HEIF = {".heic", ".heif"}
# Images of cameras and programs that are not decoded here, so that they are not taken for notes.
NOT_DECODED = {
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"),
    *(".raf", ".dcm", ".nii", ".eps", ".pdf"),
}
# Tables of paths and labels: of text with what separates its cells, of JSON lines, of Parquet.
TEXT = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": ","}
JSON_LINES, PARQUET = (".jsonl", ".ndjson", ".json"), (".parquet", ".pq")
# Made by systems and programs; a name that begins with a dot is hidden as well.
_SYSTEM = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db"),
    *("ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
}
_WORDS = "|".join(sorted(SPLITS, key=len, reverse=True))
# General words, which do not matter: train_images, images-train, Train2017 and trainset are train.
_FILL = r"(?:images?|imgs?|photos?|pictures?|data|dataset|set|split|folder|samples?|crops?|jpe?g|png|[\W\d_])*"
_SPLIT = re.compile(f"{_FILL}({_WORDS}){_FILL}")
_FILLER = re.compile(_FILL)
_WORD_INSIDE = re.compile(rf"(?<![^\W\d_])({_WORDS})(?![^\W\d_])")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which names are compared: macOS keeps accents apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def ending(name: str) -> str:
    """Return the ending of a file's name in lower case, with its dot; empty if it has none."""
    stem, dot, end = name.rpartition(".")
    return dot + end.lower() if stem else ""


def is_image(name: str) -> bool:
    """Return whether a file is an image that is decoded here, by the ending of its name."""
    end = ending(name)
    return end in EXTENSIONS or (end in HEIF and find_spec("pillow_heif") is not None)


def is_table(name: str) -> bool:
    """Return whether a file is a table of paths and labels, if it is one, by the ending of its name."""
    return ending(name) in {*TEXT, *JSON_LINES, *PARQUET}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or one that a system makes."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_filler(name: str) -> bool:
    """Return whether a folder's name is of general words alone: images, data, 2017."""
    return _FILLER.fullmatch(name.casefold()) is not None


def split_words(names: Iterable[str]) -> dict[str, str]:
    """Return name → split of those that mean one: alone (Train, images_val), or in pairs (seg_train and seg_test)."""
    found: dict[str, str] = {}
    stems: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        folded = name.casefold()
        if match := _SPLIT.fullmatch(folded):
            found[name] = SPLITS[match[1]]
        elif match := _WORD_INSIDE.search(folded):
            stems[folded[: match.start()], folded[match.end() :]][name] = SPLITS[match[1]]
    for pair in stems.values():
        if "train" in pair.values() and len(set(pair.values())) > 1:
            found |= pair
    return found


def split_of(name: str) -> str | None:
    """Return the split that a word in a name means (imagenet-train-000.tar is train); None if there is none."""
    match = _WORD_INSIDE.search(name.casefold())
    return SPLITS[match[1]] if match else None


def class_of(name: str, known: Sequence[str]) -> str | None:
    """Return the known class that a folder's name means, None if there is none.

    That is the same name in Unicode's composed form, or else the only one that differs from it in case alone.
    """
    forms = {composed(other): other for other in known}
    if composed(name) in forms:
        return forms[composed(name)]
    folded = [other for form, other in forms.items() if form.casefold() == composed(name).casefold()]
    return folded[0] if len(folded) == 1 else None


def class_order(names: Iterable[str]) -> list[str]:
    """Return classes in the order of their numbers: sorted, and by value where all are whole numbers, 2 before 10."""
    classes = sorted(names)
    numbers = all(name.isascii() and name.isdecimal() for name in classes)
    return sorted(classes, key=lambda name: (int(name), name)) if numbers else classes


def order_notes(classes: Sequence[str]) -> list[str]:
    """Return what the user is told of an order that is not that of the alphabet."""
    if list(classes) == sorted(classes):
        return []
    shown = [*classes[:3], "…", classes[-1]] if len(classes) > 4 else classes
    return [f"classes are numbers, and in their order: {', '.join(shown)}"]
