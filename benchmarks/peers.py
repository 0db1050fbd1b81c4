"""Compare training with timm's pieces put together as its script does, and with Accelerate's documented loop.

    python benchmarks/peers.py [--device cpu|cuda] [--images FOLDER|TAR] [--compile true|false] [--batch 32]
        [--rounds 5] [--precision bf16] [--sides NAME+NAME] [--cases resident,files] [--budget SECONDS] [--small]
        [--out JSON] [--section.field VALUE … for vit_dist's side]

Work is the same on all sides: ViT-S/16 at 224 pixels, random resized crops (8 to 100 % of the area) and mirrored
images, label smoothing 0.1, AdamW, a cosine schedule, the gradient clipped to a norm of 1, the loss read every 50
updates, and equally many worker processes. The sides:

vit_dist          the trainer itself: stream, exact update, logging; on a GPU compiled as train.compile auto has it.
timm, defaults    timm's loader (with its prefetcher), model, optimizer, schedule and task, as its train.py has them
                  with `--amp --amp-dtype bfloat16`.
timm, best flags  the same with `--torchcompile` (where vit_dist is compiled), `--opt-kwargs fused=True` and, on a GPU,
                  `--pin-mem`.
accelerate        the loop of Accelerate's documentation over torchvision's ImageFolder, with timm's model.

`files` trains from JPEG files; `resident` trains on one batch that stays on the device: model, optimizer and loop
alone. Sides take turns. With worker processes each turn first uses up the batches that were read while others had
theirs. On a CPU everything is in one process (no workers), and CPU seconds are the ones to read. --compile: by default
on a GPU only. Without --images some JPEG files are made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from images import make, repeat, unpack
from peer_sides import Accelerated, Ours, Timm
from timing import Side, alternate, write

START = time.perf_counter()


class Turns:
    """Turns of one peer in one case: so many updates that they fill a window of time.

    drain: updates before each turn that use up what workers read in the others' turns.
    """

    def __init__(self, train: Callable[[int], int], window: float, drain: int) -> None:
        self.train, self.window, self.drain, self.updates = train, window, drain, 0

    def before(self) -> None:
        if self.updates and self.drain:
            self.train(self.drain)
        if self.updates:
            return
        self.train(2)  # compiles, and warms up
        self.updates = 1
        if self.window:
            self.train(self.drain + 1)
            start = time.perf_counter()
            self.train(2)
            self.updates = max(1, math.ceil(2 * self.window / (time.perf_counter() - start)))

    def run(self) -> float:
        return self.train(self.updates)


def build(own: argparse.Namespace, folder: Path, rest: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the peers that can be built, ours first, and why others cannot."""
    makers = {
        "vit_dist": lambda: Ours(own, folder, rest),
        "timm, defaults": lambda: Timm(own, folder, best=False),
        "timm, best flags": lambda: Timm(own, folder, best=True),
        "accelerate": lambda: Accelerated(own, folder),
    }
    peers: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, maker in makers.items():
        if own.sides and name not in own.sides:
            continue
        try:
            peers[name] = maker()
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}"
            print(f"{name}: {missing[name]}", file=sys.stderr, flush=True)
    return peers, missing


def measure(own: argparse.Namespace, peers: dict[str, Any], missing: dict[str, str]) -> dict[str, Any]:
    """Return the results of both cases, and print their tables."""
    shape = own.batch, 3, own.side, own.side
    fixed = torch.randn(shape, device=own.device), torch.zeros(own.batch, dtype=torch.int64, device=own.device)
    results: dict[str, Any] = {}
    for case in own.cases:
        drain = 2 * own.workers + 1 if own.workers and case == "files" else 0
        sides = {}
        for name, peer in peers.items():
            train = peer.files if case == "files" else partial(peer.resident, fixed=fixed)
            turns = Turns(train, own.window if case == "files" else own.window / 3, drain)
            try:
                turns.before()
            except Exception as error:
                missing[f"{name}, {case}"] = f"{type(error).__name__}: {str(error)[:300]}"
                print(f"{name}, {case}: {missing[f'{name}, {case}']}", file=sys.stderr, flush=True)
                continue
            print(f"[{time.perf_counter() - START:4.0f} s] {name}, {case}: ready", file=sys.stderr, flush=True)
            sides[name] = Side(turns.run, turns.before)
        if not sides:
            continue
        share = 0.45 if case != own.cases[-1] else 1.0
        left = own.budget * share - (time.perf_counter() - START)
        times = alternate(case, sides, own.rounds, warm_up=0, seconds=left)
        results[case] = times.to_json()
        results[case]["images_per_second"] = {name: round(1 / times.median(name, "clock"), 1) for name in sides}
        print(f"\n{times.table()}\n", flush=True)
    return results


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return the command line: its own arguments, and those for vit_dist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--compile", choices=("true", "false"))
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--batch", type=int, help="images of an update; default: 128 on a GPU, 32 on a CPU")
    parser.add_argument("--workers", type=int, help="default: as vit_dist on a GPU, 0 on a CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=float, help="seconds of a turn; default: 1.5 on a GPU, one update on a CPU")
    parser.add_argument("--budget", type=float, help="seconds after which no round starts; default: 80 on a GPU")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=["resident", "files"])
    parser.add_argument("--sides", type=lambda text: text.split("+"), default=[], help="names, with + between them")
    parser.add_argument("--small", action="store_true", help="a tiny model at 64 pixels: to try this")
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args()
    gpu = own.device == "cuda"
    own.side = 64 if own.small else 224
    own.train_compile = {None: "auto", "true": "blocks", "false": "none"}[own.compile]
    own.compile = gpu if own.compile is None else own.compile == "true"
    own.batch = own.batch or (8 if own.small else 128 if gpu else 32)
    if own.workers is None:
        from vit_dist.runtime.devices import available_cores

        own.workers = min(16, available_cores()) if gpu else 0
    own.window = own.window if own.window is not None else 1.5 if gpu else 0.0
    own.budget = own.budget or (80.0 if gpu else math.inf)
    return own, rest


def main() -> None:
    own, rest = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(own.threads if own.device == "cpu" else torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary:
        real = own.images is not None and own.images.exists()
        folder = (
            unpack(own.images, Path(temporary)) if real else make(Path(temporary) / "files", 16 if own.small else 96)
        )
        count = repeat(folder, 200 * own.batch if own.workers else own.batch)
        peers, missing = build(own, folder, rest)
        settings = {name: getattr(own, name) for name in ("device", "precision", "compile", "batch", "workers", "side")}
        about = {"images": "real" if real else "made here", "image_files": count, **settings}
        print(json.dumps(about), flush=True)
        results = measure(own, peers, missing)
        notes = {name: peer.notes for name, peer in peers.items() if peer.notes}
        write(own.out, {**about, "missing": missing, "notes": notes, **results})
        print(json.dumps({**about, "missing": missing, **results}), flush=True)
        for peer in peers.values():
            peer.close()


if __name__ == "__main__":
    main()
