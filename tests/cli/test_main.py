"""The command line: flags, recipes, help, output and errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

from tests.conftest import REPOSITORY
from vit_dist.cli import main
from vit_dist.cli.aliases import TRAIN_ALIASES
from vit_dist.cli.arguments import parse_arguments
from vit_dist.cli.help import COMMANDS, EXAMPLES, help_text
from vit_dist.config.config import Config
from vit_dist.config.recipe import RECIPES
from vit_dist.config.schema import all_options
from vit_dist.errors import UserError
from vit_dist.optim.optimizers import build_optimizer
from vit_dist.version import __version__

FLAGS = {name for name, _ in all_options()}


def config(*arguments: str) -> Config:
    return parse_arguments("train", arguments).load_config()


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parse_arguments("train", arguments).load_config()
    return str(error.value)


def test_dotted_flags_with_space_and_with_equals_sign() -> None:
    pairs = [
        ("--optimizer.lr", "3e-4"),
        ("--train.duration", "20 epochs"),
        ("--data.mean", "[0.5]"),
        ("--data.std", "[0.25]"),
        ("--optimizer.decay_all", "true"),
        ("--log.tags", "[a, b]"),
        ("--model.width", "32"),
    ]
    spaced = config(*(word for pair in pairs for word in pair))
    joined = config(*("=".join(pair) for pair in pairs))
    assert spaced == joined
    assert (spaced.optimizer.lr, spaced.train.duration, spaced.data.mean) == (3e-4, "20 epochs", (0.5,))
    assert (spaced.optimizer.decay_all, spaced.log.tags, spaced.model.width) == (True, ("a", "b"), 32)
    assert config("--model.width", "null").model.width is None
    assert config("--optimizer.lr", "1", "--optimizer.lr", "2").optimizer.lr == 2


def test_the_default_recipe_is_digits_and_with_a_root_it_is_folder() -> None:
    assert config() == Config.load("digits")
    assert config("--data.root", "/pictures") == Config.load("folder", {"data.root": "/pictures"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", "mnist", "--optimizer.lr", "3e-4", "--run.seed", "5"),
        ("--optimizer.lr", "3e-4", "--config", "mnist", "--run.seed", "5"),
        ("--optimizer.lr", "3e-4", "--run.seed", "5", "--config=mnist"),
        ("--config", "digits", "--run.seed", "5", "--optimizer.lr", "3e-4", "--config", "mnist"),
    ],
)
def test_config_may_stand_anywhere_and_flags_override_it(arguments: tuple[str, ...]) -> None:
    assert Config.load("mnist").optimizer.lr == 4e-3
    assert config(*arguments) == Config.load("mnist", {"optimizer.lr": 3e-4, "run.seed": 5})


def test_config_takes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer:\n  name: sgd\n  lr: 1e-2\n  momentum: 0.5\n")
    loaded = config("--optimizer.momentum", "0.25", "--config", str(path))
    assert (loaded.optimizer.lr, loaded.optimizer.momentum, loaded.run.name) == (0.01, 0.25, "")
    assert refusal("--config") == "--config: needs a recipe's name or a file"
    assert refusal("--config", "nosuch").startswith("--config nosuch: neither a file nor a shipped recipe (cifar10, ")


def test_keyword_arguments_of_a_model() -> None:
    named = ("--model.name", "timm/x")
    assert config(*named, "--model.args.a", "1", "--model.args.b=x").model.args == {"a": 1, "b": "x"}
    assert config(*named, "--model.args", "{a: [1, 2]}").model.args == {"a": [1, 2]}
    assert config(*named, "--model.args={a: 1}", "--model.args.b=2.5").model.args == {"a": 1, "b": 2.5}
    only = "model.args: only for timm/NAME and package.module:function; vit_tiny has its own fields"
    assert refusal("--model.args.a", "1") == only


def test_arguments_of_a_schedule() -> None:
    step = ("--schedule.name", "StepLR")
    assert config(*step, "--schedule.args.step_size", "30 epochs").schedule.args == {"step_size": "30 epochs"}
    assert config(*step, "--schedule.args.step_size=30epochs", "--schedule.args.gamma=0.5").schedule.args == {
        "step_size": "30epochs",
        "gamma": 0.5,
    }
    assert config("--schedule.args", "{step_size: 30 epochs}", *step).schedule.args == {"step_size": "30 epochs"}
    many = config("--schedule.name", "MultiStepLR", "--schedule.args.milestones", "[30 epochs, 60 epochs]")
    assert many.schedule.args == {"milestones": ["30 epochs", "60 epochs"]}
    plateau = (
        "--schedule.name",
        "ReduceLROnPlateau",
        "--schedule.args.metric",
        "loss",
        "--schedule.args.patience",
        "3",
    )
    assert config(*plateau).schedule.args == {"metric": "loss", "patience": 3}
    inner = "[{name: LinearLR, total_iters: 5 epochs}, {name: ExponentialLR, gamma: 0.9}]"
    sequence = ("--schedule.name", "SequentialLR", "--schedule.args.milestones", "[50%]")
    assert config(*sequence, "--schedule.args.schedulers", inner).schedule.args == {
        "milestones": ["50%"],
        "schedulers": [{"name": "LinearLR", "total_iters": "5 epochs"}, {"name": "ExponentialLR", "gamma": 0.9}],
    }
    assert refusal("--schedule.args.step_size", "30 epochs") == (
        "schedule.args: only for torch's schedulers; cosine has its own fields instead"
    )
    assert refusal(*step, "--schedule.args.step_size", "30") == (
        'schedule.args.step_size: must be a length with its unit, as "30 epochs", not 30'
    )
    assert refusal(*step, "--schedule.args.stepsize", "30 epochs") == (
        "schedule.args.stepsize: StepLR takes no stepsize (did you mean step_size?)\n"
        'schedule.args.step_size: StepLR needs it: a length with its unit, as "30 epochs"'
    )


def test_arguments_of_an_optimizer() -> None:
    assert config("--optimizer.args.eps", "1e-6").optimizer.args == {"eps": 1e-6}
    assert config("--optimizer.args", "{eps: 1e-6}", "--optimizer.args.amsgrad=true").optimizer.args == {
        "eps": 1e-6,
        "amsgrad": True,
    }


class Headed(nn.Module):
    """Two layers; the second is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("arguments", "patterns", "rates", "decays"),
    [
        (
            ("--optimizer.overrides.head.lr", "1e-4"),
            ["head"],
            {0.003, 1e-4},
            {"decayed, head": 0.5, "not decayed, head": 0.0},
        ),
        (
            ("--optimizer.overrides.head.lr=1e-4",),
            ["head"],
            {0.003, 1e-4},
            {"decayed, head": 0.5, "not decayed, head": 0.0},
        ),
        (
            ("--optimizer.overrides.^head.lr", "1e-4"),
            ["^head"],
            {0.003, 1e-4},
            {"decayed, ^head": 0.5, "not decayed, ^head": 0.0},
        ),
        (
            ("--optimizer.overrides.head", "{lr: 1e-4, weight_decay: 0}"),
            ["head"],
            {0.003, 1e-4},
            {"not decayed, head": 0.0},
        ),
        (
            ("--optimizer.overrides.head", "{lr: 1e-4, weight_decay: 0.25}"),
            ["head"],
            {0.003, 1e-4},
            {"decayed, head": 0.25},
        ),
        (
            ("--optimizer.overrides", "{head.weight: {lr: 1e-4}}"),
            ["head.weight"],
            {0.003, 1e-4},
            {"decayed, head.weight": 0.5},
        ),
        (
            ("--optimizer.overrides.head.weight.lr", "1e-4"),
            ["head.weight"],
            {0.003, 1e-4},
            {"decayed, head.weight": 0.5},
        ),
        (
            ("--optimizer.overrides.head.lr", "1e-4", "--optimizer.overrides.body.lr", "2e-4"),
            ["head", "body"],
            {1e-4, 2e-4},
            {"decayed, head": 0.5, "not decayed, head": 0.0, "decayed, body": 0.5, "not decayed, body": 0.0},
        ),
    ],
)
def test_overrides_of_an_optimizer(
    arguments: tuple[str, ...], patterns: list[str], rates: set[float], decays: dict[str, float]
) -> None:
    optimizer = config(*arguments).optimizer
    assert list(optimizer.overrides) == patterns
    groups = build_optimizer(optimizer, Headed(), optimizer.lr).param_groups
    assert sorted({group["lr"] for group in groups}) == pytest.approx(sorted(rates))
    assert {group["name"]: group["weight_decay"] for group in groups if group["lr"] != 0.003} == decays


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--optimizer.overrides.head.lr", "fast"), "optimizer.overrides.head.lr: must be a number, not 'fast'"),
        (
            ("--optimizer.overrides.head.rate", "1"),
            "optimizer.overrides.head.rate: no such field; known: lr, weight_decay",
        ),
        (
            ("--optimizer.overrides.head", "1"),
            "optimizer.overrides.head: must be lr or weight_decay with their numbers, as {lr: 1e-4}, not 1",
        ),
        (("--optimizer.overrides.head.lr", "-1"), "optimizer.overrides.head.lr: must be 0 or more, not -1"),
        (("--optimizer.overrides.head.lr",), "--optimizer.overrides.head.lr: needs a value"),
        (
            ("--optimizer.override.head.lr", "1"),
            "--optimizer.override.head.lr: no such flag; did you mean --optimizer.overrides?",
        ),
    ],
)
def test_wrong_overrides_are_refused(arguments: tuple[str, ...], text: str) -> None:
    assert refusal(*arguments) == text


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_no_alias_hides_a_flag_of_ours(flag: str) -> None:
    assert flag not in TRAIN_ALIASES
    assert refusal(f"--{flag}x", "1") == f"--{flag}x: no such flag; did you mean --{flag}?"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--optimzer.lr", "1"], "--optimzer.lr: no such flag; did you mean --optimizer.lr?"),
        (["--dropout", "0.1"], "--dropout: no such flag; did you mean --model.dropout?"),
        (["--label_smoothing=0.1"], "--label_smoothing: here it is --loss.label_smoothing 0.1"),
        (["--cooldown_power=2"], "--cooldown_power: no such flag; did you mean --schedule.cooldown_power?"),
        (["--foo"], "--foo: no such flag; see --help for all flags"),
        (
            ["--resume", "--foo"],
            "--resume: not needed: the same command resumes its run\n--foo: no such flag; see --help for all flags",
        ),
        (["--optimizer.lr"], "--optimizer.lr: needs a value"),
        (["mnist"], "mnist: flags alone are taken: a recipe or file goes after --config: --config mnist"),
        (
            ["some"],
            "some: flags alone are taken: a recipe or file goes after --config, a folder of images after --data.root",
        ),
        (
            [str(REPOSITORY)],
            f"{REPOSITORY}: flags alone are taken: a folder of images goes after --data.root: --data.root {REPOSITORY}",
        ),
        (["--model.lr_x", "1"], "--model.lr_x: no such flag; see --help for all flags"),
        (
            ["--fo", "1", "--optimizer.lr", "-1", "--data.rot", "D", "extra"],
            "--fo: no such flag; see --help for all flags\n--data.rot: no such flag; did you mean --data.root?\n"
            "optimizer.lr: must be above 0, not -1",
        ),
        (
            ["data=D", "epochs=10", "optimizer.lr=1", "zzz=1"],
            'data=D: here it is --data.root D\nepochs=10: here it is --train.duration "10 epochs"\n'
            "optimizer.lr=1: flags begin with two dashes: --optimizer.lr 1\n"
            "zzz=1: no such flag; see --help for all flags",
        ),
        (["--optimizer.lr", "fast"], "optimizer.lr: must be a number, not 'fast'"),
        (
            ["--optimizer.lr", "-1", "--batch.micro_size", "3"],
            "batch.micro_size: must be even, not 3: set 4\noptimizer.lr: must be above 0, not -1",
        ),
    ],
)
def test_mistakes_exit_with_code_2_and_one_line_each_on_rank_0(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err == "".join(f"vit-dist: {line}\n" for line in text.splitlines())
    assert printed.out == ""
    for name, value in {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "",
        "MASTER_PORT": "",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *arguments]) == 2
    assert capsys.readouterr().err == ""


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vit-dist {__version__}\n"
    for asked in ([], ["--help"], ["-h"]):
        assert main(asked) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(
            "usage: vit-dist COMMAND [--help]\n       vit-dist --version\n\n"
            "Train Vision Transformers that classify images, and use them.\n\n"
            "  vit-dist train                               # handwritten digits that come with it: a minute\n"
        )
        assert "\n  train       train a Vision Transformer, or go on with a run that was stopped\n" in printed
        assert [line.split()[0] for line in printed.splitlines()[10:-2]] == list(COMMANDS)


