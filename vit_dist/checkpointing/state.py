"""The content of a checkpoint's state.json: typed, and checked when it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vit_dist.checkpointing.fields import Fields
from vit_dist.config.catalog import ALL_METRICS
from vit_dist.config.config import Config
from vit_dist.data.preprocessing import FITS, INTERPOLATIONS, LARGEST_CROP, Preprocessing
from vit_dist.errors import UserError, one_line
from vit_dist.optim.schedules import PLATEAU, schedule_metric

_WEIGHTS = ("raw", "ema")
_PRECISIONS = ("fp32", "bf16", "fp16")
# Far beyond any image, so that no number in a file makes a model that fills the memory.
_LARGEST_SIDE, _MOST_CHANNELS = 16384, 4096
_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: `value` of `metric` at `update`, of its `weights` (raw or ema).

    loss: of the same evaluation, which breaks ties; None in checkpoints that do not say so.
    """

    update: int
    metric: str
    value: float
    weights: str = "raw"
    loss: float | None = None


@dataclass
class TrainState:
    """The counters of a run.

    position: global batches drawn. applied_updates: updates applied, which the schedule counts. skipped_updates: the
    difference. last_skipped: the numbers of the last few of these, ascending. train_seconds: time spent training,
    without evaluation and saving, over all restarts. patience_baseline: the value of the metric that patience wants
    improved. evaluations_without_improvement: evaluations in a row that have not improved it. tracker_run_id: W&B's id
    of the run. evaluation_due: whether the evaluation of this position has not been made yet, since the run was
    asked to stop.
    """

    position: int = 0
    applied_updates: int = 0
    skipped_updates: int = 0
    train_seconds: float = 0.0
    best: Best | None = None
    patience_baseline: float | None = None
    evaluations_without_improvement: int = 0
    tracker_run_id: str | None = None
    evaluation_due: bool = False
    last_skipped: list[int] = field(default_factory=list)

    def count_skipped(self, keep: int) -> None:
        """Count the update at `position` as skipped, and remember the numbers of the last `keep` of them."""
        self.skipped_updates += 1
        self.last_skipped = [*self.last_skipped, self.position][-keep:]

    @property
    def skipped_in_a_row(self) -> int:
        """Return how many updates up to `position` were skipped without one that was applied."""
        numbers = reversed(self.last_skipped)
        return next((i for i, number in enumerate(numbers) if number != self.position - i), len(self.last_skipped))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> TrainState:
        """Read the values of `to_dict`. Raises ValueError for a wrong type or range, or counters that disagree."""
        fields = Fields(values, "train_state")
        position = fields.integer("position")
        applied, skipped = fields.integer("applied_updates"), fields.integer("skipped_updates")
        if applied + skipped != position:
            raise ValueError(
                f"{fields.place}: {applied} updates applied and {skipped} skipped do not make its position, {position}"
            )
        best = None
        if fields.has("best"):
            inside = fields.fields("best")
            best = Best(
                update=inside.integer("update", 0, position),
                metric=inside.text("metric", ALL_METRICS),
                value=inside.number("value", finite=False),
                weights=inside.text("weights", _WEIGHTS) if inside.has("weights") else "raw",
                loss=inside.number("loss") if inside.has("loss") else None,
            )
        last_skipped = fields.integers("last_skipped", 1, position) if fields.has("last_skipped") else []
        if len(last_skipped) > skipped:
            raise ValueError(
                f"{fields.place}.last_skipped: has {len(last_skipped)} updates, and {skipped} were skipped"
            )
        has_baseline, has_run_id = fields.has("patience_baseline"), fields.has("tracker_run_id")
        return cls(
            position=position,
            applied_updates=applied,
            skipped_updates=skipped,
            train_seconds=fields.number("train_seconds", 0),
            best=best,
            patience_baseline=fields.number("patience_baseline", finite=False) if has_baseline else None,
            evaluations_without_improvement=fields.integer("evaluations_without_improvement"),
            tracker_run_id=fields.text("tracker_run_id") if has_run_id else None,
            evaluation_due=fields.has("evaluation_due") and fields.boolean("evaluation_due"),
            last_skipped=last_skipped,
        )


@dataclass(frozen=True)
class OptimizerNumbers:
    """The plain numbers of an optimizer's state.

    state: by `parameter/slot`. groups: the counters of each parameter group. parameters: of how many parameters it
    keeps anything, tensors included; None in checkpoints that do not say so.
    """

    state: dict[str, int | float]
    groups: list[dict[str, int | float]]
    parameters: int | None = None


@dataclass(frozen=True)
class CheckpointState:
    """The content of state.json.

    schedule, scaler: as their `state_dict` returned them. samples, updates: of the run's plan. channels: of an image.
    data: by split, the number of its samples and their SHA-256; empty in checkpoints that do not say so.
    """

    train_state: TrainState
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    optimizer: OptimizerNumbers
    precision: str
    world_size: int
    classes: list[str]
    preprocessing: Preprocessing
    channels: int
    samples: int
    updates: int
    config: Config
    versions: dict[str, str]
    data: dict[str, dict[str, Any]]


