"""Build a run: config → a `Trainer`, ready for its first update."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from vit_dist.checkpointing.checkpoint import Checkpoint
from vit_dist.checkpointing.checkpointer import Checkpointer
from vit_dist.checkpointing.state import TrainState
from vit_dist.config.values import parse_seconds
from vit_dist.data.stream import EvaluationStream, Stream
from vit_dist.errors import described
from vit_dist.models.compile import graphs, is_compiled
from vit_dist.optim.ema import EMA
from vit_dist.run_folder.lock import FolderLock
from vit_dist.run_folder.metrics import drop_superseded, read_history
from vit_dist.run_folder.status import versions, write_status
from vit_dist.runtime.communication import CommunicationTimer
from vit_dist.runtime.flags import Stopped
from vit_dist.runtime.runtime import Runtime
from vit_dist.telemetry.clock import Clock
from vit_dist.telemetry.console import Console
from vit_dist.telemetry.meter import Meter
from vit_dist.telemetry.peak_flops import matmul_flops
from vit_dist.telemetry.ranks import RankMeter
from vit_dist.telemetry.recorder import Recorder
from vit_dist.telemetry.trackers import Trackers
from vit_dist.training.claim import claim_folder
from vit_dist.training.compiling import compile_model, graph_passes
from vit_dist.training.components import Components, build_components
from vit_dist.training.contrastive import ContrastiveUpdater
from vit_dist.training.handshake import check_shared_folder
from vit_dist.training.micro_size import decide_micro_size
from vit_dist.training.overview import print_overview
from vit_dist.training.profiling import UpdateProfile, profiled_updates
from vit_dist.training.resolve import Resolved
from vit_dist.training.resume import ResumePoint, resumed_state, start_text
from vit_dist.training.streams import build_streams
from vit_dist.training.trainer import Trainer
from vit_dist.training.update import Updater


def setup(
    resolved: Resolved,
    runtime: Runtime,
    console: Console,
    resume: ResumePoint,
    lock: FolderLock | None,
    model: nn.Module | None = None,
    *,
    trust_code: bool = False,
) -> Trainer:
    """Build everything that the loop needs, print the overview and record the `start` line.

    lock: of the run's folder, if it held a run. Raises UserError. The folder is written to only once everything else
    has been built.
    """
    console.phase("building the model")
    with runtime.working():  # it may download weights
        components = build_components(
            resolved.config,
            world_size=runtime.world_size,
            device=runtime.device,
            autocast=runtime.autocast,
            model=model,
            source=resolved.data,
            load_pretrained=resume.checkpoint is None,
            preprocessing=resume.checkpoint.state.preprocessing if resume.checkpoint else None,
            trust_code=trust_code,
        )
    components = decide_micro_size(components, runtime)
    config = components.config
    resolved = dataclasses.replace(resolved, config=config)
    state = resumed_state(resume, components.plan)
    updater = build_updater(components, state, resume.checkpoint, runtime)
    streams = build_streams(components, runtime)
    lock = claim_folder(config, runtime, state, lock, resolved.data)
    try:
        check_shared_folder(config.folder, runtime)
        return _start(resolved, runtime, console, resume, lock, components, updater, streams)
    except BaseException as error:
        cause = runtime.cause(error)
        if runtime.is_main:
            how = "stopped" if isinstance(cause, Stopped) else "failed"
            write_status(config.folder, how, state.position, described(cause, 2000))
        if lock is not None:
            lock.release()
        raise


def _start(
    resolved: Resolved,
    runtime: Runtime,
    console: Console,
    resume: ResumePoint,
    lock: FolderLock | None,
    components: Components,
    updater: Updater,
    streams: tuple[Stream, dict[str, EvaluationStream]],
) -> Trainer:
    """Put the trainer together in the folder that is now its own, and start its records."""
    config, state = resolved.config, updater.state
    clock = Clock(state.train_seconds)
    profiled, profile_note = profiled_updates(config.log.profile, state.position, components.plan)
    trainer = Trainer(
        components=components,
        runtime=runtime,
        console=console,
        folder=config.folder,
        lock=lock,
        updater=updater,
        state=state,
        stream=streams[0],
        evaluation_streams=streams[1],
        clock=clock,
        meter=Meter(components.plan, runtime, clock, flops=components.forward_flops, matmul=matmul_flops(runtime)),
        rank_meter=RankMeter(components.plan, clock, CommunicationTimer(updater.model)),
        recorder=_build_recorder(components, state, runtime, console, resume),
        checkpointer=_build_checkpointer(components, updater, runtime, resume, resolved.samples),
        profile=UpdateProfile(profiled, runtime, config.folder),
        save_seconds=parse_seconds(config.checkpoint.every),
        saved=(state.position, state.evaluation_due) if resume.checkpoint_in_folder else None,
    )
    updater.before_step = trainer.checkpointer.wait_for_copy
    if runtime.is_main:
        with contextlib.suppress(OSError):  # the next save tries again, and says why it fails
            trainer.checkpointer.prune()
    notes = [*resolved.notes, *resume.notes, *components.notes, *filter(None, [profile_note])]
    print_overview(trainer, resolved.choices, notes, start_text(resume, components.plan))
    with runtime.working():  # a tracker's server may be slow to answer
        trainer.recorder.trackers.start(state.tracker_run_id, state.position)
    state.tracker_run_id = trainer.recorder.trackers.run_id
    trainer.recorder.record("start", state.position, _start_values(trainer, resume))
    return trainer


def build_updater(
    components: Components, state: TrainState, checkpoint: Checkpoint | None, runtime: Runtime
) -> Updater:
    """Return the update over the wrapped model, with everything that it keeps as the checkpoint has it, if any."""
    config, model = components.config, components.model
    optimizer, schedule = components.optimizer, components.schedule
    if checkpoint is not None:
        with runtime.working():  # storage may be slow
            checkpoint.check_fits(model, optimizer)
            checkpoint.load_model(model)
    components.notes.extend(compile_model(components, runtime))
    wrapped = runtime.prepare(model)
    wrapped.train()
    average = EMA(model, config.train.ema) if config.train.ema else None
    if checkpoint is not None:
        with runtime.working():
            checkpoint.load_optimizer(optimizer, model)
            if average is not None:
                checkpoint.load_average(average, model)
        schedule.load_state_dict(checkpoint.state.schedule)
        if runtime.scaler is not None and checkpoint.state.scaler:
            runtime.scaler.load_state_dict(checkpoint.state.scaler)
    settings: Any = {"clip_norm": config.optimizer.clip_norm, "max_bad_updates": config.train.max_bad_updates}
    kind = ContrastiveUpdater if config.contrastive else Updater
    loss: Any = components.loss
    updater = kind(wrapped, loss, optimizer, schedule, state, runtime, average=average, **settings)
    components.notes.extend(graph_passes(updater, components, runtime))
    return updater


def _build_recorder(
    components: Components, state: TrainState, runtime: Runtime, console: Console, resume: ResumePoint
) -> Recorder:
    """Return the recorder, with the history up to the position that the run resumes from."""
    config = components.config
    path = config.folder / "metrics.jsonl"
    lines, problem = read_history(path) if resume.checkpoint is not None else ([], None)
    if problem and (resume.checkpoint_in_folder or path.exists()):
        console.note(problem)
    history = drop_superseded(lines, state.position)
    trackers = Trackers(config, console.note, enabled=runtime.is_main, hint=lambda text: console.say(text, "dim"))
    return Recorder(path, components.plan, console, trackers, history, writes=runtime.is_main)


def _build_checkpointer(
    components: Components, updater: Updater, runtime: Runtime, resume: ResumePoint, samples: Mapping[str, Any]
) -> Checkpointer:
    return Checkpointer(
        folder=components.config.folder / "checkpoints",
        keep=components.config.checkpoint.keep,
        runtime=runtime,
        model=components.model,
        optimizer=components.optimizer,
        schedule=components.schedule,
        average=updater.average,
        state=updater.state,
        about={
            "precision": runtime.precision,
            "world_size": runtime.world_size,
            "classes": list(components.data.classes),
            "preprocessing": dataclasses.asdict(components.preprocessing),
            "channels": components.data.channels,
            "plan": components.plan.to_dict(),
            "config": components.config.to_dict(),
            "data": samples,
            "versions": versions(),
        },
        whole=set(resume.whole),
        broken=set(resume.broken),
    )


def _start_values(trainer: Trainer, resume: ResumePoint) -> dict[str, Any]:
    """Return the values of the `start` line."""
    components, runtime = trainer.components, trainer.runtime
    size, calls = runtime.all_reduce_cost(trainer.updater.model)
    return {
        "plan": components.plan.to_dict(),
        "world_size": runtime.world_size,
        "device": runtime.device_name,
        "precision": runtime.precision,
        "threads": runtime.threads,
        "versions": versions(),
        "parameters": components.parameters,
        "forward_flops": components.forward_flops,
        "replays_graph": trainer.updater.graphed is not None,
        "compiled_graphs": graphs() if is_compiled(components.model) else 0,
        "matmul_flops": trainer.meter.matmul,
        "all_reduce_bytes": size,
        "all_reduce_calls": calls,
        "resumed_from": str(resume.checkpoint.path) if resume.checkpoint else None,
        "changed": resume.changed,
        "started": runtime.started,
    }
