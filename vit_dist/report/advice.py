"""What to try next: hints computed from a run, each with its evidence and the flag to set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vit_dist.config.values import Length
from vit_dist.report.command import meaning, train_command
from vit_dist.report.quality import Result, result_of, val_evaluations
from vit_dist.report.smoothing import end_of
from vit_dist.report.stability import instability
from vit_dist.run_folder.metrics import Floats, Line
from vit_dist.run_folder.record import RunRecord

MOST_HINTS = 5
# In percent: with such an accuracy there is nothing left to gain that a hint could promise.
GOOD_ENOUGH = 99.0
# Updates, and part of a run, after which a model has had its chance to learn; and updates below which a run is short.
ENOUGH_UPDATES, ENOUGH_OF_A_RUN, FEW_UPDATES = 100, 0.2, 400
# A training loss of so much of that of guessing is none that was learned from.
GUESSING = 0.95
# The largest part of the training images that one batch should hold.
BATCH_SHARE = 0.25
# Images below which weights trained on others pay, and the accuracy from which they are not missed.
FEW_FOR_SCRATCH, FINE_FROM_SCRATCH = 10_000, 95.0
# Overfitting: the rise of val's loss above its minimum, relative and absolute; or the gap in points of accuracy, less
# where the training images are known by heart.
LOSS_RISE, LOSS_RISE_ABSOLUTE, GAP, BY_HEART, GAP_BY_HEART = 0.10, 0.05, 10.0, 99.5, 3.0
# Still improving: the relative fall of val's loss over the last part of the run, with the best weights near its end.
STILL_FALLING, LAST_PART, NEAR_THE_END = 0.03, 0.25, 0.9
# Evaluations without which a trend cannot be told.
EVALUATIONS = 5
FEW_OF_A_CLASS, SMALL_VAL = 10, 100
# The largest class, in times the smallest; and the points of accuracy that rare classes cost.
UNBALANCED, UNBALANCED_POINTS = 5, 5.0
# The part of training time spent waiting for images, and the seconds of training from which it matters.
WAITING, WORTH_SECONDS = 0.2, 60.0


@dataclass(frozen=True)
class Hint:
    """One thing to try. text: what and why, in a sentence. evidence: the numbers. flag: to set; empty for none.

    command: to copy, with the flag; meaning: what the flag does, in half a sentence, or nothing.
    """

    text: str
    evidence: str
    flag: str = ""
    command: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class _Case:
    """What the rules look at. losses: the finite training losses."""

    run: RunRecord
    result: Result
    val: list[Line]
    losses: Floats
    finished: bool

    @property
    def may_gain(self) -> bool:
        return self.result.top1 < GOOD_ENOUGH or not self.result.is_above_baseline

    @property
    def updates(self) -> int:
        updates = self.run.metrics.train["update"]
        return int(updates[-1]) if len(updates) else 0

    @property
    def images(self) -> int:
        return int(self.run.start["plan"]["samples"])


def hints(run: RunRecord) -> list[Hint]:
    """Return at most five hints, those worth most first; none for a run that has not been evaluated yet."""
    result = result_of(run)
    if result is None:
        return []
    losses = run.metrics.train["loss"]
    finished = run.status.get("state") == "finished" or bool(run.summary)
    case = _Case(run, result, val_evaluations(run), losses[np.isfinite(losses)], finished)
    found = (rule(case) for rule in RULES)
    return [_with_command(hint, run) for hint in found if hint is not None][:MOST_HINTS]


def _with_command(hint: Hint, run: RunRecord) -> Hint:
    if not hint.flag:
        return hint
    return replace(hint, command=train_command(run.config, hint.flag), meaning=meaning(hint.flag))


def _learned_nothing(case: _Case) -> Hint | None:
    result, loss = case.result, end_of(case.losses)
    if case.updates < max(ENOUGH_UPDATES, ENOUGH_OF_A_RUN * case.run.start["plan"]["updates"]):
        return None
    guessing = math.log(len(result.classes)) if result.classes else math.inf
    if not result.is_above_baseline:
        found = f"{result.top1:.1f} % on {result.split} against {result.baseline:.1f} %"
    elif loss is not None and loss > GUESSING * guessing > 0:
        found = f"the training loss ends at {loss:.3g}; guessing gives {guessing:.3g}"
    else:
        return None
    lr = case.run.config.optimizer.lr
    return Hint(
        "The model has learned next to nothing: a lower learning rate often helps.",
        f"{found}, after {case.updates:,} updates at a rate of up to {lr:g}",
        f"--optimizer.lr {lr / 10:.2g}",
    )


def _rate_too_high(case: _Case) -> Hint | None:
    evidence = instability(case.run, case.updates)
    if evidence is None:
        return None
    lr = case.run.config.optimizer.lr
    return Hint("The learning rate looks too high: training is not stable.", evidence, f"--optimizer.lr {lr / 3:.2g}")


def _few_updates(case: _Case) -> Hint | None:
    planned, size = int(case.run.start["plan"]["updates"]), case.run.config.batch.global_size
    if not case.may_gain:
        return None
    if size > BATCH_SHARE * case.images:
        smaller = max(8, 1 << max(0, int(case.images / 16).bit_length() - 1))
        if smaller < size:
            return Hint(
                "The batch is large for so few images: a smaller one gives more updates in as many epochs.",
                f"{size} of {case.images:,} training images in each of {planned:,} updates",
                f"--batch.global_size {smaller}",
            )
    if planned < FEW_UPDATES:
        return Hint(
            "The run is short: it makes few updates.",
            f"{planned:,} updates of {size} images; most models need several hundred at least",
            f'--train.duration "{2 * FEW_UPDATES} updates"',
        )
    return None


def _from_scratch(case: _Case) -> Hint | None:
    config = case.run.config
    trained_before = config.model.pretrained or config.loss.teacher or config.data.source != "folder"
    fine = case.result.top1 >= FINE_FROM_SCRATCH and case.result.is_above_baseline
    if trained_before or case.images >= FEW_FOR_SCRATCH or fine:
        return None
    return Hint(
        "Fine-tune a model that has seen many images, in place of training one from scratch: with few images of your "
        "own this gains most.",
        f"{case.images:,} training images; {case.result.top1:.1f} % on {case.result.split} from scratch",
        "--model.pretrained timm",
    )


def _overfits(case: _Case) -> Hint | None:
    evidence = _overfitting(case)
    if evidence is None or not case.may_gain:
        return None
    return Hint("The model overfits: it learns its training images by heart.", evidence, _regularisation(case))


def _overfitting(case: _Case) -> str | None:
    val = [line for line in case.val if isinstance(line["loss"], float)]
    if len(val) < EVALUATIONS:
        return None
    losses = np.asarray([line["loss"] for line in val])
    lowest, end = int(losses.argmin()), float(np.median(losses[-3:]))
    rise = end - losses[lowest]
    if lowest < len(losses) - 3 and rise > max(LOSS_RISE * losses[lowest], LOSS_RISE_ABSOLUTE):
        return (
            f"val's loss was lowest, {losses[lowest]:.3g}, at epoch {val[lowest]['epoch']:.3g}, and ends at {end:.3g}; "
            f"the training loss ends at {end_of(case.losses):.3g}"
        )
    top1 = end_of(case.run.metrics.train["top1"])
    if top1 is not None and top1 - val[-1]["top1"] > (GAP_BY_HEART if top1 >= BY_HEART else GAP):
        return f"{top1:.1f} % on the training images, {val[-1]['top1']:.1f} % on val at the end"
    return None


def _regularisation(case: _Case) -> str:
    """Return flags of what the run does not use yet."""
    config = case.run.config
    flags = []
    if not (config.augment.mixup or config.augment.cutmix):
        flags.append("--augment.mixup 0.2")
    if not config.augment.auto and config.data.source == "folder":
        flags.append("--augment.auto 3a")
    if not config.train.ema:
        flags.append("--train.ema 0.999")
    if not flags:
        best = case.result.epoch
        flags.append(f'--train.duration "{max(1, round(best))} epochs"' if best else "--model.drop_path 0.2")
    return " ".join(flags[:2])


def _still_improving(case: _Case) -> Hint | None:
    val = [line for line in case.val if isinstance(line["loss"], float)]
    if not case.finished or not case.may_gain or len(val) < EVALUATIONS or _overfitting(case) or _few_updates(case):
        return None
    ended = val[-1]["epoch"]
    before = next(line for line in reversed(val) if line["epoch"] <= (1 - LAST_PART) * ended or line is val[0])
    best = next((line for line in reversed(val) if line["best"]), val[-1])
    if best["epoch"] < NEAR_THE_END * ended or val[-1]["loss"] > (1 - STILL_FALLING) * before["loss"]:
        return None
    length = Length.parse(case.run.config.train.duration)
    return Hint(
        "The model was still improving when the run ended: train it longer.",
        f"val's loss fell from {before['loss']:.3g} at epoch {before['epoch']:.3g} to {val[-1]['loss']:.3g} at epoch "
        f"{ended:.3g}, the end; accuracy from {before['top1']:.1f} to {val[-1]['top1']:.1f} %",
        f'--train.duration "{float(2 * length.amount):g} {length.unit}"',
    )


def _few_of_a_class(case: _Case) -> Hint | None:
    facts = case.run.facts
    if facts is None or not case.may_gain:
        return None
    counts = facts.counts["train"]
    few = np.flatnonzero(counts < FEW_OF_A_CLASS)
    if not len(few):
        return None
    rarest = few[np.argsort(counts[few], kind="stable")]
    names = ", ".join(f"{facts.classes[number]} {counts[number]}" for number in rarest[:3].tolist())
    return Hint(
        "Add training images of the rarest classes: nothing else will help them as much.",
        f"{len(few)} of {len(counts)} classes have fewer than {FEW_OF_A_CLASS}: {names}{' …' if len(few) > 3 else ''}",
    )


def _unbalanced(case: _Case) -> Hint | None:
    facts, figures = case.run.facts, case.result.figures
    if facts is None or figures is None or len(figures.support) != len(facts.classes):
        return None
    counts = facts.counts["train"]
    large, small = int(counts.argmax()), int(np.where(counts > 0, counts, counts.max()).argmin())
    lost = case.result.top1 - figures.balanced_accuracy
    if counts[large] < UNBALANCED * counts[small] or lost < UNBALANCED_POINTS:
        return None
    return Hint(
        "The classes are unbalanced and the rare ones are missed: add images of those, and judge by balanced accuracy.",
        f"{counts[large]:,} training images of {facts.classes[large]}, {counts[small]:,} of {facts.classes[small]}; "
        f"balanced accuracy {figures.balanced_accuracy:.1f} %, {lost:.1f} points below accuracy",
    )


def _small_val(case: _Case) -> Hint | None:
    seen = int(case.val[-1]["seen"]) if case.val else 0
    if not 0 < seen < SMALL_VAL or not case.may_gain:
        return None
    fraction = case.run.config.data.val_fraction
    held_out = abs(seen / (seen + case.images) - fraction) < 0.03
    text = "The validation set is too small to choose weights by, or to compare runs with: "
    evidence = f"{seen} image{'s' if seen > 1 else ''} in val, so one of them is {100 / seen:.1f} points"
    if held_out and fraction < 0.2:
        more = "hold out more. (A run with another val cannot be compared with this one.)"
        return Hint(text + more, evidence, "--data.val_fraction 0.2")
    return Hint(text + "add images to it.", evidence)


def _waits_for_data(case: _Case) -> Hint | None:
    train, config = case.run.metrics.train, case.run.config
    seconds = train["update_seconds"] * case.run.spans
    share = np.nan_to_num(np.fmax(train["data_wait_fraction"], train["data_wait_fraction_max"]))
    total = float(seconds.sum())
    waited = float((seconds * share).sum())
    if total < WORTH_SECONDS or waited < WAITING * total:
        return None
    evidence = f"{waited / total:.0%} of the training time went to waiting for images: {waited:,.0f} of {total:,.0f} s"
    facts, side = case.run.facts, config.data.image_size or 224
    if facts is not None and facts.sizes is not None and facts.sizes[1] >= 3 * side:
        text = f"The model waits for images: shrink the files once, to about {2 * side} pixels, or use more cores."
        return Hint(text, f"{evidence}; the median image has sides of {facts.sizes[1]:,} pixels, the model {side}")
    if config.data.workers == "auto":
        return Hint("The model waits for images: it needs more CPU cores, or cheaper augmentation.", evidence)
    more = f"--data.workers {2 * config.data.workers}" if config.data.workers else "--data.workers auto"
    return Hint("The model waits for images: read them with more workers.", evidence, more)


# In the order of their worth.
RULES: tuple[Callable[[_Case], Hint | None], ...] = (
    *(_learned_nothing, _rate_too_high, _from_scratch, _few_updates, _overfits, _still_improving),
    *(_few_of_a_class, _unbalanced, _small_val, _waits_for_data),
)