_QUOTE = "My old photos: flags alone are taken: a folder of images goes after --data.root: --data.root 'My old photos'"
_SPACED = "belongs to a path with a space, which stands in quotes:"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "My old photos"], _QUOTE),
        (["My old photos"], "My old photos: a command comes first: vit-dist train --data.root 'My old photos'"),
        (["val", "R", "--folder", "a b"], "val: no such command; here it is vit-dist evaluate R --folder 'a b'"),
        (["train", "--data.root", "My", "old", "photos"], f"old photos: {_SPACED} --data.root 'My old photos'"),
        (["train", "--data", "a b"], "--data: here it is --data.root 'a b'"),
        (["evaluate", "R", "--folder", "My", "old", "photos"], f"old photos: {_SPACED} --folder 'My old photos'"),
    ],
)
def test_suggested_paths_are_quoted(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "My old photos" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err == f"vit-dist: {line}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian", "trian: no such command; did you mean vit-dist train?"),
        ("val R --split test", "val: no such command; here it is vit-dist evaluate R --split test"),
        ("test R", "test: no such command; here it is vit-dist evaluate R"),
        ("fit", "fit: no such command; here it is vit-dist train"),
        ("detect R a.jpg", "detect: no such command; here it is vit-dist predict R a.jpg"),
        ("classify train data=D", "classify: leave it out: vit-dist train data=D"),
        ("convert R x.onnx", "convert: no such command; here it is vit-dist export R x.onnx"),
        ("schema", "schema: no such command; here it is vit-dist config schema"),
        ("--config mnist", "--config: a command comes first: vit-dist train --config mnist"),
        (str(REPOSITORY), f"{REPOSITORY}: a command comes first: vit-dist train --data.root {REPOSITORY}"),
        ("zzz", "zzz: no such command; known: train, plan"),
    ],
)
def test_commands_of_other_tools(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"vit-dist: {line}")
    if "zzz" not in line:
        assert printed.err == f"vit-dist: {line}\n"


