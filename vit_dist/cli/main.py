"""The entry point: choose the command, run it, return its exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.cli.advice import command_advice
from vit_dist.cli.arguments import Arguments, parse_arguments
from vit_dist.cli.help import COMMANDS, overview
from vit_dist.cli.streams import drop_unwritten, prepare_streams, print_error, print_mistake
from vit_dist.config.config import Config
from vit_dist.errors import UserError
from vit_dist.files import user_path
from vit_dist.inference.output import FORMATS
from vit_dist.runtime.launch import check_one_process, end_with_launcher, is_first_process, tell_launcher
from vit_dist.version import __version__

if TYPE_CHECKING:
    from vit_dist.inference.load import TrainedModel

STOPPED, MISTAKE, INTERRUPTED = 75, 2, 130
_FOR_SEVERAL = ("train", "evaluate")  # that several processes of a launcher do together


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 75 stopped and resumable, 2 a mistake of the user's."""
    prepare_streams()
    if "LOCAL_RANK" in os.environ:  # torch, when it is imported: a peer that is gone is said by us, in a line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    arguments = list(sys.argv[1:] if argv is None else argv)
    lost = None
    try:
        code = _run(arguments)
    except SystemExit:  # argparse's, after a help text
        drop_unwritten(sys.stdout)
        raise
    except BrokenPipeError:  # the reader of the output is gone, as with `head`
        code = 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        code, lost = 1, error.strerror  # of a print
    lost = drop_unwritten(sys.stdout) or lost
    answers = not {"-h", "--help", "--print_config"}.isdisjoint(arguments)
    if lost and (answers or arguments[:1] != ["train"]):  # a run's results are in its folder
        with contextlib.suppress(OSError):
            print_error(f"standard output: cannot be written: {lost}")
        code = code or 1
    drop_unwritten(sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    if arguments[:1] == ["--version"]:
        print(f"vit-dist {__version__}")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        return _overview(arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "plan": _plan,
        "check": _check,
        "runs": _runs,
        "report": _report,
        "evaluate": _evaluate,
        "predict": _predict,
        "export": _export,
        "checkpoint": _checkpoint,
        "shards": _shards,
        "config": _config,
    }
    end_with_launcher(os.environ)
    try:
        if arguments[0] not in _FOR_SEVERAL:
            check_one_process(arguments[0], os.environ)
        return commands[arguments[0]](arguments[1:])
    except UserError as error:
        tell_launcher(str(error))
        print_mistake(error)
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED


def _overview(arguments: list[str]) -> int:
    if arguments and arguments[0] not in ("-h", "--help"):
        print_error(f"{arguments[0]}: {command_advice(arguments, list(COMMANDS))}")
        return MISTAKE
    print(overview())
    return 0


def _train(words: list[str]) -> int:
    arguments = parse_arguments("train", words)
    config = arguments.load_config()
    if _print_config(arguments, config):
        return 0
    if "--replay" in arguments.flags:
        from vit_dist.runtime.flags import Stopped
        from vit_dist.training.replay import replay

        try:
            replay(config, trust_code=_trusts(arguments))
        except Stopped:
            return STOPPED
        return 0
    from vit_dist.telemetry.console import Console

    with Console(speaks=is_first_process(os.environ), level=config.log.level, may_fail=True) as console:
        console.phase("starting")
        from vit_dist.runtime.flags import Stopped
        from vit_dist.training.run import train

        try:
            return STOPPED if train(config, trust_code=_trusts(arguments), console=console).stopped else 0
        except Stopped:
            if is_first_process(os.environ):
                print("vit-dist: stopped before the first update; the same command starts again", file=sys.stderr)
            return STOPPED


def _plan(words: list[str]) -> int:
    arguments = parse_arguments("plan", words)
    picture, measure = arguments.path("--png"), "--measure" in arguments.flags
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"--png: the picture is a PNG: name it FILE.png, not {picture}")
    config = arguments.load_config()
    if _print_config(arguments, config):
        return 0
    from vit_dist.telemetry.console import Console

    processes = int(arguments.flags.get("--processes", "1"))
    trust_code = _trusts(arguments)
    with Console(speaks=True) as console:
        console.phase("starting")
        from vit_dist.cli.plan import show_plan, train_command

        show_plan(
            config,
            console,
            processes=processes,
            picture=picture,
            measure=measure,
            trust_code=trust_code,
            command=train_command(words) if processes == 1 else "",
        )
    return 0


