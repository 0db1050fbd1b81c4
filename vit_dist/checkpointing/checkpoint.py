"""A checkpoint, safetensors and JSON with hashes: verify it, open it, load from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit_dist.checkpointing.fields import read_fields
from vit_dist.checkpointing.formats import FORMAT, check_format, to_current
from vit_dist.checkpointing.manifest import AVERAGE, DamagedCheckpointError, errors_as_damage, verify_files
from vit_dist.checkpointing.optimizer_state import SEPARATOR, check_optimizer_state, parameter_names
from vit_dist.checkpointing.state import CheckpointState, TrainState, read_state
from vit_dist.errors import UserError
from vit_dist.models.weights import (
    TensorSpec,
    check_finite,
    check_tensors,
    load_weights,
    matching_tensors,
    read_specs,
    read_tensors,
)
from vit_dist.optim.ema import EMA

_MOST_BYTES_OF_STATE = 2**26


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the content of its state.json, the bytes of its files."""

    path: Path
    state: CheckpointState
    bytes: int

    @property
    def position(self) -> int:
        """Return the number of global batches that had been drawn when it was saved."""
        return self.state.train_state.position

    @property
    def is_best(self) -> bool:
        """Return whether its own evaluation was the best when it was saved."""
        best = self.state.train_state.best
        return best is not None and best.update == self.position

    def check_fits(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Compare every tensor's name, shape and type with what model and optimizer hold; no data is read.

        Raises UserError, in one line, for what does not fit.
        """
        for name in ("model.safetensors", *([AVERAGE] if self.state.config.train.ema else [])):
            check_tensors(model, self.path / name, exact=True)
        file = self.path / "optimizer.safetensors"
        applied = self.state.train_state.applied_updates
        check_optimizer_state(optimizer, model, read_specs(file), self.state.optimizer, file, applied=applied)
        rates, groups = self.state.schedule.get("rates"), len(optimizer.param_groups)
        if rates is not None and len(rates) != groups:
            raise UserError(f"{self.path / 'state.json'}: schedule.rates has {len(rates)} rates for {groups} groups")

    def load_model(self, model: nn.Module) -> None:
        """Load the weights. Raises UserError that lists what does not fit."""
        load_weights(model, self.path / "model.safetensors", exact=True)

    def load_optimizer(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Load the optimizer's state.

        Raises UserError if it is not what this optimizer keeps of this model, ModelError if it is not finite.
        """
        file, numbers = self.path / "optimizer.safetensors", self.state.optimizer
        applied = self.state.train_state.applied_updates
        check_optimizer_state(optimizer, model, read_specs(file), numbers, file, applied=applied)
        tensors = read_tensors(file)
        check_finite(tensors, file)
        by_name: dict[str, dict[str, Any]] = {}
        for name, value in {**tensors, **numbers.state}.items():
            parameter, _, slot = name.rpartition(SEPARATOR)
            by_name.setdefault(parameter, {})[slot] = value
        names = parameter_names(optimizer, model)
        state = {i: by_name[name] for i, name in enumerate(names) if name in by_name}
        groups = optimizer.state_dict()["param_groups"]
        for group, counters in zip(groups, numbers.groups, strict=False):
            group.update(counters)
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def load_average(self, average: EMA, model: nn.Module) -> None:
        """Load the average of the weights. Raises UserError if there is none, or it is of another model."""
        average.load(matching_tensors(model, self.path / AVERAGE, exact=True))


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify and open a checkpoint. Raises UserError if it is not complete, or of a later format."""
    try:
        return open_whole(path)
    except DamagedCheckpointError as error:
        raise UserError(f"{error}: this checkpoint cannot be used") from None


def open_whole(path: Path, *, hashes: bool = True) -> Checkpoint:
    """Verify and open a checkpoint: its files, their sizes and hashes, its state, the tensors that its files list.

    hashes: False: do not read what is large. Raises DamagedCheckpointError; UserError for a later format.
    """
    sizes = verify_files(path, hashes=hashes)
    file = path / "state.json"
    with errors_as_damage(file):
        fields = read_fields(file, _MOST_BYTES_OF_STATE)
        state = read_state(to_current(fields, check_format(file, fields, FORMAT)))
    _check_position(path, state.train_state)
    _check_average(path, state, averaged=AVERAGE in sizes)
    return Checkpoint(path, state, sum(sizes.values()))


def why_broken(path: Path) -> str | None:
    """Return why a checkpoint is not complete, naming the file; None if it is.

    Raises UserError for a later format.
    """
    try:
        open_whole(path)
    except DamagedCheckpointError as error:
        return str(error)
    return None


def _check_position(path: Path, state: TrainState) -> None:
    """Check that a checkpoint is the one that its folder's name says. Raises DamagedCheckpointError."""
    digits = path.name.removeprefix("update_")
    if digits != path.name and digits.isdecimal() and int(digits) != state.position:
        raise DamagedCheckpointError(f"{path / 'state.json'}: is of update {state.position}, not of the folder's")


def _check_average(path: Path, state: CheckpointState, *, averaged: bool) -> None:
    """Check that there is an average if the run keeps one, and its tensors are the model's.

    Raises DamagedCheckpointError.
    """
    if averaged != bool(state.config.train.ema):
        raise DamagedCheckpointError(f"{path / AVERAGE}: {'not of a run with train.ema 0' if averaged else 'missing'}")
    if state.train_state.best is not None and state.train_state.best.weights == "ema" and not averaged:
        raise DamagedCheckpointError(f"{path / 'state.json'}: its best weights are ema, of which it has none")
    specs: dict[str, TensorSpec] = {}
    for name in ("model.safetensors", *([AVERAGE] if averaged else [])):
        try:
            found = read_specs(path / name)
        except UserError as error:
            raise DamagedCheckpointError(str(error)) from None
        if specs and found != specs:
            raise DamagedCheckpointError(f"{path / name}: has other tensors than model.safetensors")
        specs = found
