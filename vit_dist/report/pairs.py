"""Report a run on images and captions: its figures, its best and worst pairs, similarities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vit_dist.formatting import loss_text
from vit_dist.report.curves import legend
from vit_dist.report.drawing import GREEN, INK, SERIES, literal, new_figure, short
from vit_dist.report.grids import Tile, draw_tiles
from vit_dist.report.quality import SMALL_SPLIT, best_evaluation, class_names, val_evaluations
from vit_dist.run_folder.figures import interval, margin
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.pair_figures import RECALLS, WAYS, ZERO_SHOT, is_of_pairs, top1_of
from vit_dist.run_folder.pairs import SavedPairs, ShownPair
from vit_dist.run_folder.record import RunRecord

CAPTIONS = {
    "zero_shot": "Zero-shot accuracy on val",
    "image_to_text": "Image→text recall on val: an image has one of its captions among the first k",
    "text_to_image": "Text→image recall on val: a caption has its image among the first k",
}
SIMILARITIES = "similarities"
_MARKED = 60
_LINES = 3  # of a caption below a picture


def of_pairs(run: RunRecord) -> bool:
    """Return whether a run is on images and captions."""
    return run.config.contrastive


def result_line(run: RunRecord) -> Line | None:
    """Return the evaluation that says most: that on test, else the best one on val; None without any."""
    weights = run.summary.get("weights", "raw")
    on_test = [line for line in run.evaluations("test", weights) if is_of_pairs(line)]
    best = best_evaluation(run)
    return on_test[-1] if on_test else best if best is not None and is_of_pairs(best) else None


def drawings(run: RunRecord) -> dict[str, Callable[[RunRecord], Figure]]:
    """Return the pictures of quality: file name → function that draws it."""
    found: dict[str, Callable[[RunRecord], Figure]] = {}
    lines = [line for line in val_evaluations(run) if is_of_pairs(line)]
    if lines:
        if any(line.get(ZERO_SHOT) is not None for line in lines):
            names = {ZERO_SHOT: "top-1", "zero_shot_top5": "top-5"}
            found["zero_shot"] = lambda run: _curves(lines, names, "zero-shot accuracy, %")
        for way in WAYS:
            found[way] = partial(_recall_curves, way, lines)
    if run.pairs is not None and len(run.pairs.sample) > 1:
        pairs = run.pairs
        found[SIMILARITIES] = lambda run: heat_map(pairs)
    return found


def _recall_curves(way: str, lines: list[Line], run: RunRecord) -> Figure:
    names = {f"{way}_recall_at_{k}": f"R@{k}" for k in RECALLS}
    return _curves(lines, names, f"recall, {WAYS[way]}, %")


def _curves(lines: list[Line], names: Mapping[str, str], label: str) -> Figure:
    """Draw figures of the evaluations of val over epochs, in percent, with the best evaluation marked."""
    figure, axes = new_figure()
    for number, (name, title) in enumerate(names.items()):
        known = [line for line in lines if line.get(name) is not None]
        if known:
            marker = "." if len(known) <= _MARKED else ""
            axes.plot(
                *([line[key] for line in known] for key in ("epoch", name)),
                color=SERIES[number],
                marker=marker,
                label=title,
                linewidth=1.8,
            )
    best = next((line for line in reversed(lines) if line["best"]), None)
    if best is not None:
        axes.axvline(best["epoch"], color=GREEN, linestyle=":", linewidth=1, label=f"best, epoch {best['epoch']:.4g}")
    axes.set(xlabel="epoch", ylabel=label)
    axes.set_xlim(0, None)
    axes.set_ylim(None, 101)
    legend(axes)
    return figure


def heat_map(pairs: SavedPairs) -> Figure:
    """Draw the cosines of a keyed sample of images, in rows, and their captions, in columns."""
    count = len(pairs.sample)
    figure, axes = new_figure(6.4, 6.4)
    picture = axes.imshow(np.nan_to_num(pairs.similarities), cmap="Blues")
    names = [literal(short(caption, 26)) for caption in pairs.sample_captions]
    axes.set_xticks(range(count), names, rotation=90, fontsize=7)
    axes.set_yticks(range(count), names, fontsize=7)
    for row in range(count):  # the caption that each image is most similar to
        best = int(np.argmax(pairs.similarities[row]))
        axes.plot(best, row, "o", color="white" if best == row else INK, markersize=3)
    axes.set(xlabel="caption", ylabel="image, by its caption")
    axes.grid(False)
    figure.colorbar(picture, ax=axes, shrink=0.6, label="cosine")
    return figure


def verdict(run: RunRecord) -> str:
    """Return in plain words how good the model is."""
    line = result_line(run)
    return "Not evaluated yet." if line is None else " ".join(_verdict_sentences(run, line))


def _verdict_sentences(run: RunRecord, line: Line) -> Iterator[str]:
    split, seen = line["split"], line["seen"]
    top1, classes = top1_of(line), len(class_names(run))
    if top1 is not None:
        bounds = interval(round(top1 * seen / 100), seen)
        yield f"Zero-shot, {top1:.1f} % of {split} are named right (±{margin(top1, bounds):.1f})" + (
            f"; guessing among {classes} classes gives {100 / classes:.1f} %." if classes > 1 else "."
        )
    firsts = [line[f"{way}_recall_at_1"] for way in WAYS]
    yield (
        f"Of {seen:,} images, {firsts[0]:.1f} % have a caption of theirs as the most similar one; of their captions, "
        f"{firsts[1]:.1f} % have an image of theirs as the most similar one."
    )
    if seen < SMALL_SPLIT:
        yield f"{split.capitalize()} is small: {seen} images."
    if split == "val" and line["best"]:
        yield "The same images chose the best weights, so expect a little less on new ones."


def headline(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return the numbers at the top: (value, name, more)."""
    line = result_line(run)
    if line is None:
        return []
    shown, on = [], f"on {line['split']}"
    for name, title in ((ZERO_SHOT, "zero-shot top-1"), ("zero_shot_top5", "zero-shot top-5")):
        if line.get(name) is not None:
            shown.append((f"{line[name]:.2f} %", title, on))
    for way, title in WAYS.items():
        rest = ", ".join(
            f"R@{k} {line[f'{way}_recall_at_{k}']:.1f}" for k in RECALLS[1:] if line[f"{way}_recall_at_{k}"] is not None
        )
        shown.append((f"{line[f'{way}_recall_at_1']:.2f} %", f"{title} R@1", rest or on))
    shown.append((loss_text(line["loss"]), f"loss {on}", f"of update {line['weights_update']:,}"))
    return shown


