"""The network interface over which gloo reaches other hosts, where the name of this host leads it to loopback.

Without GLOO_SOCKET_IFNAME, gloo listens on the first address of the host's own name that it can bind, and on 127.0.0.1
if there is none. Debian gives a host's name the address 127.0.1.1. So on such a host no other can reach it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import MutableMapping
from pathlib import Path

from torch.distributed.distributed_c10d import Store

_VARIABLE = "GLOO_SOCKET_IFNAME"
_KEY = "address"
_SIOCGIFADDR = 0x8915


def choose_interface(environ: MutableMapping[str, str], store: Store, rank: int, world_size: int) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface that reaches the other hosts, where gloo would listen on loopback.

    Do nothing on a single host, if the variable is set, if this host's name has an address that others can reach, or
    if no interface leads to another host. Called on all ranks. store: of this run alone; each rank leaves in it the
    address from which it reaches MASTER_ADDR.
    """
    if int(environ.get("LOCAL_WORLD_SIZE", world_size)) >= world_size:
        return
    address = _address_towards(environ["MASTER_ADDR"])
    store.set(f"{_KEY}/{rank}", address)
    if environ.get(_VARIABLE) or not _is_loopback(_address_of_gloo(socket.gethostname())):
        return
    if _is_loopback(address):  # the main host, whose name leads to loopback: it takes the way to another host
        others = (store.get(f"{_KEY}/{other}").decode() for other in reversed(range(world_size)) if other != rank)
        other = next((other for other in others if not _is_loopback(other)), "")
        address = _address_towards(other)
    interface = _interface_of(address)
    if interface:
        environ[_VARIABLE] = interface


def _is_loopback(address: str) -> bool:
    """Return whether no other host can reach an address; so it is if there is none."""
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _address_of_gloo(name: str) -> str:
    """Return the address on which gloo listens for a host's name: the first that can be bound; empty if none can."""
    for family, address in _addresses(name):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.bind((address, 0))
        except OSError:
            continue
        return address
    return ""


def _address_towards(host: str) -> str:
    """Return this host's address on the way to another, to which nothing is sent; empty if there is no way."""
    for family, address in _addresses(host) if host else []:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 1))
                own: str = probe.getsockname()[0]
        except OSError:
            continue
        return own
    return ""


def _addresses(host: str) -> list[tuple[int, str]]:
    """Return (family, address) of each address of a host; none if its name is not known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [(family, str(address[0])) for family, _, _, _, address in found]


def _interface_of(address: str) -> str:
    """Return the name of the interface that has an address; empty if none has it as its first, or not on Linux."""
    if sys.platform != "linux" or _is_loopback(address):
        return ""
    if ":" in address:
        return _interface_of_ipv6(address)
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _interface_of_ipv6(address: str) -> str:
    digits = ipaddress.ip_address(address.partition("%")[0]).packed.hex()
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[-1] for line in lines if line.startswith(digits)), "")
