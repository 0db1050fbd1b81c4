"""Put into words what a check has found: what is broken, and what a person should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vit_dist.checks.copies import Copies, Twins
from vit_dist.checks.data import SPLITS, DataCheck
from vit_dist.checks.images import MODES, Flag, Problem
from vit_dist.checks.looks import FLATTEST, SMALLEST_SIDE
from vit_dist.data.sources.survey import HUGE, TINY, survey
from vit_dist.errors import visible
from vit_dist.plan.keys import Ints

# Longer side / shorter side above which the square in the centre says little of an image.
ELONGATED = 4.0
_KINDS = {
    Problem.TRUNCATED: "cut short",
    Problem.EMPTY: "empty",
    Problem.TOO_LARGE: "larger than data.max_pixels",
    Problem.UNREADABLE: "damaged or in no known format",
}
# Modes that are changed when they are decoded, and how.
_ODD_MODES = {
    "CMYK": "in CMYK, and made RGB without a colour profile",
    "YCbCr": "in YCbCr, and made RGB",
    "LAB": "in LAB, and made RGB",
    "1": "in black and white, one bit a pixel",
    "I;16": "with 16 bits, and made 8",
    "I;16B": "with 16 bits, and made 8",
    "I": "with 16 bits, and made 8",
    "P": "with a palette, and made RGB",
    "PA": "with a palette, and made RGB",
}
_GREY = ("L", "LA", "La", "1", "I;16", "I;16B", "I")
# Of the images that look like others, the share under another label above which looks tell nothing about copies here,
# and how many there are then at least.
_CHANCE_SHARE, _CHANCE_IMAGES = 0.1, 20
_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    kind: a word for programs. broken: whether it has to be mended. text: a sentence. images: those concerned; others:
    of each the one that it is a copy of, if it is about copies.
    """

    kind: str
    broken: bool
    text: str
    images: Ints
    others: Ints | None = None


def findings(check: DataCheck) -> list[Finding]:
    """Return what was found, in the order in which it matters."""
    return [
        *_unreadable(check),
        *_copies(check, check.copies.exact, alike=False),
        *(_chance(check) or _copies(check, check.copies.alike, alike=True)),
        *_sizes(check),
        *_modes(check),
    ]


def data_notes(check: DataCheck) -> list[str]:
    """Return what is to be known of the classes and the folder: few images, unbalanced, left out."""
    # What the survey says of the sizes of some images is said here of all of them.
    return list(survey(replace(check.data, sizes=None)).notes)


def _unreadable(check: DataCheck) -> Iterator[Finding]:
    problems = check.records["problem"]
    images = np.flatnonzero(problems)
    if not len(images):
        return
    counts = Counter(problems[images].tolist())
    kinds = ", ".join(f"{counts[kind]:,} {words}" for kind, words in _KINDS.items() if counts[kind])
    yield Finding(
        "unreadable",
        True,
        f"{_count(images)} cannot be read ({kinds}; {_few(check, images)}): mend or remove them, or leave them out",
        images,
    )


def _copies(check: DataCheck, copies: Copies, *, alike: bool) -> Iterator[Finding]:
    """Yield what there is to say of exact copies, or of images that are alike."""
    for number in (1, 2):
        chosen = check.splits[copies.leaks.images] == number
        twins = Twins(copies.leaks.images[chosen], copies.leaks.others[chosen])
        if not len(twins):
            continue
        of = f"{len(twins):,} of the {int((check.splits == number).sum()):,} images of {SPLITS[number]}"
        be = "is" if len(twins) == 1 else "are"
        sources = [SPLITS[split] for split in (0, 1) if (check.splits[twins.others] == split).any()]
        where = " and ".join(sources)
        if alike:
            text = f"{of} {'looks' if len(twins) == 1 else 'look'} like one of {where}"
            fix = "see whether they show the same; if so, what is measured on them is not new"
        else:
            text = f"{of} {be} in {where} too"
            fix = f"leave the copies in {where} out, since nothing new is measured on them"
        yield _of_twins(check, "leak", twins, text, fix, alike)
    if len(copies.conflicts):
        text = f"{_count(copies.conflicts.images)} {'has a copy' if len(copies.conflicts) == 1 else 'have copies'}"
        if alike:
            text = f"{_count(copies.conflicts.images)} {'looks' if len(copies.conflicts) == 1 else 'look'} like one"
        fix = "see which label is right" if alike else "keep the one whose label is right, or leave all of them out"
        yield _of_twins(check, "conflict", copies.conflicts, f"{text} under another label", fix, alike)
    if len(copies.repeats):
        again = "look like an earlier one of their split" if alike else "are copies of an earlier one of their split"
        if len(copies.repeats) == 1:
            again = again.replace("look", "looks").replace("are copies", "is a copy").replace("their", "its")
        text = f"{_count(copies.repeats.images)} {again}"
        yield _of_twins(check, "repeat", copies.repeats, text, "such images count twice", alike)