def pair_tiles(pairs: SavedPairs) -> tuple[list[Tile], list[Tile]]:
    """Return the best pairs, and the worst with the caption that the model takes them for."""
    best, worst = pairs.shown()
    return (
        [Tile(pair.picture, _text(pair.caption, pair.similarity), True, path=pair.path) for pair in best],
        [_wrong_tile(pair) for pair in worst],
    )


def _wrong_tile(pair: ShownPair) -> Tile:
    return Tile(
        pair.picture,
        _text(pair.wrong, pair.wrong_similarity),
        False,
        f"{_text(pair.caption, pair.similarity)}, place {pair.rank + 1:,}",
        pair.path,
        "/".join(Path(pair.path).parts[-2:]),
    )


def _text(caption: str, similarity: float) -> str:
    return f"{caption} ({similarity:.2f})"


def write_grids(run: RunRecord, out: Path) -> None:
    """Write best_pairs.png and worst_pairs.png, if there are any. Raises OSError."""
    if run.pairs is not None:
        for name, tiles in zip(("best_pairs", "worst_pairs"), pair_tiles(run.pairs), strict=True):
            if tiles:
                draw_tiles(out / f"{name}.png", tiles, lines=_LINES)


def values(run: RunRecord, charts: Callable[[Mapping[str, str]], dict[str, Any]]) -> dict[str, Any]:
    """Return what pairs.html shows of quality; charts: captions by file name → pictures."""
    best, worst = pair_tiles(run.pairs) if run.pairs is not None else ([], [])
    return {
        "verdict": verdict(run),
        "headline": headline(run),
        "retrieval": charts(CAPTIONS),
        "best_pairs": best,
        "worst_pairs": worst,
        "similarities": charts({SIMILARITIES: "Cosines of a sample of images (rows) and their captions (columns)"}),
    }
