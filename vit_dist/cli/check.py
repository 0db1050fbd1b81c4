"""The `check` command: look at all images before they are trained on, or measure how fast they are read."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote

import torch

from vit_dist.checks.data import check_data
from vit_dist.checks.findings import data_notes, findings
from vit_dist.checks.page import size_rows, splits_text, write_check
from vit_dist.checks.speed import measure_reading
from vit_dist.checks.starving import device_lines, speed_rows
from vit_dist.cli.arguments import Arguments
from vit_dist.config.config import Config
from vit_dist.data.preprocessing import resolve_preprocessing
from vit_dist.data.sources.open import open_data
from vit_dist.data.sources.survey import survey
from vit_dist.data.workers import worker_count
from vit_dist.errors import UserError
from vit_dist.report.command import train_command
from vit_dist.runtime.devices import available_cores
from vit_dist.telemetry.console import Console
from vit_dist.training.resolve import resolve

BROKEN = 1
_OUT = Path("check")
_FOR_SPEED = ("--devices", "--rate")


def run_check(arguments: Arguments, config: Config) -> int:
    """Run the command; return its exit code. Raises UserError."""
    measured = "--speed" in arguments.flags
    for flag in () if measured else _FOR_SPEED:
        if flag in arguments.flags:
            raise UserError(f"{flag}: goes with --speed: give it too, or drop {flag}")
    if measured and "--out" in arguments.flags:
        raise UserError("--out: --speed writes nothing: drop one of them")
    rate = _rate(arguments.flags.get("--rate"))
    with Console(speaks=True) as console:
        console.phase("opening the data")
        if not measured:
            return check(config, console, arguments.path("--out") or _OUT)
        devices = int(arguments.flags.get("--devices", max(1, torch.cuda.device_count())))
        check_speed(config, console, devices, rate)
    return 0


def _rate(text: str | None) -> float:
    """Return images/s; 0 if none are given. Raises UserError."""
    if text is None:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(f"--rate: must be images/s of one device, a number above 0, not {text}")
    return value


def check(config: Config, console: Console, out: Path) -> int:
    """Check the data of a config, print what was found, and write it to a folder; return the exit code.

    That is 1 if something is broken: images that cannot be read, images in two splits, images under two labels. Raises
    UserError.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file: name a folder")
    data = open_data(config.data, config.contrastive)
    title = Path(config.data.root).expanduser().absolute().name if config.data.root else config.data.source
    workers = worker_count(config.data.workers, available_cores())
    console.stop()
    result = check_data(
        data,
        config.data.root,
        workers=workers,
        timeout=config.data.timeout,
        counted=lambda items, count: iter(console.counted(items, count, printed=False)),
    )
    found = findings(result)
    console.say(f"check of {title}: {len(result):,} images")
    console.table({"images": splits_text(result), **survey(data).rows(), **size_rows(result)})
    for finding in found:
        if finding.broken:
            console.note(f"  broken: {finding.text}")
    for text in [*(finding.text for finding in found if not finding.broken), *data_notes(result)]:
        console.note(f"  note: {text}")
    page, _, names = write_check(result, found, out, config.data.leave_out, title)
    broken = any(finding.broken for finding in found)
    if broken:
        flags = f"--data.leave_out {quote(str(names))}"
        command = train_command(config, flags)
        command = f"vit-dist train … {flags}" if command == flags else command
        console.say(f"to train without what is broken: {command}")
    else:
        console.say("nothing is broken")
    console.say(f"{page}: open it in a browser")
    return BROKEN if broken else 0


def check_speed(config: Config, console: Console, devices: int, rate: float) -> None:
    """Measure how fast training images are read, and print whether devices of a rate would wait. Raises UserError."""
    resolved = resolve(config)
    config, data = resolved.config, resolved.data
    preprocessing = resolve_preprocessing(config, data)
    cores = available_cores()
    # As many as the processes of the devices would have together, on the cores that they share.
    each = worker_count(config.data.workers, max(1, cores // devices))
    console.phase("reading")
    speed = measure_reading(
        data.splits["train"], config.augment, preprocessing, workers=devices * each, timeout=config.data.timeout
    )
    console.stop()
    if speed is None:
        console.say("the images are in memory, and nothing is done to them in workers: no device waits for them")
        return
    bad = f", {speed.bad} more could not be read" if speed.bad else ""
    console.say(f"reading of training images at {preprocessing.image_size} pixels, {speed.images:,} timed{bad}")
    console.table(speed_rows(speed, cores))
    for line in device_lines(speed, devices, rate, config, cores, preprocessing.image_size, data.sizes):
        console.say(line)
