"""W&B, through Accelerate's tracker: best effort."""

from __future__ import annotations

import netrc
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from vit_dist.config import Config
from vit_dist.journal import Line
from vit_dist.runtime import Runtime

_TRACKER_SECONDS = 30


class Trackers:
    """W&B through Accelerate: best effort. It never stops a run, and hardly delays it."""

    def __init__(self, config: Config, runtime: Runtime, say: Callable[[str], None]) -> None:
        self.config = config
        self.runtime = runtime
        self.say = say
        self.names: list[str] = []
        self.run_id: str | None = None

    def start(self, run_id: str | None) -> None:
        """Starts what the config asks for; `run_id` goes on with an earlier W&B run."""
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
        for mode in dict.fromkeys([settings["mode"], "offline"]):
            try:
                self.runtime.start_trackers(names, log.project, values, {**settings, "mode": mode})
            except Exception as error:  # whatever a tracker does must not end a run
                self.say(f"tracker: {' '.join(str(error).split())[:200]}")
                continue
            self.names = names
            if "wandb" in names:
                self.run_id = str(self.runtime.tracker("wandb").id)
                if mode == "offline":
                    self.say(f"wandb: offline; later: wandb sync {self.config.folder / 'wandb'}/offline-run-*")
            return

    def log(self, line: Line) -> None:
        """The numbers of a line as `<kind>/<field>`, at its update."""
        if not self.names:
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
            self.say(f"tracker: {' '.join(str(error).split())[:200]}: going on without")
            self.names = []

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
            self.say(f"tracker: {' '.join(str(error).split())[:200]}")


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
