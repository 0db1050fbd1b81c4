"""Names that other tools have for flags and commands, and what does the same here.

Of flags, a dash and an underscore are the same, and a section before the name (`--trainer.max_epochs`) does not count.
{} stands for the value; an answer that does not begin with a dash is shown as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

from vit_dist.config.catalog import OPTIMIZERS
from vit_dist.config.catalog import PRESETS as SCHEDULES

_MODELS = ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge")
_TORCHVISION = {"b": "base", "l": "large", "h": "huge"}
_FROM_DATA = "not needed: it follows from the data"
_FROM_MODEL = "the first argument, without a flag: {}"
_WRITTEN = "the second argument, without a flag: vit-dist export RUN model.onnx, or a new folder"
_IMAGES = "an argument after the model, without a flag: {}"
_STEPS = (
    "--batch.micro_size, the slots of one forward pass: "
    "batch.global_size / (micro_size × processes) passes are accumulated"
)


def _same(answer: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), answer)


# Flags of the commands that read a trained model.
MODEL_ALIASES = {
    **_same("--evaluate.batch_size {}", "batch_size batch bs val_batch_size per_device_eval_batch_size"),
    **_same("--run.device {}", "device accelerator gpu"),
    **_same("--run.device cpu", "cpu no_cuda use_cpu"),
    **_same("--run.threads {}", "threads"),
    **_same("--run.seed {}", "seed"),
    **_same("--train.precision {}", "precision mixed_precision dtype amp_dtype"),
    **_same("--train.precision bf16", "amp bf16"),
    **_same("--train.precision fp16", "fp16 half"),
    **_same("--data.root {}", "data data_dir data_path root dataset"),
    **_same("--data.workers {}", "workers num_workers dataloader_num_workers j"),
    **_same("--data.image_size {}", "img_size imgsz image_size input_size"),
    **_same("--data.crop {}", "crop_pct"),
    **_same("--data.fit {}", "crop_mode"),
    **_same("--data.interpolation {}", "interpolation"),
    **_same(_FROM_MODEL, "model model_path checkpoint ckpt ckpt_path resume run model_name_or_path"),
    **_same(_IMAGES, "image images source input file files path"),
    **_same("--top {}", "topk top_k k n"),
    **_same("--out {}", "output output_dir results_file save_txt"),
    **_same("--json {}", "save_json"),
    **_same("--folder {}", "dir data_folder test_dir"),
    **_same("--weights ema", "ema use_ema model_ema"),
    **_same("--format {}", "output_format results_format"),
}

# Flags of `export`: those, and where and as what it writes.
EXPORT_ALIASES = {
    **MODEL_ALIASES,
    **_same(_WRITTEN, "onnx to export_format output_format opset out output output_dir file path"),
}

# Flags of `train` and `plan`.
TRAIN_ALIASES = {
    # length and batch
    **_same('--train.duration "{} epochs"', "epochs epoch num_epochs n_epochs max_epochs num_train_epochs"),
    **_same('--train.duration "{} updates"', "max_steps steps num_steps total_steps iterations max_iters"),
    **_same("--batch.global_size {}", "batch_size batch bs batch.size train_batch_size per_device_train_batch_size"),
    **_same(_STEPS, "gradient_accumulation_steps grad_accum_steps accumulate_grad_batches accum_iter"),
    **_same("--batch.micro_size auto", "auto_batch auto_find_batch_size auto_scale_batch_size"),
    **_same("--evaluate.batch_size {}", "val_batch_size validation_batch_size eval_batch_size"),
    **_same("--evaluate.batch_size {}", "per_device_eval_batch_size"),
    # optimizer
    **_same("--optimizer.lr {}", "lr lr0 learning_rate base_lr"),
    **_same("--optimizer.lr {} --optimizer.scale linear", "blr lr_base"),
    **_same("--optimizer.weight_decay {}", "weight_decay wd"),
    **_same("--optimizer.clip_norm {}", "clip_grad grad_clip max_grad_norm clip_grad_norm gradient_clip_val"),
    **_same("--optimizer.name {}", "opt optim optimizer"),
    **_same("--optimizer.momentum {}", "momentum"),
    **_same('--optimizer.betas "[{}]"', "opt_betas betas"),
    **_same('--optimizer.betas "[{}, 0.999]"', "adam_beta1"),
    **_same('--optimizer.betas "[0.9, {}]"', "adam_beta2"),
    **_same("--optimizer.args.eps {}", "opt_eps adam_epsilon eps"),
    **_same("--optimizer.layer_decay {}", "layer_decay"),
    **_same("--optimizer.scale_base {}", "lr_base_size"),
    **_same("--optimizer.decay_all true", "no_filter_bias_and_bn"),
    # schedule
    **_same("--schedule.name {}", "sched scheduler lr_scheduler lr_scheduler_type"),
    **_same("--schedule.name cosine", "cos_lr"),
    **_same('--schedule.warmup "{} updates"', "warmup_steps warmup_iters"),
    **_same('--schedule.warmup "{} epochs"', "warmup_epochs lr_warmup_epochs warmup"),
    **_same("--schedule.warmup {}", "warmup_ratio"),
    **_same('--schedule.cooldown "{} epochs"', "cooldown_epochs"),
    **_same("--schedule.cooldown_end {}, a fraction of the peak rate", "min_lr lr_min lrf eta_min"),
    **_same('--schedule.name StepLR --schedule.args.step_size "{} epochs"', "decay_epochs lr_step_size step_size"),
    **_same("--schedule.name StepLR --schedule.args.gamma {}", "decay_rate lr_gamma gamma"),
    # model
    **_same("--model.name {}", "model arch backbone model_name model_name_or_path"),
    **_same("--model.pretrained {}", "pretrained weights finetune initial_checkpoint pretrained_weights"),
    **_same("--model.drop_path {}", "drop_path stochastic_depth"),
    **_same("--model.dropout {}", "drop drop_rate"),
    **_same("--model.freeze {}", "freeze"),
    **_same("--model.linear_probe true", "linear_probe linear_probing freeze_backbone"),
    **_same("--model.args {}", "model_kwargs"),
    **_same("--model.checkpoint_blocks true", "grad_checkpointing gradient_checkpointing activation_checkpointing"),
    **_same("--model.checkpoint_blocks true", "use_checkpoint grad_checkpoint gradient_checkpoint"),
    **_same("--train.ema {}", "ema model_ema_decay ema_decay"),
    **_same("--train.ema 0.999", "model_ema use_ema"),
    # data
    **_same("--data.root {}", "data data_dir data_path train_dir root datadir folder dir"),
    **_same("--data.name {}", "dataset dataset_name"),
    **_same("--data.image_size {}", "img_size imgsz image_size input_size train_crop_size resolution"),
    **_same("--data.val_fraction {}", "val_split train_val_split val_fraction validation_split val_ratio"),
    **_same("--data.workers {}", "workers num_workers dataloader_num_workers j"),
    **_same("--data.crop {}", "crop_pct crop_fraction"),
    **_same("--data.fit {}", "crop_mode"),
    **_same("--data.interpolation {}", "interpolation"),
    **_same('--data.mean "[{}]"', "mean"),
    **_same('--data.std "[{}]"', "std"),
    **_same(_FROM_DATA, "num_classes nb_classes n_classes num_labels nc class_map in_chans channels"),
    **_same("a val folder beside train is found by itself", "val_dir validation_dir val_data"),
    # augmentation and loss
    **_same("--augment.auto {}", "aa auto_augment autoaugment"),
    **_same("--augment.mixup {}", "mixup mixup_alpha"),
    **_same("--augment.cutmix {}", "cutmix cutmix_alpha"),
    **_same("--augment.mix_prob {}", "mixup_prob"),
    **_same("--augment.mix_switch {}", "mixup_switch_prob"),
    **_same("--augment.flip {}", "hflip fliplr horizontal_flip"),
    **_same("--augment.rotate {}", "degrees rotation"),
    **_same("--augment.erasing {}", "reprob random_erase"),
    **_same("--augment.erasing_mode {}", "remode"),
    **_same("--augment.color_jitter {}", "color_jitter"),
    **_same("--augment.repeats {}", "aug_repeats ra_reps"),
    **_same("--augment.repeats 3", "ra_sampler repeated_aug"),
    **_same('--augment.auto "" --augment.crop_min 0 --augment.flip 0 --augment.color_jitter 0', "no_aug"),
    **_same("--loss.label_smoothing {}", "smoothing label_smoothing label_smoothing_factor"),
    **_same("--loss.name bce", "bce_loss bce"),
    **_same("--loss.name {}", "criterion"),
    **_same("--loss.teacher {}", "teacher teacher_model"),
    # run
    **_same("--run.device {}", "device accelerator"),
    **_same("--run.device cuda", "gpu cuda"),
    **_same("--run.device cpu", "cpu no_cuda use_cpu"),
    **_same("accelerate launch --num_processes {} scripts/train.py …", "gpus devices num_gpus nproc_per_node"),
    **_same("accelerate launch --num_machines {} scripts/train.py …", "num_nodes nnodes"),
    **_same("--run.seed {}", "seed seed_everything random_state"),
    **_same("--run.deterministic true", "deterministic use_deterministic_algorithms"),
    **_same("--run.resume {}", "resume resume_from_checkpoint ckpt_path"),
    **_same("--run.dir {}", "output output_dir save_dir out out_dir default_root_dir"),
    **_same("--run.name {}", "name run_name experiment exp_name"),
    **_same("--log.project {}", "project wandb_project"),
    **_same('--run.time_limit "{} hours"', "time max_time"),
    **_same("--train.precision {}", "precision mixed_precision amp_dtype dtype"),
    **_same("--train.precision bf16", "amp bf16"),
    **_same("--train.precision fp16", "fp16 half"),
    # evaluation, checkpoints, log
    **_same("--evaluate.patience {}", "patience early_stopping early_stopping_patience"),
    **_same("--evaluate.metric {}", "eval_metric metric_for_best_model monitor"),
    **_same('--evaluate.every "{} epochs"', "check_val_every_n_epoch val_interval"),
    **_same('--evaluate.every "{} updates"', "eval_steps val_check_interval"),
    **_same('--checkpoint.every "{} epochs"', "save_period save_freq"),
    **_same('--checkpoint.every "{} updates"', "save_steps"),
    **_same("--checkpoint.keep {}", "save_total_limit checkpoint_hist"),
    **_same('--log.every "{} updates"', "log_interval print_freq logging_steps log_every_n_steps"),
    **_same('--log.profile "{} updates"', "profile profiler profile_steps profile_updates"),
    **_same("--log.trackers {}", "report_to tracker logger"),
    **_same("--log.trackers wandb", "log_wandb wandb use_wandb"),
    **_same("--log.level debug", "verbose debug v"),
    **_same("vit-dist evaluate RUN", "eval evaluate test_only do_eval validate"),
    **_same("vit-dist plan with the same flags", "dry_run fast_dev_run"),
}

# Commands of other tools.
COMMAND_ALIASES = {
    **_same("evaluate", "val validate validation test eval score"),
    **_same("train", "fit finetune fine-tune resume run learn tune"),
    **_same("predict", "detect classify infer inference pred prediction label"),
    **_same("export", "convert onnx save"),
    **_same("plan", "dry-run dryrun dry_run info"),
    **_same("report", "plot plots compare show summary visualize"),
    **_same("runs", "ls list"),
    **_same("config schema", "schema"),
    **_same("checkpoint list", "checkpoints ckpt"),
    **_same("--version", "version"),
    **_same("--help", "help"),
}


def _device(value: str) -> str:
    """Other tools number the GPUs; here a process takes the one that it is given."""
    return "cuda" if re.fullmatch(r"[\d, ]+|gpu|cuda:\d+", value) else "auto" if value == "X" else value


def _precision(value: str) -> str:
    if value in ("no", "none", "float32", "32", "32-true"):
        return "fp32"
    return "bf16" if "bf" in value else "fp16" if "16" in value else value


def _model(value: str) -> str:
    if value in (*_MODELS, "X") or ":" in value or value.startswith("timm/"):
        return value
    if match := re.fullmatch(r"vit_([blh])_(\d+)", value):
        return f"timm/vit_{_TORCHVISION[match[1]]}_patch{match[2]}_224"
    return f"timm/{value.removeprefix('google/').removeprefix('facebook/').replace('-', '_')}"


def _optimizer(value: str) -> str:
    name = value.lower().removesuffix("_torch").removesuffix("_torch_fused")
    return name if name in OPTIMIZERS else value if value == "X" else f"timm/{name}"


def _schedule(value: str) -> str:
    known = {
        **_same("StepLR", "step steplr"),
        **_same("MultiStepLR", "multistep multisteplr"),
        **_same("ExponentialLR", "exp exponential exponentiallr"),
        **_same("PolynomialLR", "poly polynomial polynomiallr"),
        **_same("ReduceLROnPlateau", "plateau reduce_lr_on_plateau"),
        **_same("OneCycleLR", "onecycle one_cycle"),
        **_same("CosineAnnealingWarmRestarts", "cosine_with_restarts"),
        **_same("cosine", "cosineannealinglr cosine_annealing"),
        **_same("constant", "constant_with_warmup none"),
        **_same("wsd", "warmup_stable_decay"),
        **_same("wsd --schedule.cooldown 95%", "linear"),
    }
    return value if value in SCHEDULES else known.get(value.lower(), value)


def _pretrained(value: str) -> str:
    return value if "." in value or "/" in value else "timm"


def _fit(value: str) -> str:
    return {"center": "crop", "border": "pad", "letterbox": "pad", "squash": "stretch"}.get(value, value)


def _ratio(value: str) -> str:
    number = re.fullmatch(r"0?\.(\d+)", value)
    return f"{100 * float(value):g}%" if number else value


# Field → its value here for a value there.
_VALUES: Mapping[str, Callable[[str], str]] = {
    "--run.device {}": _device,
    "--train.precision {}": _precision,
    "--model.name {}": _model,
    "--optimizer.name {}": _optimizer,
    "--schedule.name {}": _schedule,
    "--model.pretrained {}": _pretrained,
    "--data.fit {}": _fit,
    "--schedule.warmup {}": _ratio,
}


# Names that mean different things in different sections.
_VAGUE = _same("", "name dir path time root folder data file files input source warmup size")


def find_in_any_section(flag: str, aliases: Mapping[str, str]) -> str | None:
    """Return the answer for the name after the last dot, unless it needs its section to mean something."""
    section, _, name = normalised(flag).rpartition(".")
    return aliases.get(name) if section and name not in _VAGUE else None


def normalised(flag: str) -> str:
    """Return a flag's name as the tables have it."""
    return flag.lstrip("-").replace("-", "_").lower()


def answer(template: str, values: list[str]) -> str:
    """Return an answer with the values that were typed, which may be none, in the words of this tool."""
    if template == "--run.resume {}" and (values or ["true"])[0].lower() == "true":
        return "not needed: the same command resumes its run"
    value = ", ".join(values) if '"[{}]"' in template else (values or ["X"])[-1 if "image_size" in template else 0]
    translate = _VALUES.get(template)
    quoted = shlex.quote(value) if " " in value and '"' not in template else value
    return template.replace("{}", translate(value) if translate else quoted)
