"""The training loop."""

from __future__ import annotations

from vit_dist.training.trainer import Trainer


def loop(trainer: Trainer) -> bool:
    """Make all updates that are left. Return whether the run came to its end, rather than being stopped."""
    plan, state, clock = trainer.components.plan, trainer.state, trainer.clock
    clock.start()
    trainer.meter.restart(state.position, trainer.stream.wait_seconds)
    while not trainer.over:
        window = trainer.stream.window(state.position)
        trainer.updater.update(window, plan.micro_batches_per_rank, plan.weight(state.position))
        stopping = trainer.runtime.stop.agreed()
        validating = "val" in trainer.evaluation_streams and plan.due(state.position, plan.evaluate_every)
        if stopping or validating or plan.due(state.position, plan.log_every):
            trainer.log()
        improved = False
        if validating:
            with clock.paused(trainer.runtime):
                improved = trainer.validate()
        if stopping or improved or trainer.over or plan.due(state.position, plan.checkpoint_every):
            with clock.paused(trainer.runtime):
                trainer.save()
        if stopping and not trainer.over:
            return False
    return True