def read_state(fields: Fields) -> CheckpointState:
    """Read the content of a state.json of the current format. Raises ValueError, in one line, for what is wrong."""
    train_state = TrainState.from_dict(fields.fields("train_state").values)
    plan = fields.fields("plan")
    updates = plan.integer("updates", 1)
    if train_state.position > updates:
        raise ValueError(f"train_state.position: {train_state.position} is past the {updates} updates of plan.updates")
    channels = fields.integer("channels", 1, _MOST_CHANNELS)
    classes = fields.texts("classes")
    if not classes:
        raise ValueError("classes must not be empty")
    config = _config(fields.fields("config"))
    return CheckpointState(
        train_state=train_state,
        schedule=_schedule(fields.fields("schedule"), train_state.applied_updates, config),
        scaler=_scaler(fields.fields("scaler")),
        optimizer=_optimizer(fields.fields("optimizer")),
        precision=fields.text("precision", _PRECISIONS),
        world_size=fields.integer("world_size", 1),
        classes=classes,
        preprocessing=_preprocessing(fields.fields("preprocessing"), channels),
        channels=channels,
        samples=plan.integer("samples", 1),
        updates=updates,
        config=config,
        versions=_versions(fields.fields("versions")),
        data=_data(fields.fields("data")) if fields.has("data") else {},
    )


def _schedule(fields: Fields, applied: int, config: Config) -> dict[str, Any]:
    """Return the schedule's state, which counts the updates applied. Raises ValueError."""
    updates = fields.integer("updates")
    if updates != applied:
        raise ValueError(f"schedule.updates: {updates} is not the {applied} of train_state.applied_updates")
    if schedule_metric(config.schedule) is None:
        fields.only("updates")
        return {"updates": updates}
    fields.only("updates", "rates", "plateau")
    counters = fields.fields("plateau")
    counters.only(*PLATEAU)
    plateau: dict[str, Any] = {name: counters.integer(name) for name in PLATEAU if name != "best"}
    return {
        "updates": updates,
        "rates": fields.numbers("rates", 0),
        "plateau": {**plateau, "best": counters.number("best", finite=False)},
    }


def _scaler(fields: Fields) -> dict[str, Any]:
    """Return the state of fp16's loss scaler; empty in other precisions. Raises ValueError."""
    if not fields.values:
        return {}
    fields.only(*_SCALER)
    if fields.number("scale", 0) == 0:
        raise ValueError("scaler.scale must be above 0")
    return {
        "scale": fields.number("scale"),
        "growth_factor": fields.number("growth_factor", 1),
        "backoff_factor": fields.number("backoff_factor", 0),
        "growth_interval": fields.integer("growth_interval", 1),
        "_growth_tracker": fields.integer("_growth_tracker"),
    }


def _optimizer(fields: Fields) -> OptimizerNumbers:
    groups = [group.scalars() for group in fields.objects("groups")]
    parameters = fields.integer("parameters") if fields.has("parameters") else None
    return OptimizerNumbers(fields.fields("state").scalars(), groups, parameters)


def _preprocessing(fields: Fields, channels: int) -> Preprocessing:
    """Return what an image becomes. Raises ValueError."""
    mean, std = fields.numbers("mean"), fields.numbers("std", 0)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"preprocessing.{name}: has {len(values)} values and the images {channels} channels")
    crop = fields.number("crop", 0)
    if not 0 < crop <= LARGEST_CROP or 0 in std:
        raise ValueError(f"preprocessing: crop must be above 0 and {LARGEST_CROP:g} at most, and std above 0")
    side = fields.integer("image_size", 1, _LARGEST_SIDE)
    # Not in the states of earlier versions, which had no others.
    interpolation = fields.text("interpolation", INTERPOLATIONS) if fields.has("interpolation") else "bicubic"
    fit = fields.text("fit", FITS) if fields.has("fit") else "crop"
    return Preprocessing(side, tuple(mean), tuple(std), crop, interpolation, fit)


def _versions(fields: Fields) -> dict[str, str]:
    """Return the versions of the packages that wrote it, by name. Raises ValueError."""
    return {name: fields.text(name) for name in fields.values}


def _data(fields: Fields) -> dict[str, dict[str, Any]]:
    """Return what identifies the samples of each split. Raises ValueError."""
    found: dict[str, dict[str, Any]] = {}
    for name in fields.values:
        split = fields.fields(name)
        found[name] = {"samples": split.integer("samples"), "sha256": split.sha256("sha256")}
        # Of some data, and not in earlier checkpoints.
        found[name] |= {kind: split.sha256(kind) for kind in ("content", "weights", "captions") if split.has(kind)}
        found[name] |= {kind: split.text(kind) for kind in ("without", "tokenizer") if split.has(kind)}
    return found


def _config(fields: Fields) -> Config:
    """Return the run's config. Raises ValueError."""
    try:
        return Config.from_dict(fields.values)
    except UserError as error:
        raise ValueError(f"config.{one_line('; '.join(str(error).splitlines()), 400)}") from None
