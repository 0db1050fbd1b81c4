"""Compare what a run says of its ranks with independent timers: two real processes on gloo, one of them slowed or not.

    python benchmarks/communication.py CASE [--section.field VALUE …]

Cases: equal; compute (rank 1 computes for 0.1 s more in each update); data (rank 1's images take 0.1 s more); link
(each process in a network namespace of its own, 200 Mbit/s between them; needs root and iproute2).

The independent timers are a communication hook, called when a bucket of gradients is ready and when it is reduced.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

CASES = ("equal", "compute", "data", "link")
SLOW_SECONDS = 0.1
_FLAGS = {
    **{"model.width": 192, "model.depth": 6, "model.heads": 3, "batch.global_size": 64, "batch.micro_size": 32},
    **{"train.duration": "60 updates", "log.every": "10 updates", "evaluate.every": "60 updates", "data.workers": 0},
    **{"run.device": "cpu", "run.threads": 1, "log.trackers": "none", "log.report": False},
}


def train_rank(case: str, folder: Path, flags: dict[str, Any]) -> None:
    """Train as the rank that the environment says, and write what the timers measured."""
    import torch
    import torch.distributed as dist

    from vit_dist import Config, train
    from vit_dist.data.stream import Stream
    from vit_dist.runtime.runtime import Runtime
    from vit_dist.telemetry.ranks import RankMeter, RankTimes

    rank = int(os.environ["RANK"])
    by_hook: list[list[float]] = []  # per update: when its last bucket was ready, when the last one was reduced
    by_ddp: list[float] = []
    lines: list[dict[str, Any]] = []

    def hook(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        if bucket.index() == 0:
            by_hook.append([0.0, 0.0])
        times = by_hook[-1]
        tensor = bucket.buffer().div_(dist.get_world_size())
        times[0] = time.perf_counter()
        future = dist.all_reduce(tensor, async_op=True).get_future()

        def reduced(done: torch.futures.Future[Any]) -> torch.Tensor:
            times[1] = max(times[1], time.perf_counter())
            return tensor

        return future.then(reduced)

    # DDP compares the annotations themselves, which are text in this file.
    hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
    prepare, times_of, batch = Runtime.prepare, RankMeter.times, Stream._batch

    def prepare_with_hook(self: Runtime, model: torch.nn.Module) -> torch.nn.Module:
        wrapped = prepare(self, model)
        wrapped.register_comm_hook(None, hook)
        return wrapped

    def recorded_times(self: RankMeter, position: int, waited: float) -> RankTimes:
        times = times_of(self, position, waited)
        by_ddp.extend(times.exposed_seconds)
        lines.append(times.to_json())
        return times

    def slow_batch(self: Stream, *arguments: Any) -> Any:
        _spin(SLOW_SECONDS if case == "data" and rank == 1 else 0)
        return batch(self, *arguments)

    Runtime.prepare, RankMeter.times, Stream._batch = prepare_with_hook, recorded_times, slow_batch
    source = "benchmarks.communication:slow_loss"
    config = Config.load("digits", {**_FLAGS, "run.dir": str(folder / "run"), "loss.name": source, **flags})
    run = train(config)
    trained = [line for line in run.history if line["kind"] == "train"]
    result = {"hook": [end - start for start, end in by_hook], "ddp": by_ddp, "ranks": lines, "lines": trained}
    (folder / f"{rank}.json").write_text(json.dumps(result))


def slow_loss(logits: Any, targets: Any) -> Any:
    """Return the cross entropy; rank 1 of the case compute takes SLOW_SECONDS more."""
    from torch.nn.functional import cross_entropy

    _spin(SLOW_SECONDS if os.environ.get("CASE") == "compute" and os.environ["RANK"] == "1" else 0)
    return cross_entropy(logits, targets, reduction="none")


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def main(case: str, flags: list[str]) -> None:
    """Train on two ranks, and print both timers' figures."""
    names = [f"vit_dist_{number}_{os.getpid()}" for number in (0, 1)]
    address = "10.254.13.1" if case == "link" else "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if case == "link":
                _link(*names)
            processes = []
            for rank in (0, 1):
                world = {"RANK": rank, "LOCAL_RANK": 0 if case == "link" else rank, "WORLD_SIZE": 2, "CASE": case,
                         "LOCAL_WORLD_SIZE": 1 if case == "link" else 2, "MASTER_ADDR": address, "MASTER_PORT": 29613,
                         "GLOO_SOCKET_IFNAME": f"veth{rank}" if case == "link" else "lo"}  # fmt: skip
                environment = {**os.environ, **{name: str(value) for name, value in world.items()}}
                prefix = ["ip", "netns", "exec", names[rank]] if case == "link" else []
                command = [*prefix, sys.executable, "-m", "benchmarks.communication", "rank", case, folder, *flags]
                processes.append(subprocess.Popen(command, env=environment, stdout=sys.stderr))
            codes = [process.wait() for process in processes]
            if any(codes):
                sys.exit(f"exit codes {codes}")
        finally:
            if case == "link":
                for name in names:
                    subprocess.run(["ip", "netns", "del", name], check=False)
        _print(case, [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in (0, 1)])


