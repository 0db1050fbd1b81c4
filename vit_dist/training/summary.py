"""The summary of a finished run: summary.json and its printed form."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vit_dist.files import json_number
from vit_dist.formatting import duration, loss_text, weights_text
from vit_dist.run_folder.figures import figures_of, margin
from vit_dist.run_folder.goodput import goodput, running_seconds, seconds_by_use
from vit_dist.run_folder.metrics import Line, read_written
from vit_dist.run_folder.pair_figures import MEAN_RECALL, PAIR_FIGURES, ZERO_SHOT, figures_text, is_of_pairs, top1_of
from vit_dist.run_folder.predictions import Predictions
from vit_dist.run_folder.record import read_run
from vit_dist.telemetry.console import Console
from vit_dist.training.trainer import Trainer


def summarise(
    trainer: Trainer, weights: str, test: dict[str, Any] | None, predictions: Predictions | None
) -> dict[str, Any]:
    """Return the content of summary.json. weights: those that `test` and `final` are of (raw or ema).

    predictions: for test, or for val if there is no test.
    """
    components, state, runtime = trainer.components, trainer.state, trainer.runtime
    plan, history = components.plan, trainer.recorder.history
    evaluations = [line for line in history if line["kind"] == "eval"]
    on_val = [line for line in evaluations if line["split"] == "val" and line["weights"] == weights]
    rates = [line["samples_per_second"] for line in history if line["kind"] == "train"]
    seconds, samples = state.train_seconds, plan.samples_at(state.position)
    times = np.asarray([*(line["time"] for line in history), time.time()])
    starts = np.asarray([line["time"] for line in history if line["kind"] == "start"])
    total = max(running_seconds(times, starts), 1e-9)
    try:
        by_use = seconds_by_use(read_written(trainer.folder / "metrics.jsonl"), time.time())
    except OSError:
        by_use = seconds_by_use(history, time.time())
    return {
        "device": runtime.device_name,
        "world_size": runtime.world_size,
        "precision": runtime.precision,
        "parameters": components.parameters,
        "updates": state.position,
        "planned_updates": plan.updates,
        "skipped_updates": state.skipped_updates,
        "epochs": samples / plan.samples,
        "train_seconds": seconds,
        "evaluate_seconds": sum(line["seconds"] for line in evaluations),
        "save_seconds": sum(line["stall_seconds"] for line in history if line["kind"] == "save"),
        "total_seconds": total,
        "seconds_per_epoch": seconds * plan.samples / samples,
        "samples_per_second": samples / seconds if seconds else None,
        "median_samples_per_second": float(np.median(rates)) if rates else None,
        "weights": weights,
        "best": asdict(state.best) if state.best else None,
        "best_epoch": plan.samples_at(state.best.update) / plan.samples if state.best else None,
        "final": results_of(on_val[-1]) if on_val else None,
        "test": {**test, "loss": json_number(test["loss"])} if test else None,
        "figures": {"split": "test" if test else "val", **figures_of(predictions, len(components.data.classes)).brief()}
        if predictions is not None
        else None,
        "profile": _profile(history),
        "peak_memory_bytes": runtime.peak_memory_bytes(),
        "seconds": by_use,
        "goodput": goodput(by_use),
    }


def results_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loss and the figures of an evaluation: its accuracies, or those of images and captions."""
    names = PAIR_FIGURES if is_of_pairs(values) else ("top1", "top5")
    return {name: values[name] for name in ("loss", *names) if name in values}


def _profile(history: Sequence[Line]) -> Line | None:
    """Return where the time of the updates profiled last went, if any were."""
    lines = [line for line in history if line["kind"] == "profile"]
    return {name: value for name, value in lines[-1].items() if name not in ("kind", "time")} if lines else None


