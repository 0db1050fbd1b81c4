"""The commands: what each is given, whom it asks, and its exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vit_dist.cli.arguments import parse_usage
from vit_dist.cli.flags import parse, take
from vit_dist.errors import UserError
from vit_dist.inference.output import FORMATS
from vit_dist.version import __version__

STOPPED, MISTAKE, INTERRUPTED = 75, 2, 130


_HELP = {
    "train": "train a Vision Transformer, or go on where its folder left off",
    "plan": "show what a run would be, without training: numbers, memory, the curve of its rate",
    "report": "a page with the pictures of a run, or several runs side by side",
    "evaluate": "how good a model is on a split or a folder: exact, on any number of processes",
    "predict": "what a model says of files, folders, patterns, a split; or of 16 of test, drawn to predictions.png",
    "export": "write a model as ONNX, or as a folder for timm and the Hugging Face hub",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 75 stopped and resumable, 2 a person's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"vit-dist {__version__}")
        return 0
    if not arguments or arguments[0] not in _HELP:
        return _overview(arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "plan": _plan,
        "report": _report,
        "evaluate": _evaluate,
        "predict": _predict,
        "export": _export,
    }
    try:
        return commands[arguments[0]](arguments[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            for line in str(error).splitlines():
                print(f"vit-dist: {line}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _overview(arguments: list[str]) -> int:
    asked = not arguments or arguments[0] in ("-h", "--help")
    lines = [f"  {name:<10}{meaning}" for name, meaning in _HELP.items()]
    text = "usage: vit-dist COMMAND [--help]\n       vit-dist --version\n\n" + "\n".join(lines)
    if asked:
        print(text)
        return 0
    print(f"vit-dist: {arguments[0]}: no such command; known: {', '.join(_HELP)}", file=sys.stderr)
    return MISTAKE


def _train(arguments: list[str]) -> int:
    config = parse(arguments)
    if config is None:
        return 0
    from vit_dist.training.run import train

    return STOPPED if train(config).stopped else 0


def _plan(arguments: list[str]) -> int:
    processes, picture = take(arguments, "--processes") or "1", take(arguments, "--png") or "plan.png"
    if not processes.isdecimal() or int(processes) < 1:
        raise UserError(f"--processes: must be a whole number above 0, not {processes}")
    if not picture.lower().endswith(".png"):
        raise UserError(f"--png: the picture is a PNG: name it so, not {picture}")
    config = parse(arguments, "plan")
    if config is None:
        return 0
    from vit_dist.cli.plan import show_plan
    from vit_dist.telemetry.console import Console

    show_plan(config, Console(speaks=True), processes=int(processes), picture=Path(picture))
    return 0


def _report(arguments: list[str]) -> int:
    given = parse_usage("report", arguments)
    runs = list(dict.fromkeys(Path(name).expanduser() for name in given.words))
    out = given.path("--out")
    if len(runs) == 1:
        from vit_dist.report.page import write_report

        print(write_report(runs[0], out))
        return 0
    from vit_dist.report.comparison import write_comparison

    page, text = write_comparison(runs, out or Path("comparison"))
    print(text)
    print(page)
    return 0


def _evaluate(arguments: list[str]) -> int:
    given = parse_usage("evaluate", arguments)
    from vit_dist.cli.evaluate import run_evaluate
    from vit_dist.inference.load import load_model
    from vit_dist.telemetry.console import Console

    trained = load_model(given.words[0], weights=given.own.get("--weights", ""), overrides=given.fields)
    run_evaluate(
        trained,
        given.words[0],
        Console(speaks=True),
        split=given.own.get("--split", ""),
        folder=given.path("--folder"),
        out=given.path("--json"),
    )
    return 0


def _predict(arguments: list[str]) -> int:
    given = parse_usage("predict", arguments)
    out = given.path("--out")
    ending = out.suffix[1:].lower() if out else ""
    if ending not in ("", "txt", *FORMATS) and "--format" not in given.own:
        raise UserError(f"--out: {out}: name it .csv, .jsonl or .txt, or say --format {', '.join(FORMATS)}")
    format = given.own.get("--format") or (ending if ending in FORMATS else "table")
    from vit_dist.cli.predict import predict
    from vit_dist.inference.load import load_model
    from vit_dist.telemetry.console import Console

    predict(
        load_model(given.words[0], weights=given.own.get("--weights", ""), overrides=given.fields),
        given.words[1:],
        Console(speaks=True, stream=sys.stderr),
        split=given.own.get("--split", ""),
        top=int(given.own.get("--top", "3")),
        format=format,
        out=out,
        png=given.path("--png"),
    )
    return 0


def _export(arguments: list[str]) -> int:
    given = parse_usage("export", arguments)
    from vit_dist.inference.load import load_model

    name, out = given.words[0], Path(given.words[1]).expanduser()
    asked = "--preprocess" in given.own
    ending = out.suffix.lower()
    if ending in (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".json", ".onxx", ".onx"):
        raise UserError(f"export: OUT is FILE.onnx or a folder, not {out}")
    if asked and out.suffix.lower() != ".onnx":
        raise UserError("--preprocess: is for FILE.onnx: a folder's config.json says how to prepare images")
    trained = load_model(name, weights=given.own.get("--weights", ""), overrides=given.fields)
    of = f", {trained.weights} weights of update {trained.update}" if trained.update is not None else ""
    if ending == ".onnx":
        from vit_dist.export.onnx_file import export_onnx

        source = {"model": name, "weights": trained.weights, "update": trained.update, "vit_dist": __version__}
        found = export_onnx(trained, out, preprocess=asked, source=source)
        print(f"{out}: {name}{of}; {found.bytes / 2**20:.1f} MiB, opset {found.opset}, input, output, any batch")
        print(f"  beside torch: {found.largest_difference:.1e} apart at most over {found.images} images")
        return 0
    from vit_dist.export.model_card import model_card
    from vit_dist.export.timm_folder import export_timm
    from vit_dist.run_folder.status import summary_of

    export_timm(trained, out, card=model_card(trained, summary_of(Path(name).expanduser()), out.name))
    print(f'{out}: {name}{of}; timm.create_model("local-dir:{out}", pretrained=True) loads it')
    print(f"  on the hub: hf upload OWNER/NAME {out}")
    return 0
