"""Limits of the fields that have no end of their own: beyond what any machine can do, so a mistake or an attack."""

from __future__ import annotations

LIMITS = {
    "run.threads": 4096,
    "model.patch_size": 16384,
    "model.patch_stride": 16384,
    "model.width": 65536,
    "model.depth": 1000,
    "model.heads": 4096,
    "model.mlp_ratio": 1000,
    "model.registers": 4096,
    "model.layer_scale": 1000,
    "model.norm_eps": 1,
    "text.context_length": 16384,
    "text.width": 65536,
    "text.depth": 1000,
    "text.heads": 4096,
    "text.embed_dim": 65536,
    "data.image_size": 16384,
    "data.workers": 1024,
    "augment.color_jitter": 100,
    "augment.shift": 16384,
    "augment.mixup": 1000,
    "augment.cutmix": 1000,
    "augment.repeats": 1_000_000,
    "batch.global_size": 10_000_000,
    "batch.micro_size": 1_000_000,
    "loss.temperature": 1000,
    "optimizer.lr": 1_000_000,
    "optimizer.scale_base": 10_000_000,
    "optimizer.weight_decay": 1_000_000,
    "schedule.cooldown_power": 1000,
    "evaluate.batch_size": 1_000_000,
    "evaluate.patience": 1_000_000,
    "checkpoint.keep": 1_000_000,
}
# Of a YAML file, or of a value on the command line.
YAML_CHARACTERS, YAML_LEVELS, YAML_VALUES, YAML_DIGITS = 2**20, 32, 20_000, 100
# Of a text in characters, of a list or mapping in entries and levels.
TEXT, ENTRIES, LEVELS = 4096, 1000, 32
# Of the run's name and of each name in a path, in bytes.
RUN_NAME, PATH_PART = 200, 255
# Of a length of time in its unit, and of the updates of a run.
LENGTH, UPDATES = 10**12, 10**9
