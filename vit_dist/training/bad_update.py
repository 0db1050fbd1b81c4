"""A run whose numbers are no longer finite: measure the update that went wrong, write bad_update.json, say why."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_dist.checkpointing.folder import list_checkpoints
from vit_dist.data.batch import Batch
from vit_dist.data.sources.source import sample_name
from vit_dist.data.sources.splits import Subset
from vit_dist.data.stream import Stream
from vit_dist.errors import ModelError, either
from vit_dist.files import json_number, write_json
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.status import versions
from vit_dist.training.trainer import Trainer
from vit_dist.training.update import Updater

BAD_UPDATE = "bad_update.json"
_FORMAT = 1


@dataclass(frozen=True)
class Numbers:
    """The numbers of one update, computed without making it.

    ids, losses: of the samples of the global batch, in their order; an id is a sample's index in its source.
    grad_norms: of the gradient before clipping, by block of the model. weights_finite: whether the weights that it
    starts from are.
    """

    ids: list[int]
    losses: list[float]
    grad_norms: dict[str, float]
    weights_finite: bool

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(np.mean(self.losses))

    @property
    def grad_norm(self) -> float:
        """The norm of the whole gradient."""
        return float(np.sqrt(np.sum(np.square(list(self.grad_norms.values())))))

    def to_dict(self, train: Subset) -> dict[str, Any]:
        """Return the values for bad_update.json. train: the split that the samples are of."""
        return {
            "weights_finite": self.weights_finite,
            "loss": json_number(self.loss),
            "grad_norm": json_number(self.grad_norm),
            "grad_norms": {name: json_number(norm) for name, norm in self.grad_norms.items()},
            "samples": [
                {"name": sample_name(train.source, index, "train"), "index": index, "loss": json_number(loss)}
                for index, loss in zip(self.ids, self.losses, strict=True)
            ],
        }


def measure_update(updater: Updater, stream: Stream, plan: Plan, model: nn.Module, position: int) -> Numbers:
    """Compute the losses and gradients of the global batch at `position` from the weights as they are.

    model: bare. Called on all ranks; the result is the same on each. Neither weights nor counters change, but the
    stream must be closed before training goes on.
    """
    runtime = updater.runtime
    updater.optimizer.zero_grad()
    stream.close()
    count, ids = plan.count(position), []

    def window() -> Iterator[Batch]:
        for batch in stream.window(position):
            ids.append(runtime.to_device(batch.ids))
            yield batch

    def of_all_ranks(own: list[Tensor]) -> list[Any]:
        """Return this rank's values by micro-batch, and those of the others, in the order of the global batch."""
        mine = torch.stack(own)
        everyone = mine.new_zeros(len(mine), runtime.world_size, *mine.shape[1:])
        everyone[:, runtime.rank] = mine
        values: list[Any] = runtime.all_reduce_sum(everyone).flatten()[:count].tolist()
        return values

    losses = of_all_ranks(
        updater.accumulate(window(), plan.micro_batches_per_rank, plan.weight(position), spread_nan=False)
    )
    scale = runtime.scaler.get_scale() if runtime.scaler is not None else 1.0
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad).item() / scale
            squares[block_of(name)] = squares.get(block_of(name), 0.0) + norm**2
    updater.optimizer.zero_grad()
    norms = {name: value**0.5 for name, value in squares.items()}
    return Numbers(of_all_ranks(ids), losses, norms, updater.weights_are_finite())


def block_of(name: str) -> str:
    """Return the part of a model that a parameter belongs to: blocks.3 for blocks.3.attn.qkv.weight, head, …"""
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered[1] if numbered else name.partition(".")[0]


def check_finite(trainer: Trainer) -> None:
    """Check, on all ranks, that the run which came to its end has a model that answers. Raises ModelError."""
    state, update = trainer.state, trainer.state.position
    if not trainer.updater.weights_are_finite():
        if state.skipped_in_a_row:
            raise diverged(trainer)
        what = f"the weights are not finite after the last update, {update}"
    elif "val" in trainer.evaluation_streams and state.patience_baseline is None:  # the best may be gone, not this
        what = f"no evaluation of val up to update {update} had a finite loss"
    else:
        return
    raise without_answers(trainer, what)


def without_answers(trainer: Trainer, what: str) -> ModelError:
    """Return the error of a run that ends with a model of no use. what: is wrong with it."""
    return ModelError(f"{what}: {_advice(trainer)}")


def diverged(trainer: Trainer) -> ModelError:
    """Return why a run of too many skipped updates ends, with the fix, and write bad_update.json.

    Called on all ranks, before the weights change again: the first of the updates that were skipped last is measured
    as it was.
    """
    trainer.checkpointer.wait()
    components, state = trainer.components, trainer.state
    update = state.position - state.skipped_in_a_row + 1
    numbers = measure_update(trainer.updater, trainer.stream, components.plan, components.model, update - 1)
    content = _content(trainer, update, numbers)
    if trainer.runtime.is_main:
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ends
            write_json(trainer.folder / BAD_UPDATE, content)
    span = state.position - state.last_skipped[0] + 1
    return ModelError(
        f"{len(state.last_skipped)} of the last {span} updates were skipped; at update {update} "
        f"{what_is_wrong(content)}: {_advice(trainer)}; its numbers are in {BAD_UPDATE}, and the same command with "
        "--replay computes them again"
    )


def what_is_wrong(content: Mapping[str, Any]) -> str:
    """Return in words what is not finite in an update, from the content of bad_update.json."""
    if not content["weights_finite"]:
        return "the weights were not finite any more"
    bad = [sample for sample in content["samples"] if isinstance(sample["loss"], str)]
    if bad:
        more = ", …" if len(bad) > 1 else ""
        total = len(content["samples"])
        return f"the loss was {bad[0]['loss']} in {len(bad)} of {total} samples ({bad[0]['name']}{more})"
    blocks = [name for name, norm in content["grad_norms"].items() if isinstance(norm, str)]
    if not blocks:
        return "loss and gradient were finite"
    return f"the gradient was {content['grad_norm']} in {', '.join(blocks[:3])}{', …' if len(blocks) > 3 else ''}"


def _content(trainer: Trainer, update: int, numbers: Numbers) -> dict[str, Any]:
    """Return the content of bad_update.json."""
    components, state, scaler = trainer.components, trainer.state, trainer.runtime.scaler
    before = [path for path in list_checkpoints(trainer.checkpointer.folder) if int(path.name[7:]) < update]
    return {
        "format": _FORMAT,
        "update": update,
        "skipped_updates": state.last_skipped,
        "applied_updates": state.applied_updates,
        "checkpoint": str(before[-1].relative_to(trainer.folder)) if before else None,
        "lr": trainer.updater.schedule.rate,
        "precision": trainer.runtime.precision,
        "loss_scale": scaler.get_scale() if scaler is not None else None,
        "world_size": trainer.runtime.world_size,
        "versions": versions(),
        **numbers.to_dict(components.data.splits["train"]),
    }


def _advice(trainer: Trainer) -> str:
    """Return what to change."""
    config = trainer.components.config
    choices = [f"lower optimizer.lr ({config.optimizer.lr:.3g})"]
    if not config.optimizer.clip_norm:
        choices.append("set optimizer.clip_norm 1.0")
    if trainer.runtime.precision != "fp32":
        choices.append("set train.precision fp32")
    if ":" in config.loss.name:
        choices.append(f"check {config.loss.name}")
    return either(choices)