def _chance(check: DataCheck) -> list[Finding]:
    """Return what to say if images look alike by chance, as digits do: many of them have different labels."""
    copies = check.copies.alike
    images, rows = np.unique(np.concatenate([twins.images for twins in copies]), return_index=True)
    others = np.concatenate([twins.others for twins in copies])[rows]
    if len(images) < _CHANCE_IMAGES or len(copies.conflicts) <= _CHANCE_SHARE * len(images):
        return []
    share = len(copies.conflicts) / len(images)
    text = (
        f"{_count(images)} look like others, {share:.0%} of them like one under another label: either the labels are "
        "wrong, or these images are too much of one kind, as digits and scans are, for their looks to tell copies"
    )
    return [Finding("alike", False, text, images, others)]


def _of_twins(check: DataCheck, kind: str, twins: Twins, text: str, fix: str, alike: bool) -> Finding:
    image, other = (visible(check.sample(int(one)).shown) for one in (twins.images[0], twins.others[0]))
    if kind == "conflict":
        labels = [visible(check.sample(int(one)).label) for one in (twins.images[0], twins.others[0])]
        image, other = f"{image} is {labels[0]}", f"{other} {labels[1]}"
        example = f"{image}, {other}"
    else:
        example = f"{image} is {other}" if not alike else f"{image} and {other}"
    start = "" if not alike or check.copies.complete else "at least "
    broken = not alike and kind != "repeat"
    return Finding(
        f"alike_{kind}" if alike else kind, broken, f"{start}{text} ({example}): {fix}", twins.images, twins.others
    )


def _sizes(check: DataCheck) -> Iterator[Finding]:
    """Yield which images are small, large, long or flat."""
    used = check.usable
    width, height = check.records["width"][used].astype(np.int64), check.records["height"][used].astype(np.int64)
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    # The worst first.
    tiny = used[np.argsort(shorter, kind="stable")][: int((shorter < TINY).sum())]
    if 0 < len(tiny) < len(used):
        text = f"{_count(tiny)} {_has(tiny)} a side below {TINY} pixels ({_few(check, tiny)}): little is there to see"
        yield Finding("tiny", False, text, tiny)
    huge = used[np.argsort(-longer, kind="stable")][: int((longer > HUGE).sum())]
    if len(huge):
        text = f"{_count(huge)} {_has(huge)} a side above {HUGE:,} pixels ({_few(check, huge)}): decoding takes long"
        yield Finding("huge", False, f"{text}; smaller copies train as well", huge)
    ratio = longer / np.maximum(shorter, 1)
    long = used[np.argsort(-ratio, kind="stable")][: int((ratio > ELONGATED).sum())]
    if len(long):
        text = f"{_count(long)} {_be(long)} over {ELONGATED:g} times as long as wide ({_few(check, long)})"
        yield Finding("elongated", False, f"{text}: of these the square in the centre shows little; see data.fit", long)
    flat = used[((check.records["flags"][used] & Flag.HAS_LOOK) == 0) & (shorter >= SMALLEST_SIDE)]
    if len(flat):
        text = f"{_count(flat)} {'shows' if len(flat) == 1 else 'show'} nothing ({_few(check, flat)})"
        yield Finding("flat", False, f"{text}: all pixels have nearly one grey value, within {FLATTEST:g} of 255", flat)


def _modes(check: DataCheck) -> Iterator[Finding]:
    """Yield which images are stored in unusual ways, or changed when they are decoded."""
    used = check.usable
    modes = check.records["mode"][used]
    by_words: dict[str, list[int]] = {}
    for name, words in _ODD_MODES.items():
        by_words.setdefault(words, []).append(MODES.index(name) + 1)
    by_words.setdefault("in an unusual mode, and converted", []).append(0)
    for words, numbers in by_words.items():
        odd = used[np.isin(modes, numbers)]
        if len(odd):
            yield Finding("mode", False, f"{_count(odd)} {_be(odd)} stored {words} ({_few(check, odd)})", odd)
    grey = np.isin(modes, [MODES.index(name) + 1 for name in _GREY])
    if 0 < grey.sum() < len(used):
        chosen = used[grey]
        text = f"{_count(chosen)} {_be(chosen)} grey among images in colour ({_few(check, chosen)}): a class that has "
        yield Finding("grey", False, f"{text}more of them is told by that", chosen)
    flags = check.records["flags"][used]
    for flag, kind, head, rest in (
        (Flag.TRANSPARENT, "transparent", "{have} transparency", ": what is transparent becomes white"),
        (Flag.ANIMATED, "animated", "{have} several frames", ": the first is used"),
        (Flag.TURNED, "turned", "{are} turned upright, as EXIF says", ""),
    ):
        chosen = used[(flags & flag) > 0]
        if len(chosen):
            head = head.format(have=_has(chosen), are=_be(chosen))
            yield Finding(kind, False, f"{_count(chosen)} {head} ({_few(check, chosen)}){rest}", chosen)


def _count(images: Ints) -> str:
    return f"{len(images):,} image{'' if len(images) == 1 else 's'}"


def _has(images: Ints) -> str:
    return "has" if len(images) == 1 else "have"


def _be(images: Ints) -> str:
    return "is" if len(images) == 1 else "are"


def _few(check: DataCheck, images: Ints) -> str:
    names = [check.sample(int(image)).shown for image in images[:_NAMED].tolist()]
    return visible(", ".join(names) + (" …" if len(images) > _NAMED else ""))
