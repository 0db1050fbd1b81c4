"""Builds a run: config → a `Session`, announced with its plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import nn

from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.config import Config
from vit_dist.data.preprocessing import resolve_preprocessing
from vit_dist.data.reader import worker_count
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.errors import UserError
from vit_dist.models.build import drop_path_depth
from vit_dist.models.forward import forward_flops, parameter_count
from vit_dist.optim.ema import EMA
from vit_dist.optim.optimizers import build_optimizer, peak_lr
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.lock import FolderLock
from vit_dist.run_folder.metrics import MetricsLog, drop_superseded, position_fields, read_metrics
from vit_dist.run_folder.status import versions, write_status
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.meter import Meter
from vit_dist.telemetry.peaks import matmul_flops
from vit_dist.telemetry.trackers import Trackers, require_tracker
from vit_dist.training.components import build_loss, own_model, refuse_metrics
from vit_dist.training.losses import Loss
from vit_dist.training.overview import print_overview
from vit_dist.training.resume import Resumption
from vit_dist.training.trainer import Trainer
from vit_dist.training.update import Updater


def setup(
    config: Config,
    runtime: Runtime,
    console: Console,
    resumption: Resumption,
    model: nn.Module | None = None,
    source: LabelledSplits | None = None,
) -> Trainer:
    """Everything the loop needs. Raises UserError; the run's folder is touched only once all else stands."""
    require_tracker(config.log.trackers)
    with runtime.main_first():
        data = source or open_data(config.data)
    preprocessing = resolve_preprocessing(config, data)
    plan = Plan.from_config(config, len(data.splits["train"]), runtime.world_size)
    start = resumption.checkpoint
    elsewhere = start is not None and config.folder not in start.path.parents
    state = _state(start, plan, data.classes, elsewhere=elsewhere)
    model, notes = own_model(config, data, preprocessing, model, pretrained=start is None)
    flops = forward_flops(model, channels=data.channels, image_size=preprocessing.image_size)
    if start is not None:
        start.load_model(model)
    refuse_metrics(config, data)
    loss = build_loss(config, data, preprocessing, runtime.device, runtime.autocast)
    prepared = runtime.prepare(model)
    prepared.train()
    updater = _updater(config, model, prepared, loss, plan, state, start, runtime)
    workers = worker_count(config.data.workers, runtime)
    evaluations = {
        name: EvaluationStream(split, preprocessing, runtime, batch_size=config.evaluate.batch_size, workers=workers)
        for name, split in data.splits.items()
        if name != "train"
    }
    clock = Clock(state.train_seconds)
    folder = config.folder
    lock = claim(folder, config, runtime, state.position)
    metrics = folder / "metrics.jsonl"
    history = read_metrics(metrics) if start is not None and metrics.is_file() else []
    session = Trainer(
        config=config,
        runtime=runtime,
        console=console,
        folder=folder,
        lock=lock,
        data=data,
        plan=plan,
        module=model,
        preprocessing=preprocessing,
        updater=updater,
        state=state,
        stream=Stream(
            data.splits["train"],
            plan,
            preprocessing,
            config.augment,
            runtime,
            workers=workers,
            classes=len(data.classes),
            drop_path_depth=drop_path_depth(model),
        ),
        evaluations=evaluations,
        journal=MetricsLog(metrics, writes=runtime.is_main),
        clock=clock,
        meter=Meter(plan, runtime, clock, flops=flops, matmul=matmul_flops(runtime)),
        trackers=Trackers(config, runtime, console.note),
        parameters=parameter_count(model),
        saved=None if start is None or elsewhere else state.position,
        history=drop_superseded(history, state.position),
    )
    print_overview(session, [*resumption.notes, *notes], start)
    session.trackers.start(state.tracker_id, state.position)
    state.tracker_id = session.trackers.run_id
    _record_start(session, prepared, resumption)
    return session


def _state(start: Checkpoint | None, plan: Plan, classes: Sequence[str], *, elsewhere: bool) -> TrainState:
    """Where the run stands. Raises UserError where the plan is not one that goes on from there."""
    if start is None:
        return TrainState()
    state = TrainState.from_dict(start.state["train"])
    if start.state["classes"] != list(classes):
        was = start.state["classes"]
        odd = sorted(set(was) ^ set(classes)) or ["their order"]
        raise UserError(
            f"data: other classes than before ({len(was)} there, {len(classes)} here): {', '.join(odd[:5])}"
        )
    if start.state["plan"]["samples"] != plan.samples:
        raise UserError(f"data: {start.state['plan']['samples']} training images before, {plan.samples} now")
    before = start.state["plan"]["updates"]
    if plan.updates < before:
        raise UserError(f"train.duration: may only grow: {before} updates before, {plan.updates} now")
    if elsewhere:
        state.best = state.patience_baseline = None  # those weights are not in this folder
    if elsewhere or plan.updates > before:
        state.evaluations_without_improvement = 0
    return state


def _updater(
    config: Config,
    model: nn.Module,
    prepared: nn.Module,
    loss: Loss,
    plan: Plan,
    state: TrainState,
    start: Checkpoint | None,
    runtime: Runtime,
) -> Updater:
    """The update over a prepared model; all that it keeps as `start` left it, if there is one."""
    lr = peak_lr(config.optimizer, config.batch.global_size)
    optimizer = build_optimizer(config.optimizer, model, lr)
    schedule = Schedule(config.schedule, optimizer, plan, lr)
    average = EMA(model, config.train.ema) if config.train.ema else None
    if start is not None:
        start.load_optimizer(optimizer, model)
        schedule.load_state_dict(start.state["schedule"])
        if average is not None:
            start.load_average(average, model)
        if runtime.scaler is not None and start.state["scaler"]:
            runtime.scaler.load_state_dict(start.state["scaler"])
    clip_norm = config.optimizer.clip_norm
    return Updater(prepared, loss, optimizer, schedule, state, runtime, clip_norm=clip_norm, average=average)


def claim(folder: Path, config: Config, runtime: Runtime, position: int) -> FolderLock | None:
    """Makes the run's folder and holds it, on rank 0. Raises UserError on all ranks."""
    locks = []

    def make() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks.append(FolderLock(folder))
            # Before the config: a finished run that is made longer must not look finished by its new one.
            write_status(folder, "running", position)
            (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise UserError(f"run.dir: {folder} cannot be written: {error.strerror}: set another run.dir") from None

    runtime.run_on_main(make)
    return locks[0] if locks else None


def _record_start(session: Trainer, prepared: nn.Module, resumption: Resumption) -> None:
    """The `start` line."""
    plan, runtime, start = session.plan, session.runtime, resumption.checkpoint
    size, calls = runtime.all_reduce_cost(prepared)
    session.record(
        "start",
        {
            **position_fields(plan, session.state.position),
            "plan": plan.to_dict(),
            "world_size": runtime.world_size,
            "device": runtime.device_name,
            "precision": runtime.precision,
            "threads": runtime.threads,
            "versions": versions(),
            "parameters": session.parameters,
            "forward_flops": session.meter.flops,
            "matmul_flops": session.meter.matmul,
            "all_reduce_bytes": size,
            "all_reduce_calls": calls,
            "resumed_from": str(start.path) if start else None,
            "changed": resumption.changed,
        },
    )
