"""Look at every image of a data set once, in worker processes, and keep a few bytes of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_dist.checks.looks import look_of
from vit_dist.data.reader import HostBatch, Reader
from vit_dist.data.sources.decode import (
    EncodedImage,
    ImageError,
    decoding,
    image_header,
    load,
    open_header,
    plain_image,
)
from vit_dist.data.sources.source import Source, read_encoded, read_image
from vit_dist.data.sources.splits import Subset
from vit_dist.data.workers import Workers
from vit_dist.plan.plan import Slots

_AT_ONCE = 32
# Reasons that are kept in words; of more, only the kind.
_MOST_REASONS = 10_000
# Modes as they are stored, Pillow's names; others count as "other".
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "PA", "I;16", "I;16B", "I", "F", "YCbCr", "LAB", "RGBa", "La")


class Problem(IntEnum):
    """What is wrong with an image that cannot be used."""

    NONE = 0
    TRUNCATED = 1
    EMPTY = 2
    TOO_LARGE = 3
    UNREADABLE = 4


class Flag(IntEnum):
    """What is to be known of an image that can be used; bits."""

    TURNED = 1
    TRANSPARENT = 2
    ANIMATED = 4
    HAS_LOOK = 8


# What is kept of an image: 39 bytes. content: a hash of its bytes, or of its pixels if it has no file. look: its
# perceptual hash. width and height: in pixels, as they are stored. mode: its number in MODES + 1; 0: another.
RECORD = np.dtype(
    [
        ("content", "<u8", (2,)),
        ("look", "<u8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("bytes", "<u4"),
        ("mode", "u1"),
        ("flags", "u1"),
        ("problem", "u1"),
    ],
    align=False,
)
Records = NDArray[np.void]


@dataclass
class Seen:
    """What was seen of a split. records: one for each image, in the split's order. reasons: why some cannot be used."""

    records: Records
    reasons: dict[int, str] = field(default_factory=dict)


def look_at(
    subset: Subset,
    workers: int,
    timeout: float,
    counted: Callable[[Iterator[Any], int], Iterator[Any]] = lambda items, count: items,
) -> Seen:
    """Look at every image of a split, decoded in full. Raises UserError if processes cannot be started.

    workers: processes; 0: this one. timeout: seconds for one image; one that takes longer counts as unreadable, as does
    one at which two processes ended. counted: shows progress over items, given how many come.
    """
    seen = Seen(np.zeros(len(subset), RECORD))
    reading = Workers(Inspector(subset), workers, timeout=timeout)
    count = -(-len(subset) // _AT_ONCE)
    try:
        batches = zip(range(0, len(subset), _AT_ONCE), reading.read(_slots(len(subset))), strict=True)
        for start, batch in counted(batches, count):
            end = min(start + _AT_ONCE, len(subset))
            records = batch.pixels.numpy().reshape(_AT_ONCE, RECORD.itemsize)[: end - start]
            seen.records[start:end] = np.frombuffer(records.tobytes(), RECORD)
            for row, reason in batch.bad.items():
                if len(seen.reasons) < _MOST_REASONS:
                    seen.reasons[start + row] = reason
    finally:
        reading.close()
    return seen


def _slots(length: int) -> Iterator[Slots]:
    """Yield all places of a split in turn, as many at once each time: those beyond its end have weight 0."""
    for start in range(0, length, _AT_ONCE):
        places = np.arange(start, start + _AT_ONCE, dtype=np.int64)
        inside = (places < length).astype(np.float32)
        yield Slots(np.minimum(places, length - 1), np.zeros(_AT_ONCE, np.int64), inside)


class Inspector(Reader):
    """Reads records of images in place of their pixels, [slots, 1, 1, bytes of a record]."""

    def __init__(self, subset: Subset) -> None:
        super().__init__(subset, None, 0, 1, channels=1, on_bad_sample="leave out")

    def shape(self, side: int = 0) -> tuple[int, int, int]:
        """Return the shape of a record's bytes."""
        return 1, 1, RECORD.itemsize

    def read(self, slots: Slots) -> HostBatch:
        """Look at images."""
        return self.read_each(slots)

    def read_into(
        self,
        pixels: NDArray[np.uint8],
        slots: Slots,
        begin: Callable[[int], None] = lambda index: None,
        unreadable: Mapping[int, str] | None = None,
    ) -> tuple[Slots, dict[int, str]]:
        """Write the records of images into `pixels`; return the slots, and what is wrong, by slot."""
        bad: dict[int, str] = {}
        for row, place in enumerate(slots.index.tolist()):
            if not slots.weight[row]:
                continue
            index = int(self.subset.indices[place])
            begin(index)
            record, reason = np.zeros(1, RECORD), (unreadable or {}).get(index)
            if reason is None:
                reason = _inspect(self.subset.source, index, record)
            if reason is not None:
                bad[row] = reason
                record["problem"] = record["problem"][0] or _kind(reason)
            pixels[row, 0, 0] = np.frombuffer(record.tobytes(), np.uint8)
        return slots, bad


def _inspect(source: Source, index: int, record: Records) -> str | None:
    """Fill the record of an image, [1]; return why it cannot be used, if it cannot."""
    try:
        if hasattr(source, "encoded"):
            _inspect_bytes(read_encoded(source, index), record)
        else:
            image = read_image(source, index)
            _write(record, image, image, f"{image.size} {image.mode} ".encode() + image.tobytes())
    except ImageError as error:
        return str(error)
    return None


def _inspect_bytes(encoded: EncodedImage, record: Records) -> None:
    """Fill the record of an image from the bytes of its file. Raises ImageError."""
    record["bytes"] = min(len(encoded.content), 2**32 - 1)
    if not encoded.content:
        record["problem"] = Problem.EMPTY
    with decoding(encoded.name, encoded.max_pixels), open_header(encoded) as image:
        header, animated = image_header(image), bool(getattr(image, "is_animated", False))
        load(image)
        _write(record, image, plain_image(image, encoded.name, encoded.mode), encoded.content)
        record["width"], record["height"] = header.width, header.height
        flags = {Flag.TURNED: header.turned, Flag.TRANSPARENT: header.transparent, Flag.ANIMATED: animated}
        record["flags"] |= sum(flag for flag, holds in flags.items() if holds)


def _write(record: Records, image: Image.Image, plain: Image.Image, content: bytes) -> None:
    """Write what holds of an image with or without a file. plain: upright, in the source's mode."""
    digest = hashlib.blake2b(content, digest_size=16).digest()
    record["content"] = np.frombuffer(digest, "<u8")
    record["width"], record["height"] = image.size
    record["mode"] = MODES.index(image.mode) + 1 if image.mode in MODES else 0
    look = look_of(plain)
    if look is not None:
        record["look"], record["flags"] = look, Flag.HAS_LOOK


def _kind(reason: str) -> Problem:
    """Return the kind of a problem that is worded by the decoder."""
    if re.search(r"truncated|ends too soon|Truncated|incomplete", reason):
        return Problem.TRUNCATED
    return Problem.TOO_LARGE if "data.max_pixels" in reason else Problem.UNREADABLE
