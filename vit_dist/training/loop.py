"""The training loop."""

from __future__ import annotations

from vit_dist.training.trainer import Trainer


def loop(session: Trainer) -> bool:
    """All updates that are left; whether the run came to its end, and was not stopped before."""
    plan, state, clock = session.plan, session.state, session.clock
    clock.start()
    session.meter.restart(state.position, session.stream.wait_seconds)
    while not session.over:
        window = session.stream.window(state.position)
        session.updater.update(window, plan.micro_batches_per_rank, plan.weight(state.position))
        stopping = session.runtime.stop_agreed()
        evaluating = "val" in session.evaluations and plan.due(state.position, plan.evaluate_every)
        if stopping or evaluating or plan.due(state.position, plan.log_every):
            session.log()
        with_best = False
        if evaluating:
            with clock.paused(session.runtime):
                with_best = session.choose()
        if stopping or with_best or session.over or plan.due(state.position, plan.checkpoint_every):
            with clock.paused(session.runtime):
                session.save()
        if stopping and not session.over:
            return False
    return True
