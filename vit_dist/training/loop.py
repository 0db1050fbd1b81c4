"""The training loop."""

from __future__ import annotations

from vit_dist.data.workers import WaitStoppedError
from vit_dist.runtime.flags import Stopped
from vit_dist.training.trainer import Trainer


def loop(trainer: Trainer) -> bool:
    """Make all updates that are left. Return whether the run came to its end, rather than being stopped."""
    plan, state, clock = trainer.components.plan, trainer.state, trainer.clock
    clock.start()
    trainer.start_meters()
    if state.evaluation_due and not _after_update(trainer, stop=False, save=False):
        return False
    while not trainer.over:
        trainer.profile.before(state.position)
        window = trainer.stream.window(state.position)
        try:
            trainer.updater.update(window, plan.micro_batches_per_rank, plan.weight(state.position))
        except WaitStoppedError as error:
            if trainer.runtime.world_size > 1:  # the others wait for this rank's gradient
                raise
            trainer.console.note(str(error))
            _save(trainer)
            return False
        trainer.rank_meter.updated(state.position)
        trainer.console.tick(state.position)
        trainer.record_profile()
        state.evaluation_due = "val" in trainer.evaluation_streams and plan.due(state.position, plan.evaluate_every)
        trainer.ask_to_save_by_the_clock()
        agreed = trainer.runtime.flags.agreed()
        if agreed.failed:
            trainer.checkpointer.wait()  # raises what it failed of, on all ranks
        if not _after_update(trainer, stop=agreed.stop, save=agreed.save):
            return False
    trainer.checkpointer.wait()
    trainer.record_saves()
    return True


def _after_update(trainer: Trainer, *, stop: bool, save: bool) -> bool:
    """Log, evaluate and save what is due. Return whether the run goes on, or has come to its end.

    A run that is asked to stop saves at once; an evaluation that is due is made when it is resumed.
    """
    plan, state, clock = trainer.components.plan, trainer.state, trainer.clock
    if stop or state.evaluation_due or plan.due(state.position, plan.log_every):
        trainer.log()
    improved = False
    if state.evaluation_due and not stop:
        with clock.paused(trainer.runtime):
            try:
                improved = trainer.validate()
            except (Stopped, WaitStoppedError):
                stop = True
    if stop and (state.evaluation_due or not trainer.over):
        _save(trainer)
        return False
    if improved or save or trainer.over or plan.due(state.position, plan.checkpoint_every):
        with clock.paused(trainer.runtime):
            trainer.save()
    return True


def _save(trainer: Trainer) -> None:
    """Save, and wait until it is written."""
    with trainer.clock.paused(trainer.runtime):
        trainer.save()
        trainer.checkpointer.wait()
    trainer.record_saves()
