"""`plan`: its curve against real runs, what it prints, and what it refuses."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vit_dist import Config, UserError, train
from vit_dist.cli import main
from vit_dist.cli.plan import train_command
from vit_dist.config.fields import ScheduleConfig
from vit_dist.models.build import build_model
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.optim.rate_curve import rate_curve
from vit_dist.optim.schedules import Schedule
from vit_dist.plan.plan import Plan

SHORT = {
    "model.width": 16,
    "model.depth": 2,
    "batch.global_size": 16,
    "batch.micro_size": 16,
    "train.duration": "13 updates",
    "evaluate.every": "4 updates",
    "log.every": "1 updates",
    "log.trackers": "none",
    "run.device": "cpu",
    "run.threads": 1,
    "log.report": False,
}


@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule.name": "cosine", "schedule.warmup": "3 updates", "schedule.cooldown_end": 0.1},
        {"schedule.name": "wsd", "schedule.warmup": "2 updates", "schedule.cooldown": "4 updates"},
        {"schedule.name": "constant", "schedule.warmup": "0 updates", "optimizer.layer_decay": 0.5},
        {"schedule.name": "StepLR", "schedule.args": {"step_size": "3 updates", "gamma": 0.5}},
        {"schedule.name": "ReduceLROnPlateau", "schedule.args": {"metric": "loss"}},
    ],
    ids=lambda schedule: schedule["schedule.name"],
)
def test_the_rate_curve_equals_a_real_runs(schedule: dict[str, Any], tmp_path: Path) -> None:
    config = Config.load("digits", {**SHORT, **schedule, "run.dir": str(tmp_path)})
    rates = [line["lr"] for line in train(config).history if line["kind"] == "train"]
    model = build_model(config.model, classes=10, channels=1, image_size=8, seed=0)
    optimizer = build_optimizer(config.optimizer, model, config.optimizer.lr)
    plan = Plan.from_config(config, 1294, 1)
    assert len(rates) == plan.updates == 13
    assert rate_curve(Schedule(config.schedule, optimizer, plan, config.optimizer.lr), plan) == rates
    assert max(rates) == config.optimizer.lr


SMALL = [
    *("--run.name", "small", "--run.device", "cpu", "--train.precision", "fp32", "--model.width", "32"),
    *("--model.depth", "2", "--batch.global_size", "100", "--train.duration", "8 updates", "--schedule.name", "wsd"),
    *("--schedule.warmup", "2 updates", "--schedule.cooldown", "2 updates", "--train.ema", "0.99"),
    *("--evaluate.patience", "3", "--optimizer.overrides.head.lr", "1e-4", "--run.threads", "2"),
]
PRINTED = """\
plan of small: new run
  model      vit_tiny, 18.2 k parameters, 140 kFLOP per image forward
  data       train 1,294, test 359, val 144; 10 classes
  classes    10, train + val + test: smallest 7 (124 + 13 + 42), median 3 (127 + 17 + 39), largest 6 (140 + 13 + 28)
  sizes      8 × 8 pixels, grey
  images     1 × 8 × 8, mean 0.3053, std 0.376
  run        8 updates of 100 samples = 0.6182 epochs
  batch      micro-batches of 32, {window}
  loss       cross_entropy, smoothing 0.1
  optimizer  adamw, weight decay 0.5, clip 1
  rate       wsd, lr 0.003, warmup 2 updates, cooldown 2 updates
  average    of the weights, decay 0.99 per update
  patience   3 evaluations of loss
  machine    {processes} × cpu, fp32, 2 threads per process
  memory     about X MiB per process, on top of what Python, torch and the device need: weights 0.1 MiB, \
gradients 0.1 MiB, optimizer 0.1 MiB, average 0.1 MiB, activations of 32 slots X MiB
  folder     runs/small
parameters
  not decayed        20 tensors, 928 values, weight decay 0, peak rate 0.003
  decayed            9 tensors, 16,896 values, weight decay 0.5, peak rate 0.003
  decayed, head      1 tensor, 320 values, weight decay 0.5, peak rate 0.0001
  not decayed, head  1 tensor, 10 values, weight decay 0, peak rate 0.0001
