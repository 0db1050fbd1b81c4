"""Load the best weights at the end of a run: rank 0 says whether they are there, and all ranks load the same."""

from __future__ import annotations

from vit_dist.checkpointing.checkpoint import open_checkpoint
from vit_dist.checkpointing.folder import checkpoint_path
from vit_dist.errors import UserError
from vit_dist.training.resume import open_verified
from vit_dist.training.trainer import Trainer


def load_best(trainer: Trainer) -> None:
    """Load the best weights into the model and their average, unless rank 0 finds their checkpoint no longer whole.

    Raises UserError on all ranks if one of them cannot load what rank 0 has found.
    """
    state, runtime = trainer.state, trainer.runtime
    if state.best is None:
        return
    update = state.best.update
    path = checkpoint_path(trainer.checkpointer.folder, update)

    def why_not() -> str:
        try:
            found = open_checkpoint(path).position
        except UserError as error:
            return str(error)
        return "" if found == update else f"{path}: is of update {found}"

    problem = runtime.run_on_main(why_not)
    if problem:
        trainer.console.note(f"{problem}: the last weights are tested in place of the best")
        state.best = None
        return

    def load() -> None:
        best, model, average = open_verified(path), trainer.components.model, trainer.updater.average
        best.load_model(model)
        if average is not None:
            best.load_average(average, model)

    runtime.run_on_all(load)
