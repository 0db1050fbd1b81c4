"""Which of several runs is the best, and whether the others differ from it by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_dist.formatting import loss_text
from vit_dist.report.differences import data_names, same_data, same_images
from vit_dist.report.measures import run_figures
from vit_dist.run_folder.figures import Interval, Paired, interval, paired
from vit_dist.run_folder.pair_figures import top1_of
from vit_dist.run_folder.record import RunRecord, best_line

BEYOND, WITHIN = "beyond noise", "within noise"


@dataclass(frozen=True)
class Accuracy:
    """A run's accuracy on a split in percent, and its 95 % interval."""

    split: str
    top1: float
    bounds: Interval

    def __str__(self) -> str:
        """Return the accuracy with its interval in words."""
        return f"{self.top1:.2f} % ({self.bounds[0]:.1f} to {self.bounds[1]:.1f})"


@dataclass(frozen=True)
class Difference:
    """The accuracies of the best run and of another one on a split.

    on_same: what was found on the same `images` images, if the predictions of both were kept.
    """

    best: Accuracy
    other: Accuracy
    on_same: Paired | None
    images: int

    @property
    def points(self) -> float:
        """Percentage points by which the other one is above the best."""
        return self.other.top1 - self.best.top1

    @property
    def beyond_noise(self) -> bool:
        """Return whether chance would hardly make the difference: by the same images, else if no interval overlaps."""
        if self.on_same is not None:
            return self.on_same.differs
        return self.best.bounds[0] > self.other.bounds[1] or self.other.bounds[0] > self.best.bounds[1]

    @property
    def kind(self) -> str:
        """How the other one is: better, worse or, within noise, noise."""
        return ("better" if self.points > 0 else "worse") if self.beyond_noise else "noise"

    def __str__(self) -> str:
        """Return the difference in points, and whether it is noise."""
        if not self.points:
            return "no difference"
        points = f"{self.points:+.2f}".replace("-", "\u2212")
        return f"{points} points, {BEYOND if self.beyond_noise else WITHIN}"


def ranked(runs: Sequence[RunRecord]) -> list[int]:
    """Return the places of runs, best first: by their best value on val, else by accuracy on val, else on test.

    Of equal ones, the run with the lower loss there comes first.
    """
    best = [run_figures(run).best for run in runs]
    metrics = {each["metric"] for each in best if each}

    def key(place: int) -> tuple[bool, float, float]:
        line, known = best_line(runs[place]), best[place]
        loss = float(line["loss"]) if line else 0.0
        if known and len(metrics) == 1:
            return False, known["value"] if known["metric"].endswith("loss") else -known["value"], loss
        known_accuracy = accuracy(runs[place], "val" if metrics else "test")
        return known_accuracy is None, -known_accuracy.top1 if known_accuracy else 0.0, loss

    return sorted(range(len(runs)), key=key)


def accuracy(run: RunRecord, split: str) -> Accuracy | None:
    """Return a run's accuracy on test, or that of its best evaluation on val; None if it is not known."""
    if split == "test":
        figures = run_figures(run)
        if figures.test_top1 is None or figures.test_interval is None:
            return None
        return Accuracy(split, figures.test_top1, figures.test_interval)
    line = best_line(run)
    top1 = None if line is None or not line["seen"] else top1_of(line)
    if line is None or top1 is None:
        return None
    return Accuracy(split, top1, interval(round(top1 * line["seen"] / 100), line["seen"]))


def difference(best: RunRecord, other: RunRecord) -> Difference | None:
    """Compare another run with the best one on test, or on val if one has no test; None if neither is known."""
    if not same_data(best, other):
        return None
    for split in ("test", "val"):
        one, two = accuracy(best, split), accuracy(other, split)
        if one is not None and two is not None:
            kept = [run.predictions for run in (best, other) if run.predictions is not None]
            if len(kept) == 2 and all(each.metadata["split"] == split for each in kept):
                return Difference(one, two, paired(*(each.predictions for each in kept)), len(kept[0].predictions))
            return Difference(one, two, None, 0)
    return None


