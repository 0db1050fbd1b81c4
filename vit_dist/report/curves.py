"""Curves of a run over its epochs and its training time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from PIL import Image

from vit_dist.formatting import duration
from vit_dist.report.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SERIES,
    literal,
    new_figure,
    save_png,
    short,
)
from vit_dist.report.smoothing import rolling_median
from vit_dist.run_folder.metrics import Floats, Line
from vit_dist.run_folder.record import RunRecord

_BINS = 600
_RATES_TITLE = "learning rate of a plan"
# In inches: loss and accuracy stand side by side and are read first.
_LARGE = (5.4, 3.4)
# A smoothed point is the median of this part of the points on both sides, of two at least, unless there are few.
_SMOOTHED, _FEW_POINTS = 40, 12
# Evaluations up to which each has its dot.
_MARKED = 60


@dataclass(frozen=True)
class Thinned:
    """A series in bins: the mean, the lowest and the highest value of each."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def thin(x: Floats, y: Floats, bins: int = _BINS) -> Thinned:
    """Put a series into at most `bins` bins of equally many points, so that no peak is lost; NaN is left out."""
    real = ~np.isnan(y)
    x, y = x[real], y[real]
    if len(y) <= bins:
        return Thinned(x, y, y, y)
    edges = np.linspace(0, len(y), bins, endpoint=False).astype(np.int64)
    counts = np.diff([*edges, len(y)])
    finite = np.where(np.isfinite(y), y, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.add.reduceat(np.nan_to_num(finite), edges) / np.add.reduceat(np.isfinite(y).astype(np.float64), edges)
        return Thinned(
            np.add.reduceat(x, edges) / counts,
            mean,
            np.fmin.reduceat(finite, edges),
            np.fmax.reduceat(finite, edges),
        )


def loss_curve(run: RunRecord, best: Line | None = None) -> Figure:
    """Draw the loss on train, smoothed and faintly as it is, and on val by the raw and the EMA weights.

    best: the evaluation to mark. The axis ends above the smoothed curves: what is beyond it, as spikes, is cut off.
    """
    figure, axes = new_figure(*_LARGE)
    train = _train(axes, run, "loss")
    _evaluations(axes, run, "loss", best)
    _fit_axis(axes, [*train, *_values(run, "loss")])
    return _finished(figure, axes, run, "loss")


def accuracy_curve(run: RunRecord, best: Line | None = None) -> Figure:
    """Draw top-1 accuracy in percent on train, and on val by the raw and the EMA weights. best: to be marked."""
    figure, axes = new_figure(*_LARGE)
    _train(axes, run, "top1")
    _evaluations(axes, run, "top1", best)
    axes.set_ylim(None, 101)
    return _finished(figure, axes, run, "accuracy (top-1), %")


def rate_curve(run: RunRecord) -> Figure:
    """Draw the learning rate."""
    figure, axes = new_figure()
    _line(axes, run.metrics.train["epoch"], run.metrics.train["lr"], BLUE, "")
    axes.set_ylim(0, None)
    return _finished(figure, axes, run, "learning rate")


def norm_curve(run: RunRecord) -> Figure:
    """Draw the gradient norm of an update, before clipping."""
    figure, axes = new_figure()
    _line(axes, run.metrics.train["epoch"], run.metrics.train["grad_norm"], BLUE, "gradient norm")
    clip = run.config.optimizer.clip_norm
    if clip:
        axes.axhline(clip, color=ORANGE, linestyle=":", label=f"clipped at {clip:g}")
    norms = run.metrics.train["grad_norm"]
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if len(norms) and norms.max() > 10 * norms.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    return _finished(figure, axes, run, "gradient norm")


def throughput_curve(run: RunRecord) -> Figure:
    """Draw images per second over training time."""
    figure, axes = new_figure()
    scale, unit = time_unit(float(run.train_seconds[-1]) if len(run.train_seconds) else 0.0)
    _line(axes, run.train_seconds / scale, run.metrics.train["samples_per_second"], BLUE, "")
    axes.set_ylim(0, None)
    axes.set(xlabel=f"{unit} of training", ylabel="images/s")
    return figure


def utilisation_curve(run: RunRecord) -> Figure:
    """Draw device utilisation in percent: MFU, the fraction of a measured matrix product, time spent waiting."""
    figure, axes = new_figure()
    scale, unit = time_unit(float(run.train_seconds[-1]) if len(run.train_seconds) else 0.0)
    kinds = (("mfu", BLUE, "MFU"), ("matmul_fraction", GREEN, "of a matrix product's speed"))
    waits = (("data_wait_fraction", ORANGE, "waiting for images"), ("communication_fraction", PURPLE, "communication"))
    for name, colour, label in (*kinds, *waits):
        values = run.metrics.train[name]
        if not np.isnan(values).all():
            _line(axes, run.train_seconds / scale, 100 * values, colour, label)
    axes.set_ylim(0, None)
    axes.set(xlabel=f"{unit} of training", ylabel="%")
    legend(axes)
    return figure


def memory_curve(run: RunRecord) -> Figure:
    """Draw the peak memory so far, in MiB, over training time."""
    figure, axes = new_figure()
    scale, unit = time_unit(float(run.train_seconds[-1]) if len(run.train_seconds) else 0.0)
    _line(axes, run.train_seconds / scale, run.metrics.train["peak_memory_bytes"] / 2**20, BLUE, "")
    axes.set_ylim(0, None)
    axes.set(xlabel=f"{unit} of training", ylabel="MiB")
    return figure


def time_bars(spent: Mapping[str, float]) -> Figure:
    """Draw the time breakdown: seconds by activity."""
    figure, axes = new_figure(height=2.2)
    names, total = list(spent), sum(spent.values()) or 1.0
    axes.barh(names[::-1], [spent[name] for name in names[::-1]], color=[*SERIES[: len(names)]][::-1], height=0.6)
    for row, name in enumerate(names[::-1]):
        text = f"\u00a0\u00a0{duration(spent[name])}, {spent[name] / total:.0%}"
        axes.text(spent[name], row, text, va="center", fontsize=8, color=INK)
    axes.margins(x=0.35)
    axes.set_xlim(0, None)
    axes.set(xticks=[])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    return figure


def comparison_curve(runs: Sequence[tuple[str, Sequence[tuple[Floats, Floats]]]], x: str, y: str) -> Figure:
    """Draw runs, each in its own colour: its first series faint, its second one strong."""
    figure, axes = new_figure(6.4, 3.4)
    for number, (name, (faint, strong)) in enumerate(runs):
        colour = SERIES[number % len(SERIES)]
        thinned = thin(*faint)
        axes.plot(thinned.x, thinned.mean, color=colour, alpha=0.35, linewidth=0.9)
        axes.plot(*strong, color=colour, marker=".", markersize=3, label=literal(short(name)))
    axes.set(xlabel=x, ylabel=y)
    legend(axes)
    return figure


def divergence_curve(divergences: Sequence[tuple[str, Floats, Floats]]) -> Figure:
    """Draw the relative difference of losses from the first run's, over the updates that both have."""
    figure, axes = new_figure(6.4, 3.0)
    for number, (name, updates, differences) in enumerate(divergences, 1):
        thinned = thin(updates, differences)
        colour = SERIES[number % len(SERIES)]
        axes.plot(thinned.x, thinned.mean, color=colour, label=literal(short(name)))
        axes.fill_between(thinned.x, thinned.low, thinned.high, color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set(xlabel="update", ylabel="relative difference of loss")
    legend(axes)
    return figure


def draw_rates(path: Path, epochs: Sequence[float], rates: Sequence[float], title: str) -> None:
    """Write a PNG of the learning rate over epochs, by which `is_rate_picture` knows it again. Raises OSError."""
    figure, axes = new_figure(8, 3.5)
    axes.plot(epochs, rates, color=BLUE)
    axes.set(title=title, xlabel="epoch", ylabel="learning rate", xlim=(0, max(*epochs, 1e-9)), ylim=(0, None))
    save_png(figure, path, title=_RATES_TITLE)


def is_rate_picture(path: Path) -> bool:
    """Return whether a file is a PNG that `draw_rates` wrote."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Title") == _RATES_TITLE
    except (OSError, ValueError, SyntaxError):
        return False


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit for a time axis of so many seconds: (seconds in it, its name)."""
    return (3600.0, "hours") if seconds > 7200 else (60.0, "minutes") if seconds > 180 else (1.0, "seconds")


def _train(axes: Axes, run: RunRecord, name: str) -> list[float]:
    """Draw a series of train: smoothed, and faint as it is. Return the smoothed values."""
    values = run.metrics.train[name]
    thinned = thin(run.metrics.train["epoch"], np.where(np.isfinite(values), values, np.nan))
    if not len(thinned.x):  # as top1 is with mixed targets
        return []
    width = 1 if len(thinned.x) < _FEW_POINTS else 2 * max(2, len(thinned.x) // _SMOOTHED) + 1
    smoothed = rolling_median(thinned.mean, width)
    if width > 1:
        axes.fill_between(thinned.x, thinned.low, thinned.high, color=BLUE, alpha=0.1, linewidth=0)
        axes.plot(thinned.x, thinned.mean, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(thinned.x, smoothed, color=BLUE, label="train, smoothed" if width > 1 else "train", linewidth=1.8)
    return [float(value) for value in smoothed]


def _line(axes: Axes, x: Floats, y: Floats, colour: str, label: str) -> None:
    thinned = thin(x, y)
    axes.plot(thinned.x, thinned.mean, color=colour, label=label, linewidth=1.1)
    if thinned.low is not thinned.mean:
        axes.fill_between(thinned.x, thinned.low, thinned.high, color=colour, alpha=0.2, linewidth=0)


def _evaluations(axes: Axes, run: RunRecord, name: str, best: Line | None) -> None:
    for weights, colour, label in (("raw", ORANGE, "val"), ("ema", PURPLE, "val, EMA weights")):
        lines = run.evaluations("val", weights)
        if lines:
            values = [float(line[name]) for line in lines]
            marker = "." if len(lines) <= _MARKED else ""
            axes.plot(
                [line["epoch"] for line in lines], values, color=colour, marker=marker, label=label, linewidth=1.8
            )
    if best is not None:
        axes.axvline(best["epoch"], color=GREEN, linestyle=":", linewidth=1)
        label = f"best, epoch {best['epoch']:.4g}"
        axes.plot(
            best["epoch"], float(best[name]), "o", color=GREEN, markersize=7, fillstyle="none", mew=1.8, label=label
        )


def _values(run: RunRecord, name: str) -> list[float]:
    return [float(line[name]) for weights in ("raw", "ema") for line in run.evaluations("val", weights)]


def _fit_axis(axes: Axes, values: list[float]) -> None:
    """Let the axis end above these values, however high a single line of train may be."""
    finite = [value for value in values if np.isfinite(value)]
    if finite:
        low, high = min(finite), max(finite)
        space = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        axes.set_ylim(max(0.0, low - 2 * space) if low >= 0 else low - space, high + space)


def _finished(figure: Figure, axes: Axes, run: RunRecord, label: str) -> Figure:
    """Name the axes, and draw a line at each restart."""
    for number, line in enumerate(run.metrics.restarts):
        label_once = "resumed" if number == 0 else None
        axes.axvline(line["epoch"], color=FAINT, linestyle="--", linewidth=0.9, label=label_once)
    axes.set(xlabel="epoch", ylabel=label)
    axes.set_xlim(0, None)
    legend(axes)
    return figure


def legend(axes: Axes) -> None:
    """Place the legend above the axes, where it hides nothing."""
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.1,
            ncols=3,
            columnspacing=1.2,
            handlelength=1.4,
            labelcolor=INK,
            frameon=False,
            fontsize=9,
        )
