"""Command lines of the commands that read a model: positionals, flags, fields; errors in one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from tests.cli.commands import TIMM_MODEL, command
from tests.runs import train_digits_run, train_pictures_run
from vit_dist.cli import main
from vit_dist.cli.arguments import Arguments, parse_arguments
from vit_dist.cli.commands import USAGES
from vit_dist.config.schema import all_options, inference_fields
from vit_dist.errors import UserError

# The commands that read a run or another model.
MODEL_COMMANDS = {name: usage for name, usage in USAGES.items() if usage.positionals}
# Fields that only a training reads, of sections that the other commands take.
ONLY_FOR_TRAINING = (
    *("--model.init", "--model.dropout", "--model.attention_dropout", "--model.drop_path", "--model.freeze"),
    "--model.linear_probe",
)


def refusal(command: str, *words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_arguments(command, words)
    return str(caught.value).splitlines()


# Help


@pytest.mark.parametrize("name", list(USAGES))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), flag])
    printed = capsys.readouterr()
    assert (ended.value.code, printed.err) == (0, "")
    assert printed.out.startswith(f"usage: vit-dist {name} ")
    fields = [f"--{field}" for field, _ in all_options()]
    if name in MODEL_COMMANDS:
        usage = USAGES[name]
        fields = [f"--{field}" for field in inference_fields() if usage.fields and field.startswith(usage.fields)]
        fields += usage.flags
        assert "--model.width" not in printed.out  # of weights alone
        assert ("vit-dist train --help lists them" in " ".join(printed.out.split())) == bool(usage.fields)
        for word, meaning in usage.positionals.items():
            assert f"  {word:<8} {meaning}\n" in printed.out
    assert "%%" not in printed.out
    named = set(re.findall(r"(?<![\w.-])--[a-z][\w.-]*", printed.out))
    assert set(fields) <= named
    assert not named & set(ONLY_FOR_TRAINING if name in MODEL_COMMANDS else ())


def test_help_shows_which_positionals_are_optional(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for name in MODEL_COMMANDS:
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        shown[name] = capsys.readouterr().out.splitlines()[0]
    assert shown["evaluate"] == "usage: vit-dist evaluate MODEL [--flag VALUE …]"
    assert shown["predict"] == "usage: vit-dist predict MODEL [IMAGE …] [--flag VALUE …]"
    assert shown["report"] == "usage: vit-dist report RUN [RUN …] [--flag VALUE …]"
    assert shown["export"] == "usage: vit-dist export MODEL OUT [--flag VALUE …]"


def test_every_command_is_in_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name in USAGES:
        assert f"\n  {name.split()[0]} " in printed
    assert main(["evaluat"]) == 2
    assert capsys.readouterr().err == "vit-dist: evaluat: no such command; did you mean vit-dist evaluate?\n"


# Accepted


@pytest.mark.parametrize(
    "words",
    [
        ["--split", "val", "--run.threads", "3", "runs/x", "a.png", "b.png"],
        ["runs/x", "--split", "val", "a.png", "--run.threads", "3", "b.png"],
        ["runs/x", "a.png", "b.png", "--run.threads", "3", "--split", "val"],
        ["--split=val", "runs/x", "a.png", "--run.threads=3", "b.png"],
        ["runs/x", "--split", "test", "a.png", "--run.threads", "4", "b.png", "--split=val", "--run.threads=3"],
    ],
)
def test_flags_before_between_and_after_positionals(words: list[str]) -> None:
    assert parse_arguments("predict", words) == Arguments(
        ["runs/x", "a.png", "b.png"], {"--split": "val"}, {"run.threads": 3}
    )


def test_fields_are_read_as_yaml() -> None:
    given = parse_arguments(
        "evaluate",
        ["x", "--data.root", "007", "--data.mean", "[0.5, 0.25]", "--run.threads", "auto", "--train.precision=bf16",
         "--evaluate.batch_size", "7", "--model.args.x", "1", "--model.args", "{y: a, z: {w: 2.5}}"],
    )  # fmt: skip
    assert given.config == {
        "data.root": "007",
        "data.mean": [0.5, 0.25],
        "run.threads": "auto",
        "train.precision": "bf16",
        "evaluate.batch_size": 7,
        "model.args": {"x": 1, "y": "a", "z": {"w": 2.5}},
    }
    assert given.flags == {}


def test_a_field_that_is_not_yaml_is_refused() -> None:
    (line,) = refusal("evaluate", "x", "--data.mean", "[0.5")
    assert line.startswith("--data.mean: not YAML: ")


def test_flags_without_a_value() -> None:
    assert parse_arguments("export", ["x", "y.onnx", "--preprocess"]).flags.keys() == {"--preprocess"}
    assert parse_arguments("export", ["x", "y.onnx"]).flags == {}


def test_a_path_expands_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    given = parse_arguments("predict", ["x", "--out", "~/a.csv", "--png", "b.png"])
    assert given.path("--out") == Path("/home/someone/a.csv")
    assert given.path("--png") == Path("b.png")
    assert parse_arguments("predict", ["x"]).path("--out") is None


def test_aliases_of_other_commands_are_not_answered() -> None:
    for name, habit in (("report", "--ema"), ("predict", "--epochs"), ("evaluate", "--seed"), ("export", "x --device")):
        *words, flag = habit.split()
        assert refusal(name, "x", *words, flag, "7") == [f"{flag}: no such flag; see --help for all flags"]


# Refused


def test_unknown_flags_are_answered_with_the_nearest_all_at_once() -> None:
    assert refusal("evaluate", "x", "--spilt", "val", "--wieghts=raw", "--run.thread", "1", "--zzzz") == [
        "--spilt: no such flag; did you mean --split?",
        "--wieghts: no such flag; did you mean --weights?",
        "--run.thread: no such flag; did you mean --run.threads?",
        "--zzzz: no such flag; see --help for all flags",
    ]


def test_flags_are_not_abbreviated() -> None:
    assert refusal("predict", "x", "--form", "csv") == ["--form: no such flag; did you mean --format?"]


@pytest.mark.parametrize("name", list(MODEL_COMMANDS))
def test_training_flags_are_refused(name: str) -> None:
    for flag in ("--optimizer.lr", *ONLY_FOR_TRAINING):
        (line,) = refusal(name, "x", "y", flag, "1")
        assert line.startswith(f"{flag}: no such flag; ")


def test_missing_and_extra_positionals_are_refused() -> None:
    assert refusal("evaluate") == [f"evaluate: needs MODEL: {USAGES['evaluate'].positionals['MODEL']}"]
    assert refusal("predict", "--top", "3") == [f"predict: needs MODEL: {USAGES['predict'].positionals['MODEL']}"]
    assert refusal("report") == [f"report: needs RUN: {USAGES['report'].positionals['RUN']}"]
    assert refusal("export", "x") == [f"export: needs OUT: {USAGES['export'].positionals['OUT']}"]
    assert refusal("export") == [f"export: needs MODEL: {USAGES['export'].positionals['MODEL']}"]
    assert refusal("evaluate", "x", "y", "z") == [
        "evaluate: takes MODEL alone, not y z too: images go after --folder: --folder y"
    ]
    assert refusal("export", "x", "y", "z") == ["export: takes MODEL OUT alone, not z too"]
    assert parse_arguments("report", ["x", "y", "z"]).positionals == ["x", "y", "z"]


def test_wrong_choices_are_refused_all_at_once() -> None:
    assert refusal("predict", "--weights", "best", "--format", "xml", "--top", "0") == [
        "--weights: must be raw or ema, not best",
        "--format: must be table, jsonl or csv, not xml",
        "--top: must be a whole number above 0, not 0",
        f"predict: needs MODEL: {USAGES['predict'].positionals['MODEL']}",
    ]


@pytest.mark.parametrize("top", ["0", "-1", "abc", "1.5", "1e3"])
def test_top_must_be_a_positive_integer(top: str) -> None:
    assert refusal("predict", "x", f"--top={top}") == [f"--top: must be a whole number above 0, not {top}"]


@pytest.mark.parametrize("flag", ["--split", "--run.threads", "--model.args.x", "--model.args"])
def test_a_flag_without_its_value_is_refused(flag: str) -> None:
    for words in (["x", flag], [flag, "--weights", "raw", "x"]):
        assert refusal("evaluate", *words) == [f"{flag}: needs a value"]


def test_empty_values_are_refused_all_at_once() -> None:
    assert refusal("predict", "x", "--format", "", "--top=", "--out=", "--data.root=", "--weights=best") == [
        "--top: needs a value",
        "--format: needs a value",
        "--out: needs a value",
        "data.root: needs a value",
        "--weights: must be raw or ema, not best",
    ]
    for flag in ("--split", "--folder", "--weights", "--json"):
        assert refusal("evaluate", "x", f"{flag}=") == [f"{flag}: needs a value"]


def test_positionals_that_begin_with_a_dash_go_after_two_dashes() -> None:
    assert parse_arguments("predict", ["x", "--", "-x.png"]) == Arguments(["x", "-x.png"])
    assert parse_arguments("predict", ["x", "a.png", "--top", "2", "--", "-y.png", "--top"]) == Arguments(
        ["x", "a.png", "-y.png", "--top"], {"--top": "2"}
    )
    (line,) = refusal("predict", "x", "-x.png")
    assert line.startswith("-x.png: no such flag; ")
    assert parse_arguments("predict", ["x", "--out=-x.csv"]).flags == {"--out": "-x.csv"}


# Through the command: a line each, exit code 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_digits_run(tmp_path_factory)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the weights file of a tiny timm model with 3 classes, built with the --model.args below."""
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    args = {"depth": 1, "embed_dim": 12, "num_heads": 2}
    save_file(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, **args).state_dict(), path)
    return path


