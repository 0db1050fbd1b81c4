"""Watch over the processes of a run: one that fails tells the others, and one that does not answer is named.

Each process has two threads. One talks to the store: it says every half a second that this process is alive and what
it does, and reads why another failed. The other talks to nobody, since a call to a store that cannot be reached may not
return: it ends the process when the main thread has waited too long, which nothing else could interrupt.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from vit_dist.errors import every
from vit_dist.runtime.last_words import attempt, tell
from vit_dist.runtime.launch import tell_launcher

_BEAT = 0.5  # seconds between two signs of life
_LOOK = 0.25  # seconds between two looks at how long the main thread has waited
_GRACE = 5.0  # seconds for the main thread to find out by itself that a process is gone
_SILENCE = 10.0  # seconds without a sign of life after which a process counts as gone, at most
_HEARD = 3.0  # seconds in which the others learn of a failure, before the process that has their store ends


@dataclass(frozen=True)
class Failure:
    """Why a run cannot go on: the processes it comes from, in words that name them and their host, and the exit code.

    speaker: the process that tells the user.
    """

    ranks: Sequence[int]
    text: str
    code: int
    speaker: int = 0


@dataclass
class _Peer:
    """What is known of another process: its last sign of life, and when on this clock it and its progress changed."""

    beat: str = ""
    changed: float = 0.0
    progress: str = ""
    progressed: float = 0.0
    doing: str = ""  # "waiting", "working" on what the others know to take long, else "busy"
    host: str = ""


class Watch:
    """The watch of one process over a run of several.

    on_end: called with the reason before this process is ended, by the process that tells the user.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout: float) -> None:
        """Begin to watch. store: of this run alone. timeout: the longest wait for another process, in seconds."""
        self.on_end: Callable[[str], None] = lambda reason: None
        self._store = store.clone()  # a connection of its own: one that waits blocks all that use it
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._host = socket.gethostname()
        self._pause = _BEAT * max(1.0, world_size / 256)  # the store serves all
        self._silence = max(4 * self._pause, min(_SILENCE, timeout / 4))
        self._clock = self._contact = self._progressed = 0.0
        self._store_lost = False
        self._beats = self._answers = self._progress = self._long = 0
        self._wait: tuple[str, float] | None = None
        self._peers = {other: _Peer() for other in range(world_size) if other != rank}
        self._failure: Failure | None = None
        self._failed_at, self._asked = 0.0, False
        self._wake, self._closed = threading.Event(), threading.Event()
        self._ending, self._hearing = threading.Lock(), threading.Lock()
        self._store.set(f"host/{rank}", self._host)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._talk, self._look)]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell that the main thread waits for other processes inside the block. what: for, in words."""
        if self._wait is not None:
            yield
            return
        self._progress += 1
        self._wait = (what, self._clock)
        try:
            yield
        finally:
            self._wait = None
            self._progress += 1

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Tell that the others wait inside the block for work of this process that may take longer than the timeout."""
        self._long += 1
        try:
            yield
        finally:
            self._long -= 1
            self._progress += 1

    def move(self) -> None:
        """Tell that the main thread gets on, though the others may have to wait for it."""
        self._progress += 1

    def fail(self, failure: Failure) -> Failure:
        """Leave word for the other processes of why this one ends, and return what the first that did so has left."""
        try:
            with self.waiting("the store"):
                first = self._store.compare_set("failure", "", json.dumps(asdict(failure)))
        except (RuntimeError, ValueError):  # the store is gone with its host
            return failure
        return self._take(first)

    def find_failure(self) -> Failure:
        """Return why the connection to the other processes broke, once the signs of life have told it.

        Waits for what a process that failed has left, and, if it left nothing, until it is known which are gone.
        """
        silence = min(self._silence, _GRACE)
        deadline = time.monotonic() + silence + 3 * self._pause
        self._asked = True
        while self._failure is None and not self._store_lost and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.02)
        if self._failure is not None:
            return self._failure
        gone = [] if self._store_lost else self._silent(silence)  # without it, nobody is heard
        if gone:
            text = f"{self._named(gone)} ended without a word: killed, or out of memory; see the log of its host"
            return self.fail(self._lost(gone, text))
        return self.fail(
            self._lost(
                [], f"process {self._rank} on {self._host}: the connection to the others broke{self._store_place()}"
            )
        )

    def left_by_another(self) -> Failure | None:
        """Return why another process has failed, if one has left word. Waits for one answer of the store, at most."""
        answers, deadline = self._answers, time.monotonic() + 2 * self._pause
        while self._failure is None and self._answers < answers + 2 and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.02)
        return self._failure if self._failure is not None and self._rank not in self._failure.ranks else None

    def close(self, *, failed: bool, hosts_store: bool) -> None:
        """End the watch. hosts_store: whether the store ends with this process: after a failure the others read it."""
        deadline = time.monotonic() + _HEARD
        with contextlib.suppress(RuntimeError, ValueError), self.waiting("the store"):
            failure = self._failure
            while failed and hosts_store and failure is not None and time.monotonic() < deadline:
                if self._store.add("heard", 0) >= self._world_size - len(failure.ranks):
                    break
                time.sleep(0.02)
        with self._ending:
            self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(1.0)

    def _talk(self) -> None:
        """Give signs of life, and read those of others where that is asked for. Runs in a thread of its own."""
        while not self._closed.is_set():
            try:
                self._beats += 1
                doing = "working" if self._long else "waiting" if self._wait is not None else "busy"
                self._store.set(f"beat/{self._rank}", f"{self._beats} {self._progress} {doing}")
                if self._store.check(["failure"]):
                    self._take(self._store.get("failure"))
                wait = self._wait
                if self._asked or (wait is not None and self._clock - wait[1] > self._timeout / 2):
                    self._read_peers()
                self._contact = self._clock
                self._answers += 1
            except (RuntimeError, ValueError):
                self._store_lost = True  # it does not come back, and each call would print torch's own lines
                return
            self._wake.wait(self._pause)
            self._wake.clear()

    def _read_peers(self) -> None:
        """Read the signs of life of the other processes."""
        present = [other for other in self._peers if self._store.check([f"beat/{other}"])]
        for other in present:
            if not self._peers[other].host:
                self._peers[other].host = self._store.get(f"host/{other}").decode()
        beats = self._store.multi_get([f"beat/{other}" for other in present]) if present else []
        for other, value in zip(present, beats, strict=True):
            peer, (beat, progress, doing) = self._peers[other], value.decode().split()
            if beat != peer.beat:
                peer.beat, peer.changed = beat, self._clock
            if progress != peer.progress:
                peer.progress, peer.progressed = progress, self._clock
            peer.doing = doing

    def _look(self) -> None:
        """End the process if the main thread has waited too long. Runs in a thread of its own, and calls nobody."""
        before, progress = time.monotonic(), -1
        while not self._closed.wait(_LOOK):
            now = time.monotonic()
            self._clock += min(now - before, 1.0)  # a process that was stopped itself has not waited
            before = now
            if progress != self._progress or self._long:
                progress, self._progressed = self._progress, self._clock
            failure = self._verdict()
            if failure is not None:
                self._end(failure)

    def _verdict(self) -> Failure | None:
        """Return why the process must be ended, if it must."""
        wait = self._wait
        what, waited = (wait[0], self._clock - wait[1]) if wait is not None else ("", 0.0)
        if self._failure is not None:
            left = self._clock - self._failed_at
            return self._failure if (left > _GRACE and waited > _GRACE) or left > self._timeout + _GRACE else None
        stood = self._clock - self._progressed
        if waited <= self._timeout and not (self._store_lost and stood > self._timeout):
            return None
        if self._store_place():
            waited = stood
            text = (
                f"process {self._rank} on {self._host}: no answer from other processes for {waited:.0f} s (run.timeout)"
            )
            return self._lost([], text + self._store_place())
        silent = self._silent(self._silence)
        if silent:
            verb = "does" if len(silent) == 1 else "do"
            return self._lost(silent, f"{self._named(silent)} {verb} not answer for {waited:.0f} s (run.timeout)")
        others = self._peers.values()
        if any(peer.doing == "working" for peer in others):
            return None
        stuck = [rank for rank, peer in self._peers.items() if self._clock - peer.progressed > self._timeout / 2]
        busy = [rank for rank in stuck if self._peers[rank].doing == "busy"]
        if busy:
            verb = "has" if len(busy) == 1 else "have"
            text = f"{self._named(busy)} {verb} made no progress for {waited:.0f} s (run.timeout)"
            return self._lost(busy, f"{text}, and the others wait for {what}")
        if len(stuck) < len(self._peers):
            return None
        text = f"all {self._world_size} processes have waited {waited:.0f} s (run.timeout) for {what}"
        return self._lost([], f"{text}: the network between their hosts does not carry it")

    def _silent(self, seconds: float) -> list[int]:
        """Return the processes that have given no sign of life for so long, as far as they were read."""
        return [rank for rank, peer in self._peers.items() if self._clock - peer.changed > seconds]

    def _store_place(self) -> str:
        """Return where to look if the store is not there either, else nothing."""
        if not self._store_lost and self._clock - self._contact <= self._silence:
            return ""
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return f", nor is there an answer from {where}: see the network, and what became of that host"

    def _lost(self, ranks: Sequence[int], text: str) -> Failure:
        """Return the failure of processes that cannot tell it themselves."""
        if self._store_place():  # nobody knows who else is left: one of each host speaks
            alone = self._rank == 1 or os.environ.get("LOCAL_RANK", "0") == "0"
            return Failure(list(ranks), text, 1, self._rank if alone else -1)
        return Failure(list(ranks), text, 1, min(set(range(self._world_size)) - set(ranks)))

    def _named(self, ranks: Sequence[int]) -> str:
        """Return `process 1 of 4 on HOST`, or `processes 1 and 2 of 4 on HOST and HOST`."""
        hosts = list(dict.fromkeys(self._peers[rank].host for rank in ranks if self._peers[rank].host))
        where = f" on {every(hosts)}" if hosts else ""
        return f"process{'es'[: 2 * (len(ranks) > 1)]} {every(list(map(str, ranks)))} of {self._world_size}{where}"

    def _take(self, value: bytes) -> Failure:
        """Return the failure that the store holds, and keep it; tell the store that this process has heard of it."""
        failure = Failure(**json.loads(value))
        with self._hearing:
            first = self._failure is None
            if first:
                self._failed_at, self._failure = self._clock, failure
        if first and self._rank not in failure.ranks:
            with contextlib.suppress(RuntimeError, ValueError):
                self._store.add("heard", 1)
        return failure

    def _end(self, failure: Failure) -> None:
        """Leave word, tell the user and end this process, whose main thread cannot be interrupted."""
        with self._ending:
            if self._closed.is_set():
                return
            speaks = failure.speaker == self._rank
            attempt(lambda: self.fail(failure), *[lambda: self.on_end(failure.text)] * speaks)
            attempt(lambda: tell_launcher(failure.text), *[lambda: tell(failure.text)] * speaks)
            time.sleep(2 * self._pause)  # the others read the word; the store may end with this process
            os._exit(failure.code)