def print_summary(console: Console, folder: Path, summary: dict[str, Any], report: Path | None) -> None:
    """Print the result of a finished run, where its files are, its report's path if it has one, and what to do next."""
    best, test, skipped = summary["best"], summary["test"], summary.get("skipped_updates")
    early = summary["planned_updates"] - summary["updates"]
    which = f"{'best' if best else 'last'} {weights_text(summary['weights'])}"
    console.say(f"finished{f': {result}' if (result := result_text(summary)) else ''}", "bold green")
    rows = {
        "trained": f"{summary['epochs']:.4g} epochs in {duration(summary['train_seconds'])} "
        f"({summary['seconds_per_epoch']:.1f} s an epoch, {summary['samples_per_second']:,.0f} images/s)"
        + (f"; out of patience {early} updates early" if early > 0 else ""),
        "time": f"{duration(summary['total_seconds'])} in all; evaluation {duration(summary['evaluate_seconds'])}, "
        f"saving {duration(summary['save_seconds'])}",
    }
    if "seconds" in summary:  # not in those of earlier versions
        rows["useful"] = _goodput_text(summary)
    if skipped:
        rows["skipped"] = f"{skipped} update{'s' if skipped > 1 else ''} whose loss or gradient was not finite"
    if best:
        value = f"{best['value']:.4g}" if best["metric"].endswith("loss") else f"{best['value']:.2f} %"
        rows["best"] = f"{best['metric']} {value} on val at update {best['update']}" + (
            (f" (epoch {summary['best_epoch']:.4g})" if summary.get("best_epoch") is not None else "")
            + (", EMA weights" if summary["weights"] == "ema" else "")
        )
    if test:
        figures = figures_text(test) if is_of_pairs(test) else f"top1 {test['top1']:.2f} %"
        rows["test"] = f"{figures}, loss {loss_text(test['loss'])}, of the {which}"
    rows["memory"] = f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB at most"
    rows["results"] = str(folder)
    if report is not None:
        rows["report"] = f"{report}: open it in a browser"
    console.table(rows)
    console.say("next", "bold")
    for line in _first_hint(folder) if report is not None else ():
        console.say(line)
    quoted = shlex.quote(str(folder))
    console.table(
        {
            **_predict_hint(quoted, of_pairs=is_of_pairs(test or summary.get("final") or {})),
            f"vit-dist report {quoted}": "draw the report again",
            f"vit-dist export {quoted} model.onnx": "a file for other programs",
        }
    )


def _predict_hint(run: str, *, of_pairs: bool) -> dict[str, str]:
    if of_pairs:
        return {f"vit-dist predict {run} IMAGE … --labels TEXTS": "rank texts for images of your own"}
    return {f"vit-dist predict {run} IMAGE …": "classify images of your own"}


def _first_hint(folder: Path) -> list[str]:
    """Return the report's first hint and its command, as lines; an error here must not make a finished run fail."""
    from vit_dist.report.advice import hints

    with contextlib.suppress(Exception):
        if found := hints(read_run(folder)):
            return [f"  {found[0].text}", *([f"    {found[0].command}"] if found[0].command else [])]
    return []


def current_report(folder: Path) -> Path | None:
    """Return the page of a finished run's report, if it was drawn after the run had finished."""
    page = folder / "report" / "index.html"
    drawn = page.is_file() and page.stat().st_mtime >= (folder / "summary.json").stat().st_mtime
    return page if drawn else None


def result_text(summary: dict[str, Any]) -> str:
    """Return the accuracy with how far chance may move it: `97.2 % on test (±1.1)`; nothing if it is not known."""
    figures, test, best = summary.get("figures"), summary["test"], summary["best"] or {}
    if test and top1_of(test) is None:
        return f"{test[MEAN_RECALL]:.1f} % mean recall at 1 on test"
    if test:
        split, top1 = "test", float(top1_of(test) or 0.0)
    elif best.get("metric") in ("top1", "raw_top1", ZERO_SHOT, f"raw_{ZERO_SHOT}"):
        split, top1 = "val", best["value"]
    elif best.get("metric") in (MEAN_RECALL, f"raw_{MEAN_RECALL}"):
        return f"{best['value']:.1f} % mean recall at 1 on val"
    else:
        return ""
    chance = f" (±{margin(top1, figures['top1_interval']):.1f})" if figures and figures["split"] == split else ""
    return f"{top1:.1f} % on {split}{chance}"


def _goodput_text(summary: dict[str, Any]) -> str:
    """Return the part of the time that went to updates, and what most of the rest went to."""
    seconds = {use: value for use, value in summary["seconds"].items() if use not in ("updates", "downtime")}
    lost = sorted(seconds.items(), key=lambda item: -item[1])[:3]
    rest = ", ".join(f"{use} {duration(value)}" for use, value in lost if value >= 0.05)
    down = summary["seconds"]["downtime"]
    return (
        f"{summary['goodput']:.0%} of the time was updates"
        + (f"; {rest}" if rest else "")
        + (f"; down for {duration(down)} between starts" if down >= 1 else "")
    )
