"""Whether devices would wait for their images, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vit_dist.checks.speed import ReadingSpeed
from vit_dist.config.config import Config
from vit_dist.data.sources.splits import ImageSizes

# Shares of an image's time above which a stage is worth a word; how much larger than the model's side images are then.
_MUCH_WAITING, _MUCH_AUGMENTING, _MUCH_LARGER = 0.3, 0.3, 2.5
# Part of what the workers could read below which something else uses their cores.
_DISTURBED = 0.6


def speed_rows(speed: ReadingSpeed, cores: int) -> dict[str, str]:
    """Return what was measured in words, by name."""
    rows = {name: _stage_text(seconds) for name, seconds in speed.stages.items()}
    if speed.waiting >= 1e-5:
        rows["wait for storage"] = f"{1e3 * speed.waiting:.2f} ms an image and worker, beside the CPU's time"
    rows["all of it"] = _stage_text(speed.core_seconds)
    count = f"{speed.workers} worker{'s' if speed.workers > 1 else ''}" if speed.workers else "the training process"
    rows["measured"] = f"{speed.rate:,.0f} images/s by {count} on {cores} core{'s' if cores > 1 else ''}"
    return rows


def _stage_text(seconds: float) -> str:
    rate = f"{1 / seconds:,.0f} images/s" if seconds else "no time"
    return f"{1e3 * seconds:.2f} ms of a core an image, {rate} a core"


def device_lines(
    speed: ReadingSpeed, devices: int, rate: float, config: Config, cores: int, side: int, sizes: ImageSizes | None
) -> Iterator[str]:
    """Yield whether devices of a rate, in images/s each, would wait, and what to do if so. rate: 0 if it is not known.

    side: of the model's input in pixels. sizes: of the images, if they are known.
    """
    possible = speed.possible(cores)
    if speed.rate < _DISTURBED * possible:
        yield (
            f"note: other programs use these cores too: alone on them the workers would read about {possible:,.0f} "
            "images/s; measure again when the machine is free"
        )
    many = f"{devices} devices" if devices > 1 else "a device"
    if not rate:
        each = f", {speed.rate / devices:,.0f} each" if devices > 1 else ""
        yield (
            f"{many} would wait for images above {speed.rate:,.0f} images/s{each}: --rate with what one trains "
            "(vit-dist plan --measure) says more"
        )
        return
    needed = devices * rate
    of = f"{many} of {_number(rate)} images/s {'need' if devices > 1 else 'needs'} {_number(needed)}"
    wanted = math.ceil(round(needed * speed.core_seconds, 6))
    if needed <= speed.rate:
        yield f"{of}, and {speed.rate:,.0f} are read: no waiting; about {wanted} of the {cores} cores are busy with it"
        return
    waits = 1 - speed.rate / needed
    yield f"{of}, and {speed.rate:,.0f} are read: waiting {waits:.0%} of the time"
    yield from (f"to do: {text}" for text in _advice(speed, wanted, config, cores, side, sizes))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _advice(
    speed: ReadingSpeed, wanted: int, config: Config, cores: int, side: int, sizes: ImageSizes | None
) -> Iterator[str]:
    whole = speed.core_seconds + speed.waiting
    if speed.workers < min(wanted, cores) or (speed.waiting > _MUCH_WAITING * whole and speed.workers < 4 * cores):
        yield f"more workers: {speed.workers} of {cores} cores read (data.workers)"
    if speed.waiting > _MUCH_WAITING * whole:
        yield (
            f"storage takes {speed.waiting / whole:.0%} of an image's time: copy the images to a local disk, or pack "
            "them (vit-dist shards build)"
        )
    if wanted > cores:
        yield f"a machine with {wanted} cores or more for these devices: this process may use {cores}"
    larger = sizes is not None and sizes.median > _MUCH_LARGER * side
    if larger and sizes is not None:
        yield (
            f"smaller copies of the images: half of them have a shorter side of {sizes.median:,} pixels or more, and "
            f"twice the model's {side} is enough"
        )
    augmenting = speed.stages.get("augment", 0.0)
    if augmenting > _MUCH_AUGMENTING * whole:
        what = f"augment.auto {config.augment.auto}" if config.augment.auto else "the augmentation in workers"
        yield (
            f"{what} takes {augmenting / whole:.0%}: flip, shift, rotate, scale, erasing, mixup and cutmix are made on "
            "the device instead"
        )