rate over 0.6182 epochs: first 0.0015, highest 0.003, last 0.0015
   3.0e-03 ┤ ██████ \n\
           ┤ ██████ \n\
           ┤ ██████ \n\
           ┤ ██████ \n\
           ┤████████
           ┤████████
           ┤████████
         0 ┤████████
"""


def picture(path: Path) -> tuple[str | None, tuple[int, int], int]:
    """Return the format, the size in pixels and the number of colours."""
    with Image.open(path) as image:
        image.load()
        colours = image.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        return image.format, image.size, len(colours)


@pytest.mark.parametrize(
    ("arguments", "processes", "window", "name"),
    [
        ([], 1, "4 per process and update, 28 filler slots per update", ""),
        (["--processes", "3"], 3, "2 per process and update, 92 filler slots per update", ""),
        (["--processes=2", "--png", "rate.PNG"], 2, "2 per process and update, 28 filler slots per update", "rate.PNG"),
    ],
)
def test_plan_prints_every_number_and_writes_nothing_but_the_picture_asked_for(
    arguments: list[str],
    processes: int,
    window: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *SMALL, *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    shown = re.sub(r"(?<=about |slots )\d+\.\d(?= MiB)", "X", printed.out)
    drawn = f"picture: {name}\n" if name else ""
    if processes == 1:
        drawn += f"to train: vit-dist train {shlex.join(SMALL)}; to see how long it takes: plan --measure\n"
    assert shown == PRINTED.format(processes=processes, window=window) + drawn
    assert [path.name for path in tmp_path.iterdir()] == ([name] if name else [])
    if not name:
        return
    kind, size, colours = picture(tmp_path / name)
    assert (kind, size) == ("PNG", (1200, 525))
    assert colours > 10


def test_the_groups_of_several_layers_are_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SMALL, "--optimizer.layer_decay", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("parameters") + 1
    rows = dict(re.split("  +", line.strip(), maxsplit=1) for line in lines[first : first + 4])
    assert rows == {
        "not decayed": "20 tensors, 928 values, weight decay 0, peak rate 0.000375 to 0.003, "
        "higher from layer to layer",
        "decayed": "9 tensors, 16,896 values, weight decay 0.5, peak rate 0.000375 to 0.0015, "
        "higher from layer to layer",
        "decayed, head": "1 tensor, 320 values, weight decay 0.5, peak rate 0.0001",
        "not decayed, head": "1 tensor, 10 values, weight decay 0, peak rate 0.0001",
    }


def test_the_command_that_trains_is_named_without_flags_of_plan() -> None:
    words = [
        "--measure",
        "--data.root",
        "My photos",
        "--png=a.png",
        "--png",
        "b.png",
        "--processes",
        "1",
        "--trust_code",
    ]
    assert train_command(words) == "vit-dist train --data.root 'My photos' --trust_code"


def test_a_picture_takes_the_place_of_an_earlier_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo, text = tmp_path / "photo.png", tmp_path / "text.png"
    Image.new("RGB", (8, 8)).save(photo)
    text.write_text("words")
    before = {path: path.read_bytes() for path in (photo, text)}
    for path in before:
        assert main(["plan", *SMALL, "--png", path.name]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == (
            "",
            f"vit-dist: --png: {path.name} is there, and is no picture of a plan: name another file\n",
        )
    assert {path: path.read_bytes() for path in before} == before
    for schedule in ("wsd", "constant"):
        assert main(["plan", *SMALL, "--schedule.name", schedule, "--png", "rate.png"]) == 0
        capsys.readouterr()


def test_plan_says_what_train_would_do_in_the_folder_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def first_line(*more: str) -> str:
        assert main(["plan", *SMALL, "--run.threads", "1", *more]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert first_line() == "plan of small: new run"
    assert first_line("--run.dir", "elsewhere/place") == "plan of place: new run"
    assert main(["train", *SMALL, "--log.report", "false", "--log.trackers", "none"]) == 0
    run = tmp_path / "runs" / "small"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert first_line() == "plan of small: finished before"
    assert first_line("--train.duration", "16 updates") == (
        "plan of small: resumed from update 8 of 16 (epoch 0.6182 of 1.236)"
    )
    # What train refuses there, plan refuses with the same words.
    for flags in (["--optimizer.lr", "0.5"], ["--run.resume", "never"], ["--data.val_fraction", "0.2"],
                  ["--train.duration", "7 updates"]):  # fmt: skip
        errors = []
        for command in ("plan", "train"):
            assert main([command, *SMALL, *flags]) == 2
            errors.append(capsys.readouterr().err)
        assert errors[0] == errors[1] != ""
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_plan_shows_what_is_chosen_for_the_data(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--data.root", str(image_folder), "--model.depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plan of pictures-")
    start = lines.index("  chosen for this data; a flag sets each otherwise:")
    chosen = [line.split()[0] for line in lines[start + 1 :] if line.startswith("    ")]
    assert "batch.global_size" in chosen
    assert "model.depth" not in chosen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ema", ["0", "0.9"])
def test_measure_times_updates_and_writes_nothing(
    ema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *SMALL, "--train.ema", ema, "--run.threads", "1", "--measure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("measured over "))
    assert re.fullmatch(r"measured over [1-5] updates on cpu, fp32", lines[start])
    rows = {line.split("  ")[1]: line.rpartition("  ")[2] for line in lines[start + 1 :]}
    assert list(rows) == ["update", "epoch", "test once", "val once", "run", "bound by", "memory"]
    assert re.fullmatch(r"[\d.e-]+ s, [\d,]+ images/s", rows["update"])
    assert re.fullmatch(r"about .*: training .*, evaluation .*; saving and the report not counted", rows["run"])
    assert rows["memory"].endswith("iB at most, of the whole process")
    assert list(tmp_path.iterdir()) == []
    assert main(["plan", *SMALL, "--measure", "--processes", "2"]) == 2
    assert capsys.readouterr().err.startswith("vit-dist: --measure: times one process: drop --processes")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--augment.auto", "rnd"],
            "augment.auto: no augmentation rnd; known: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0, 3a, trivial, "
            "autoaugment-imagenet, autoaugment-cifar10, autoaugment-svhn (the first five as timm writes them)",
        ),
        (["--processes", "0"], "--processes: must be a whole number above 0, not 0"),
        (["--processes", "-1"], "--processes: must be a whole number above 0, not -1"),
        (["--processes", "1.5"], "--processes: must be a whole number above 0, not 1.5"),
        (["--processes=two"], "--processes: must be a whole number above 0, not two"),
        (["--processes"], "--processes: needs a value"),
        (["--png"], "--png: needs a value"),
        (
            ["--png", "missing/rate.png"],
            "--png missing/rate.png: cannot be written: No such file or directory: name another file",
        ),
        (["--png", "rate.jpg"], "--png: the picture is a PNG: name it FILE.png, not rate.jpg"),
        (["--png=ratepng"], "--png: the picture is a PNG: name it FILE.png, not ratepng"),
        (["--png", "."], "--png: the picture is a PNG: name it FILE.png, not ."),
        (["--schedule.name", "cosin"], "schedule.name: no schedule cosin (did you mean cosine?)"),
        (
            ["--optimizer.name", "sdg"],
            "optimizer.name: no optimizer sdg (did you mean sgd?); if timm has it: timm/sdg",
        ),
        (
            ["--model.name", "vit_tny"],
            "model.name: no model vit_tny (did you mean vit_tiny?)",
        ),
        (["--data.name", "digit"], "data.name: no data set digit (did you mean digits?)"),
        (
            ["--schedule.warmup", "9 updates"],
            "schedule.warmup: a warmup of 9 and cooldown of 2 updates is longer than the run of 8: shorten it",
        ),
        (
            ["--optimizer.overrides.haed.lr", "1e-4"],
            "optimizer.overrides.haed: matches no parameter; names are as in head.bias",
        ),
        (
            ["--data.val_fraction", "0"],
            "evaluate.patience: there is no val split to measure loss on: set data.val_fraction above 0",
        ),
        (
            ["--loss.name", "tests.nothing:here"],
            "loss.name: tests.nothing:here cannot be imported: No module named 'tests.nothing'; "
            "write it as package.module:function",
        ),
        (["--processs", "2"], "--processs: no such flag; did you mean --processes?"),
        (["--epochs", "7"], '--epochs: here it is --train.duration "7 epochs"'),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *SMALL, *arguments]) == 2
    assert capsys.readouterr().err == f"vit-dist: {text}\n"
    assert list(tmp_path.iterdir()) == []


LAMBDA = ("--schedule.name", "LambdaLR", "--schedule.args.lr_lambda")
MULTIPLY = ("--schedule.name", "MultiplicativeLR", "--schedule.args.lr_lambda")


def negative(update: int) -> int:
    return 2 - update


def not_a_number(update: int) -> float:
    return 1.0 if update < 3 else math.nan


def endless(update: int) -> float:
    return 1.0 if update < 3 else math.inf


def huge(update: int) -> float:
    return 1e200


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model.name", "timm/resnet18"], "model.name: BatchNorm (bn1) makes the result depend on"),
        (["--augment.mixup", "0.5", "--loss.name", "tests.custom_losses:hard_targets_only",
          "--loss.label_smoothing", "0"], "augment.mixup: loss.name tests.custom_losses:hard_targets_only takes"),
        (["--augment.auto", "rnd"], "augment.auto: no augmentation rnd; known: "),
        (["--data.val_fraction", "0"], "evaluate.patience: there is no val split to measure loss on"),
        (["--config", "digits", "--model.pretrained", "no.safetensors"],
         "model.pretrained: no.safetensors does not exist"),
        (["--loss.teacher", "none"], "loss.teacher: none is neither a run's folder with a checkpoint"),
        (["--optimizer.overrides.haed.lr", "1e-4"], "optimizer.overrides.haed: matches no parameter"),
        (["--schedule.name", "OneCycleLR", "--schedule.args", "{pct_start: 2}"], "schedule.args: OneCycleLR over"),
        (["--config", "digits", "--model.pretrained", "weights.pth"],
         "model.pretrained: weights.pth: a pickle is never read: "),
        (["--loss.name", "os:getcwd", "--loss.label_smoothing", "0"],
         "loss.name: os:getcwd fails on outputs [2, 10] and class numbers [2]: TypeError: "),
        (["--loss.name", "torch:add"], "loss.name: torch:add fails on outputs [2, 10] and class numbers [2]: "),
        (["--loss.name", "builtins:max"], "loss.name: builtins:max fails on outputs [2, 10] and class numbers [2]: "),
        (["--loss.name", "torch:equal"], "loss.name: torch:equal must return one value per slot, shape [2], not bool"),
        (["--augment.transform", "os:getcwd"],
         "augment.transform: os:getcwd fails on an image of 8 × 8 pixels: TypeError: "),
        (["--augment.transform", "builtins:repr"],
         "augment.transform: must return a PIL image of the size of its input, not str"),
        ([*LAMBDA, "math:log"], "schedule.args.lr_lambda: math:log for update 0 after the warmup fails: ValueError: "),
        ([*LAMBDA, f"{__name__}:negative"], f"schedule.args.lr_lambda: {__name__}:negative for update 3 after the "
         "warmup gives -1: it must give a finite number of 0 or more"),
        ([*LAMBDA, f"{__name__}:not_a_number"], f"schedule.args.lr_lambda: {__name__}:not_a_number for update 3 after "
         "the warmup gives nan: it must give a finite number of 0 or more"),
        ([*LAMBDA, f"{__name__}:endless"], f"schedule.args.lr_lambda: {__name__}:endless for update 3 after the warmup "
         "gives inf: it must give a finite number of 0 or more"),
        ([*LAMBDA, "math:pi"], "schedule.args.lr_lambda: math:pi is no function, but float: name a function"),
        ([*MULTIPLY, f"{__name__}:huge"], "schedule.args: the rate of update 4 would be inf, not finite, with "
         f"MultiplicativeLR of {__name__}:huge"),
        (["--train.duration", "1e12 epochs"], "train.duration: "),
        (["--run.resume", "nowhere"], "run.resume: no complete checkpoint at nowhere"),
        (["--run.name", "../x", "--run.dir", ""], "run.name: ../x is no name for a folder in runs"),
    ],
)  # fmt: skip
def test_plan_refuses_what_train_refuses_and_neither_touches_a_folder(
    arguments: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    errors = []
    for command in ("plan", "train"):
        assert main([command, *SMALL, *arguments, "--run.device", "cpu"]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        errors.append(printed.err)
    assert errors[0] == errors[1]
    assert errors[0].startswith(f"vit-dist: {text}")
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_the_facts_choices_and_notes_that_train_shows(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data.root", str(image_folder), "--model.depth", "1", "--train.duration", "2 updates"]
    flags += ["--run.device", "cpu", "--run.threads", "1", "--data.image_size", "16", "--schedule.warmup", "0%"]
    flags += ["--model.residual", "bf16"]
    shown = []
    for command in ("plan", "train"):
        assert main([command, *flags, "--log.report=false"] if command == "train" else [command, *flags]) == 0
        lines = capsys.readouterr().out.splitlines()
        kept = [line.split() for line in lines if line.startswith(("  classes", "  sizes", "    ", "  note: "))]
        shown.append([words for words in kept if not words[-1].startswith("┤")])
    assert [words for words in shown[0] if words in shown[1]] == shown[0]
    assert {words[0] for words in shown[0]} >= {"classes", "sizes", "note:", "batch.global_size"}
    without_effect = "note: model.residual: bf16 has no effect in fp32, whose sums between blocks stay float32"
    assert without_effect.split() in shown[0]


def test_a_size_that_is_to_be_measured_is_shown_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"--{name}={'auto' if name == 'batch.micro_size' else value}" for name, value in SHORT.items()]
    assert main(["plan", *arguments, "--measure"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "note: batch.micro_size: auto is measured when the run begins; this shows it with 16" in text
    assert re.search(
        r"batch\.micro_size: (8|16) is the fastest here \(cpu, fp32; images/s forward and backward by size: 8: ", text
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_the_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rate.png").mkdir()
    assert main(["plan", *SMALL, "--png", "rate.png"]) == 2
    assert capsys.readouterr().err == (
        "vit-dist: --png rate.png: cannot be written: Is a directory: name another file\n"
    )
    assert list((tmp_path / "rate.png").iterdir()) == []


def test_the_plan_of_a_plateau_notes_that_its_rate_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plateau = ("--schedule.name", "ReduceLROnPlateau", "--schedule.args", "{metric: raw_top1, patience: 2}")
    assert main(["plan", *SMALL, *plateau]) == 0
    lines = capsys.readouterr().out.splitlines()
    rate = "ReduceLROnPlateau, metric raw_top1, patience 2, lr 0.003, warmup 2 updates, cooldown 2 updates"
    assert f"  rate       {rate}" in lines
    after = lines.index("rate over 0.6182 epochs: first 0.0015, highest 0.003, last 0.0015") + 1
    assert lines[after] == "  note: it falls where raw_top1 does not improve, which is not known in advance"
    assert lines[after + 1].startswith("   3.0e-03 ┤")


def test_a_plateaus_rate_stays_where_its_metric_always_improves() -> None:
    args = {"metric": "loss", "threshold": 0.2, "patience": 0}
    config = Config.load(
        "digits", {"schedule.name": "ReduceLROnPlateau", "schedule.args": args, "schedule.warmup": "2 updates"}
    )
    plan = Plan.from_config(config, 1294, 1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    assert rate_curve(Schedule(config.schedule, optimizer, plan, 0.5), plan) == [0.25] + [0.5] * (plan.updates - 1)


def test_a_run_that_cannot_be_written_is_not_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["plan", *SMALL, "--run.dir", "file/run"]) == 2
    expected = f"vit-dist: run.dir: file/run cannot be written: {tmp_path / 'file'} is no folder: set another\n"
    assert capsys.readouterr().err == expected
    assert main(["train", *SMALL, "--run.dir", "file/run"]) == 2
    assert capsys.readouterr().err.startswith("vit-dist: run.dir: ")


def test_a_long_plan_draws_the_first_million_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.optim.rate_curve.LONGEST_CURVE", 10)
    plan = Plan.from_config(Config.load("digits", {"train.duration": "1e9 updates"}), 1000, 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    assert len(rate_curve(Schedule(ScheduleConfig(), optimizer, plan, 0.1), plan)) == 10
    with pytest.raises(UserError, match=r"^train.duration: 1,000,000,001 updates are more than a run can make: 1,000,"):
        Plan.from_config(Config.load("digits", {"train.duration": "1000000001 updates"}), 1000, 1)
