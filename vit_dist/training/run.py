"""Train a run from start to end: `train`, and the `Run` it returns."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vit_dist.checkpointing import checkpoint
from vit_dist.checkpointing.folder import pointed_to
from vit_dist.checkpointing.state import Best
from vit_dist.config.config import Config
from vit_dist.data.preprocessing import Preprocessing
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError, one_line
from vit_dist.files import read_json, write_json
from vit_dist.inference.load import default_weights, load_run_model
from vit_dist.models.forward import at_least_float32, eval_mode
from vit_dist.run_folder.metrics import Line, position_fields, read_metrics
from vit_dist.run_folder.predictions import TOP_K
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console
from vit_dist.training.loop import loop
from vit_dist.training.resume import Resumption, decide
from vit_dist.training.setup import setup
from vit_dist.training.summary import print_summary, summarise
from vit_dist.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """What `train` leaves. stopped: a signal asked it to, and there is no summary yet. history: the lines of
    metrics.jsonl that count. summary: that of summary.json. model: with the best weights."""

    folder: Path
    stopped: bool
    history: list[Line]
    best: Best | None
    summary: dict[str, Any]
    model: nn.Module
    preprocessing: Preprocessing

    def report(self) -> Path:
        """Draws the run's report anew, in its folder; the page."""
        from vit_dist.report.page import write_report

        return write_report(self.folder)

    def predict(self, images: NDArray[np.uint8] | Tensor, batch_size: int = 256) -> Tensor:
        """Probabilities [n, classes] of uint8 images [n, channels, height, width], by the best weights.

        Sides other than the model's are resized to it. Raises ValueError for images of another kind.
        """
        pixels = torch.as_tensor(images) if isinstance(images, (np.ndarray, Tensor)) else torch.empty(0)
        channels = len(self.preprocessing.mean)
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] != channels or not len(pixels):
            found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
            raise ValueError(f"images: uint8 [n, {channels}, height, width] with n above 0, not {found}")
        device = next(self.model.parameters()).device
        with eval_mode(self.model):
            parts = [
                at_least_float32(self.model(self.preprocessing.normalise(part.to(device))))
                for part in torch.split(pixels, batch_size)
            ]
            return torch.cat(parts).softmax(1).cpu()


def train(config: Config, model: nn.Module | None = None, source: LabelledSplits | None = None) -> Run:
    """Trains, or goes on where the config's folder left off; a finished run is returned as it is.

    model: instead of the config's, its weights the start. source: instead of the config's data.
    Raises UserError (a ValueError) for a person's mistake, never exits, restores signal handlers.
    """
    resumption = decide(config)
    if resumption.finished:
        return _finished_before(config, resumption, model)
    found = resumption.checkpoint
    precision = config.train.precision
    if precision == "auto" and found is not None:
        precision = found.state["precision"]
    if config.log.level == "debug":
        logging.basicConfig(level=logging.DEBUG)
        for chatty in ("matplotlib", "PIL"):
            logging.getLogger(chatty).setLevel(logging.INFO)
    runtime = Runtime(config.run, precision)
    try:
        position = found.position if found else None
        if runtime.broadcast(position) != position:
            raise UserError(f"run.dir: {config.folder} must be on storage that all machines share")
        console = Console(speaks=runtime.is_main, level=config.log.level)
        with runtime.stop_signals():
            run = _run(setup(config, runtime, console, resumption, model, source))
    finally:
        runtime.end()
    if runtime.is_main and not run.stopped:
        print_summary(console, run.folder, run.summary, _drawn(run, console) if config.log.report else None)
    return run


def _drawn(run: Run, console: Console) -> Path | None:
    """The run's report. The process group has ended, and nothing that happens here makes a finished run fail."""
    try:
        return run.report()
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"report: {type(error).__name__}: "
        console.note(f"{kind}{one_line(error, 200)}")
        return None


def _run(session: Trainer) -> Run:
    """From a built session to a finished or stopped run; its status says how it ended."""
    try:
        session.write_status("running")
        session.keep_inputs()
        session.console.start(session.plan, session.state.position)
        finished = loop(session)
        session.console.stop()
        summary = _finish(session) if finished else {}
        session.record(
            "stop", {**position_fields(session.plan, session.state.position), "reason": _reason(session, finished)}
        )
        session.write_status("finished" if finished else "stopped")
        if not finished:
            session.console.note(f"stopped at update {session.state.position}; the same command goes on from there")
        return Run(
            session.folder,
            not finished,
            session.history,
            session.state.best,
            summary,
            session.module,
            session.preprocessing,
        )
    except BaseException as error:
        session.write_status("failed", one_line(f"{type(error).__name__}: {error}"))
        raise
    finally:
        session.close()


def _finish(session: Trainer) -> dict[str, Any]:
    """The test split, once, on the best weights (the last where none were chosen), and the summary."""
    state, config = session.state, session.config
    weights = state.best.weights if state.best else default_weights(config)
    best_path = pointed_to(session.checkpoints, "best")
    average = session.updater.average
    if state.best is not None and best_path is not None:
        chosen = checkpoint.open_checkpoint(best_path)
        chosen.load_model(session.module)
        if average is not None:
            chosen.load_average(average, session.module)
    of = state.best.update if state.best is not None else state.position
    test, predictions = None, None
    if "test" in session.evaluations:
        results = session.evaluate("test", keep=weights)
        session.report("test", results, of)
        predictions = results[weights].predictions
        test = {name: getattr(results[weights], name) for name in ("loss", "top1", "top5")}
    if average is not None and weights == "ema":
        average.swap()
    if test is None and "val" in session.evaluations:
        predictions = session.one_pass("val", TOP_K).predictions
    if predictions is not None:
        session.keep_predictions("val" if test is None else "test", weights, of, predictions)
    summary = summarise(session, weights, test)
    session.trackers.summarise(summary)
    if session.runtime.is_main:
        write_json(session.folder / "summary.json", summary)
    return summary


def _finished_before(config: Config, resumption: Resumption, model: nn.Module | None) -> Run:
    folder, last = config.folder, resumption.checkpoint
    assert last is not None
    summary = read_json(folder / "summary.json")
    console = Console(speaks=os.environ.get("RANK", "0") == "0", level=config.log.level)
    console.say(f"{folder}: this run has finished; longer: --run.dir {folder} and a longer --train.duration")
    page, ended = folder / "report" / "index.html", (folder / "summary.json").stat().st_mtime
    drawn = page.is_file() and page.stat().st_mtime >= ended
    print_summary(console, folder, summary, page if drawn else None)
    best = Best(**summary["best"]) if summary["best"] else None
    found = load_run_model(folder, "run.dir", model)
    return Run(folder, False, read_metrics(folder / "metrics.jsonl"), best, summary, found.model, found.preprocessing)


def _reason(session: Trainer, finished: bool) -> str:
    if not finished:
        return "asked to stop"
    return "finished" if session.state.position >= session.plan.updates else "out of patience"
