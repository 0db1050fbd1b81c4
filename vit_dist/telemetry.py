"""What a run says: meters, the metrics' journal and its one reader, status, what goes to trackers."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vit_dist.config import Config
from vit_dist.plan import Plan
from vit_dist.runtime import Runtime

Line = dict[str, Any]

# Dense peaks of the data sheets, in FLOP/s, without sparsity; SXM parts where a name has several.
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250e12, "fp16": 2250e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 494.5e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 494.5e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 156e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "fp32": 183e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "fp32": 60e12},
    "A10": {"bf16": 125e12, "fp16": 125e12, "fp32": 62.5e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "fp32": 35.6e12},
}
_TRACKER_SECONDS = 30


class Journal:
    """Appends lines to metrics.jsonl, each flushed; on other ranks than 0 it writes nothing."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        self._file = path.open("a", encoding="utf-8") if writes else None

    def write(self, kind: str, values: Mapping[str, Any]) -> Line:
        """One line, with its kind and the time in seconds since the epoch; returns it."""
        line = {"kind": kind, "time": time.time(), **values}
        if self._file is not None:
            self._file.write(json.dumps(line, allow_nan=False, default=str) + "\n")
            self._file.flush()
        return line

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[Line]:
    """The lines that count: a `start` line at update u supersedes earlier lines beyond u; a torn line is left out."""
    lines: list[Line] = []
    with path.open(encoding="utf-8") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["kind"] == "start":
                lines = [old for old in lines if old["update"] <= line["update"]]
            lines.append(line)
    return lines


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def read_json(path: Path) -> Line:
    """A JSON file that `write_json` wrote."""
    values: Line = json.loads(path.read_text(encoding="utf-8"))
    return values


class Clock:
    """Seconds of training: it stands still inside `paused`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._before = seconds
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def start(self) -> None:
        """Runs on."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self, runtime: Runtime) -> Iterator[None]:
        """For what is not training; the device finishes its updates first, which belong to training."""
        runtime.synchronize()
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self.start()


class Meter:
    """Turns sums and times since the last line into a `train` line."""

    def __init__(self, plan: Plan, runtime: Runtime, clock: Clock, *, flops: int, matmul: float) -> None:
        """flops: of one image's forward pass. matmul: measured FLOP/s of one device."""
        self.plan = plan
        self.runtime = runtime
        self.clock = clock
        self.flops = flops
        self.matmul = matmul
        self.peak = peak_flops(runtime.device_name, runtime.precision)
        self.last: tuple[int, float, float] | None = None

    def restart(self, position: int, waited: float) -> None:
        """The next line counts from here."""
        self.last = position, self.clock.seconds, waited

    def line(
        self,
        position: int,
        waited: float,
        sums: tuple[float, float, float],
        *,
        lr: float,
        grad_norm: float,
        skipped: int,
    ) -> Line:
        """The measures since the last line. The caller has waited for the device."""
        assert self.last is not None
        before, seconds_before, waited_before = self.last
        seconds = max(self.clock.seconds - seconds_before, 1e-9)
        loss, correct, weight = sums
        rate = (self.plan.samples_at(position) - self.plan.samples_at(before)) / seconds
        per_device = rate / self.runtime.world_size
        self.restart(position, waited)
        return {
            **place(self.plan, position),
            "loss": finite(loss / weight),
            "top1": finite(100 * correct / weight),
            "lr": lr,
            "grad_norm": finite(grad_norm),
            "samples_per_second": rate,
            "samples_per_second_per_device": per_device,
            "update_seconds": seconds / (position - before),
            "data_wait_fraction": (waited - waited_before) / seconds,
            "mfu": 3 * self.flops * per_device / self.peak if self.peak else None,
            "matmul_fraction": 3 * self.flops * per_device / self.matmul,
            "peak_memory_bytes": self.runtime.peak_memory_bytes(),
            "skipped_updates": skipped,
        }


def place(plan: Plan, position: int) -> Line:
    """Where in the run a line belongs."""
    samples = plan.samples_at(position)
    return {"update": position, "epoch": samples / plan.samples, "samples": samples}


def finite(value: float) -> float | str:
    """NaN and infinity as text, which JSON has no numbers for."""
    return value if abs(value) < float("inf") else str(value)


def peak_flops(device_name: str, precision: str) -> float | None:
    """The data sheet's dense peak for a device and a precision (fp32: TF32 where there is one), if known."""
    words = device_name.replace("-", " ")
    for name, peaks in PEAKS.items():
        if f" {name} " in f" {words} ":
            return peaks.get(precision)
    return None


def matmul_flops(runtime: Runtime) -> float:
    """FLOP/s of a square matrix product on one device in the run's precision: the best of a few, about 0.2 s."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    size = 1024 if runtime.device.type == "cpu" else 8192
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(size, size, generator=generator).to(runtime.device, kinds[runtime.precision])
    best = float("inf")
    for _ in range(5):
        runtime.synchronize()
        start = time.perf_counter()
        torch.mm(a, a)
        runtime.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


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
    if environ.get("WANDB_MODE") in ("disabled", "dryrun") or environ.get("WANDB_DISABLED"):
        return [], None
    if "WANDB_API_KEY" in environ or environ.get("WANDB_MODE") == "offline" or _in_netrc(environ):
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
