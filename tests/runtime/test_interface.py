"""gloo's interface is chosen only where that is needed; test_nodes.py shows that it helps then."""

from __future__ import annotations

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from tests.runtime.namespaces import two_nodes
from vit_dist.runtime.interface import choose_interface

TWO_HOSTS = {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def chosen(environ: dict[str, str]) -> list[str | None]:
    """Return what is chosen on each of two hosts that share an environment."""
    store = HashStore()

    def choice(rank: int) -> str | None:
        own = dict(environ)
        choose_interface(own, store, rank, 2)
        return own.get("GLOO_SOCKET_IFNAME")

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(choice, range(2)))


def test_one_host_has_nothing_to_choose() -> None:
    store = HashStore()
    environ = {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}
    choose_interface(environ, store, 0, 2)
    assert "GLOO_SOCKET_IFNAME" not in environ
    assert not store.check(["address/0"])


@pytest.mark.parametrize("main", ["127.0.0.1", "localhost", "no.such.host.invalid", ""])
def test_where_nothing_leads_to_another_host_nothing_is_chosen(main: str) -> None:
    assert chosen({**TWO_HOSTS, "MASTER_ADDR": main}) == [None, None]


def test_the_users_choice_stays() -> None:
    assert chosen({**TWO_HOSTS, "GLOO_SOCKET_IFNAME": "eth7"}) == ["eth7", "eth7"]


IPV6 = """
import sys
from torch.distributed import HashStore
from vit_dist.runtime.interface import choose_interface
store, environ = HashStore(), {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": sys.argv[1]}
choose_interface(environ, store, 1, 2)
print(store.get("address/1").decode(), environ.get("GLOO_SOCKET_IFNAME"))
"""


def test_an_interface_is_found_by_its_address_of_either_kind() -> None:
    with two_nodes(loopback=True) as (first, second):
        for node, digit in ((first, 1), (second, 2)):
            node.add_address(f"fd77::{digit}/64")
        for main, own in ((first.address, second.address), ("fd77::1", "fd77::2")):
            process = second.start([sys.executable, "-c", IPV6, main], {"PYTHONPATH": ":".join(sys.path)})
            output = process.communicate(timeout=60)[0]
            assert output.split() == [own, second.interface], output
    assert socket.gethostname() != second.name
