"""The sections of a config, and every field by its dotted name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from vit_dist.config.fields import (
    AugmentConfig,
    BatchConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_dist.config.optimizer_fields import OptimizerConfig
from vit_dist.config.option import Option, options
from vit_dist.config.output_fields import CheckpointConfig, EvaluateConfig, LogConfig
from vit_dist.config.text_fields import CONTRASTIVE, TextConfig


@dataclass(frozen=True)
class Schema:
    """The sections of a config, in the order in which they are shown."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def contrastive(self) -> bool:
        """Return whether a model of two towers learns from images and their captions."""
        return self.loss.name in CONTRASTIVE


@cache
def sections() -> dict[str, Any]:
    """Return the dataclass of each section, by its name."""
    return get_type_hints(Schema)


def all_options() -> Iterator[tuple[str, Option]]:
    """Yield every field of the config with its dotted name, `section.field`."""
    for section, kind in sections().items():
        for name, item in options(kind).items():
            yield f"{section}.{name}", item


def inference_fields() -> tuple[str, ...]:
    """Return the dotted names of the fields that may be set for a trained run."""
    return tuple(name for name, item in all_options() if item.at_inference)
