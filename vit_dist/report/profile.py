"""Show where the time of the updates in a profile went, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from vit_dist.run_folder.metrics import Line
from vit_dist.run_folder.record import RunRecord

_BOTH = {
    "forward": "the model and the loss",
    "backward": "the gradients",
    "pass": "forward and backward together, as a CUDA graph",
    "optimizer": "clipping, the step, the average of the weights",
    "augmentation": "of batches, on the device",
    "communication": "of gradients, not hidden by computing; waiting for slower processes included",
}
# Part, in the order of the table → what it is, where a GPU's kernels are known, and where the host computes.
_ON_GPU = {
    **_BOTH,
    "data wait": "the GPU has nothing to do until a batch is there",
    "other": "kernels of none of these parts",
    "gaps": "gaps between kernels, under 5 µs each",
    "host": "the GPU has nothing to do while the host works: Python, starting kernels",
}
_ON_HOST = {
    **_BOTH,
    "data wait": "for a batch: for workers or, without any, reading it",
    "host": "between the parts: Python, the schedule, metrics",
}
# Part → what makes it smaller, said from a share of 10 % on.
_REMEDIES = {
    "communication": "a larger batch.global_size communicates less often (which changes the result)",
    "data wait": "more data.workers, or vit-dist check DATA --speed to see what reading takes",
    "host": "train.compile blocks and a larger batch.micro_size start fewer kernels",
}
_WORTH = 0.1


@dataclass(frozen=True)
class Part:
    """A row: share of the update in percent, milliseconds, those of the processes as `least to most`, what it is."""

    name: str
    share: float
    milliseconds: str
    processes: str
    meaning: str


@dataclass(frozen=True)
class Profile:
    """The section: a sentence, its rows, what to do about them, and the path of the trace in the run's folder."""

    sentence: str
    parts: list[Part]
    remedies: list[str]
    trace: str | None


def last_profile(run: RunRecord) -> Profile | None:
    """Return the profile made last in a run; None if there is none."""
    lines = [line for line in run.metrics.other_lines if line["kind"] == "profile" and line["update_seconds"] > 0]
    if not lines:
        return None
    line = lines[-1]
    meanings = _ON_GPU if line["on_device"] else _ON_HOST
    shares = {name: line["parts"].get(name, 0.0) / line["update_seconds"] for name in meanings}
    parts = [
        Part(name, 100 * share, f"{1e3 * line['parts'].get(name, 0.0):,.2f}", _spread(line, name), meanings[name])
        for name, share in shares.items()
        if share or (name in _BOTH and name != "pass")
    ]
    known = _REMEDIES if line["on_device"] else {name: text for name, text in _REMEDIES.items() if name != "host"}
    remedies = [f"{name}: {text}" for name, text in known.items() if shares[name] >= _WORTH]
    return Profile(_sentence(line, shares), parts, remedies, line["trace"])


def _sentence(line: Line, shares: dict[str, float]) -> str:
    first, last = line["first"], line["first"] + line["updates"] - 1
    milliseconds = 1e3 * line["update_seconds"]
    text = f"Updates {first:,} to {last:,}, which a profiler slowed down, took {milliseconds:,.1f} ms each."
    if line["on_device"]:
        busy = 1 - sum(shares[name] for name in ("data wait", "host", "gaps", "communication"))
        text += f" The GPU computed for {busy:.0%} of that: {line['kernels']:,.0f} kernels an update"
        text += f", and {line['copies']:,.0f} copies from the host."
    return text


def _spread(line: Line, name: str) -> str:
    """Return the milliseconds of the process with the least and of the one with the most; empty for a single one."""
    ranks = line.get("ranks")
    if not isinstance(ranks, list):
        return ""
    values = [1e3 * rank[name] for rank in ranks if isinstance(rank, dict) and isinstance(rank.get(name), (int, float))]
    return f"{min(values):,.2f} to {max(values):,.2f}" if values else ""
