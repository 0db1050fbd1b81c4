"""W&B and TensorBoard, through Accelerate's trackers: best effort."""

from __future__ import annotations

import importlib
import netrc
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vit_dist.config.config import Config
from vit_dist.errors import UserError, one_line
from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.predictions import InputExamples, Pixels, SavedPredictions
from vit_dist.runtime.runtime import Runtime

_TRACKER_SECONDS = 30


_MOST_CLASSES = 100


class Trackers:
    """W&B or TensorBoard through Accelerate: best effort. They never stop a run, and hardly delay it."""

    def __init__(self, config: Config, runtime: Runtime, say: Callable[[str], None]) -> None:
        self.config = config
        self.runtime = runtime
        self.say = say
        self.names: list[str] = []
        self.run_id: str | None = None

    def start(self, run_id: str | None, position: int = 0) -> None:
        """Starts what the config asks for; `run_id` goes on with an earlier W&B run, TensorBoard from `position`."""
        if not self.runtime.is_main:
            return
        names, reason = chosen_trackers(self.config.log.trackers, os.environ)
        if reason:
            self.say(reason)
        if not names:
            return
        log, run = self.config.log, self.config.run
        settings: dict[str, Any] = {
            "name": run.name or None,
            "entity": log.entity or None,
            "group": log.group or None,
            "tags": list(log.tags) or None,
            "dir": str(self.config.folder),
            "id": run_id,
            "resume": "allow" if run_id else None,
            "mode": wandb_mode(os.environ) if "wandb" in names else None,
        }
        values = {name: value if value is not None else "" for name, value in self.config.fields().items()}
        if "tensorboard" in names:  # whose table of settings holds plain values alone
            values = {name: value if isinstance(value, (int, float)) else str(value) for name, value in values.items()}
        for mode in dict.fromkeys([settings["mode"], "offline"]):
            try:
                of_each = {"wandb": {**settings, "mode": mode}, "tensorboard": {"purge_step": position + 1}}
                self.runtime.start_trackers(names, log.project, values, of_each, self.config.folder)
            except Exception as error:  # whatever a tracker does must not end a run
                self.say(f"tracker: {one_line(error, 200)}")
                continue
            self.names = names
            if "wandb" in names:
                self.run_id = str(self.runtime.tracker("wandb").id)
                if mode == "offline":
                    self.say(f"wandb: offline; later: wandb sync {self.config.folder / 'wandb'}/offline-run-*")
            return

    def log(self, line: Line) -> None:
        """The numbers of a line as `<kind>/<field>`, at its update."""
        if not self.names or line["kind"] not in ("train", "eval", "save"):
            return
        values = {
            f"{line['kind']}/{name}": value
            for name, value in line.items()
            if isinstance(value, (int, float)) and name not in ("time", "update")
        }
        if line["kind"] == "eval":
            prefix = f"eval/{line['split']}_{line['weights']}_"
            values = {name.replace("eval/", prefix): value for name, value in values.items()}
        try:
            self.runtime.track(values, line["update"])
        except Exception as error:
            self.say(f"tracker: {one_line(error, 200)}: going on without")
            self.names = []

    def show_inputs(self, inputs: InputExamples, tiles: Sequence[str]) -> None:
        """What the model sees first, with what is said of each."""
        self._show({"inputs": (inputs.pixels, tiles)}, None, inputs.about["position"])

    def show_predictions(self, kept: SavedPredictions, captions: Sequence[str], step: int) -> None:
        """The confusion matrix (for at most 100 classes) and the most confident mistakes of a split."""
        self._show({f"{kept.about['split']}/mistakes": (kept.pictures, captions)}, kept, step)

    def _show(
        self, pictures: Mapping[str, tuple[Pixels, Sequence[str]]], kept: SavedPredictions | None, step: int
    ) -> None:
        """Pictures uint8 [n, channels, height, width] with their captions, by name, and what is kept of a split."""
        counts = None
        if kept is not None and len(kept.about["classes"]) <= _MOST_CLASSES:
            counts = kept.predictions.confusion(len(kept.about["classes"]))
        try:
            if "wandb" in self.names:
                import wandb

                shown: dict[str, Any] = {
                    name: [
                        wandb.Image(one.transpose(1, 2, 0).squeeze(), caption=caption)
                        for one, caption in zip(pixels, captions, strict=True)
                    ]
                    for name, (pixels, captions) in pictures.items()
                }
                if kept is not None and counts is not None:
                    shown[f"{kept.about['split']}/confusion"] = wandb.plot.confusion_matrix(
                        y_true=kept.predictions.label.tolist(),
                        preds=kept.predictions.top[:, 0].tolist(),
                        class_names=kept.about["classes"],
                    )
                self.runtime.tracker("wandb").log(shown, step=step)
            if "tensorboard" in self.names:
                writer = self.runtime.tracker("tensorboard")
                for name, (pixels, _) in pictures.items():
                    if len(pixels):
                        writer.add_images(name, pixels, global_step=step)
                if kept is not None and counts is not None:
                    share = counts / counts.sum(1, keepdims=True).clip(1)
                    writer.add_image(f"{kept.about['split']}/confusion", share[None], global_step=step)
        except Exception as error:
            self.say(f"tracker: {one_line(error, 200)}: going on without pictures")

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """W&B's table of runs gets the numbers of summary.json."""
        if "wandb" not in self.names:
            return
        values = {
            f"summary/{name}" if inner is None else f"summary/{name}/{inner}": number
            for name, value in summary.items()
            for inner, number in (value.items() if isinstance(value, dict) else [(None, value)])
        }
        try:
            self.runtime.tracker("wandb").summary.update(values)
        except Exception as error:
            self.say(f"tracker: {one_line(error, 200)}")

    def end(self) -> None:
        """Sends what is left, for at most 30 seconds."""
        if not self.names:
            return
        sender = threading.Thread(target=self._end, daemon=True)
        sender.start()
        sender.join(_TRACKER_SECONDS)
        if sender.is_alive():
            self.say(f"tracker: still sending after {_TRACKER_SECONDS} s; what is missing can be synced later")
        self.names = []

    def _end(self) -> None:
        try:
            self.runtime.end_trackers()
        except Exception as error:
            self.say(f"tracker: {one_line(error, 200)}")


def require_tracker(asked: str) -> None:
    """Raises UserError where the tracker that was asked for by name is not installed."""
    if asked in ("auto", "none"):
        return
    try:
        importlib.import_module(asked)
    except ImportError:
        extra = "'vit_dist[tensorboard]'" if asked == "tensorboard" else asked
        raise UserError(f"log.trackers: {asked} is not installed: pip install {extra}, or set none") from None


def chosen_trackers(asked: str, environ: Mapping[str, str]) -> tuple[list[str], str | None]:
    """(names, a line for the user): `auto` is W&B where the user is logged in."""
    if asked == "none":
        return [], None
    if asked != "auto":
        return [asked], None
    disabled = environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes")
    if disabled or environ.get("WANDB_MODE") in ("disabled", "dryrun"):
        return [], None
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_MODE") == "offline" or _in_netrc(environ):
        return ["wandb"], None
    return [], "wandb: not logged in, so metrics stay in this folder; `wandb login` sends them along"


def wandb_mode(environ: Mapping[str, str]) -> str:
    """online, or offline where the server cannot be reached within two seconds."""
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
    try:
        entries = netrc.netrc(environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    host = environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    return host in entries
