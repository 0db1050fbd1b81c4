"""Flags of timm, torchvision, Ultralytics, Hugging Face and Lightning: each is answered with the flag that does it."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from vit_dist.cli.aliases import MODEL_ALIASES, TRAIN_ALIASES
from vit_dist.cli.arguments import parse_arguments
from vit_dist.cli.commands import USAGES
from vit_dist.config.config import Config
from vit_dist.config.schema import all_options
from vit_dist.errors import UserError

# What is typed → the field here and its value, for each of some flags.
TRAIN: list[tuple[str, str, Any, str]] = [
    ("7", "train.duration", "7 epochs", "epochs epoch num_epochs n_epochs max_epochs num_train_epochs"),
    ("7", "train.duration", "7 updates", "max_steps steps num_steps total_steps iterations max_iters"),
    ("6", "batch.global_size", 6, "batch_size batch bs batch.size train_batch_size per_device_train_batch_size"),
    ("7", "evaluate.batch_size", 7, "val_batch_size validation_batch_size eval_batch_size per_device_eval_batch_size"),
    ("7e-4", "optimizer.lr", 7e-4, "lr lr0 learning_rate base_lr blr lr_base"),
    ("0.7", "optimizer.weight_decay", 0.7, "weight_decay wd"),
    ("7", "optimizer.clip_norm", 7.0, "clip_grad grad_clip max_grad_norm clip_grad_norm gradient_clip_val"),
    ("", "batch.micro_size", "auto", "auto_batch auto_find_batch_size auto_scale_batch_size"),
    ("", "model.checkpoint_blocks", True, "grad_checkpointing gradient_checkpointing activation_checkpointing"),
    ("", "model.checkpoint_blocks", True, "use_checkpoint grad_checkpoint gradient_checkpoint"),
    ("muon", "optimizer.name", "muon", "opt optim optimizer"),
    ("adan", "optimizer.name", "timm/adan", "opt"),
    ("adamw_torch", "optimizer.name", "adamw", "optim"),
    ("0.7 0.8", "optimizer.betas", [0.7, 0.8], "opt_betas betas"),
    ("0.7", "optimizer.betas", [0.7, 0.999], "adam_beta1"),
    ("0.7", "optimizer.betas", [0.9, 0.7], "adam_beta2"),
    ("1e-6", "optimizer.args", {"eps": 1e-6}, "opt_eps adam_epsilon eps"),
    ("0.7", "optimizer.layer_decay", 0.7, "layer_decay"),
    ("7", "optimizer.scale_base", 7, "lr_base_size"),
    ("", "optimizer.decay_all", True, "no_filter_bias_and_bn"),
    ("wsd", "schedule.name", "wsd", "sched scheduler lr_scheduler lr_scheduler_type"),
    ("cosine_with_restarts", "schedule.name", "CosineAnnealingWarmRestarts", "lr_scheduler_type"),
    ("linear", "schedule.cooldown", "95%", "lr_scheduler_type"),
    ("", "schedule.name", "cosine", "cos_lr"),
    ("7", "schedule.warmup", "7 updates", "warmup_steps warmup_iters"),
    ("7", "schedule.warmup", "7 epochs", "warmup_epochs lr_warmup_epochs warmup"),
    ("0.1", "schedule.warmup", "10%", "warmup_ratio"),
    ("7", "schedule.cooldown", "7 epochs", "cooldown_epochs"),
    ("0.1", "schedule.cooldown_end", 0.1, "min_lr lr_min lrf eta_min"),
    ("7", "schedule.args", {"step_size": "7 epochs"}, "decay_epochs lr_step_size step_size"),
    ("vit_small", "model.name", "vit_small", "model arch backbone model_name model_name_or_path"),
    ("resnet50", "model.name", "timm/resnet50", "model"),
    ("vit_b_16", "model.name", "timm/vit_base_patch16_224", "model"),
    ("google/vit-base-patch16-224", "model.name", "timm/vit_base_patch16_224", "model_name_or_path"),
    ("w.safetensors", "model.pretrained", "w.safetensors", "pretrained weights finetune initial_checkpoint"),
    ("", "model.pretrained", "timm", "pretrained"),
    ("IMAGENET1K_V1", "model.pretrained", "timm", "weights pretrained_weights"),
    ("0.7", "model.drop_path", 0.7, "drop_path stochastic_depth"),
    ("0.7", "model.dropout", 0.7, "drop drop_rate"),
    ("blocks", "model.freeze", ["blocks"], "freeze"),
    ("", "model.linear_probe", True, "linear_probe linear_probing freeze_backbone"),
    ("0.7", "train.ema", 0.7, "ema model_ema_decay ema_decay"),
    ("", "train.ema", 0.999, "model_ema use_ema"),
    ("in/7", "data.root", "in/7", "data data_dir data_path train_dir root datadir folder dir"),
    ("mnist", "data.name", "mnist", "dataset dataset_name"),
    ("64", "data.image_size", 64, "img_size imgsz image_size train_crop_size resolution"),
    ("3 64 64", "data.image_size", 64, "input_size"),
    ("0.2", "data.val_fraction", 0.2, "val_split train_val_split val_fraction validation_split val_ratio"),
    ("7", "data.workers", 7, "workers num_workers dataloader_num_workers j"),
    ("0.7", "data.crop", 0.7, "crop_pct crop_fraction"),
    ("squash", "data.fit", "stretch", "crop_mode"),
    ("border", "data.fit", "pad", "crop_mode"),
    ("center", "data.fit", "crop", "crop_mode"),
    ("bilinear", "data.interpolation", "bilinear", "interpolation"),
    ("rand-m9", "augment.auto", "rand-m9", "aa auto_augment autoaugment"),
    ("0.7", "augment.mixup", 0.7, "mixup mixup_alpha"),
    ("0.7", "augment.cutmix", 0.7, "cutmix cutmix_alpha"),
    ("0.7", "augment.mix_prob", 0.7, "mixup_prob"),
    ("0.7", "augment.mix_switch", 0.7, "mixup_switch_prob"),
    ("0.7", "augment.flip", 0.7, "hflip fliplr horizontal_flip"),
    ("7", "augment.rotate", 7.0, "degrees rotation"),
    ("0.7", "augment.erasing", 0.7, "reprob random_erase"),
    ("pixel", "augment.erasing_mode", "pixel", "remode"),
    ("0.7", "augment.color_jitter", 0.7, "color_jitter"),
    ("2", "augment.repeats", 2, "aug_repeats ra_reps"),
    ("", "augment.repeats", 3, "ra_sampler repeated_aug"),
    ("", "augment.flip", 0.0, "no_aug"),
    ("0.7", "loss.label_smoothing", 0.7, "smoothing label_smoothing label_smoothing_factor"),
    ("", "loss.name", "bce", "bce_loss bce"),
    ("bce", "loss.name", "bce", "criterion"),
    ("timm/x", "loss.teacher", "timm/x", "teacher teacher_model"),
    ("0", "run.device", "cuda", "device"),
    ("cuda:1", "run.device", "cuda", "device"),
    ("cpu", "run.device", "cpu", "device accelerator"),
    ("", "run.device", "cuda", "gpu cuda"),
    ("", "run.device", "cpu", "cpu no_cuda use_cpu"),
    ("7", "run.seed", 7, "seed seed_everything random_state"),
    ("", "run.deterministic", True, "deterministic use_deterministic_algorithms"),
    ("never", "run.resume", "never", "resume resume_from_checkpoint ckpt_path"),
    ("out/7", "run.dir", "out/7", "output output_dir save_dir out out_dir default_root_dir"),
    ("mine", "run.name", "mine", "name run_name experiment exp_name"),
    ("mine", "log.project", "mine", "project wandb_project"),
    ("7", "run.time_limit", "7 hours", "time max_time"),
    ("bf16", "train.precision", "bf16", "precision mixed_precision amp_dtype dtype"),
    ("no", "train.precision", "fp32", "mixed_precision"),
    ("", "train.precision", "bf16", "amp bf16"),
    ("", "train.precision", "fp16", "fp16 half"),
    ("7", "evaluate.patience", 7, "patience early_stopping early_stopping_patience"),
    ("loss", "evaluate.metric", "loss", "eval_metric metric_for_best_model monitor"),
    ("7", "evaluate.every", "7 epochs", "check_val_every_n_epoch val_interval"),
    ("7", "evaluate.every", "7 updates", "eval_steps val_check_interval"),
    ("7", "checkpoint.every", "7 epochs", "save_period save_freq"),
    ("7", "checkpoint.every", "7 updates", "save_steps"),
    ("7", "checkpoint.keep", 7, "save_total_limit checkpoint_hist"),
    ("7", "log.every", "7 updates", "log_interval print_freq logging_steps log_every_n_steps"),
    ("10", "log.profile", "10 updates", "profile profiler profile_steps profile_updates"),
    ("none", "log.trackers", "none", "report_to tracker logger"),
    ("", "log.trackers", "wandb", "log_wandb wandb use_wandb"),
    ("", "log.level", "debug", "verbose debug v"),
]
# Answers that are no flags of ours that work as they stand.
WORDS = {
    "num_classes nb_classes n_classes num_labels nc class_map in_chans channels": "not needed: "
    "it follows from the data",
    "val_dir validation_dir val_data": "here it is a val folder beside train is found by itself",
    "gpus devices num_gpus nproc_per_node": "here it is accelerate launch --num_processes 7 scripts/train.py …",
    "num_nodes nnodes": "here it is accelerate launch --num_machines 7 scripts/train.py …",
    "eval evaluate test_only do_eval validate": "here it is vit-dist evaluate RUN",
    "dry_run fast_dev_run": "here it is vit-dist plan with the same flags",
    "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches accum_iter": "here it is --batch.micro_size, "
    "the slots of one forward pass: batch.global_size / (micro_size × processes) passes are accumulated",
    "mean": 'here it is --data.mean "[7]"',
    "std": 'here it is --data.std "[7]"',
    "decay_rate lr_gamma gamma": "here it is --schedule.name StepLR --schedule.args.gamma 7",
    "model_kwargs": "here it is --model.args 7",
}
MODEL: list[tuple[str, str, Any, str]] = [
    ("7", "evaluate.batch_size", 7, "batch_size batch bs val_batch_size per_device_eval_batch_size"),
    ("0", "run.device", "cuda", "device accelerator gpu"),
    ("", "run.device", "cpu", "cpu no_cuda use_cpu"),
    ("7", "run.threads", 7, "threads"),
    ("7", "run.seed", 7, "seed"),
    ("fp32", "train.precision", "fp32", "precision mixed_precision dtype amp_dtype"),
    ("", "train.precision", "bf16", "amp bf16"),
    ("", "train.precision", "fp16", "fp16 half"),
    ("7", "data.root", "7", "data data_dir data_path root dataset"),
    ("7", "data.workers", 7, "workers num_workers dataloader_num_workers j"),
    ("7", "data.image_size", 7, "img_size imgsz image_size input_size"),
    ("0.7", "data.crop", 0.7, "crop_pct"),
    ("border", "data.fit", "pad", "crop_mode"),
    ("bilinear", "data.interpolation", "bilinear", "interpolation"),
    ("7", "--top", "7", "topk top_k k n"),
    ("x.csv", "--out", "x.csv", "output output_dir results_file save_txt"),
    ("x.json", "--json", "x.json", "save_json"),
    ("D", "--folder", "D", "dir data_folder test_dir"),
    ("", "--weights", "ema", "ema use_ema model_ema"),
    ("csv", "--format", "csv", "output_format results_format"),
]
TRAIN_ROWS = [(name, *row[:3]) for row in TRAIN for name in row[3].split()]
MODEL_ROWS = [(name, *row[:3]) for row in MODEL for name in row[3].split()]


def refusal(command: str, *words: str) -> list[str]:
    with pytest.raises(UserError) as error:
        parse_arguments(command, words)
    return str(error.value).splitlines()


def advised(line: str, flag: str) -> list[str]:
    """Return the words that a line tells to type."""
    assert line.startswith(f"{flag}: here it is --"), line
    return shlex.split(line.partition("here it is ")[2].partition(", a ")[0])


@pytest.mark.parametrize(
    ("name", "typed", "field", "value"), TRAIN_ROWS, ids=[f"{row[0]}-{row[1]}" for row in TRAIN_ROWS]
)
def test_a_flag_of_another_trainer_is_answered_with_ours(name: str, typed: str, field: str, value: Any) -> None:
    flag = f"--{name}"
    (line,) = refusal("train", flag, *typed.split())
    config = parse_arguments("train", advised(line, flag)).config
    needs = {"optimizer.name": "sgd"} if field == "optimizer.momentum" else {}
    if "mnist" not in config.values() and value not in ("CosineAnnealingWarmRestarts", "timm/x"):  # need more fields
        assert Config.load(None, {"data.name": "digits", **needs, **config}).fields()[field] == value
    else:
        assert config[field] == value
    dashed = f"--{name.replace('_', '-')}"
    assert refusal("plan", dashed, *typed.split()) == [line.replace(flag, dashed, 1)]
    if len(typed.split()) == 1:
        assert refusal("train", f"{flag}={typed}") == [line]


@pytest.mark.parametrize(("names", "answer"), WORDS.items())
def test_flags_whose_answer_is_in_words(names: str, answer: str) -> None:
    for name in names.split():
        assert refusal("train", f"--{name}", "7") == [f"--{name}: {answer}"]


def test_every_alias_is_tested() -> None:
    assert TRAIN_ALIASES.keys() == {row[0] for row in TRAIN_ROWS} | set(" ".join(WORDS).split()) | {"momentum"}
    positionals = {name for name, answer in MODEL_ALIASES.items() if not answer.startswith("--")}
    assert MODEL_ALIASES.keys() == {row[0] for row in MODEL_ROWS} | positionals
    assert len(TRAIN_ALIASES) > 150


def test_no_alias_hides_a_field() -> None:
    assert not {name for name, _ in all_options()} & TRAIN_ALIASES.keys()


def test_sections_of_other_tools_do_not_matter_unless_the_name_needs_one() -> None:
    assert refusal("train", "--trainer.max_epochs", "3") == [
        '--trainer.max_epochs: here it is --train.duration "3 epochs"'
    ]
    assert refusal("train", "--train.epochs", "3") == ['--train.epochs: here it is --train.duration "3 epochs"']
    assert refusal("train", "--optimizer.init_args.lr", "3") == [
        "--optimizer.init_args.lr: here it is --optimizer.lr 3"
    ]
    assert refusal("train", "--model.num_classes", "3") == ["--model.num_classes: not needed: it follows from the data"]
    assert refusal("train", "--train.batch_size", "3") == ["--train.batch_size: here it is --batch.global_size 3"]
    for flag in ("--zz.time", "--log.source", "--model.lr_x", "--zz.size"):
        assert refusal("train", flag, "3") == [f"{flag}: no such flag; see --help for all flags"]


def test_a_flag_is_suggested_only_from_the_same_meaning() -> None:
    meant = {
        "--optimzer.lr": "optimizer.lr",  # a section misspelt
        "--optimizer.lrr": "optimizer.lr",
        "--model.image_size": "data.image_size",  # the only field of this name
        "--log.dir": "run.dir",
        "--cooldown_power": "schedule.cooldown_power",
        "--cooldown-power": "schedule.cooldown_power",
    }
    for flag, field in meant.items():
        (line,) = refusal("train", flag, "1")
        assert line in (f"{flag}: no such flag; did you mean --{field}?", f"{flag}: here it is --{field} 1")
    assert refusal("train", "--every", "1") == ["--every: no such flag; see --help for all flags"]  # several have it
    assert refusal("train", "--learning_rat", "1") == ["--learning_rat: here it is --optimizer.lr 1"]
    assert refusal("train", "--resume") == ["--resume: not needed: the same command resumes its run"]
    assert refusal("train", "--resume", "True") == ["--resume: not needed: the same command resumes its run"]


def test_words_with_equals_signs() -> None:
    assert refusal("train", "data=D", "epochs=10", "imgsz=64", "optimizer.lr=1", "zzz=1") == [
        "data=D: here it is --data.root D",
        'epochs=10: here it is --train.duration "10 epochs"',
        "imgsz=64: here it is --data.image_size 64",
        "optimizer.lr=1: flags begin with two dashes: --optimizer.lr 1",
        "zzz=1: no such flag; see --help for all flags",
    ]


@pytest.mark.parametrize(
    ("name", "typed", "field", "value"), MODEL_ROWS, ids=[f"{row[0]}-{row[1]}" for row in MODEL_ROWS]
)
def test_a_flag_of_another_tool_for_a_trained_model(name: str, typed: str, field: str, value: Any) -> None:
    command = "evaluate" if field in USAGES["evaluate"].flags else "predict"
    (line,) = refusal(command, "x", f"--{name}", *typed.split())
    given = parse_arguments(command, ["x", *advised(line, f"--{name}")])
    assert {**given.flags, **given.config} == {field: value}


@pytest.mark.parametrize("name", sorted(name for name, text in MODEL_ALIASES.items() if not text.startswith("--")))
def test_flags_of_other_tools_that_are_positionals_here(name: str) -> None:
    images = ("image", "images", "source", "input", "file", "files", "path")
    where = "an argument after the model" if name in images else "the first argument"
    assert refusal("predict", f"--{name}", "a") == [f"--{name}: here it is {where}, without a flag: a"]


@pytest.mark.parametrize("flag", ["--onnx", "--output"])
def test_the_place_and_kind_of_an_export_are_its_second_argument(flag: str) -> None:
    where = "the second argument, without a flag: vit-dist export RUN model.onnx, or a new folder"
    assert refusal("export", "R", flag) == [f"{flag}: here it is {where}"]


def test_no_answer_names_a_flag_that_the_command_refuses() -> None:
    for command, usage in USAGES.items():
        if not usage.positionals:
            continue
        takes = [*usage.flags, *(f"--{name}" for name, _ in all_options() if usage.takes(name))]
        for name in MODEL_ALIASES:
            (line,) = refusal(command, *["x"] * usage.min, f"--{name}", "7")
            flag = line.partition("here it is ")[2].split(" ")[0]
            assert not flag.startswith("--") or flag in takes, line
