"""The process in which W&B runs: its standard input tells it what to send, its standard output how that goes.

W&B waits without a bound in many places: at its start, when it is given values and its own process has stopped, at its
end and at the interpreter's exit. Here it may: the process that trains never waits for this one, and can end it.

Each message is a JSON object on a line. One with `bytes` is followed by that many bytes: the pixels of its images. The
file is run as a script and imports nothing of vit_dist.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

# Seconds for sending what is left, once there is nothing more to come.
SECONDS_TO_FINISH = 10
# The exit code if that was not enough.
TIMED_OUT = 3


def main() -> None:
    """Start a run as the first message says, send what the others hold, and finish it."""
    parent = os.getppid()
    messages, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # What W&B and its process print is for nobody: problems are told in an answer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def answer(**values: Any) -> None:
        with contextlib.suppress(OSError):
            print(json.dumps(values), file=answers, flush=True)

    first = json.loads(messages.readline())
    sys.argv = first["argv"]
    import wandb

    signal.signal(signal.SIGTERM, lambda number, frame: _end())
    answer(ready=True)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        settings = wandb.Settings(console="off", x_stats_pid=parent)
        run = wandb.init(project=first["project"], mode=first["mode"], settings=settings, **first["settings"])
        run.config.update(first["config"], allow_val_change=True)
    except Exception as error:
        answer(error=_text(error))
        _end()
    answer(id=str(run.id), url=run.url, service=service_processes(os.getpid()))
    finished = _send_all(messages, run, answer)
    threading.Timer(SECONDS_TO_FINISH, _end, (TIMED_OUT,)).start()
    try:
        run.finish(exit_code=0 if finished else 1)
    except Exception:  # its process has ended, which this one's exit code tells
        _end()
    wandb.teardown()
    os._exit(0)


def _send_all(messages: BinaryIO, run: Any, answer: Callable[..., None]) -> bool:
    """Send each message; return whether the last one said that the run is over. A problem is told once a kind."""
    told: set[str] = set()
    for line in messages:
        message = json.loads(line)
        pixels = messages.read(message.pop("bytes", 0))
        kind = message.pop("kind")
        if kind == "finish":
            return True
        try:
            _SENDERS[kind](run, pixels=pixels, **message)
        except Exception as error:
            if not service_processes(os.getpid()) and Path("/proc/self").exists():
                _end()
            if kind not in told:
                answer(problem=_text(error))
            told.add(kind)
    return False


def _send_values(run: Any, *, pixels: bytes, values: dict[str, Any], step: int) -> None:
    run.log(values, step=step)


def _send_images(run: Any, *, pixels: bytes, name: str, shape: list[int], captions: list[str], step: int) -> None:
    import numpy as np
    import wandb

    images = np.frombuffer(pixels, np.uint8).reshape(shape).transpose(0, 2, 3, 1)
    shown = [
        wandb.Image(image.squeeze(-1) if shape[1] == 1 else image, caption=caption)
        for image, caption in zip(images, captions, strict=True)
    ]
    run.log({name: shown}, step=step)


def _send_confusion(
    run: Any, *, pixels: bytes, name: str, truth: list[int], predicted: list[int], classes: list[str], step: int
) -> None:
    import wandb

    run.log({name: wandb.plot.confusion_matrix(y_true=truth, preds=predicted, class_names=classes)}, step=step)


def _send_summary(run: Any, *, pixels: bytes, values: dict[str, Any]) -> None:
    run.summary.update(values)


def _send_text(run: Any, *, pixels: bytes, text: str) -> None:
    if hasattr(run, "write_logs"):  # since wandb 0.24
        run.write_logs(text)


_SENDERS: dict[str, Callable[..., None]] = {
    "values": _send_values,
    "images": _send_images,
    "confusion": _send_confusion,
    "summary": _send_summary,
    "text": _send_text,
}


def service_processes(parent: int) -> list[int]:
    """Return the ids of the processes that W&B started for the process `parent`; none where there is no /proc."""
    numbers = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if is_service(number, parent)]


def is_service(number: int, parent: int | None = None) -> bool:
    """Return whether a process that lives is one of W&B's, started by `parent` if that is given."""
    try:
        # pid (name) state parent …, where a name may hold anything.
        name, _, rest = Path(f"/proc/{number}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return False
    state, owner = rest.split()[:2]
    return name.startswith("wandb") and state != "Z" and parent in (None, int(owner))


def _end_with(parent: int) -> None:
    """Give up what is left a while after the process that trains has died."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(SECONDS_TO_FINISH)
    _end()


def _end(code: int = 1) -> None:
    """End this process, and W&B's, which may have been stopped."""
    for number in service_processes(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
    os._exit(code)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
