"""Whether a run's training is stable: updates that were skipped, spikes of the loss, a loss that rises."""

from __future__ import annotations

import numpy as np

from vit_dist.report.smoothing import rolling_median
from vit_dist.run_folder.record import RunRecord

# Part of the updates skipped, and how many at least, that is more than fp16's scaler needs.
SKIPPED_SHARE, SKIPPED_UPDATES = 0.01, 5
# A spike: a loss of so many times the median of the lines around it, and of so much of the first loss above it.
SPIKE, SPIKE_RISE, SPIKES, SPIKE_LINES = 2.0, 0.1, 2, 9
# How far above its lowest value the smoothed training loss may end.
DIVERGED = 1.5


def instability(run: RunRecord, updates: int) -> str | None:
    """Return in words what shows that training is not stable; None if nothing does. updates: made so far."""
    train = run.metrics.train
    skipped = train["skipped_updates"][np.isfinite(train["skipped_updates"])][-1:]
    if len(skipped) and skipped[0] >= max(SKIPPED_UPDATES, SKIPPED_SHARE * updates):
        return f"{skipped[0]:,.0f} of {updates:,} updates were skipped: their loss or gradient was not finite"
    finite = np.isfinite(train["loss"])
    losses, epochs = train["loss"][finite], train["epoch"][finite]
    if len(losses) < 2 * SPIKE_LINES:
        return None
    medians = rolling_median(losses, SPIKE_LINES)
    spikes = np.flatnonzero((losses > SPIKE * medians) & (losses - medians > SPIKE_RISE * medians[0]))
    if len(spikes) >= SPIKES:
        worst = spikes[np.argmax(losses[spikes] / medians[spikes])]
        return (
            f"{len(spikes)} spikes of the training loss, the highest of {losses[worst]:.3g} at epoch "
            f"{epochs[worst]:.1f}, amid {medians[worst]:.3g}"
        )
    lowest = int(medians.argmin())
    if medians[-1] > DIVERGED * medians[lowest] and medians[-1] - medians[lowest] > SPIKE_RISE * medians[0]:
        return (
            f"the training loss rose from {medians[lowest]:.3g} at epoch {epochs[lowest]:.1f} to "
            f"{medians[-1]:.3g} at the end"
        )
    return None
