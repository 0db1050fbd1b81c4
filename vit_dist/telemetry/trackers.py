"""Send metrics and pictures to W&B or TensorBoard."""

from __future__ import annotations

import importlib.util
import netrc
import os
import secrets
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_dist.config.config import Config
from vit_dist.errors import UserError, one_line
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.pairs import SavedPairs
from vit_dist.run_folder.predictions import InputExamples, SavedPredictions
from vit_dist.telemetry.tensorboard_run import TensorBoardRun
from vit_dist.telemetry.wandb_run import WandbRun

_SECONDS_TO_START, _SECONDS_TO_START_OFFLINE = 10, 30
_MAX_CONFUSION_CLASSES = 100


class Trackers:
    """The trackers of a run. They never stop or slow it: one that fails is dropped with one line."""

    def __init__(
        self,
        config: Config,
        say: Callable[[str], None],
        *,
        enabled: bool,
        hint: Callable[[str], None] | None = None,
    ) -> None:
        """say: prints a line for the user. hint: one that matters less. enabled: False on ranks that track nothing."""
        self.config = config
        self.say = say
        self.hint = hint
        self.enabled = enabled
        self.run_id: str | None = None
        self._trackers: dict[str, WandbRun | TensorBoardRun] = {}
        self._slow: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Return the names of the trackers that are running: wandb, tensorboard."""
        return list(self._trackers)

    def start(self, run_id: str | None, position: int = 0) -> None:
        """Start the trackers that the config asks for.

        run_id: an earlier W&B run to continue. position: the update that this run starts from; TensorBoard drops
        what it holds of later ones.
        """
        self.run_id = run_id
        names, reason = chosen_trackers(self.config.log.trackers, os.environ) if self.enabled else ([], None)
        if reason:
            (self.hint or self.say)(reason)
        for name in names:
            if name == "wandb" and wandb_mode(os.environ) == "disabled":
                continue
            try:
                if name == "wandb":
                    self._trackers[name] = self._start_wandb()
                else:
                    fields = self._fields()
                    self._trackers[name] = TensorBoardRun.start(self.config.folder, fields, position)
            except Exception as error:  # of any kind: a tracker must not end a run
                self.say(f"{name}: {one_line(error, 200)}: continuing without it")

    def _start_wandb(self) -> WandbRun:
        """Start a W&B run; offline if that fails. Raises OSError if that fails too."""
        log, folder = self.config.log, self.config.folder
        # A new run's id is chosen here, so that an offline run is the one that the server may already know.
        settings: dict[str, Any] = {
            "name": self.config.run.name or None,
            "entity": log.entity or None,
            "group": log.group or None,
            "tags": list(log.tags) or None,
            "dir": str(folder),
            "id": self.run_id or secrets.token_hex(4),
            "resume": "allow" if self.run_id else None,
        }
        mode, reason = wandb_mode(os.environ), ""
        if mode != "offline":
            run = WandbRun(mode, log.project, settings, self._fields())
            try:
                run.wait_for_start(_SECONDS_TO_START)
                self.run_id = run.id
                self.say(f"wandb: {run.url}" if run.url else f"wandb: {mode}")
                return run
            except ConnectionError as error:
                reason = f" ({one_line(error, 200)})"
        run = WandbRun("offline", log.project, settings, self._fields())
        run.wait_for_start(_SECONDS_TO_START_OFFLINE)
        self.run_id = run.id
        self.say(f"wandb: offline{reason}; later: wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*")
        return run

    def _fields(self) -> dict[str, Any]:
        """Return the config's fields by dotted name; empty text for None."""
        return {name: value if value is not None else "" for name, value in self.config.fields().items()}

    def log(self, line: Line) -> None:
        """Send the numbers of a line as `<kind>/<field>`, at its update. After an error, track no more."""
        if line["kind"] not in ("train", "eval", "save"):
            return
        prefix = f"eval/{line['split']}_{line['weights']}_" if line["kind"] == "eval" else f"{line['kind']}/"
        values = {
            f"{prefix}{name}": value
            for name, value in line.items()
            if isinstance(value, (int, float)) and name not in ("time", "update")
        }
        self._send(lambda tracker: tracker.log(values, line["update"]))

    def show_inputs(self, inputs: InputExamples, captions: Sequence[str]) -> None:
        """Send the images that the model sees first, each with its caption."""
        self._send(lambda tracker: tracker.show("inputs", inputs.pixels, captions, inputs.metadata["position"]))

    def show_predictions(self, saved: SavedPredictions, captions: Sequence[str], step: int) -> None:
        """Send the most confident mistakes of a split, and its confusion matrix (for at most 100 classes)."""
        split = saved.metadata["split"]
        self._send(lambda tracker: tracker.show(f"{split}/mistakes", saved.pictures, captions, step))
        if len(saved.metadata["classes"]) <= _MAX_CONFUSION_CLASSES:
            self._send(lambda tracker: tracker.show_confusion(f"{split}/confusion", saved, step))

    def show_pairs(self, saved: SavedPairs, step: int) -> None:
        """Send the best and the worst pairs of a split, and the caption that each image is taken for."""
        split, best = saved.metadata["split"], saved.metadata["best"]
        words = [pair.in_words() for pairs in saved.shown() for pair in pairs]
        self._send(lambda tracker: tracker.show(f"{split}/best_pairs", saved.pictures[:best], words[:best], step))
        self._send(lambda tracker: tracker.show(f"{split}/worst_pairs", saved.pictures[best:], words[best:], step))

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Send the numbers of summary.json to W&B's table of runs, as `summary/<field>`."""
        values = {
            f"summary/{name}" if inner is None else f"summary/{name}/{inner}": number
            for name, value in summary.items()
            for inner, number in (value.items() if isinstance(value, dict) else [(None, value)])
        }
        self._send(lambda tracker: tracker.summarise(values))

    def write(self, text: str) -> None:
        """Send a line that the run printed to W&B's log of it."""
        for tracker in self._trackers.values():
            tracker.write(text)

    def _send(self, send: Callable[[WandbRun | TensorBoardRun], None]) -> None:
        """Give something to each tracker, which takes it later, and tell what has gone wrong since the last time."""
        for name, tracker in list(self._trackers.items()):
            send(tracker)
            for problem in tracker.take_problems():
                self.say(f"{name}: {one_line(problem, 200)}")
            if tracker.background.dropped and name not in self._slow:
                self._slow.add(name)
                self.say(f"{name}: takes nothing at the moment: some lines are left out; metrics.jsonl has them all")
            if tracker.background.error is not None:
                del self._trackers[name]
                self.say(f"{name}: {tracker.end()}: continuing without it")

    def end(self) -> None:
        """Send what is left, for some ten seconds at most."""
        trackers, self._trackers = self._trackers, {}
        for name, tracker in trackers.items():
            problem = tracker.end()
            for text in [*tracker.take_problems(), *([problem] if problem else [])]:
                self.say(f"{name}: {one_line(text, 200)}")


