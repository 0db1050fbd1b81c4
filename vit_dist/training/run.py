"""Train a run from start to end."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit_dist.checkpointing.state import Best
from vit_dist.config.config import Config, check_config
from vit_dist.config.values import parse_seconds
from vit_dist.errors import PeerError, UserError, described, one_line
from vit_dist.files import json_values, read_json, write_json
from vit_dist.inference.load import default_weights, load_run_model
from vit_dist.inference.open_model import as_model
from vit_dist.run_folder.metrics import read_history
from vit_dist.runtime.devices import resolve_device
from vit_dist.runtime.flags import Stopped
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.recorder import Callback, check_callbacks
from vit_dist.training.artifacts import save_evaluation, save_inputs, trained_model
from vit_dist.training.bad_update import check_finite, diverged, without_answers
from vit_dist.training.best import load_best
from vit_dist.training.claim import lock_run
from vit_dist.training.handshake import check_same_samples, check_same_start
from vit_dist.training.loop import loop
from vit_dist.training.resolve import find_start, resolve
from vit_dist.training.result import Run
from vit_dist.training.resume import ResumePoint
from vit_dist.training.setup import setup
from vit_dist.training.summary import current_report, print_summary, results_of, summarise
from vit_dist.training.trainer import Trainer
from vit_dist.training.update import DivergedError


def train(
    config: Config,
    model: nn.Module | None = None,
    source: Any = None,
    *,
    on_update: Callback | None = None,
    on_evaluation: Callback | None = None,
    trust_code: bool = False,
    console: Console | None = None,
) -> Run:
    """Train, or resume the run in the config's folder; a finished run is returned as it is.

    model: used in place of the config's model, from the weights that it has. source: used in place of the config's
    data: (images, labels), a torch Dataset, a listing or table of files, any object with __len__(), labels and
    image(index), or a dictionary of splits of these; docs/python.md has all of them. on_update, on_evaluation: called
    on rank 0 with the lines of metrics.jsonl that are written every `log.every` updates, and after evaluations.
    trust_code: run a function that the run of the config's teacher names as its model. console: prints, in place of
    one for the standard output. Raises UserError (a ValueError) for a mistake of the user's, never exits, restores
    signal handlers.
    """
    check_config(config)
    callbacks = check_callbacks(on_update=on_update, on_evaluation=on_evaluation)
    if config.log.level == "debug":
        logging.basicConfig(level=logging.DEBUG)
        for chatty in ("matplotlib", "PIL"):
            logging.getLogger(chatty).setLevel(logging.INFO)
    runtime = Runtime(config.run, None)
    console = console or Console(speaks=runtime.is_main, level=config.log.level, may_fail=True)
    try:
        with runtime.flags.on_signals(), runtime.together():
            run, finished_before = _start(
                config, runtime, console, model, source, callbacks=callbacks, trust_code=trust_code
            )
    finally:
        console.stop()
        runtime.end()
    if runtime.is_main and not run.stopped:
        page = current_report(run.folder) if finished_before else None
        if page is None and config.log.report:  # a process that was killed at its end has not drawn it
            page = _write_report(run, console)
        print_summary(console, run.folder, run.summary, page)
    return run


def _start(
    config: Config,
    runtime: Runtime,
    console: Console,
    model: nn.Module | None,
    source: Any,
    *,
    callbacks: Mapping[str, Callback],
    trust_code: bool,
) -> tuple[Run, bool]:
    """Train from where the run's folder says; return the run, and whether it had finished before."""
    runtime.flags.raises = True
    runtime.flags.limit(parse_seconds(config.run.time_limit) or math.inf)
    console.phase("opening the data")
    check_same_start(config, runtime)
    resolved = resolve(config, source, runtime)
    check_same_samples(config, resolved.data, resolved.samples, runtime)
    lock = lock_run(resolved.config.folder, runtime)
    try:
        resolved, resume = find_start(resolved, runtime)
        config = resolved.config
        if resume.finished:
            return _finished_before(config, resume, console, model), True
        if lock is None and resume.checkpoint_in_folder and runtime.is_main:
            raise UserError(f"run.dir: {config.folder} cannot be written to, and its run has not finished: set another")
        runtime.use_precision(resume.precision(config), config.run.device)
        trainer = setup(resolved, runtime, console, resume, lock, model, trust_code=trust_code)
        lock = None  # the trainer's
        if runtime.is_main:
            trainer.recorder.callbacks = callbacks
    finally:
        if lock is not None:
            lock.release()
    return _run(trainer), False


def _write_report(run: Run, console: Console) -> Path | None:
    """Write the run's report. The process group has ended: an error here must not make a finished run fail."""
    console.phase("drawing the report")
    try:
        return run.report()
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"report: {type(error).__name__}: "
        console.note(f"{kind}{one_line(error, 200)}")
        return None
    finally:
        console.stop()


