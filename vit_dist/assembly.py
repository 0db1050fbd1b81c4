"""Builds a run: config → a `Session`, announced with its plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import nn

from vit_dist import __version__
from vit_dist.checkpoint import Checkpoint
from vit_dist.config import Config
from vit_dist.console import Console, big
from vit_dist.data.datasets import open_data
from vit_dist.data.sources import Data
from vit_dist.data.stream import EvaluationStream, Form, Stream
from vit_dist.losses import build_loss
from vit_dist.models.build import (
    build_model,
    drop_path_depth,
    forward_flops,
    parameter_count,
    preprocessing,
    refuse_batch_norm,
)
from vit_dist.optimizers import build_optimizer
from vit_dist.plan import Plan
from vit_dist.resume import Resumption
from vit_dist.runtime import FolderLock, Runtime
from vit_dist.schedules import build_schedule
from vit_dist.session import Session, versions
from vit_dist.state import TrainState
from vit_dist.telemetry import Clock, Journal, Meter, matmul_flops, place, read_metrics
from vit_dist.trackers import Trackers
from vit_dist.update import Updater
from vit_dist.values import UserError


def build(
    config: Config,
    runtime: Runtime,
    console: Console,
    resumption: Resumption,
    model: nn.Module | None = None,
    source: Data | None = None,
) -> Session:
    """Everything the loop needs. Raises UserError; the run's folder is touched only once all else stands."""
    with runtime.main_first():
        data = source or open_data(config.data)
    form = _form(config, data)
    train, others = data.splits["train"], {k: v for k, v in data.splits.items() if k != "train"}
    plan = Plan.of(config, len(train), runtime.world_size)
    start = resumption.checkpoint
    state = TrainState.from_dict(start.state["train"]) if start else TrainState()
    if start is not None and start.state["plan"]["samples"] != plan.samples:
        raise UserError(f"data: {start.state['plan']['samples']} training images before, {plan.samples} now")
    if state.position > plan.updates:
        raise UserError(f"train.duration: may only grow: {plan.updates} updates, and {state.position} are done")
    if model is None:
        model = build_model(
            config.model,
            classes=len(data.classes),
            channels=data.channels,
            image_size=form.image_size,
            seed=config.run.seed,
        )
    else:
        refuse_batch_norm(model)
    form = dataclasses.replace(form, drop_path_depth=drop_path_depth(model))
    flops = forward_flops(model, channels=data.channels, image_size=form.image_size)
    if start is not None:
        start.load_model(model)
    prepared = runtime.prepare(model)
    prepared.train()
    updater = _updater(config, model, prepared, plan, state, start, runtime)
    workers = min(runtime.cores, 16) if config.data.workers == "auto" else config.data.workers
    evaluations = {
        name: EvaluationStream(split, form, runtime, batch_size=config.evaluate.batch_size, workers=workers)
        for name, split in others.items()
    }
    clock = Clock(state.train_seconds)
    folder = config.folder
    lock = claim(folder, config, runtime)
    metrics = folder / "metrics.jsonl"
    history = read_metrics(metrics) if start is not None and metrics.is_file() else []
    session = Session(
        config=config,
        runtime=runtime,
        console=console,
        folder=folder,
        lock=lock,
        data=data,
        plan=plan,
        module=model,
        form=form,
        updater=updater,
        state=state,
        stream=Stream(train, plan, form, config.augment, runtime, workers=workers),
        evaluations=evaluations,
        journal=Journal(metrics, writes=runtime.is_main),
        clock=clock,
        meter=Meter(plan, runtime, clock, flops=flops, matmul=matmul_flops(runtime)),
        trackers=Trackers(config, runtime, console.say),
        parameters=parameter_count(model),
        saved=state.position if start is not None and folder in start.path.parents else None,
        history=[line for line in history if line["update"] <= state.position],
    )
    _print_plan(session, resumption)
    session.trackers.start(state.tracker_id)
    state.tracker_id = session.trackers.run_id
    _record_start(session, prepared, resumption)
    return session


def _updater(
    config: Config,
    model: nn.Module,
    prepared: nn.Module,
    plan: Plan,
    state: TrainState,
    start: Checkpoint | None,
    runtime: Runtime,
) -> Updater:
    """The update over a prepared model; optimizer, schedule and scaler as `start` left them, if there is one."""
    optimizer = build_optimizer(config.optimizer, model)
    schedule = build_schedule(config.schedule, optimizer, plan)
    if start is not None:
        start.load_optimizer(optimizer, model)
        schedule.load_state_dict(start.state["schedule"])
        for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = lr
        if runtime.scaler is not None and start.state["scaler"]:
            runtime.scaler.load_state_dict(start.state["scaler"])
    loss = build_loss(config.loss)
    return Updater(prepared, loss, optimizer, schedule, state, runtime, clip_norm=config.optimizer.clip_norm)


