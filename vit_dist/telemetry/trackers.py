"""Send metrics and pictures to W&B or TensorBoard, through Accelerate's trackers."""

from __future__ import annotations

import contextlib
import importlib
import netrc
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vit_dist.config.config import Config
from vit_dist.errors import UserError, one_line
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.predictions import InputExamples, Pixels, SavedPredictions

_SECONDS_TO_END = 30
_MAX_CONFUSION_CLASSES = 100


class Trackers:
    """The trackers of a run. A tracker that fails is dropped with one line: it never stops a run."""

    def __init__(self, config: Config, say: Callable[[str], None], *, enabled: bool) -> None:
        """say: prints a line for the user. enabled: False on the ranks that track nothing."""
        self.config = config
        self.say = say
        self.enabled = enabled
        self.run_id: str | None = None
        self._trackers: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        """Return the names of the trackers that are running: wandb, tensorboard."""
        return list(self._trackers)

    def start(self, run_id: str | None, position: int = 0) -> None:
        """Start the trackers that the config asks for.

        run_id: an earlier W&B run to continue. position: the update that this run starts from; TensorBoard drops
        what it holds of later ones.
        """
        names, reason = chosen_trackers(self.config.log.trackers, os.environ) if self.enabled else ([], None)
        if reason:
            self.say(reason)
        for name in names:
            if name == "wandb":
                self._start_wandb(run_id)
            else:
                self._start_tensorboard(position)

    def _start_wandb(self, run_id: str | None) -> None:
        log, folder = self.config.log, self.config.folder
        settings: dict[str, Any] = {
            "name": self.config.run.name or None,
            "entity": log.entity or None,
            "group": log.group or None,
            "tags": list(log.tags) or None,
            "dir": str(folder),
            "id": run_id,
            "resume": "allow" if run_id else None,
        }
        for mode in dict.fromkeys([wandb_mode(os.environ), "offline"]):
            with self._errors_printed():
                from accelerate.tracking import WandBTracker

                tracker = WandBTracker(log.project, **settings, mode=mode)
                self._run("wandb", tracker, self._fields())
                self.run_id = str(tracker.tracker.id)
                if mode == "offline":
                    self.say(f"wandb: offline; later: wandb sync {folder / 'wandb'}/offline-run-*")
                return

    def _start_tensorboard(self, position: int) -> None:
        # TensorBoard's table of settings holds plain values alone.
        fields = {name: x if isinstance(x, (int, float)) else str(x) for name, x in self._fields().items()}
        with self._errors_printed():
            from accelerate.tracking import TensorBoardTracker

            # The first argument is the name of the folder.
            tracker = TensorBoardTracker("tensorboard", str(self.config.folder), purge_step=position + 1)
            self._run("tensorboard", tracker, fields)

    def _fields(self) -> dict[str, Any]:
        """Return the config's fields by dotted name; empty text for None."""
        return {name: value if value is not None else "" for name, value in self.config.fields().items()}

    def _run(self, name: str, tracker: Any, fields: Mapping[str, Any]) -> None:
        """Start a tracker, give it the config and keep it."""
        tracker.start()
        tracker.store_init_configuration(dict(fields))
        self._trackers[name] = tracker

    @contextlib.contextmanager
    def _errors_printed(self, consequence: str = "") -> Iterator[None]:
        """Print an error raised inside the block as one line, and continue after the block."""
        try:
            yield
        except Exception as error:  # of any kind: a tracker must not end a run
            self.say(f"tracker: {one_line(error, 200)}{consequence}")

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
        with self._errors_printed(": continuing without it"):
            for tracker in self._trackers.values():
                tracker.log(values, step=line["update"])
            return
        self._trackers = {}

    def show_inputs(self, inputs: InputExamples, captions: Sequence[str]) -> None:
        """Send the images that the model sees first, each with its caption."""
        self._show("inputs", inputs.pixels, captions, inputs.metadata["position"])

    def show_predictions(self, saved: SavedPredictions, captions: Sequence[str], step: int) -> None:
        """Send the most confident mistakes of a split, and its confusion matrix (for at most 100 classes)."""
        classes, split = saved.metadata["classes"], saved.metadata["split"]
        self._show(f"{split}/mistakes", saved.pictures, captions, step)
        if len(classes) <= _MAX_CONFUSION_CLASSES:
            self._show_confusion(f"{split}/confusion", saved, step)

    def _show(self, name: str, pixels: Pixels, captions: Sequence[str], step: int) -> None:
        """Send pictures uint8 [n, channels, height, width] with their captions."""
        with self._errors_printed(": continuing without pictures"):
            if "wandb" in self._trackers:
                import wandb

                images = [
                    wandb.Image(image.transpose(1, 2, 0).squeeze(), caption=caption)
                    for image, caption in zip(pixels, captions, strict=True)
                ]
                self._trackers["wandb"].log({name: images}, step=step)
            if "tensorboard" in self._trackers and len(pixels):
                self._trackers["tensorboard"].tracker.add_images(name, pixels, global_step=step)

    def _show_confusion(self, name: str, saved: SavedPredictions, step: int) -> None:
        classes = saved.metadata["classes"]
        with self._errors_printed(": continuing without pictures"):
            if "wandb" in self._trackers:
                import wandb

                matrix = wandb.plot.confusion_matrix(
                    y_true=saved.predictions.label.tolist(),
                    preds=saved.predictions.top[:, 0].tolist(),
                    class_names=classes,
                )
                self._trackers["wandb"].log({name: matrix}, step=step)
            if "tensorboard" in self._trackers:
                counts = saved.predictions.confusion(len(classes))
                share = counts / counts.sum(1, keepdims=True).clip(1)
                self._trackers["tensorboard"].tracker.add_image(name, share[None], global_step=step)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Send the numbers of summary.json to W&B's table of runs, as `summary/<field>`."""
        values = {
            f"summary/{name}" if inner is None else f"summary/{name}/{inner}": number
            for name, value in summary.items()
            for inner, number in (value.items() if isinstance(value, dict) else [(None, value)])
        }
        if "wandb" in self._trackers:
            with self._errors_printed():
                self._trackers["wandb"].tracker.summary.update(values)

    def end(self) -> None:
        """Send what is left, for at most 30 seconds."""
        trackers, self._trackers = list(self._trackers.values()), {}
        if not trackers:
            return

        def finish() -> None:
            with self._errors_printed():
                for tracker in trackers:
                    tracker.finish()

        sender = threading.Thread(target=finish, daemon=True)
        sender.start()
        sender.join(_SECONDS_TO_END)
        if sender.is_alive():
            self.say(f"tracker: still sending after {_SECONDS_TO_END} s; what is missing can be synced later")


def check_tracker(name: str) -> None:
    """Check that a tracker named in `log.trackers` is installed. Raises UserError."""
    if name in ("auto", "none"):
        return
    try:
        importlib.import_module(name)
    except ImportError:
        extra = "'vit_dist[tensorboard]'" if name == "tensorboard" else name
        raise UserError(f"log.trackers: {name} is not installed: pip install {extra}, or set none") from None


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
    return [], "wandb: not logged in, so metrics stay in this folder; `wandb login` sends them along"


def wandb_mode(environ: Mapping[str, str]) -> str:
    """Return WANDB_MODE, else online, or offline if the server cannot be reached within two seconds."""
    if "WANDB_MODE" in environ:
        return environ["WANDB_MODE"]
    host = environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    name, _, port = host.partition(":")
    if any(environ.get(proxy) for proxy in ("HTTPS_PROXY", "https_proxy")):
        return "online"
    try:
        socket.create_connection((name, int(port or 443)), timeout=2).close()
    except OSError:
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