def _run(trainer: Trainer) -> Run:
    """Run a trainer until it has finished or is stopped, and write to status.json how it ended."""
    summary: dict[str, Any] = {}
    finished = interrupted = False
    # Of several ranks, one that stops by itself would leave the others: from here on they agree on it.
    trainer.runtime.flags.raises = trainer.runtime.world_size == 1
    if trainer.runtime.watch is not None:
        trainer.runtime.watch.on_end = partial(_tell_end, trainer)
    try:
        with contextlib.suppress(Stopped):
            trainer.write_status("running")
            save_inputs(trainer)
            images = {name: stream.length for name, stream in trainer.evaluation_streams.items()}
            ema = trainer.updater.average is not None
            trainer.console.start(trainer.components.plan, trainer.state.position, images, ema=ema)
            trainer.runtime.flags.raises = False
            if _make_updates(trainer):
                summary = _finish(trainer)
                finished = True
        trainer.console.stop()
        trainer.recorder.record("stop", trainer.state.position, {"reason": _reason(trainer, finished)})
        trainer.write_status("finished" if finished else "stopped")
        if not finished:
            where = f"update {trainer.state.position:,} of {trainer.components.plan.updates:,}"
            trainer.console.note(f"stopped at {where}; nothing is lost: the same command goes on from there")
        return Run(
            trainer.folder,
            not finished,
            trainer.recorder.history,
            trainer.state.best,
            summary,
            as_model(trained_model(trainer, finished=finished), trainer.runtime.device),
            trainer.components.preprocessing,
        )
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        cause = trainer.runtime.cause(error)
        trainer.write_status(
            "failed", described(cause, 2000), speaks=isinstance(cause, PeerError) and bool(cause.speaks)
        )
        if cause is error:
            raise
        raise cause from None
    finally:
        trainer.close(wait=not interrupted)


def _tell_end(trainer: Trainer, reason: str) -> None:
    """Write to status.json why this process is about to be ended while it waits for another."""
    trainer.console.stop()
    trainer.write_status("failed", one_line(reason), speaks=True)


def _make_updates(trainer: Trainer) -> bool:
    """Make all updates. Return False if the run was stopped. Raises ModelError if it ends with no usable model."""
    try:
        finished = loop(trainer)
    except DivergedError:
        raise diverged(trainer) from None
    trainer.console.stop()
    if finished:
        check_finite(trainer)
    return finished


def _finish(trainer: Trainer) -> dict[str, Any]:
    """Evaluate test once, with the best weights or, if none were chosen, the last; write and return the summary."""
    state, average = trainer.state, trainer.updater.average
    load_best(trainer)
    weights = state.best.weights if state.best else default_weights(trainer.components.config)
    update = state.best.update if state.best is not None else state.position
    test, evaluated = None, None
    if "test" in trainer.evaluation_streams:
        results = trainer.evaluate_split("test", keep=weights)
        trainer.record_evaluations("test", results, update)
        if state.best is None and not math.isfinite(results[weights].loss):
            raise without_answers(trainer, f"the loss on test of the last weights is {results[weights].loss}")
        evaluated = results[weights]
        test = results_of(evaluated.to_dict())
    if average is not None and weights == "ema":
        average.swap()
    if test is None and "val" in trainer.evaluation_streams:
        evaluated = trainer.evaluate_weights("val")
    predictions = save_evaluation(trainer, "val" if test is None else "test", weights, update, evaluated)
    summary = summarise(trainer, weights, test, predictions)
    trainer.recorder.trackers.summarise(summary)
    if trainer.runtime.is_main:
        path = trainer.folder / "summary.json"
        trainer.recorder.outputs.write(path, lambda: write_json(path, json_values(summary)))
    return summary


def _finished_before(config: Config, resume: ResumePoint, console: Console, model: nn.Module | None) -> Run:
    """Open a run that has already finished."""
    folder = config.folder
    summary = read_json(folder / "summary.json")
    longer = f", and was made longer: {resume.duration}" if resume.duration else ""
    quoted = shlex.quote(str(folder))
    console.say(f"{folder}: finished before{longer}; to go on: --run.dir {quoted} and a longer --train.duration")
    for note in resume.notes:
        console.note(note)
    best = Best(**summary["best"]) if summary["best"] else None
    trained = load_run_model(folder, "run.dir", model, named=config.model.name)
    for note in trained.notes:
        console.note(note)
    history, problem = read_history(folder / "metrics.jsonl")
    if problem:
        console.note(problem)
    ready = as_model(trained, torch.device(resolve_device(config.run.device)))
    return Run(folder, False, history, best, summary, ready, trained.preprocessing)


def _reason(trainer: Trainer, finished: bool) -> str:
    """Return why the run ends, for its `stop` line."""
    if not finished:
        return f"asked to stop ({trainer.runtime.flags.reason})"
    return "finished" if trainer.state.position >= trainer.components.plan.updates else "out of patience"
