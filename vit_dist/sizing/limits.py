"""Refuse, before anything is allocated, what cannot fit into this machine's memory."""

from __future__ import annotations

import math

from vit_dist.errors import UserError
from vit_dist.formatting import big
from vit_dist.runtime.devices import machine_memory


def check_fits(needed: int, field: str, what: str, instead: str) -> None:
    """Check that `needed` bytes are no more than the machine has. Raises UserError: `field: what …: instead`."""
    there = machine_memory()
    if there is not None and needed > there:
        here = f"{needed / 2**30:,.0f} GiB, and this machine has {there / 2**30:,.0f}"
        raise UserError(f"{field}: {what} would take {here}: {instead}")


def check_parameters(count: int, field: str) -> None:
    """Check that a model's weights in float32 fit into this machine's memory. Raises UserError, naming `field`."""
    check_fits(4 * count, field, f"the model's {big(count).replace(' ', '')} parameters", "set a smaller model")


def check_images(slots: int, image: tuple[int, int, int], field: str) -> None:
    """Check that a batch of images [channels, side, side], as uint8 and float32, fits. Raises UserError."""
    what = f"{slots:,} images of {image[1]} pixels"
    check_fits(5 * slots * math.prod(image), field, what, "set it smaller")
