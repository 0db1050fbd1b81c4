"""The fields that shape what a run learns: meaning, bounds, unit and default.

The optimizer's are in optimizer_fields.py, those of texts in text_fields.py, those that change no result in
output_fields.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Union

from vit_dist.config.option import option

# A field that cannot change the result, and that may be set anew for a trained run.
free = partial(option, changes_result=False, at_inference=True)


@dataclass(frozen=True)
class RunConfig:
    """The run: name, folder, seed and hardware."""

    name: str = option("", "name of the run; empty: that of the data, and six hex digits", changes_result=False)
    dir: str = option("", "folder of the run; empty: runs/<run.name>", changes_result=False)
    seed: int = option(0, "seed of every random draw", at_least=0, below=2**63, at_inference=True)
    resume: str = option(
        "auto",
        "auto: continue from the folder's last checkpoint; never: refuse a folder that holds a run; "
        "or the PATH of a checkpoint",
        changes_result=False,
    )
    time_limit: str = option(
        "", "time after which the run saves and stops, to be resumed, as 55 minutes; empty: none", changes_result=False
    )
    timeout: float = free(
        300.0, "longest wait for a process of the run that does not answer or get on", at_least=2, unit="seconds"
    )
    deterministic: bool = option(
        False, "use deterministic algorithms only, so that a resume on a GPU is bit-identical too", changes_result=False
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "device to run on; auto: the best one available", changes_result=False, at_inference=True
    )
    threads: Union[int, Literal["auto"]] = free(
        "auto", "CPU threads per process; auto: the available cores divided by the processes on the host", above=0
    )
    auto: tuple[str, ...] = option((), "fields that the data set decides: docs/defaults.md", changes_result=False)


@dataclass(frozen=True)
class ModelConfig:
    """The model: architecture, initial weights, and which parameters are trained."""

    name: str = option(
        "vit_tiny", "vit_tiny, vit_small, vit_base, vit_large, vit_huge, timm/NAME, package.module:function"
    )
    patch_size: int = option(16, "side of a patch in pixels; must divide the image size", above=0)
    patch_stride: Union[int, None] = option(
        None, "distance between patches in pixels; empty: patch_size; smaller: patches overlap", above=0
    )
    width: Union[int, None] = option(None, "embedding dimension; empty: the preset's", above=0)
    depth: Union[int, None] = option(None, "number of transformer blocks; empty: the preset's", above=0)
    heads: Union[int, None] = option(None, "attention heads; must divide the width; empty: the preset's", above=0)
    mlp_ratio: float = option(4.0, "hidden dimension of the MLP, as a multiple of the width", above=0)
    pool: Literal["token", "mean"] = option("token", "input of the head: the class token or the mean of the patches")
    position: Literal["learned", "sincos"] = option("learned", "position embedding: learned, or fixed sine-cosine")
    fc_norm: bool = option(True, "with pool mean: final norm after the pooling (timm); false: before it (big_vision)")
    pre_logits: bool = option(False, "linear layer and tanh before the head, as in big_vision's plain ViT")
    registers: int = option(0, "number of register tokens", at_least=0)
    layer_scale: float = option(0.0, "initial value of LayerScale, such as 1e-4; 0: no LayerScale", at_least=0)
    qk_norm: bool = option(False, "LayerNorm on the queries and keys of each head")
    init: Literal["timm", "jax"] = option("timm", "initialisation: as in timm's ViT, or big_vision's with a zero head")
    norm_eps: float = option(1e-6, "epsilon of LayerNorm", above=0)
    dropout: float = option(0.0, "dropout on positions, attention output and MLP", at_least=0, at_most=1)
    attention_dropout: float = option(0.0, "dropout on the attention weights", at_least=0, at_most=1)
    drop_path: float = option(
        0.0, "stochastic depth of the last block, rising linearly from 0 at the first", at_least=0, below=1
    )
    residual: Literal["fp32", "bf16"] = option(
        "fp32",
        "type of the sums that blocks hand to each other under precision bf16: bf16 halves their memory and traffic, "
        "and rounds more; no effect under fp32 and fp16",
    )
    checkpoint_blocks: bool = option(
        False,
        "keep only the blocks' inputs for the backward pass, which computes the rest again: less memory, more time, "
        "the same gradients, so it is no part of the run's identity",
        changes_result=False,
    )
    pretrained: str = option("", "weights to start from: a safetensors file, the folder of a run, or timm")
    freeze: tuple[str, ...] = option((), "regular expressions; parameters whose name matches one are frozen")
    linear_probe: bool = option(False, "train the head only")
    args: dict[str, Any] = option({}, "keyword arguments of timm/NAME or package.module:function")


@dataclass(frozen=True)
class DataConfig:
    """The data: where it is, how it is split and preprocessed."""

    name: str = option(
        "",
        "digits, mnist, fashion_mnist, cifar10, cifar100, digits_captions, folder; empty: folder if root is set, else "
        "digits",
    )
    root: str = free(
        "",
        "folder of images or table of paths and labels (.csv, .tsv, .jsonl, .parquet); downloads go to it as well; or "
        "an address: of shards (https://, s3://, gs:// …), or hf://owner/name on the Hugging Face Hub; empty: "
        "~/.cache/vit_dist",
    )
    columns: dict[str, Any] = option(
        {},
        "columns of a table with unusual names, as {path: file_id, label: species, split: fold, weight: trust}, weight "
        "being that of an image in training's loss, or caption: title; of a Hugging Face data set, path is that of the "
        "images",
        at_inference=True,
    )
    val_fraction: float = option(
        0.1, "fraction of the training set held out for validation if there is no val split", at_least=0, at_most=0.5
    )
    classes: Literal["auto", "outer", "inner"] = option(
        "auto", "classes of a tree animal/cat: outer takes animal, inner animal/cat; auto asks which"
    )
    image_size: int = option(
        0, "side of the model's input in pixels; 0: the data set's own, 224 for folder", at_least=0
    )
    crop: float = option(
        0.0, "part of the side kept in evaluation; 0: timm's, else 0.875; 1 to pad or stretch", at_least=0, at_most=1
    )
    fit: Literal["auto", "crop", "pad", "stretch"] = option(
        "auto", "how images become square: crop the ends, pad with a border, or stretch; auto: timm model's, else crop"
    )
    interpolation: Literal["auto", "bicubic", "bilinear"] = option(
        "auto", "how image files are resized; auto: as the timm model's, else bicubic"
    )
    workers: Union[int, Literal["auto"]] = free("auto", "worker processes that read data, per process", at_least=0)
    timeout: float = free(300.0, "longest time that a worker may spend on one image", above=0, unit="seconds")
    on_bad_sample: Literal["fail", "skip"] = free(
        "fail",
        "an image that cannot be read: fail ends the run; skip draws another in its place in training, by key, and "
        "leaves it out of evaluations, which count it",
    )
    leave_out: str = free("", "text file of the names of images to leave out, one a line, as vit-dist check writes it")
    lanes: int = option(
        1,
        "of shards: parts that each process reads apart from the others; a multiple of the micro-batches in a global "
        "batch, so that a process opens the shards of its own lanes only; must divide batch.global_size",
        above=0,
    )
    cache_size: str = free("32GiB", "of shards at an address: most bytes of local copies, in ~/.cache/vit_dist/shards")
    shard_window: int = option(
        16, "of shards: how many are mixed with each other at a time, over all lanes", at_least=1, at_most=100
    )
    max_pixels: int = free(100_000_000, "pixels of the largest image that is decoded", above=0)
    mean: tuple[float, ...] = option((), "mean per channel of pixels in 0..1; empty: the data set's or timm model's")
    std: tuple[float, ...] = option(
        (), "standard deviation per channel; empty: the data set's or the timm model's", above=0
    )

    @property
    def source(self) -> str:
        """Return the name of the data set: `name`, else folder if `root` is set, else digits."""
        return self.name or ("folder" if self.root else "digits")


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of the training images."""

    crop_min: float = option(
        0.0, "smallest part of the area that a random resized crop keeps; 0: no random crop", at_least=0, at_most=1
    )
    auto: str = option(
        "",
        "policy: timm's, such as rand-m9-mstd0.5-inc1, augmix-… or original-…; 3a (3-Augment); "
        "trivial (TrivialAugment) or autoaugment-cifar10; empty: none",
    )
    color_jitter: float = option(0.0, "jitter of brightness, contrast and saturation, as in timm; 0: none", at_least=0)
    transform: str = option(
        "", "package.module:function called on each decoded PIL image, with reproducible random draws; empty: none"
    )
    flip: float = option(0.0, "probability of a horizontal flip", at_least=0, at_most=1)
    shift: int = option(0, "largest random shift in pixels in each direction, padded with black", at_least=0)
    rotate: float = option(0.0, "largest rotation in either direction", at_least=0, at_most=180, unit="degrees")
    translate: float = option(0.0, "largest translation, as a fraction of the side", at_least=0, at_most=1)
    scale: float = option(0.0, "largest relative change of size; 0.1: from 0.9 to 1.1", at_least=0, below=1)
    erasing: float = option(0.0, "probability of random erasing (timm's reprob)", at_least=0, at_most=1)
    erasing_mode: Literal["const", "rand", "pixel"] = option(
        "const", "fill of the erased rectangle: the mean, one random colour, or noise per pixel"
    )
    mixup: float = option(0.0, "alpha of mixup, applied to pairs of slots; 0: none", at_least=0)
    cutmix: float = option(0.0, "alpha of CutMix, applied to pairs of slots; 0: none", at_least=0)
    mix_prob: float = option(1.0, "probability that a pair is mixed by mixup or CutMix", at_least=0, at_most=1)
    mix_switch: float = option(0.5, "probability of CutMix rather than mixup if both are set", at_least=0, at_most=1)
    repeats: int = option(1, "repeated augmentation: copies of each sample in a global batch (DeiT: 3)", above=0)
    sizes: tuple[str, ...] = option(
        (), "progressive resizing: image sides to train at before data.image_size, as [128 for 40%, 160 for 30%]"
    )


