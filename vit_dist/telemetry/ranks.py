"""Compare the ranks of a run: how long each is busy, what it waits for, and which of them hold up the others."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median_low

from vit_dist.plan.plan import Plan
from vit_dist.run_folder.metrics import Line
from vit_dist.runtime.communication import CommunicationTimer
from vit_dist.telemetry.clock import Clock

# A rank lags if an update takes it so many times as long as the others, over so many `train` lines in a row; it is
# named once that has cost so many seconds.
LAGGING, LINES_IN_A_ROW, WORTH_SECONDS = 1.2, 2, 10.0


@dataclass(frozen=True)
class RankTimes:
    """Hold what one rank did in the updates of a `train` line; JSON can hold it.

    busy_seconds: mean time of an update in which it waited neither for other ranks nor for data; None if no update was
    timed. data_wait_seconds: mean wait for data. exposed_seconds: exposed communication of each update that was timed.
    """

    host: str
    updates: int
    busy_seconds: float | None
    data_wait_seconds: float
    exposed_seconds: Sequence[float]

    @property
    def own_seconds(self) -> float:
        """Return the time that an update takes this rank by itself, data included; 0 if it is not known."""
        return 0.0 if self.busy_seconds is None else self.busy_seconds + self.data_wait_seconds

    def to_json(self) -> Line:
        """Return the fields, times of single updates to the microsecond."""
        return {**dataclasses.asdict(self), "exposed_seconds": [round(each, 6) for each in self.exposed_seconds]}


class RankMeter:
    """Measures this rank's times between `train` lines.

    All ranks take equally long for an update, since each waits for the last one in the gradient's all-reduce. What is a
    rank's own is the rest.
    """

    def __init__(self, plan: Plan, clock: Clock, timer: CommunicationTimer) -> None:
        self.plan = plan
        self.clock = clock
        self.timer = timer
        self._host = socket.gethostname()
        self._exposed: list[float] = []
        self._last = 0, 0.0, 0.0

    def restart(self, position: int, waited: float) -> None:
        """Count from here. waited: seconds waited for data so far."""
        self._last = position, self.clock.seconds, waited
        self._exposed = []
        self.timer.time_next(self._is_timed(position + 1))

    def updated(self, position: int) -> None:
        """Take in update `position`. Waits for nothing."""
        if self.timer.every_update:
            self._read()
        elif not self._is_timed(position):  # else `times` reads it, once the device has finished
            self.timer.time_next(self._is_timed(position + 1))

    def times(self, position: int, waited: float) -> RankTimes:
        """Return the times since the last `restart`.

        Call it when the device has finished update `position`, before anything else waits for the other ranks.
        """
        before, seconds_before, waited_before = self._last
        updates = max(1, position - before)
        seconds, waits = (self.clock.seconds - seconds_before) / updates, (waited - waited_before) / updates
        if not self.timer.every_update:
            self._read()
        # Below 0 where, on a GPU, the one update that was timed had more communication than the mean.
        busy = max(0.0, seconds - waits - fmean(self._exposed)) if self._exposed else None
        return RankTimes(self._host, updates, busy, waits, self._exposed)

    def _is_timed(self, position: int) -> bool:
        """Return whether an update is timed: on a GPU if a `train` line follows, for which the host waits anyway."""
        plan = self.plan
        return self.timer.every_update or any(
            plan.due(position, each) for each in (plan.log_every, plan.evaluate_every)
        )

    def _read(self) -> None:
        exposed = self.timer.read()
        if exposed is not None:
            self._exposed.append(exposed)


def rank_fields(ranks: Sequence[RankTimes], data_wait_fractions: Sequence[float], update_seconds: float) -> Line:
    """Return the fields of a `train` line that compare ranks: minimum, mean and maximum over them, None if not known.

    data_wait_fractions: as each rank's line has it; update_seconds: as this one's. communication_fraction is the mean
    over updates of the shortest exposed communication of any rank: the rank that comes last waits for the network
    alone, the others for that rank too.
    """
    fields = _spread("data_wait_fraction", data_wait_fractions)
    busy = [rank.busy_seconds for rank in ranks if rank.busy_seconds is not None]
    if len(busy) < len(ranks):
        return dict.fromkeys(_spread("busy_seconds", [0.0])) | fields | {
            "communication_fraction": None, "slowest_rank": None}  # fmt: skip
    shortest = [min(update) for update in zip(*(rank.exposed_seconds for rank in ranks), strict=False)]
    own = [rank.own_seconds for rank in ranks]
    return _spread("busy_seconds", busy) | fields | {
        "communication_fraction": fmean(shortest) / update_seconds, "slowest_rank": own.index(max(own))}  # fmt: skip


def _spread(name: str, values: Sequence[float]) -> Line:
    return {f"{name}_min": min(values), f"{name}_mean": fmean(values), f"{name}_max": max(values)}


class Stragglers:
    """Finds the ranks that hold up the others, each once."""

    def __init__(self) -> None:
        self._warm = False
        self._lines: dict[int, int] = {}  # rank → in how many lines in a row it lagged
        self._cost: dict[int, float] = {}  # rank → seconds that this cost
        self._named: set[int] = set()

    def take(self, ranks: Sequence[RankTimes]) -> list[str]:
        """Take in the times of a `train` line; return a sentence for each host with ranks to name.

        If half of the ranks are slow, as those of one of two hosts, the faster half is the rule. The first line, in
        which everything warms up, does not count.
        """
        if not self._warm:
            self._warm = True
            return []
        usual = median_low(rank.own_seconds for rank in ranks)
        lagging = {number for number, rank in enumerate(ranks) if rank.own_seconds > LAGGING * usual > 0}
        self._lines = {number: self._lines.get(number, 0) + 1 for number in lagging}
        self._cost = {
            number: self._cost.get(number, 0.0) + (ranks[number].own_seconds - usual) * ranks[number].updates
            for number in lagging
        }
        slow = sorted(n for n in lagging - self._named if self._lines[n] >= LINES_IN_A_ROW)
        if not any(self._cost[number] >= WORTH_SECONDS for number in slow):
            return []
        self._named.update(slow)
        others = [rank for number, rank in enumerate(ranks) if number not in lagging]
        hosts = dict.fromkeys(ranks[number].host for number in slow)
        return [_sentence({n: ranks[n] for n in slow if ranks[n].host == host}, others) for host in hosts]


def _sentence(slow: dict[int, RankTimes], others: Sequence[RankTimes]) -> str:
    """Return which processes of one host are slow, by how much, and what to look at."""
    *first, last = map(str, slow)
    who = f"processes {', '.join(first)} and {last}" if first else f"process {last}"
    own, usual = (fmean(rank.own_seconds for rank in group) for group in (slow.values(), others))
    waits, usual_waits = (fmean(rank.data_wait_seconds for rank in group) for group in (slow.values(), others))
    if waits - usual_waits > (own - usual) / 2:
        look = f"{waits:.2f} s of it is waiting for images: look at its disk, its CPU cores and data.workers"
    else:
        look = "its computing takes longer: look there for other programs, fewer CPU cores or a throttled GPU"
    return (
        f"{who} on {next(iter(slow.values())).host} {'are' if first else 'is'} {100 * (own / usual - 1):.0f} % slower "
        f"than the others ({own:.2f} s an update, the others {usual:.2f} s): {look}"
    )