SIZES = ["--model.args", "{depth: 1, embed_dim: 12, num_heads: 2}"]
IMAGE = ["a.png"]


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    result = command(capsys, *words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert all(line.startswith("vit-dist: ") for line in lines)
    return [line.removeprefix("vit-dist: ") for line in lines]


@pytest.mark.parametrize("name", ["evaluate", "predict"])
def test_a_missing_model_is_refused(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_text("")
    nothing = "no run's folder, checkpoint, exported folder or safetensors file is there"
    assert refused(capsys, name, "runs/gone") == [f"runs/gone: {nothing}"]
    assert refused(capsys, name, "vit_tiny_patch16_224") == [
        f"vit_tiny_patch16_224: {nothing}; timm's models are timm/NAME"
    ]
    assert refused(capsys, name, "./gone.safetensors") == [f"./gone.safetensors: {nothing}"]
    forgotten = "holds images: give the run first: vit-dist predict RUN ./a.png"
    assert refused(capsys, name, "./a.png") == [f"./a.png: {forgotten if name == 'predict' else nothing}"]
    assert refused(capsys, name, "empty") == ["empty is neither a run's folder with a checkpoint nor a checkpoint"]
    optimizer = run / "checkpoints" / "last" / "optimizer.safetensors"
    assert optimizer.is_file()
    assert refused(capsys, name, optimizer) == [
        f"{optimizer}: holds no model: its weights are in model.safetensors in the same folder"
    ]


def damaged(run: Path, folder: Path, file: str) -> Path:
    """Copy a run and flip one bit in a file of its best checkpoint."""
    copied = folder / "run"
    shutil.copytree(run, copied, symlinks=True)
    path = copied / "checkpoints" / "best" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return copied


@pytest.mark.parametrize("file", ["ema.safetensors", "model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(
    file: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = damaged(run, tmp_path, file)
    path = copied / "checkpoints" / "update_00000060" / file
    for words in (["evaluate", path.parent], ["predict", path.parent, "--split", "val"], ["evaluate", path]):
        if words[1] == path and file == "state.json":
            continue
        assert refused(capsys, *words) == [
            f"{path}: its SHA-256 is not the manifest's: this checkpoint cannot be used; complete beside it: "
            "update_00000030"
        ]


def test_a_checkpoint_with_a_broken_manifest_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied, symlinks=True)
    manifest = copied / "checkpoints" / "update_00000060" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-9])
    (line,) = refused(capsys, "evaluate", manifest.parent)
    assert line.startswith(f"{manifest}: is not JSON: ")
    assert line.endswith(": this checkpoint cannot be used; complete beside it: update_00000030")


def test_fields_that_a_run_fixes_are_refused_all_at_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in (run, run / "checkpoints" / "last", run / "checkpoints" / "last" / "model.safetensors"):
        assert refused(capsys, "evaluate", model, "--model.width", 64, "--data.name", "mnist", "--data.mean", "[0.5]",
                       "--model.args.x", 1, "--run.threads", 1) == [
            f"{field}: cannot be set here: the run says it itself; --help names what can"
            for field in ("model.width", "data.name", "data.mean", "model.args")
        ]  # fmt: skip


def test_wrong_values_are_refused_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, line in (
        (["--evaluate.batch_size", 0], "evaluate.batch_size: must be above 0, not 0"),
        (["--run.threads", "many"], "run.threads: must be a whole number or auto, not 'many'"),
        (["--run.device", "gpu"], "run.device: must be auto, cpu, cuda or mps, not 'gpu'"),
        (["--train.precision", "int8"], "train.precision: must be auto, fp32, bf16 or fp16, not 'int8'"),
        (["--train.precision", "fp16"], "train.precision: fp16 needs a CUDA GPU: set bf16 or fp32"),
    ):
        assert refused(capsys, "evaluate", run, *words) == [line]


def test_weights_that_do_not_fit_are_refused(
    run: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ["--model.name", "timm/vit_tiny_patch16_224"]
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    (line,) = refused(capsys, "evaluate", text, *name)
    assert line.startswith(f"{text} is not a safetensors file: ")
    (line,) = refused(capsys, "evaluate", weights, "--model.name", "vit_tinny")
    assert line == "model.name: no model vit_tinny (did you mean vit_tiny?)"
    assert refused(capsys, "evaluate", weights) == [
        f"model.name: {weights} holds weights alone: say whose they are, as timm/vit_small_patch16_224"
    ]
    (line,) = refused(capsys, "evaluate", weights, *TIMM_MODEL)
    assert line.startswith(f"{weights}: of another model: ")
    (line,) = refused(capsys, "evaluate", weights, "--model.name", "timm/resnet18")
    assert line == f"{weights}: has no fc.weight, so it is not a timm/resnet18: set model.name to its model"
    (line,) = refused(capsys, "evaluate", weights, *SIZES, *TIMM_MODEL[2:], "--model.name", "timm/vit_tiny_patch8_224",
                      "--data.mean", "[0.5, 0.5, 0.5]", "--data.std", "[0.5, 0.5, 0.5]")  # fmt: skip
    assert line.startswith("model.name: timm has no model vit_tiny_patch8_224: did you mean timm/vit_")
    ours = tmp_path / "ours.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", ours)
    (line,) = refused(capsys, "evaluate", ours, "--model.name", "vit_tiny", "--data.image_size", 8,
                      "--data.mean", "[0.3]", "--data.std", "[0.4]", "--model.patch_size", 4)  # fmt: skip
    assert line.startswith(f"{ours}: of another model: ")


def test_weights_of_our_vit_need_size_mean_and_deviation(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours.safetensors"
    shutil.copy(run / "checkpoints" / "best" / "model.safetensors", ours)
    assert refused(capsys, "evaluate", ours, "--model.name", "vit_tiny") == [
        "data.image_size: set the side in pixels that the model was trained at",
        "data.mean: set what the model was trained with, one value",
        "data.std: set what the model was trained with, one value",
    ]


def test_the_number_of_missing_values_is_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "evaluate", weights, *SIZES, *TIMM_MODEL, "--data.mean", "[0.5]", "--data.std", "[0.5]") == [
        "data.mean: set what the model was trained with, 3 values",
        "data.std: set what the model was trained with, 3 values",
    ]


@pytest.mark.parametrize(
    ("argument", "says"), [("img_size: 32", "data.image_size sets"), ("num_classes: 3", "the data's classes set")]
)
def test_timm_arguments_that_come_from_the_config_are_refused(
    argument: str, says: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, line = argument.split(":")[0], "it: leave it out"
    for words in (["--model.args", f"{{{argument}, depth: 1, embed_dim: 12, num_heads: 2}}"],
                  [*SIZES, f"--model.args.{name}", argument.split()[1]]):  # fmt: skip
        assert refused(capsys, "evaluate", weights, *TIMM_MODEL, *words) == [f"model.args.{name}: {says} {line}"]


@pytest.mark.parametrize(
    "name",
    [
        "timm/no_such_model",
        "timm/vit_tiny_patch16_224.no_such_tag",
        "timm/",
    ],
)
def test_an_unknown_timm_name_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "predict", name, *IMAGE)
    assert name.removeprefix("timm/") in line


def test_an_unknown_timm_tag_is_refused_with_a_weights_file(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [weights, *SIZES, *TIMM_MODEL[2:], "--model.name", "timm/vit_tiny_patch16_224.no_such_tag"]
    (line,) = refused(capsys, "predict", *words, *IMAGE)
    assert line.startswith("model.name: timm/vit_tiny_patch16_224.no_such_tag: ")
    assert "no_such_tag" in line.removeprefix("model.name: timm/vit_tiny_patch16_224.no_such_tag: ")


def test_weights_flag_is_refused_for_a_single_set_of_weights(
    run: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last"
    for model in ("timm/vit_tiny_patch16_224", weights, last / "model.safetensors", last / "ema.safetensors"):
        for asked in ("raw", "ema"):
            line = f"--weights: {model} is one set of weights: leave it out"
            assert refused(capsys, "predict", model, *IMAGE, "--weights", asked) == [line]
            assert refused(capsys, "evaluate", model, *TIMM_MODEL, "--weights", asked) == [line]


def test_a_split_together_with_other_data_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "evaluate", run, "--split", "test", "--folder", "gone") == [
        "--split: is of the model's data and --folder is other data: give one of them"
    ]
    assert refused(capsys, "predict", run, *IMAGE, "--split", "test") == [
        "--split: is of the model's data and images are named too: give one of them"
    ]


def test_ema_weights_of_a_run_without_ema_are_refused(
    tmp_path: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_pictures_run(tmp_path_factory, image_folder)
    (line,) = refused(capsys, "evaluate", run, "--weights", "ema")
    assert line.startswith(f"--weights: {run / 'checkpoints' / 'update_'}")
    assert line.endswith(" has no EMA weights: its run had no train.ema")


@pytest.mark.parametrize("words", [["evaluate", "x", "-q", "f"], ["predict", "x", "-z", "3"]])
def test_a_short_flag_is_refused_in_one_line(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words) == [f"{words[2]}: no such flag; see --help for all flags"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predict", "x", "-5.png"], "unrecognized arguments: -5.png: words that begin with a dash go after --"),
        (
            ["predict", "--", "gone", "-x.png"],
            "gone: no run's folder, checkpoint, exported folder or safetensors file ",
        ),
    ],
)
def test_other_words_with_a_dash_are_refused_in_one_line(
    words: Sequence[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (printed,) = refused(capsys, *words)
    assert printed.startswith(line)


# Output files


@pytest.mark.parametrize("out", ["x.json", "x.xml", "some.where/x.parquet"])
def test_an_unknown_suffix_is_refused_before_the_model_is_read(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"--out: {out}: name it .csv, .jsonl or .txt, or set --format table, jsonl, csv"
    assert refused(capsys, "predict", "gone", "--out", out) == [line]
    (line,) = refused(capsys, "predict", "gone", "--out", out, "--format", "jsonl")
    assert line.startswith("gone: no run's folder, ")


@pytest.mark.parametrize("out", ["x", "x.txt", "x.TXT", "x.csv", "x.jsonl", "x.JSONL"])
def test_a_known_suffix_is_accepted(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "predict", "gone", "--out", out)
    assert line.startswith("gone: no run's folder, ")


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "safetensors", "json", "onxx", "onx"])
def test_export_writes_an_onnx_file_or_a_folder(
    ending: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"model.{ending}"
    for words in ([out], [out, "--preprocess"]):
        assert refused(capsys, "export", run, *words) == [f"export: OUT is FILE.onnx or a folder, not {out}"]
    assert list(tmp_path.iterdir()) == []
