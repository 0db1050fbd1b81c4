"""The rate of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_rates(path: Path, epochs: Sequence[float], rates: Sequence[float], title: str) -> None:
    """A PNG of the rate over epochs. Raises OSError where it cannot be written."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, rates, linewidth=1.5)
    axes.set(title=title, xlabel="epoch", ylabel="learning rate", xlim=(0, max(*epochs, 1e-9)), ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150, format="png")
