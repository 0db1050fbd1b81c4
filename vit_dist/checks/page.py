"""Write what a check has found: a page that opens from the disk, a JSON, and the list of images to leave out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_dist.checks.copies import to_leave_out
from vit_dist.checks.data import SPLITS, DataCheck
from vit_dist.checks.findings import Finding, data_notes
from vit_dist.data.sources.leave_out import comment_lines, name_line, read_lines
from vit_dist.data.sources.source import read_image
from vit_dist.data.sources.survey import survey
from vit_dist.errors import UserError, visible
from vit_dist.files import replacing, user_path, write_json, write_text
from vit_dist.formatting import duration, size_text
from vit_dist.plan.keys import Ints
from vit_dist.report.grids import Tile
from vit_dist.report.rendering import render
from vit_dist.run_folder.predictions import Pixels
from vit_dist.version import __version__

PAGE, RESULT, LIST = "index.html", "check.json", "leave_out.txt"
_SIDE = 112
# Pictures of one finding, images of it in the JSON, rows of tables.
_PICTURES, _LISTED, _ROWS, _CLASSES = 16, 10_000, 100, 1000
_TITLES = {
    "unreadable": "Images that cannot be read",
    "leak": "In two splits",
    "conflict": "Under two labels",
    "repeat": "Copies within a split",
    "alike": "Alike",
    "alike_leak": "Alike, in two splits",
    "alike_conflict": "Alike, under two labels",
    "alike_repeat": "Alike, within a split",
    "tiny": "Tiny",
    "huge": "Huge",
    "elongated": "Elongated",
    "flat": "Of one colour",
    "mode": "Unusual modes",
    "grey": "Grey",
    "transparent": "Transparent",
    "animated": "Animated",
    "turned": "Turned by their EXIF",
}


def write_check(check: DataCheck, found: Sequence[Finding], out: Path, leave_out: str, title: str) -> list[Path]:
    """Write page, JSON and list into a folder; return them in this order. Raises UserError.

    leave_out: the list that the check was made with, if any, whose lines the new one keeps. title: the data's name.
    """
    page, result, names = out / PAGE, out / RESULT, out / LIST
    before = read_lines(user_path(leave_out, "data.leave_out")) if leave_out else []
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(page, render("check.html", **_page(check, found, title)))
        write_json(result, check_values(check, found, title))
        _write_list(names, list(_list_lines(check, before)))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}: name another folder") from None
    return [page, result, names]


def _write_list(path: Path, lines: Sequence[str]) -> None:
    with replacing(path) as hidden:
        hidden.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")


def _list_lines(check: DataCheck, before: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the list: those of the list before, then what is broken, with the reason of each."""
    head = "Images to leave out, a line each, for --data.leave_out; lines like this one are comments."
    yield from before or comment_lines([head])
    unreadable = np.flatnonzero(check.records["problem"])
    twice = to_leave_out(check.copies, check.splits)
    conflicts = np.isin(twice, check.copies.exact.conflicts.images)
    parts = {
        "cannot be read": unreadable,
        "under two labels": twice[conflicts],
        "in a later split too, with the same bytes": twice[~conflicts],
    }
    for words, images in parts.items():
        if len(images):
            yield ""
            yield from comment_lines([f"{len(images):,} {words}"])
            for image in images.tolist():
                if image in check.reasons:
                    yield from comment_lines([check.reasons[image]])
                yield name_line(check.sample(image).key)


def check_values(check: DataCheck, found: Sequence[Finding], title: str) -> dict[str, Any]:
    """Return the content of the JSON."""
    facts = survey(check.data)
    return {
        "version": __version__,
        "data": title,
        "images": len(check),
        "splits": {name: len(split) for name, split in check.data.splits.items()},
        "broken": any(finding.broken for finding in found),
        "seconds": round(check.seconds, 3),
        "sizes": check.sizes(),
        "modes": check.modes(),
        "findings": [_finding_values(check, finding) for finding in found],
        "classes": facts.to_dict()["counts"],
        "left_out": facts.to_dict()["left_out"],
        "notes": data_notes(check),
    }


def _finding_values(check: DataCheck, finding: Finding) -> dict[str, Any]:
    rows = []
    for number, image in enumerate(finding.images[:_LISTED].tolist()):
        row: dict[str, Any] = _sample_values(check, image)
        if image in check.reasons and finding.others is None:
            row["reason"] = check.reasons[image]
        if finding.others is not None:
            row["copy_of"] = _sample_values(check, int(finding.others[number]))
        rows.append(row)
    return {
        "kind": finding.kind,
        "broken": finding.broken,
        "count": len(finding.images),
        "text": finding.text,
        "images": rows,
    }


def _sample_values(check: DataCheck, image: int) -> dict[str, Any]:
    sample, record = check.sample(image), check.records[image]
    sides = [int(record["width"]), int(record["height"])]
    return {
        "key": sample.key,
        "name": sample.name,
        "split": sample.split,
        "class": sample.label,
        "sides": sides if sides[0] else None,
    }