def test_help_describes_every_field(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert len(FLAGS) == len(Config().fields())
    unwrapped = " ".join(printed.split())
    for name, option in all_options():
        assert f"--{name} X {help_text(option, default=True)}" in unwrapped
        assert f"--{name} X {option.description}" in unwrapped
    assert (
        "--optimizer.lr X peak learning rate, before scaling by optimizer.scale (above 0; default: 0.001)" in unwrapped
    )
    assert "the first update is at lr / (updates of the warmup) (default: 5%)" in unwrapped
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    assert f"--config takes a shipped recipe ({shipped}) or a YAML file" in unwrapped
    assert "--processes" not in unwrapped


def test_help_of_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    usage, _, rest = printed.partition("\n\n")
    assert usage == (
        "usage: vit-dist plan [--config RECIPE|FILE] [--print_config] [--trust_code] [--processes N] "
        "[--measure] [--png FILE] [--section.field VALUE …]"
    )
    assert [line.split("  # ")[0].strip() for line in rest.splitlines()[:3]] == [
        command for command, _ in EXAMPLES["plan"]
    ]
    assert rest.partition("\n\n")[2].startswith(
        "Show what `train` with the same flags would do, without training or touching the run's folder: every number "
        "of the run, its memory, the curve of its learning rate, with --measure how long it takes. --config takes a "
        "shipped recipe ("
    )
    unwrapped = " ".join(rest.split())
    assert "--processes N processes to plan for (default: 1)" in unwrapped
    assert "--png FILE also draw the learning rate" in unwrapped
    for name, option in all_options():
        assert f"--{name} X {help_text(option, default=True)}" in unwrapped
        assert f"--{name} X {option.description}" in unwrapped


def test_plan_takes_the_flags_of_train_and_two_more(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "mnist", "--optimizer.lr", "3e-4"]
    printed = []
    for command in ("train", "plan"):
        assert main([command, *arguments, "--print_config"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert parse_arguments("plan", arguments).load_config() == config(*arguments)
    assert refusal("--processes", "2") == "--processes: no such flag; see --help for all flags"
    assert refusal("--png", "x.png") == "--png: no such flag; see --help for all flags"


def test_a_percent_sign_in_a_description_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["runs", "--help"])
    output = capsys.readouterr().out
    assert "with its 95 % interval" in " ".join(output.split())
    assert "%%" not in output


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import json, runpy, sys\n"
        "sys.argv = ['scripts/train.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    print(json.dumps([stop.code, sorted(sys.modules)]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    status, modules = json.loads(run.stdout.splitlines()[-1])
    assert status == 0
    assert "--optimizer.lr" in run.stdout
    assert "vit_dist.config.config" in modules
    heavy = {"torch", "accelerate", "torchvision", "timm", "wandb", "sklearn", "numpy"}
    assert heavy.intersection(modules) == set()


def test_print_config_prints_yaml_that_loads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--config", "mnist_reference", "--optimizer.lr", "3e-4", "--log.tags", "[a]", "--run.name", "007"]
    assert main(["train", *arguments, "--print_config"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    path = tmp_path / "printed.yaml"
    path.write_text(printed.out)
    assert Config.load(path) == config(*arguments)
    values = yaml.safe_load(printed.out)
    assert list(values) == list(Config().to_dict())
    assert (values["optimizer"]["lr"], values["data"]["mean"], values["log"]["tags"]) == (3e-4, [0.1307], ["a"])
    assert values["run"]["name"] == "007"


def test_flags_of_a_mapping_merge_in_any_spelling() -> None:
    both = config("--optimizer.overrides.head.lr", "1e-4", "--optimizer.overrides.head.weight_decay=0")
    whole = config("--optimizer.overrides", "{head: {lr: 1e-4}}", "--optimizer.overrides.head.weight_decay", "0")
    other = config("--optimizer.overrides", "{head: {lr: 0.0001, weight_decay: 0}}")
    assert both.optimizer.overrides == {"head": {"lr": 1e-4, "weight_decay": 0}}
    assert both.identity() == whole.identity() == other.identity()
    dotted = config("--optimizer.overrides.blocks.0.lr", "1e-4")
    assert dotted.optimizer.overrides == {"blocks.0": {"lr": 1e-4}}
    with pytest.raises(UserError, match=r"^--schedule.args: must be a mapping, as \{name: value\}, not '3'$"):
        config("--schedule.args", "3")
    with pytest.raises(UserError, match=r"^--schedule.args: not YAML: "):
        config("--schedule.args", "{a: [")


def test_flags_of_a_mapping_merge_with_the_recipe_and_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schedule: {name: StepLR, args: {step_size: 1 epochs, gamma: 0.25}}\n")
    loaded = config("--schedule.args.gamma=0.75", "--config", str(path), "--schedule.args.gamma", "0.5")
    assert loaded.schedule.args == {"step_size": "1 epochs", "gamma": 0.5}
    named = ("--model.name", "timm/x")
    whole = config("--model.args", "{a: 1, b: {c: 2}}", *named, "--model.args.a=3", "--model.args.b", "{d: 4}")
    assert whole.model.args == {"a": 3, "b": {"c": 2, "d": 4}}
    later = config("--optimizer.overrides.head.lr", "1", "--optimizer.overrides", "{head: {lr: 2}, body: {lr: 3}}")
    assert later.optimizer.overrides == {"head": {"lr": 2}, "body": {"lr": 3}}
    pattern = config("--optimizer.overrides.blocks.0", "{lr: 1}", "--optimizer.overrides.blocks.0.weight_decay=0")
    assert pattern.optimizer.overrides == {"blocks.0": {"lr": 1, "weight_decay": 0}}


def test_a_wrong_flag_of_a_mapping_is_refused_in_one_line() -> None:
    assert refusal("--model.args=") == "--model.args: must be a mapping, as {name: value}, not ''"
    assert refusal("--optimizer.args", "[1]") == "--optimizer.args: must be a mapping, as {name: value}, not '[1]'"
    assert refusal("--schedule.args.gamma") == "--schedule.args.gamma: needs a value"
    problem = refusal("--optimizer.overrides.head.lr", "[1")
    assert problem.startswith("--optimizer.overrides.head.lr: not YAML: while parsing a flow sequence")
    assert "\n" not in problem


def test_later_flags_of_a_mapping_override_and_take_no_flag_as_their_value() -> None:
    three = config(
        "--optimizer.overrides.head.lr",
        "1",
        "--optimizer.overrides",
        "{head: {lr: 2}}",
        "--optimizer.overrides.head.lr=3",
    )
    assert three.optimizer.overrides == {"head": {"lr": 3}}
    two = config("--optimizer.overrides", "{head: {lr: 2}}", "--optimizer.overrides", "{body: {lr: 1}}")
    assert two.optimizer.overrides == {"head": {"lr": 2}, "body": {"lr": 1}}
    assert refusal("--optimizer.overrides.head.lr", "--run.seed", "5") == "--optimizer.overrides.head.lr: needs a value"
    mended = config("--optimizer.overrides.head", "1", "--optimizer.overrides.head.lr", "1")
    assert mended.optimizer.overrides == {"head": {"lr": 1}}


def test_config_schema_prints_the_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((RECIPES / "schema.json").read_text(encoding="utf-8"))
    for words in (["config"], ["config", "--help"], ["config", "-h"]):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith("usage: vit-dist config schema\n\nPrint the JSON schema of a config")
    assert main(["config", "shema"]) == 2
    line = "vit-dist: config: takes schema alone, not shema; see vit-dist config --help\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_the_help_are_commands_that_parse(name: str) -> None:
    for line, _ in EXAMPLES[name]:
        words = shlex.split(line)
        assert words[: 1 + len(name.split())] == ["vit-dist", *name.split()]
        given = parse_arguments(name, words[1 + len(name.split()) :])
        if name in ("train", "plan"):
            given.load_config()


def test_the_flags_for_the_first_hour_come_before_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = capsys.readouterr().out
    headings = re.findall(r"^([a-z ]+):$", printed, re.MULTILINE)
    assert headings[:3] == ["options", "for a start", "run"]
    start = printed.partition("\nfor a start:\n")[2].partition("\nrun:\n")[0]
    assert {"--data.root", "--train.duration", "--model.pretrained"} <= set(re.findall(r"--[\w.]+", start))
    assert printed.count("  --data.root X ") == 1


@pytest.mark.parametrize(
    ("words", "closed", "printed"),
    [
        ("train --help", "", "[--section.field VALUE ?]"),
        ("runs", "2>&-", ""),
        ("runs", ">&-", ""),
    ],
)
def test_streams_that_lack_characters_or_are_closed(words: str, closed: str, printed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vit_dist {words} {closed}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii", "COLUMNS": "200"},
        capture_output=True,
    )
    assert done.returncode == 0
    assert printed.encode() in done.stdout
    assert b"Traceback" not in done.stdout + done.stderr


def test_an_empty_list_may_be_typed_as_nothing() -> None:
    assert config("--data.root", "photos", "--run.auto", "").run.auto == ()
    assert config("--data.root", "photos", "--model.freeze", "").model.freeze == ()
