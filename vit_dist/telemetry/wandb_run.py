"""A W&B run, which a process of its own starts, fills and finishes: whatever W&B waits for, training does not."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.run_folder.predictions import Pixels, SavedPredictions
from vit_dist.telemetry import wandb_process
from vit_dist.telemetry.background import Background
from vit_dist.telemetry.wandb_process import SECONDS_TO_FINISH, TIMED_OUT, is_service, service_processes

# Seconds for importing wandb, which depends on the storage that it is installed on.
_SECONDS_TO_IMPORT = 60


class WandbRun:
    """A W&B run in a process of its own. Nothing is waited for but its start and its end, each for a time.

    id, url: of the run, once it has started.
    """

    def __init__(self, mode: str, project: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Start the process. mode: online or offline. settings: of `wandb.init`. Raises OSError."""
        self.id, self.url = "", ""
        self._step = 0
        self._problems: list[str] = []
        self._folder = Path(settings["dir"]) / "wandb"
        self._service: list[int] = []
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", wandb_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            start_new_session=True,  # Ctrl-C is for the process that trains
        )
        threading.Thread(target=self._read_answers, daemon=True).start()
        self.background = Background()
        first = {"argv": sys.argv, "project": project, "mode": mode, "settings": settings, "config": config}
        self.background.call(lambda: self._write(first))

    def wait_for_start(self, seconds: float) -> None:
        """Wait until the run has started, for so many seconds once wandb is imported; if it has not, end the process.

        Raises ConnectionError.
        """
        try:
            self._next_answer(_SECONDS_TO_IMPORT)
            started = self._next_answer(seconds)
        except ConnectionError:
            self._kill()
            raise
        self.id, self.url, self._service = started["id"], started["url"] or "", started["service"]

    def _next_answer(self, seconds: float) -> dict[str, Any]:
        """Wait for an answer of the process. Raises ConnectionError if there is none, or it is an error."""
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise ConnectionError(f"no answer within {seconds:g} s") from None
        if answer is None or "error" in answer:
            raise ConnectionError(answer["error"] if answer else "its process ended")
        return answer

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values of an update."""
        self._send("values", values=values, step=step)

    def show(self, name: str, pixels: Pixels, captions: Sequence[str], step: int) -> None:
        """Send pictures uint8 [n, channels, height, width] with their captions."""
        self._send("images", pixels.tobytes(), name=name, shape=pixels.shape, captions=captions, step=step)

    def show_confusion(self, name: str, saved: SavedPredictions, step: int) -> None:
        """Send the confusion matrix of a split's predictions."""
        truth, predicted = saved.predictions.label.tolist(), saved.predictions.top[:, 0].tolist()
        classes = saved.metadata["classes"]
        self._send("confusion", name=name, truth=truth, predicted=predicted, classes=classes, step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Send values for the table of runs."""
        self._send("summary", values=values)

    def write(self, text: str) -> None:
        """Send a line of the run's output."""
        self._send("text", text=text)

    def take_problems(self) -> list[str]:
        """Return what has gone wrong since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                answer = self._answers.get_nowait() or {}
                self._problems += [answer["problem"]] if "problem" in answer else []
        problems, self._problems = self._problems, []
        return problems

    def end(self) -> str | None:
        """Finish the run and end the process, in a bounded time; return what went wrong, if anything."""
        until = time.monotonic() + SECONDS_TO_FINISH + 2
        self.background.close(lambda: self._write({"kind": "finish"}), SECONDS_TO_FINISH)
        problem = "some lines were left out" if self.background.dropped else ""
        try:
            code = self._process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        if code:
            late = f"not finished within {SECONDS_TO_FINISH} s"
            problem = late if code == TIMED_OUT else "its process has ended"
        self._kill()
        if not problem:
            return None
        return f"{problem}; what is missing there: wandb sync {shlex.quote(str(self._folder))}/*run-*-{self.id}"

    def _send(self, kind: str, pixels: bytes = b"", **values: Any) -> None:
        if "step" in values:  # W&B drops what comes after that of a later step, as the line of a save may
            self._step = values["step"] = max(self._step, values["step"])
        message = {"kind": kind, **values, **({"bytes": len(pixels)} if pixels else {})}
        self.background.call(lambda: self._write(message, pixels))

    def _write(self, message: Mapping[str, Any], pixels: bytes = b"") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n" + pixels)
        self._process.stdin.flush()

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout, contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._answers.put(json.loads(line))
        self._answers.put(None)

    def _kill(self) -> None:
        """End the process and W&B's, which may be stopped, as far as they still live."""
        number = self._process.pid
        if self._process.poll() is None:
            self._service = service_processes(number)
            for service in self._service:
                _kill(service)
            self._process.terminate()  # it waits for W&B's, so that nothing is left of them
            try:
                self._process.wait(1)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for service in self._service:
            if is_service(service):
                _kill(service)
        self.background.close(lambda: None, 1)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()


def _kill(number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(number, getattr(signal, "SIGKILL", signal.SIGTERM))