def claim(folder: Path, config: Config, runtime: Runtime) -> FolderLock | None:
    """Makes the run's folder and holds it; on rank 0, whose failure is everyone's. Raises UserError."""
    lock, failure = None, None
    if runtime.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
            (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
        except UserError as error:
            failure = str(error)
        except OSError as error:
            failure = f"run.dir: {folder} cannot be written: {error.strerror}: set another run.dir"
    failure = runtime.from_main(failure)
    if failure:
        raise UserError(failure)
    return lock


def _form(config: Config, data: Data) -> Form:
    """Side, mean and std: the config's, else the timm model's where they fit, else the data's. Raises UserError."""
    model = preprocessing(config.model)
    side = config.data.image_size or (model.image_size if model and data.image_size == 224 else data.image_size)
    mean, std = config.data.mean, config.data.std
    if not mean and model and len(model.mean) == data.channels:
        mean, std = model.mean, model.std
    mean, std = mean or data.mean, std or data.std
    if len(mean) != data.channels:
        raise UserError(f"data.mean: has {len(mean)} values and the images {data.channels} channels: give one each")
    return Form(side, tuple(mean), tuple(std))


def _record_start(session: Session, prepared: nn.Module, resumption: Resumption) -> None:
    """The `start` line."""
    plan, runtime, start = session.plan, session.runtime, resumption.checkpoint
    size, calls = runtime.all_reduce_cost(prepared)
    session.record(
        "start",
        {
            **place(plan, session.state.position),
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


def _print_plan(session: Session, resumption: Resumption) -> None:
    """Every number of the run, for people."""
    plan, runtime, data, form = session.plan, session.runtime, session.data, session.form
    config, console, start = session.config, session.console, resumption.checkpoint
    console.say(f"vit_dist {__version__}: {config.run.name or session.folder.name}")
    splits = ", ".join(
        f"{name} {len(split):,}" for name, split in sorted(data.splits.items(), key=lambda one: one[0] != "train")
    )
    fillers = f", {plan.fillers} filler slots per update" if plan.fillers else ""
    last = plan.weight(plan.updates - 1)
    short = f" (the last update has {last} samples)" if last != plan.global_size else ""
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (form.mean, form.std))
    cooldown = f", cooldown {plan.cooldown} updates" if plan.cooldown else ""
    console.table(
        {
            "model": f"{config.model.name}, {big(session.parameters)} parameters, "
            f"{big(session.meter.flops)}FLOP per image forward",
            "data": f"{splits}; {len(data.classes)} classes",
            "images": f"{data.channels} × {form.image_size} × {form.image_size}, mean {mean}, std {std}",
            "run": f"{plan.updates} updates of {plan.global_size} samples = {plan.epochs:.4g} epochs{short}",
            "batch": f"micro-batches of {plan.micro_size}, {plan.window} per process and update{fillers}",
            "rate": f"{config.schedule.name}, peak {config.optimizer.lr:g}, warmup {plan.warmup} updates{cooldown}",
            "machine": f"{runtime.world_size} × {runtime.device_name}, {runtime.precision}, "
            f"{runtime.threads} threads per process",
            "starts": f"at update {session.state.position}, from {start.path}" if start else "anew",
            "folder": str(session.folder),
        }
    )
    for note in [*resumption.notes, *runtime.notes, *_idle_notes(plan, runtime)]:
        console.say(f"  note: {note}")


def _idle_notes(plan: Plan, runtime: Runtime) -> Iterator[str]:
    """Machines that the run leaves unused, and how to use them."""
    idle = plan.world_size - plan.micro_batches
    if idle > 0:
        fitting = max(2, math.ceil(plan.global_size / plan.world_size / 2) * 2)
        yield f"{idle} of {plan.world_size} processes compute only fillers: set batch.micro_size {fitting} to use them"
    gpus = torch.cuda.device_count() if runtime.device.type == "cuda" and runtime.world_size == 1 else 0
    if gpus > 1:
        launch = f"accelerate launch --multi_gpu --num_processes {gpus} scripts/train.py …"
        yield f"one of {gpus} GPUs is used; all of them: {launch}"