def _check(words: list[str]) -> int:
    from vit_dist.cli.check import run_check

    arguments = parse_arguments("check", words)
    config = arguments.load_config()
    return 0 if _print_config(arguments, config) else run_check(arguments, config)


def _print_config(arguments: Arguments, config: Config) -> bool:
    """Print the config as YAML if `--print_config` asks for it, and return whether it did."""
    if "--print_config" not in arguments.flags:
        return False
    import yaml

    print(yaml.safe_dump(config.to_dict(), sort_keys=False), end="")
    return True


def _report(words: list[str]) -> int:
    arguments = parse_arguments("report", words)
    runs = list(dict.fromkeys(user_path(name, "report") for name in arguments.positionals))
    out = arguments.path("--out")
    if len(runs) == 1:
        from vit_dist.report.page import write_report

        print(f"{write_report(runs[0], out, say=_note)}: open it in a browser")
        return 0
    from vit_dist.report.comparison import write_comparison

    page, text = write_comparison(runs, out or Path("comparison"), say=_note)
    print(text)
    print(f"{page}: open it in a browser")
    return 0


def _runs(words: list[str]) -> int:
    from vit_dist.cli.runs import runs

    return runs(words)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _evaluate(words: list[str]) -> int:
    arguments = parse_arguments("evaluate", words)
    from vit_dist.telemetry.console import Console

    with Console(speaks=is_first_process(os.environ)) as console:
        console.phase("starting")
        from vit_dist.cli.evaluate import run_evaluate
        from vit_dist.runtime.flags import Stopped

        try:
            run_evaluate(
                _load(arguments),
                arguments.positionals[0],
                console,
                split=arguments.flags.get("--split", ""),
                folder=arguments.path("--folder"),
                out=arguments.path("--json"),
                tables=arguments.path("--csv"),
            )
        except Stopped:
            return STOPPED
    return 0


def _predict(words: list[str]) -> int:
    arguments = parse_arguments("predict", words)
    out, flags, (name, *names) = arguments.path("--out"), arguments.flags, arguments.positionals
    ending = out.suffix[1:].lower() if out else ""
    if ending not in ("", "txt", *FORMATS) and "--format" not in flags:
        raise UserError(f"--out: {out}: name it .csv, .jsonl or .txt, or set --format {', '.join(FORMATS)}")
    format = flags.get("--format") or (ending if ending in FORMATS else "table")
    from vit_dist.telemetry.console import Console

    with Console(speaks=True, stream=sys.stderr) as console:
        console.phase("starting")
        from vit_dist.cli.predict import without_run
        from vit_dist.cli.predict_pairs import Output, predict_any

        try:
            trained = _load(arguments)
        except UserError:
            if problem := without_run(arguments.positionals):
                raise UserError(problem) from None
            raise
        output = Output(format, out, arguments.path("--png"), int(flags["--top"]) if "--top" in flags else None)
        return 0 if predict_any(trained, name, names, flags, output, console) else 1


def _export(words: list[str]) -> int:
    arguments = parse_arguments("export", words)
    from vit_dist.cli.export import export

    (name, out), flags = arguments.positionals, arguments.flags
    export(
        name,
        user_path(out, "export"),
        lambda: _load(arguments),
        preprocess="--preprocess" in flags,
        format=flags.get("--format", ""),
    )
    return 0


def _load(arguments: Arguments) -> TrainedModel:
    from vit_dist.inference.load import load_model

    name, weights = arguments.positionals[0], arguments.flags.get("--weights", "")
    trained = load_model(name, weights=weights, overrides=arguments.config, trust_code=_trusts(arguments))
    if is_first_process(os.environ):
        for note in trained.notes:
            print(f"vit-dist: note: {note}", file=sys.stderr)
    return trained


def _trusts(arguments: Arguments) -> bool:
    return "--trust_code" in arguments.flags


def _checkpoint(words: list[str]) -> int:
    from vit_dist.cli.checkpoint import checkpoint

    return checkpoint(words)


def _shards(words: list[str]) -> int:
    from vit_dist.cli.shards import shards

    return shards(words)


def _config(words: list[str]) -> int:
    from vit_dist.cli.config import config

    return config(words)
