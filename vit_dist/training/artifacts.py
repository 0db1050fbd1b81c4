"""Write what a run leaves beside its checkpoints: inputs.safetensors, predictions.safetensors, the model in Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_dist.data.sources.source import is_named, sample_name
from vit_dist.data.stream import pictures
from vit_dist.inference.contrastive import ContrastiveEvaluation, Evaluated
from vit_dist.inference.load import TrainedModel, default_weights
from vit_dist.models.compile import run_eagerly
from vit_dist.run_folder.pairs import PAIRS, Pairs, SavedPairs, write_pairs
from vit_dist.run_folder.predictions import (
    INPUTS,
    PREDICTIONS,
    Predictions,
    SavedPredictions,
    write_inputs,
    write_predictions,
)
from vit_dist.training.trainer import Trainer

_MISTAKES = 24
_BEST_PAIRS, _WORST_PAIRS = 16, 24


def save_inputs(trainer: Trainer) -> None:
    """Write inputs.safetensors, the images that the model sees first, once in a run's life."""
    path = trainer.folder / INPUTS
    if trainer.runtime.is_main and not path.exists() and not trainer.over:
        inputs = trainer.stream.inputs(trainer.state.position, trainer.components.data.classes)
        trainer.recorder.outputs.write(path, lambda: write_inputs(path, inputs))
        trainer.recorder.trackers.show_inputs(inputs, inputs.captions())


def save_evaluation(
    trainer: Trainer, split: str, weights: str, update: int, evaluated: Evaluated | None
) -> Predictions | None:
    """Write what an evaluation kept: predictions.safetensors, or pairs.safetensors; return the predictions, if any."""
    if isinstance(evaluated, ContrastiveEvaluation):
        if evaluated.pairs is not None:
            save_pairs(trainer, split, weights, update, evaluated.pairs)
        return None
    predictions = None if evaluated is None else evaluated.predictions
    if predictions is not None:
        save_predictions(trainer, split, weights, update, predictions)
    return predictions


def save_predictions(trainer: Trainer, split: str, weights: str, update: int, predictions: Predictions) -> None:
    """Write predictions.safetensors: the predictions for a split by the weights of `update`, and its worst mistakes."""
    if not trainer.runtime.is_main:
        return
    components = trainer.components
    shown = predictions.mistakes(_MISTAKES)
    about: dict[str, Any] = {"split": split, "weights": weights, "update": update}
    about["classes"] = list(components.data.classes)
    wrong = components.data.splits[split].only(predictions.index[shown])
    if is_named(wrong.source):
        about["paths"] = [sample_name(wrong.source, index, split) for index in wrong.indices.tolist()]
    images = pictures(wrong, np.arange(len(shown)), components.preprocessing)
    saved = SavedPredictions(predictions, about, shown, images)
    path = trainer.folder / PREDICTIONS
    trainer.recorder.outputs.write(path, lambda: write_predictions(path, saved))
    captions = [f"{predicted}, is {label}" for predicted, label in saved.captions()]
    trainer.recorder.trackers.show_predictions(saved, captions, trainer.state.position)


def save_pairs(trainer: Trainer, split: str, weights: str, update: int, pairs: Pairs) -> None:
    """Write pairs.safetensors: how the images of a split rank the captions, by the weights of `update`."""
    if not trainer.runtime.is_main:
        return
    components = trainer.components
    best, worst = pairs.best(_BEST_PAIRS), pairs.worst(_WORST_PAIRS)
    rows = np.concatenate([best, worst])
    shown, sample = (components.data.splits[split].only(pairs.index[places]) for places in (rows, pairs.sample))
    named = is_named(shown.source)
    about: dict[str, Any] = {
        **{"split": split, "weights": weights, "update": update, "best": len(best)},
        "captions": [pairs.texts[number] for number in pairs.own[rows].tolist()],
        "wrong": [pairs.texts[number] if number >= 0 else "" for number in pairs.wrong[rows].tolist()],
        "paths": [sample_name(shown.source, index, split) if named else "" for index in shown.indices.tolist()],
        "sample": list(pairs.sample_texts),
    }
    saved = SavedPairs(
        *(pairs.index, pairs.rank, pairs.similarity, pairs.wrong_similarity, rows),
        pictures(shown, np.arange(len(rows)), components.preprocessing),
        pictures(sample, np.arange(len(sample)), components.preprocessing),
        pairs.similarities,
        about,
    )
    path = trainer.folder / PAIRS
    trainer.recorder.outputs.write(path, lambda: write_pairs(path, saved))
    trainer.recorder.trackers.show_pairs(saved, trainer.state.position)


def trained_model(trainer: Trainer, *, finished: bool) -> TrainedModel:
    """Return the model as it is now, with what is needed to use it. finished: whether it holds the best weights."""
    components, best = trainer.components, trainer.state.best if finished else None
    run_eagerly(components.model)  # a compiled model would be compiled for a batch of each other size
    classes = list(components.data.classes)
    weights = best.weights if best else default_weights(components.config) if finished else "raw"
    return TrainedModel(
        components.model,
        components.preprocessing,
        classes,
        components.data.channels,
        weights,
        components.config,
        classes,
        update=best.update if best else trainer.state.position,
        precision=trainer.runtime.precision,
        samples=components.plan.samples,
        data=trainer.checkpointer.about["data"],
    )
