"""Before a run starts, its processes compare what each was given: they train one run, or end in one line."""

from __future__ import annotations

import hashlib
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vit_dist
from vit_dist.config.config import Config
from vit_dist.data.sources.splits import LabelledSplits
from vit_dist.errors import UserError
from vit_dist.files import WRITING, remove
from vit_dist.run_folder.status import versions
from vit_dist.runtime.runtime import Runtime
from vit_dist.training.captions import run_fingerprint

# What may differ between hosts and changes neither the result nor what the processes do together.
_OF_A_HOST = (*("run.dir", "run.threads", "data.root", "data.leave_out", "data.workers", "data.timeout", "log.level"),)
_DIGESTS = ("sha256", "content", "weights", "without", "captions", "tokenizer")
_SHOWN = 3
_LONGEST_WAIT = 10.0  # seconds, for a file to be seen: network file systems remember for a while what is not there


def check_same_start(config: Config, runtime: Runtime) -> None:
    """Check that all ranks have the same config, code, versions and type of device. Raises UserError on all ranks."""
    if runtime.world_size == 1:
        return
    given = {name: str(value) for name, value in config.fields().items() if name not in _OF_A_HOST}
    given |= {f"version of {name}": number for name, number in versions().items()}
    _compare({**given, "device": runtime.device.type, "code of vit_dist": _code_digest()}, runtime)


def check_same_samples(config: Config, data: LabelledSplits, of_main: Mapping[str, Any], runtime: Runtime) -> None:
    """Check that all ranks have the same classes, samples and captions. Raises UserError on all ranks.

    of_main: the fingerprint of rank 0's data, which it has taken already.
    """
    if runtime.world_size == 1:
        return
    with runtime.working():  # it looks at every path, and into some files
        own = of_main if runtime.is_main else run_fingerprint(config, data)
    samples = {
        f"the {name} split": f"{split['samples']} images, "
        + " ".join(split[digest][:12] for digest in _DIGESTS if digest in split)
        for name, split in own.items()
    }
    _compare({"classes": ", ".join(data.classes), **samples}, runtime)


def check_shared_folder(folder: Path, runtime: Runtime) -> None:
    """Check that every rank sees what rank 0 writes into the run's folder. Raises UserError on all ranks."""
    if runtime.world_size == 1:
        return
    token = folder / f"{WRITING}shared-{runtime.broadcast(secrets.token_hex(8))}"
    host = runtime.broadcast(socket.gethostname())
    if runtime.is_main:
        token.touch()
    runtime.barrier()

    def look() -> None:
        deadline = time.monotonic() + _LONGEST_WAIT
        while not token.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"run.dir: {folder} is not the folder that {host} writes to: use storage that hosts share"
                )
            time.sleep(0.05)
            _forget_listing(folder)

    try:
        runtime.run_on_all(look)
    finally:
        if runtime.is_main:
            remove(token)


def _forget_listing(folder: Path) -> None:
    """List a folder anew, which makes a network file system look again."""
    if folder.is_dir():
        list(folder.iterdir())


def _compare(facts: Mapping[str, Any], runtime: Runtime) -> None:
    """Compare the facts of all ranks with rank 0's. Raises UserError on all ranks that names rank, host and fact."""
    everyone: list[list[Any]] = runtime.gather([socket.gethostname(), facts])
    first_host, first = everyone[0]
    for rank, (host, own) in enumerate(everyone):
        names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
        if names:
            here, there = f"process {rank} on {host}", f"process 0 on {first_host}"
            differences = [f"{name} is {own.get(name)}, there {first.get(name)}" for name in names[:_SHOWN]]
            more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise UserError(f"{here} differs from {there}: {'; '.join(differences)}{more}: start all with the same")


def _code_digest() -> str:
    """Return a digest of the package's Python files."""
    root, digest = Path(vit_dist.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
