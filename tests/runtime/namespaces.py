"""Two hosts on one machine: network namespaces joined by a cable, each with its own name, hosts file and mounts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_NETNS = Path("/etc/netns")
_NEW_MOUNTS, _PRIVATE = 0x00020000, 0x4000 | 1 << 18  # CLONE_NEWNS, MS_REC | MS_PRIVATE
_DEBIAN = "127.0.1.1"  # the address that Debian gives a host's own name


@dataclass(frozen=True)
class Node:
    """A host: the name of its network namespace, its host name, its address and its end of the cable."""

    namespace: str
    name: str
    address: str
    interface: str

    def command(self, words: Sequence[str], own_disk: Path | None = None) -> list[str]:
        """Return a command that runs `words` on this host; own_disk: a folder that is this host's alone."""
        setup = f"hostname {self.name}"
        if own_disk is not None:
            setup += f" && mount -t tmpfs none '{own_disk}'"
        shell = ["sh", "-c", f'{setup} && exec "$@"', "sh", *words]
        return ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", *shell]

    def start(
        self, words: Sequence[str], environ: Mapping[str, str], own_disk: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on this host, its output and errors in one pipe."""
        return subprocess.Popen(
            self.command(words, own_disk),
            cwd=REPOSITORY,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def add_address(self, address: str) -> None:
        """Give this host's end of the cable one more address, as fd77::1/64."""
        _ip("-n", self.namespace, "addr", "add", address, "dev", self.interface, *["nodad"] * (":" in address))

    def set_link(self, state: str) -> None:
        """Set this host's end of the cable `up` or `down`."""
        _ip("-n", self.namespace, "link", "set", self.interface, state)

    def processes(self) -> list[int]:
        """Return the ids of the processes that run on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, timeout=20)
        return [int(word) for word in listed.stdout.split()]


@contextlib.contextmanager
def two_nodes(*, loopback: bool = False) -> Iterator[tuple[Node, Node]]:
    """Join two hosts by a cable for the block; skip the test without root and iproute2.

    loopback: whether the name of each leads to 127.0.1.1 on itself, and to its address on the other.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("network namespaces take Linux, root, iproute2 and util-linux")
    mark = f"v{os.getpid()}"
    nodes = tuple(
        Node(f"{mark}{end}", f"node-{end}", f"10.77.0.{i}", f"{mark}{end}") for i, end in ((1, "a"), (2, "b"))
    )
    first, second = nodes
    try:
        try:
            for node in nodes:
                _ip("netns", "add", node.namespace)
        except subprocess.SubprocessError:
            pytest.skip("network namespaces may not be made here")
        _ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for node, other in ((first, second), (second, first)):
            _ip("link", "set", node.interface, "netns", node.namespace)
            _ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.interface)
            for interface in ("lo", node.interface):
                _ip("-n", node.namespace, "link", "set", interface, "up")
            (_NETNS / node.namespace).mkdir(parents=True)
            own = _DEBIAN if loopback else node.address
            hosts = f"127.0.0.1 localhost\n{own} {node.name}\n{other.address} {other.name}\n"
            (_NETNS / node.namespace / "hosts").write_text(hosts)
        yield first, second
    finally:
        for node in nodes:
            for process in node.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, 9)
            subprocess.run(["ip", "netns", "delete", node.namespace], capture_output=True, timeout=20)
            shutil.rmtree(_NETNS / node.namespace, ignore_errors=True)
        with contextlib.suppress(OSError):
            _NETNS.rmdir()


def hide(folder: Path) -> None:
    """Hide what a folder holds from the calling thread: an empty disk lies over it, as on a host that has its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None)
    if done or libc.mount(b"none", bytes(folder), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), f"{folder} cannot be hidden")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