def _link(first: str, second: str) -> None:
    """Make two network namespaces with a link of 200 Mbit/s between them."""
    for name in (first, second):
        _run(f"ip netns add {name}")
        _run(f"ip -n {name} link set lo up")
    _run(f"ip -n {first} link add veth0 type veth peer name veth1 netns {second}")
    for number, name in enumerate((first, second)):
        _run(f"ip -n {name} addr add 10.254.13.{number + 1}/24 dev veth{number}")
        _run(f"ip -n {name} link set veth{number} up")
        _run(f"tc -n {name} qdisc add dev veth{number} root tbf rate 200mbit burst 256kb latency 400ms")


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def _print(case: str, results: list[dict[str, Any]]) -> None:
    """Print, in milliseconds and without the first line, which warms up, what both timers say."""
    skip = results[0]["lines"][0]["update"]
    for rank, result in enumerate(results):
        hook, ddp = result["hook"][skip:], result["ddp"][skip:]
        apart = sorted(abs(a - b) for a, b in zip(hook, ddp, strict=True))
        print(f"{case}, rank {rank}: exposed communication {1e3 * fmean(ddp):.1f} ms by DDP, "
              f"{1e3 * fmean(hook):.1f} by the hook; apart by {1e3 * apart[len(apart) // 2]:.2f} (median), "
              f"{1e3 * apart[-1]:.2f} (most)")  # fmt: skip
    lines = results[0]["lines"][1:]
    shortest = [min(pair) for pair in zip(*(result["hook"][skip:] for result in results), strict=True)]
    mean = {name: fmean(line[name] for line in lines) for name in lines[0] if isinstance(lines[0][name], float)}
    update = mean["update_seconds"]
    print(f"{case}: update {1e3 * update:.1f} ms, busy {1e3 * mean['busy_seconds_min']:.1f} to "
          f"{1e3 * mean['busy_seconds_max']:.1f} ms, data wait {mean['data_wait_fraction_min']:.1%} to "
          f"{mean['data_wait_fraction_max']:.1%}, communication {mean['communication_fraction']:.1%} (hook: "
          f"{fmean(shortest) / update:.1%}), slowest rank {[line['slowest_rank'] for line in lines]}")  # fmt: skip
    means = [1e3 * fmean(result["ddp"][skip:]) for result in results]
    print(f"{case}: the least mean over ranks would be {min(means):.1f} ms, the mean of each update's least is "
          f"{1e3 * update * mean['communication_fraction']:.1f} ms")  # fmt: skip
    for rank, result in enumerate(results):
        parts = [(each["busy_seconds"] + each["data_wait_seconds"] + fmean(each["exposed_seconds"])) for each in
                 result["ranks"][1:]]  # fmt: skip
        print(f"{case}, rank {rank}: busy + data wait + exposed = {fmean(parts) / update:.1%} of the update's time")


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        words = [word.removeprefix("--") for word in sys.argv[4:]]
        train_rank(sys.argv[2], Path(sys.argv[3]), dict(zip(words[::2], words[1::2], strict=True)))
    elif sys.argv[1:] and sys.argv[1] in CASES:
        main(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(__doc__)