def verdict(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return which run is the best and whether that is more than chance, for runs in the order of `ranked`."""
    sentences = [_unfinished(runs, names)]
    data = data_names(runs)
    if len(set(data)) > 1 and all(same_images(runs[0], run) for run in runs):
        sentences.append(
            "The same images, but not the same ones of them held out as val: the figures say nothing of which run is "
            "better. Compare them on images that none was trained on: vit-dist evaluate RUN --folder DIR."
        )
        return " ".join(filter(None, sentences))
    if len(set(data)) > 1:
        kinds = {kind: [name for name, other in zip(names, data, strict=True) if other == kind] for kind in data}
        listed = "; ".join(f"{kind}: {', '.join(members)}" for kind, members in kinds.items())
        sentences.append(f"These runs are on different data ({listed}): their figures say nothing of which is better.")
        return " ".join(filter(None, sentences))
    best = names[0]
    compared = difference(runs[0], runs[1])
    if tie := _tie(runs, names):
        sentences.append(tie)
        compared = None if compared is not None and compared.best.split == "val" else compared
    elif (evaluated := run_figures(runs[0]).best) is not None:
        sentences.append(
            f"{best} is the best of {len(runs)}, by {evaluated['metric']} on val: {value_text(evaluated)}."
        )
    elif (known := accuracy(runs[0], "test")) is not None:
        sentences.append(f"{best} is the best of {len(runs)}, on test: {known}.")
    else:
        sentences.append("None of the runs has been evaluated yet.")
    if compared is not None:
        sentences.append(_sentence(compared, best if tie else "it", best, names[1]))
    return " ".join(filter(None, sentences))


def _tie(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Return that the best two runs have the same value on val, and which has the lower loss; empty if they do not."""
    one, two = (run_figures(run).best for run in runs[:2])
    if one is None or two is None or (one["metric"], one["value"]) != (two["metric"], two["value"]):
        return ""
    which = "Both reach" if len(runs) == 2 else f"{names[0]} and {names[1]} are the best of {len(runs)}, both with"
    lines = [best_line(run) for run in runs[:2]]
    losses = [float(line["loss"]) for line in lines if line is not None]
    lower = f"; {names[0]} has the lower loss" if losses[0] < losses[1] else ""
    name = "" if one["metric"].endswith("top1") else f"{one['metric']} "
    return f"{which} {name}{value_text(one)} on val: no difference{lower}."


def _unfinished(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    unfinished = [name for name, run in zip(names, runs, strict=True) if not run.summary]
    return f"Not finished yet, so shown as far as it went: {', '.join(unfinished)}." if unfinished else ""


def _sentence(compared: Difference, subject: str, best: str, second: str) -> str:
    """Return whether the best run and the second differ by more than chance, and by what that is told."""
    one, two, on_same = compared.best, compared.other, compared.on_same
    if on_same is None:
        overlap = "do not overlap: more than chance" if compared.beyond_noise else "overlap: it may be chance"
        return f"On {one.split} {subject} has {one}, {second} {two}: the 95 % intervals {overlap}."
    chance = "more than chance would make" if on_same.differs else "a difference that chance alone could make"
    return (
        f"On {one.split} {subject} has {one.top1:.2f} %, {second} {two.top1:.2f} %: of the same {compared.images:,} "
        f"images, {best} alone is right on {on_same.only_first:,}, {second} alone on {on_same.only_second:,}, {chance} "
        f"(McNemar's test, p = {on_same.p:.2g})."
    )


def value_text(best: Mapping[str, Any]) -> str:
    """Return the value of a best evaluation with its unit."""
    return loss_text(best["value"]) if best["metric"].endswith("loss") else f"{best['value']:.2f} %"
