"""Show a run in the terminal: one line an evaluation, the line of an update, and the time that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vit_dist.formatting import duration, loss_text
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.lines import weighted_mean
from vit_dist.run_folder.pair_figures import headlines

# Of more evaluations every second, third … has its row.
MOST_ROWS = 100
# A forward pass takes about a third of an update's time, until an evaluation has been timed.
_FORWARD = 1 / 3
_SMOOTHING = 0.7

Cells = list[tuple[str, str]]


class Rows:
    """Collects the lines of metrics of a run, and says what to show of them.

    images: split → its number of images. ema: whether each evaluation is made with two sets of weights.
    """

    def __init__(self, plan: Plan, position: int, images: Mapping[str, int], *, ema: bool) -> None:
        """position: the update that the run starts from."""
        self.plan = plan
        self.images = images
        self.ema = ema
        self.update_seconds: float | None = None
        self._seconds_per_image: float | None = None
        self._previous = position  # of the last `train` line
        self._train: list[tuple[int, Mapping[str, Any]]] = []  # updates and lines since the last row
        self._evaluations: dict[str, Mapping[str, Any]] = {}
        self._evaluation_seconds = 0.0
        self._best: int | None = None  # the update that was the best so far when it was evaluated, since the last row

    def add_train(self, line: Mapping[str, Any]) -> None:
        """Take a `train` line."""
        self._train.append((line["update"] - self._previous, line))
        self._previous = line["update"]
        new = line["update_seconds"]
        old = self.update_seconds
        self.update_seconds = new if old is None else _SMOOTHING * old + (1 - _SMOOTHING) * new

    def add_evaluation(self, line: Mapping[str, Any]) -> None:
        """Take an `eval` line."""
        if line["seen"]:
            self._seconds_per_image = line["seconds"] / line["seen"]
        if line["split"] == "val":
            self._evaluations[line["weights"]] = line
            self._evaluation_seconds += line["seconds"]
            self._best = line["update"] if line["best"] else self._best

    def seconds_left(self, position: int) -> float | None:
        """Return the seconds until the end of the run, evaluations included; None before the first `train` line."""
        if self.update_seconds is None:
            return None
        left = (self.plan.updates - position) * self.update_seconds
        per_image = self._seconds_per_image
        if per_image is None:
            per_image = self.update_seconds / self.plan.global_size * _FORWARD
        done = self._number(position) if position < self.plan.updates else self._evaluations_of_a_run
        images = (self._evaluations_of_a_run - done) * self.images.get("val", 0) + self.images.get("test", 0)
        return left + per_image * images * (2 if self.ema else 1)

    def left_text(self, position: int) -> str:
        """Return the time that is left in words; empty if it is not known yet."""
        seconds = self.seconds_left(position)
        if seconds is None:
            return ""
        whole = math.ceil(seconds)
        return f"{duration(whole) if whole >= 10 else f'{whole} s'} left"

    def where(self, position: int) -> list[str]:
        """Return the update and the epoch in words."""
        epoch = self.plan.samples_at(position) / self.plan.samples
        return [f"update {position}/{self.plan.updates}", f"epoch {epoch:.2f}/{self.plan.epochs:.4g}"]

    def train_text(self, line: Mapping[str, Any]) -> list[str]:
        """Return the parts of the text of a `train` line."""
        return [
            *self.where(line["update"]),
            f"loss {loss_text(line['loss'])}",
            f"lr {line['lr']:.1e}",
            f"{line['samples_per_second']:,.0f} images/s",
            *waiting_text(line),
            self.left_text(line["update"]),
        ]

    def row(self, position: int) -> Cells | None:
        """Return the row of what was trained and evaluated since the last one; None if it is not to be shown.

        A run has at most MOST_ROWS of them: a row an evaluation, or, without val, an epoch. What is best stays marked
        if its own row is left out.
        """
        every = math.ceil(self._evaluations_of_a_run / MOST_ROWS)
        if position < self.plan.updates and self._number(position) % every:
            return None
        cells = [
            ("epoch", f"{self.plan.samples_at(position) / self.plan.samples:.1f}".rjust(5)),
            ("update", f"{position}/{self.plan.updates}".rjust(2 * len(str(self.plan.updates)) + 1)),
            ("train loss", self._mean("loss", ".4f").rjust(6)),
        ]
        measures = headlines(self._evaluations.values())
        if "top1" in measures:
            cells.append(("train top1", self._mean("top1", ".2f", " %").rjust(8)))
        for weights, name in (("raw", "val"), ("ema", "EMA")):
            if line := self._evaluations.get(weights):
                cells += [(f"{name} loss", loss_text(line["loss"]).rjust(6))]
                cells += [(f"{name} {title}", f"{line[key]:.2f} %".rjust(8)) for key, title in measures.items()]
        trained = sum(updates * line["update_seconds"] for updates, line in self._train)
        cells += [("training", duration(trained).rjust(12))]
        if self._evaluations:
            cells += [("evaluation", duration(self._evaluation_seconds).rjust(6))]
        best = "" if self._best is None else "best" if self._best == position else f"best: update {self._best}"
        self._train, self._evaluations, self._evaluation_seconds, self._best = [], {}, 0.0, None
        return [*cells, ("", best)]

    @property
    def _evaluations_of_a_run(self) -> int:
        return max(1, math.ceil(self.plan.total_samples / self._every))

    @property
    def _every(self) -> float:
        return float(self.plan.evaluate_every) if "val" in self.images else float(self.plan.samples)

    def _number(self, position: int) -> int:
        """Return how many evaluations, or epochs without val, lie before an update."""
        return int(self.plan.samples_at(position) / self._every + 1e-9)

    def row_is_due_without_val(self, position: int) -> bool:
        """Return whether an epoch has ended since the last row, in a run that evaluates no val."""
        if "val" in self.images:
            return False
        before = position - sum(updates for updates, _ in self._train)
        return position >= self.plan.updates or self._number(position) > self._number(before)

    def _mean(self, name: str, spec: str, unit: str = "") -> str:
        """Return a field's mean over the samples since the last row; empty if a line has none, or no finite one."""
        mean = weighted_mean(self._train, name)
        return "" if mean is None else format(mean, spec) + unit


def waiting_text(line: Mapping[str, Any]) -> list[str]:
    """Return what an update waits for, in parts.

    With several ranks: data, on the rank that waits least and on the one that waits most, and communication.
    """
    shares = [line.get(f"data_wait_fraction_{end}", line["data_wait_fraction"]) for end in ("min", "max")]
    low, high = (f"{share:.0%}" for share in shares)
    parts = [f"data wait {high if low == high else f'{low} to {high}'}"]
    if line.get("communication_fraction") is not None:
        parts.append(f"communication {line['communication_fraction']:.0%}")
    return parts


def heading(cells: Cells) -> str:
    """Return the names above a row."""
    return "  ".join(name.rjust(max(len(name), len(text))) for name, text in cells).rstrip()


def aligned_row(cells: Cells) -> str:
    """Return a row below its names."""
    return "  ".join(text.rjust(len(name)) for name, text in cells).rstrip()


def labelled_row(cells: Cells) -> str:
    """Return a row that needs no names above it."""
    return "  ".join(f"{name} {text.strip()}".strip() for name, text in cells if text.strip())