def check_tracker(name: str) -> None:
    """Check that a tracker named in `log.trackers` is installed. Raises UserError."""
    if name in ("auto", "none"):
        return
    if importlib.util.find_spec(name) is None:
        raise UserError(f"log.trackers: {name} is not installed: pip install {name}, or set none")


def chosen_trackers(setting: str, environ: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Return (names, a line for the user or None) for a `log.trackers`; auto: W&B if the user is logged in."""
    if setting == "none":
        return [], None
    if setting != "auto":
        return [setting], None
    disabled = environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")
    if disabled or environ.get("WANDB_MODE") in ("disabled", "dryrun"):
        return [], None
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_MODE") == "offline" or _in_netrc(environ):
        return ["wandb"], None
    return [], "optional: `wandb login` sends the metrics to Weights & Biases too"


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return WANDB_MODE, else online, or offline if the server cannot be reached within two seconds."""
    if "WANDB_MODE" in environ:
        return environ["WANDB_MODE"]
    url = environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    name, _, port = url.split("//")[-1].split("/")[0].partition(":")
    if any(environ.get(proxy) for proxy in ("HTTPS_PROXY", "https_proxy")):
        return "online"
    try:
        socket.create_connection((name, int(port or (80 if url.startswith("http:") else 443))), timeout=2).close()
    except (OSError, ValueError):  # no such host, nobody listens, or it is no address
        return "offline"
    return "online"


def _in_netrc(environ: Mapping[str, str]) -> bool:
    """Return whether the netrc file holds a login for the W&B server."""
    try:
        entries = netrc.netrc(environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    return host in entries
