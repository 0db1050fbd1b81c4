"""Smooth series of a run: what training losses come to among their noise."""

from __future__ import annotations

import numpy as np

from vit_dist.run_folder.metrics import Floats


def rolling_median(values: Floats, width: int) -> Floats:
    """Return the median of the `width` values (odd, at most the length) around each; the ends are mirrored."""
    half = width // 2
    if not half or len(values) <= half:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, mode="reflect"), 2 * half + 1)
    medians: Floats = np.median(windows, axis=1)
    return medians


def end_of(values: Floats) -> float | None:
    """Return the median of the last tenth of the finite values; None without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite[-max(1, len(finite) // 10) :])) if len(finite) else None