def _page(check: DataCheck, found: Sequence[Finding], title: str) -> dict[str, Any]:
    """Return what check.html shows; texts are escaped there."""
    broken = sum(finding.broken for finding in found)
    facts = survey(check.data)
    rows = _class_rows(check)
    return {
        "title": f"{title}: check of the data",
        "name": title,
        "state": "something is broken" if broken else "nothing is broken",
        "state_kind": "failed" if broken else "finished",
        "now": time.strftime("%Y-%m-%d %H:%M", time.localtime()),
        "version": __version__,
        "about": [("images", splits_text(check)), *facts.rows().items(), *size_rows(check).items()],
        "figures": _figures(check, found),
        "broken": [_section(check, finding) for finding in found if finding.broken],
        "known": [_section(check, finding) for finding in found if not finding.broken],
        "notes": data_notes(check),
        "classes": rows[: _ROWS // 4],
        "more_classes": rows[_ROWS // 4 : _CLASSES],
        "class_head": ["class", *(name for name in SPLITS if name in check.data.splits), "cannot be read"],
    }


def size_rows(check: DataCheck) -> dict[str, str]:
    """Return sides, modes and duration in words, by name."""
    sizes, modes = check.sizes(), check.modes()
    if not sizes:
        return {}
    short, long, ratio = sizes["shorter_side"], sizes["longer_side"], sizes["aspect_ratio"]
    bytes_ = f"; {size_text(sizes['bytes'])} in files" if sizes["bytes"] else ""
    sides = f"shorter side {_range(short)} pixels, longer side {_range(long)}"
    if long["largest"] == short["smallest"]:
        sides = f"all {short['smallest']:,} × {short['smallest']:,} pixels"
    elif ratio["largest"] > 1:
        sides += f", the longest {ratio['largest']:.3g} times as long as wide"
    return {
        "sizes": f"{sides}; {sizes['megapixels']:.2g} megapixels on average{bytes_}",
        "modes": ", ".join(f"{name} {count:,}" for name, count in modes.items()),
        "checked": f"in {duration(check.seconds)}, {len(check) / max(check.seconds, 1e-9):,.0f} images/s, each decoded",
    }


def _range(spread: Mapping[str, int]) -> str:
    if spread["smallest"] == spread["largest"]:
        return f"{spread['smallest']:,}"
    return f"{spread['smallest']:,} to {spread['largest']:,} (median {spread['median']:,})"


def splits_text(check: DataCheck) -> str:
    """Return the number of images in each split in words."""
    return ", ".join(f"{name} {len(check.data.splits[name]):,}" for name in SPLITS if name in check.data.splits)


def _figures(check: DataCheck, found: Sequence[Finding]) -> list[tuple[str, str, str]]:
    counts: dict[str, int] = {}
    for finding in found:
        counts[finding.kind] = counts.get(finding.kind, 0) + len(finding.images)
    both = (("in two splits", "leak"), ("under two labels", "conflict"), ("within a split", "repeat"))
    return [
        ("images", f"{len(check):,}", splits_text(check)),
        ("cannot be read", f"{counts.get('unreadable', 0):,}", "decoded in full"),
        *((name, f"{counts.get(kind, 0):,}", f"and {counts.get(f'alike_{kind}', 0):,} alike") for name, kind in both),
    ]


def _section(check: DataCheck, finding: Finding) -> dict[str, Any]:
    """Return a finding with its pictures and its table."""
    table = []
    for number, image in enumerate(finding.images[:_ROWS].tolist()):
        sample, record = check.sample(image), check.records[image]
        last = check.reasons.get(image, "") if finding.others is None else ""
        if finding.others is not None:
            other = check.sample(int(finding.others[number]))
            last = f"{other.shown} ({other.split}, {other.label})"
        sides = f"{record['width']:,} × {record['height']:,}" if record["width"] else ""
        table.append([sample.shown, sample.split, sample.label, sides, last])
    last_head = "copy of" if finding.others is not None else "why" if finding.kind == "unreadable" else ""
    return {
        "title": _TITLES[finding.kind],
        "text": finding.text,
        "tiles": list(_tiles(check, finding)),
        "table": [["image", "split", "class", "pixels", last_head], *table],
        "more": len(finding.images) - len(table),
    }


def _tiles(check: DataCheck, finding: Finding) -> Iterator[Tile]:
    """Yield the pictures of a finding, the worst first; of copies both, side by side."""
    if finding.kind == "unreadable":
        return
    shown: Ints = finding.images[:_PICTURES]
    if finding.others is not None:
        shown = np.stack([finding.images, finding.others], 1)[: _PICTURES // 2].ravel()
    for image in shown.tolist():
        pixels = _thumbnail(check, image)
        if pixels is None:
            continue
        sample = check.sample(image)
        caption = f"{sample.label}, {sample.split}"
        wrong = False if finding.broken else None
        yield Tile(pixels, caption, path=sample.name, place="/".join(Path(sample.shown).parts[-2:]), right=wrong)


def _thumbnail(check: DataCheck, image: int) -> Pixels | None:
    """Return an image made small, on a grey square, uint8 [3, side, side]; None if it cannot be read any more."""
    subset, place = check.place(image)
    try:
        shown = read_image(subset.source, int(subset.indices[place])).convert("RGB")
    except UserError:
        return None
    scale = min(_SIDE / max(shown.size), max(1, _SIDE // max(shown.size)))
    size = [max(1, round(side * scale)) for side in shown.size]
    shown = shown.resize((size[0], size[1]), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    square = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
    square.paste(shown, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return np.asarray(square).transpose(2, 0, 1)


def _class_rows(check: DataCheck) -> list[list[str]]:
    """Return a row for each class, those with the fewest training images first."""
    count = len(check.data.classes)
    present = [(number, name) for number, name in enumerate(SPLITS) if name in check.data.splits]
    columns = [np.bincount(check.labels[check.splits == number], minlength=count) for number, _ in present]
    bad = np.bincount(check.labels[check.records["problem"] > 0], minlength=count)
    order = np.lexsort((np.arange(count), columns[0]))
    return [
        [visible(check.data.classes[number]), *(f"{column[number]:,}" for column in columns), f"{bad[number]:,}"]
        for number in order.tolist()
    ]
