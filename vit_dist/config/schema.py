"""The whole run on one page: every field with its meaning, unit and default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Union


def option(default: Any, meaning: str, *, free: bool = False) -> Any:
    """A field of the config. `free` says that its value cannot change the result of a run."""
    metadata = {"meaning": meaning, "free": free}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    name: str = option("", "name of the run; empty: the recipe's name and six hex digits of the identity", free=True)
    dir: str = option("", "folder of the run; empty: runs/<run.name>", free=True)
    seed: int = option(0, "seed of every random draw, 0 or more")
    resume: str = option(
        "auto", "auto: go on from the folder's last checkpoint; never: refuse a used folder; or a PATH", free=True
    )
    deterministic: bool = option(False, "deterministic algorithms only: bit-identical resume on a GPU too", free=True)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to run; auto: the best present", free=True)
    threads: Union[int, Literal["auto"]] = option(
        "auto", "CPU threads per process; auto: the allowed cores divided by the processes on the host", free=True
    )


@dataclass(frozen=True)
class ModelConfig:
    name: str = option(
        "vit_tiny", "vit_tiny, vit_small, vit_base, vit_large, vit_huge, timm/NAME or package.module:function"
    )
    patch_size: int = option(16, "side of a patch in pixels; divides the image")
    patch_stride: Union[int, None] = option(None, "step from patch to patch; empty: patch_size; less: they overlap")
    width: Union[int, None] = option(None, "width of a token; empty: the preset's")
    depth: Union[int, None] = option(None, "number of blocks; empty: the preset's")
    heads: Union[int, None] = option(None, "number of attention heads, a divisor of the width; empty: the preset's")
    mlp_ratio: float = option(4.0, "width of the MLP's hidden layer, in widths")
    pool: Literal["token", "mean"] = option("token", "what the head reads: the class token or the mean of the patches")
    position: Literal["learned", "sincos"] = option("learned", "position embedding: learned or fixed sines and cosines")
    fc_norm: bool = option(True, "with pool mean: the last norm behind the mean (timm); false: before it (big_vision)")
    pre_logits: bool = option(False, "a linear layer and tanh before the head, as big_vision's plain ViT")
    registers: int = option(0, "register tokens beside the class token, 0 or more")
    layer_scale: float = option(0.0, "first value of each branch's learned scale, as 1e-4; 0: none")
    qk_norm: bool = option(False, "LayerNorm of queries and keys in each head")
    init: Literal["timm", "jax"] = option("timm", "first weights: as timm's ViT, or as big_vision's (zero head)")
    norm_eps: float = option(1e-6, "epsilon of LayerNorm")
    dropout: float = option(0.0, "dropout on positions, attention's projection and MLP, 0 to 1")
    attention_dropout: float = option(0.0, "dropout on attention's weights, 0 to 1")
    drop_path: float = option(0.0, "drop-path of the last block, from 0 at the first, below 1 (keyed)")
    pretrained: str = option("", "weights to start from: a safetensors file, a run's folder, or timm")
    freeze: tuple[str, ...] = option((), "patterns of parameters' names that are not trained")
    linear_probe: bool = option(False, "train the head alone")
    args: dict[str, Any] = option({}, "keyword arguments handed to timm/NAME or package.module:function")


@dataclass(frozen=True)
class DataConfig:
    name: str = option("", "digits, mnist, fashion_mnist, cifar10, cifar100 or folder; empty: folder if root is set")
    root: str = option("", "where the files are, or go when downloaded; empty: ~/.cache/vit_dist", free=True)
    val_fraction: float = option(0.1, "part of train held out for choices where there is no val split, 0 to 0.5")
    image_size: int = option(0, "side of the model's input in pixels; 0: the data's own, 224 for folder")
    crop: float = option(0.0, "part of the short side that evaluation keeps of files; 0: the timm model's, else 0.875")
    workers: Union[int, Literal["auto"]] = option("auto", "processes that decode images, per process", free=True)
    mean: tuple[float, ...] = option((), "per channel, of values in 0..1; empty: the data's or the timm model's")
    std: tuple[float, ...] = option((), "per channel, of values in 0..1; empty: the data's or the timm model's")


@dataclass(frozen=True)
class AugmentConfig:
    crop_min: float = option(0.0, "smallest part of the area a random resized crop keeps, 0 to 1; 0: none")
    auto: str = option("", "timm's rand-m9-mstd0.5-inc1, 3a, augmix-…, original …, or trivial, or autoaugment-cifar10")
    color_jitter: float = option(0.0, "strength for brightness, contrast and saturation, as in timm; 0: none")
    transform: str = option("", "package.module:function on each decoded PIL image, under its key; empty: none")
    flip: float = option(0.0, "probability of mirroring left and right, 0 to 1")
    shift: int = option(0, "largest random shift in pixels, each direction: pad with black and crop")
    rotate: float = option(0.0, "largest rotation in degrees, each direction, 0 to 180")
    translate: float = option(0.0, "largest translation, a part of the side, each direction, 0 to 1")
    scale: float = option(0.0, "largest relative change of size: 0.1 is 0.9 to 1.1; below 1")
    erasing: float = option(0.0, "probability of erasing a rectangle, 0 to 1 (timm's reprob)")
    erasing_mode: Literal["const", "rand", "pixel"] = option("const", "with the mean, one random colour, or noise")
    mixup: float = option(0.0, "alpha of mixup, by pairs of slots, as in timm; 0: none")
    cutmix: float = option(0.0, "alpha of CutMix, by pairs of slots, as in timm; 0: none")
    mix_prob: float = option(1.0, "probability that a pair is mixed at all, 0 to 1")
    mix_switch: float = option(0.5, "probability of CutMix where mixup is set too, 0 to 1")
    repeats: int = option(1, "copies of a sample in a global batch, each augmented on its own (DeiT has 3)")
    sizes: tuple[str, ...] = option((), "image sides in turn before data.image_size, as [128 for 40%, 160 for 30%]")


@dataclass(frozen=True)
class BatchConfig:
    global_size: int = option(128, "samples whose mean gradient makes one update, on any hardware")
    micro_size: int = option(128, "slots of one forward pass, even; a global batch is dealt out in these")


@dataclass(frozen=True)
class LossConfig:
    name: str = option("cross_entropy", "cross_entropy, bce or package.module:function, one value per slot")
    label_smoothing: float = option(0.0, "part of the target spread over all classes, 0 to 1")
    teacher: str = option("", "distil from timm/NAME, or from a run's folder or checkpoint; empty: no teacher")
    teacher_weights: str = option("", "safetensors file of a timm teacher")
    distillation: Literal["hard", "soft"] = option("hard", "the teacher's choice of class, or its probabilities")
    distillation_weight: float = option(0.5, "the teacher's part of the loss, 0 to 1 (DeiT's alpha)")
    temperature: float = option(1.0, "of both softmaxes in soft distillation, above 0 (DeiT's tau)")


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = option("adamw", "adamw, adam (both fused), sgd, muon (adamw for what is no hidden matrix) or timm/NAME")
    lr: float = option(1e-3, "peak learning rate, above 0, before scale")
    scale: Literal["none", "linear", "sqrt"] = option("none", "how lr grows with batch.global_size over scale_base")
    scale_base: int = option(256, "global batch that lr is meant for, where scale is not none")
    weight_decay: float = option(0.05, "decoupled for adamw, muon and many of timm's; 0 or more")
    decay_all: bool = option(False, "decay every parameter; else not biases, norms, positions and tokens")
    layer_decay: float = option(1.0, "each layer's rate is this times that of the layer behind it, 0 to 1; 1: equal")
    overrides: dict[str, Any] = option({}, "pattern of parameters' names: {lr: X, weight_decay: X}, as {head: {lr: 1}}")
    betas: tuple[float, ...] = option(
        (), "decay rates of the moments; empty: the optimizer's own, (0.9, 0.999) in adamw"
    )
    momentum: Union[float, None] = option(None, "of sgd and muon, 0 to 1; empty: 0.9 and 0.95")
    clip_norm: float = option(1.0, "largest norm of an update's gradient; 0: no clipping")
    args: dict[str, Any] = option({}, "further keyword arguments of the optimizer, as eps or nesterov")


@dataclass(frozen=True)
class ScheduleConfig:
    name: str = option("cosine", "cosine, wsd, constant or one of torch's, as OneCycleLR: the rate after the warmup")
    warmup: str = option("5%", "length of the linear warmup in front; its first update is at lr/warmup")
    cooldown: str = option("", "length of the cooldown behind, from the last rate; empty: 20% for wsd, none for others")
    cooldown_end: float = option(0.0, "rate at the end of a cooldown and of cosine, a fraction of lr")
    cooldown_power: float = option(1.0, "power of the cooldown's fall; 1: linear")
    args: dict[str, Any] = option({}, "arguments of torch's scheduler; lengths with units, from the end of the warmup")


@dataclass(frozen=True)
class TrainConfig:
    duration: str = option("20 epochs", "length of the run: epochs, updates or samples")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 on a GPU that has it, else fp32; written down, kept on resume"
    )
    ema: float = option(0.0, "decay of an average of the weights per update, as 0.999; warmed up; 0: none")


@dataclass(frozen=True)
class EvaluateConfig:
    every: str = option("1 epochs", "length between evaluations; the end is always evaluated")
    batch_size: int = option(256, "slots of one forward pass of an evaluation", free=True)
    metric: str = option(
        "top1", "of val, chooses the best: top1, top5, loss (plain; of the average, with train.ema) or raw_…"
    )
    patience: int = option(0, "evaluations without an improvement, after the warmup, that end the run; 0: never")
    min_delta: float = option(0.0, "smallest change of the metric that patience takes for an improvement")


@dataclass(frozen=True)
class CheckpointConfig:
    every: str = option("1 epochs", "length between checkpoints; a new best and the end are always saved", free=True)
    keep: int = option(3, "newest checkpoints kept, beside the best one", free=True)


@dataclass(frozen=True)
class LogConfig:
    every: str = option("10 updates", "length between lines of metrics", free=True)
    level: Literal["debug", "info", "warning"] = option(
        "info",
        "warning: notes and mistakes alone; debug: the libraries' own logs too, of all ranks",
        free=True,
    )
    report: bool = option(True, "draw the run's report at its end", free=True)
    trackers: Literal["auto", "none", "wandb", "tensorboard"] = option(
        "auto", "auto: wandb where you are logged in", free=True
    )
    project: str = option("vit_dist", "wandb's project", free=True)
    entity: str = option("", "wandb's team; empty: your own", free=True)
    group: str = option("", "wandb's group of runs", free=True)
    tags: tuple[str, ...] = option((), "wandb's tags", free=True)


@dataclass(frozen=True)
class Schema:
    """The sections of a config, in the order in which they are shown."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
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