@dataclass(frozen=True)
class BatchConfig:
    """The batch of an update, independent of the hardware."""

    global_size: int = option(128, "samples whose mean gradient makes one update, on any hardware", above=0)
    micro_size: Union[int, Literal["auto"]] = option(
        128,
        "slots of one forward pass; a global batch is accumulated from these; auto: the fastest here, measured when "
        "the run begins",
        above=0,
        multiple_of=2,
    )

    @property
    def slots(self) -> int:
        """Return `micro_size`; while it is auto and not decided yet, that of a global batch, 128 at most."""
        return min(128, 2 * -(-self.global_size // 2)) if self.micro_size == "auto" else self.micro_size


@dataclass(frozen=True)
class LossConfig:
    """The loss, and distillation from a teacher."""

    name: str = option(
        "cross_entropy", "cross_entropy, bce, package.module:function (a value per slot); of captions: clip, siglip"
    )
    duplicates: Literal["positives", "mask"] = option(
        "positives", "of clip and siglip: equal captions in a global batch are all positives, or left out of each other"
    )
    label_smoothing: float = option(0.0, "part of the target spread over all classes", at_least=0, at_most=1)
    teacher: str = option(
        "", "teacher to distil from: timm/NAME, the folder of a run, or a checkpoint; empty: no distillation"
    )
    teacher_weights: str = option("", "safetensors file with the weights of a timm teacher")
    distillation: Literal["hard", "soft"] = option("hard", "target: the teacher's top class, or its probabilities")
    distillation_weight: float = option(
        0.5, "weight of the distillation term in the loss (alpha in DeiT)", at_least=0, at_most=1
    )
    temperature: float = option(1.0, "temperature of both softmaxes in soft distillation (tau in DeiT)", above=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate schedule: warmup, decay and cooldown."""

    name: str = option(
        "cosine",
        "schedule after the warmup: cosine, wsd (warmup-stable-decay), constant, or a scheduler of torch's, "
        "such as OneCycleLR",
    )
    warmup: str = option("5%", "length of the linear warmup; the first update is at lr / (updates of the warmup)")
    cooldown: str = option("", "length of the cooldown at the end of the run; empty: 20% for wsd, none for the others")
    cooldown_end: float = option(
        0.0, "final rate of a cooldown or of cosine, as a fraction of lr", at_least=0, at_most=1
    )
    cooldown_power: float = option(1.0, "exponent of the cooldown's decay; 1: linear", above=0)
    args: dict[str, Any] = option({}, "arguments of torch's scheduler; lengths have units and start after the warmup")


@dataclass(frozen=True)
class TrainConfig:
    """The training: length, precision, weight averaging, and when it gives up."""

    duration: str = option("20 epochs", "length of the run in epochs, updates or samples")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 on a GPU that supports it, else fp32; a resumed run keeps its precision", at_inference=True
    )
    compile: Literal["auto", "none", "blocks", "graph"] = free(
        "auto",
        "blocks: compile the model's blocks (torch.compile); other kernels and rounding, the same update, so it is no "
        "part of the run's identity; graph: replay each pass as a CUDA graph, for small models on one GPU; auto: on a "
        "GPU, what gains",
    )
    ema: float = option(
        0.0,
        "decay per update of an exponential moving average of the weights, such as 0.999, warmed up; 0: none",
        at_least=0,
        below=1,
    )
    max_bad_updates: int = option(
        20, "updates skipped, of the last 2 × max_bad_updates, that fail the run", above=0, changes_result=False
    )
