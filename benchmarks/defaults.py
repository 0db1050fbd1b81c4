"""Compare the default settings with three hand-tuned ones on each of ten small image folders.

    python benchmarks/defaults.py --data DIR --out DIR [--jobs 2] [--device cpu|cuda] [--sets digits,scenes]

--data: a folder with mnist/*.gz, cifar10.tar.xz and imagenet-sample.tar. --out: gets the image folders, the runs and
results.jsonl; trainings whose result is there already are not done again. Each training is a process of one thread. At
the end, or at once with --table, a table in Markdown is printed: the regret is the best accuracy on val of the three
less that of the defaults, in points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from small_sets import SETS, make_sets

Flags = dict[str, Any]
DEFAULT = "default"
# Settings of someone who knows the data. Those of the recipes mnist_best, digits, cifar10 and cifar10_fast, in short.
_CHARACTERS: dict[str, Flags] = {
    "mnist_best": {
        **{"model.patch_size": 7, "model.patch_stride": 4, "model.width": 64, "model.depth": 6, "model.heads": 4},
        **{"model.mlp_ratio": 2, "augment.rotate": 15, "augment.scale": 0.1, "augment.shift": 2, "train.ema": 0.998},
        **{"optimizer.lr": 4e-3, "optimizer.weight_decay": 0.3, "loss.label_smoothing": 0.0},
    },
    "digits": {
        **{"model.width": 96, "model.depth": 4, "model.heads": 4, "model.mlp_ratio": 2, "model.drop_path": 0.1},
        **{"augment.shift": 2, "augment.rotate": 0, "augment.scale": 0, "optimizer.lr": 3e-3},
        **{"optimizer.weight_decay": 0.5, "loss.label_smoothing": 0.1},
    },
    "stronger": {
        **{"model.drop_path": 0.1, "augment.rotate": 15, "augment.scale": 0.2, "augment.shift": 3},
        **{"augment.erasing": 0.25, "optimizer.lr": 2e-3, "optimizer.weight_decay": 0.1},
    },
}
_OBJECTS: dict[str, Flags] = {
    "cifar10": {
        **{"model.width": 192, "model.depth": 9, "model.heads": 6, "model.mlp_ratio": 2, "model.drop_path": 0.1},
        **{"augment.crop_min": 0, "augment.shift": 4, "augment.auto": "rand-m9-mstd0.5-inc1"},
        **{"augment.erasing": 0.25, "augment.mixup": 0.8, "augment.cutmix": 1.0, "optimizer.lr": 1e-3},
    },
    "cifar10_fast": {
        **{"model.width": 256, "model.depth": 6, "model.heads": 4, "model.mlp_ratio": 2, "augment.crop_min": 0},
        **{"augment.shift": 4, "augment.rotate": 10, "augment.erasing": 0.25, "augment.cutmix": 1.0},
        **{"augment.mix_prob": 0.5, "optimizer.lr": 1e-3, "train.ema": 0.998},
    },
    "trivial": {
        **{"augment.crop_min": 0.5, "augment.auto": "trivial", "model.mlp_ratio": 2, "model.drop_path": 0.1},
        **{"optimizer.lr": 2e-3, "optimizer.weight_decay": 0.3},
    },
}
_PHOTOS: dict[str, Flags] = {
    "64 pixels": {
        **{"data.image_size": 64, "model.patch_size": 8, "augment.auto": "trivial", "augment.crop_min": 0.35},
        **{"data.crop": 1.0},
    },
    "small patches": {
        **{"data.image_size": 96, "model.patch_size": 8, "model.width": 192, "model.depth": 6, "model.heads": 3},
        **{"augment.crop_min": 0.2, "augment.auto": "3a", "augment.color_jitter": 0.3, "augment.cutmix": 0.5},
    },
    "160 pixels": {
        **{"data.image_size": 160, "model.patch_size": 16, "augment.crop_min": 0.5, "model.drop_path": 0.1},
        **{"optimizer.lr": 5e-4, "optimizer.weight_decay": 0.1, "augment.auto": "rand-m9-mstd0.5-inc1"},
    },
}
_HAND_TUNED = {
    **dict.fromkeys(("two_digits", "few_digits", "digits", "numbers"), _CHARACTERS),
    **dict.fromkeys(("horse_ship", "animals", "objects", "enlarged"), _OBJECTS),
    **dict.fromkeys(("scenes", "few_scenes"), _PHOTOS),
}


def train_one(name: str, settings: str, root: Path, runs: Path, device: str, workers: int, extra: Flags) -> Flags:
    """Train a set with one of its settings and return the result."""
    import torch

    from vit_dist.config.config import Config
    from vit_dist.training.run import train

    torch.set_num_threads(1)
    flags: Flags = {} if settings == DEFAULT else dict(_HAND_TUNED[name][settings])
    machine: Flags = {
        **{"data.root": str(root), "run.dir": str(runs / f"{name}-{settings.replace(' ', '_')}")},
        **{"run.threads": 1, "run.device": device, "data.workers": workers, "train.precision": "fp32"},
        **{
            "checkpoint.every": "60 minutes",
            "checkpoint.keep": 1,
            "log.level": "warning",
            "log.report": False,
            "log.trackers": "none",
        },
    }
    start = time.perf_counter()
    run = train(Config.load("folder", {**flags, **machine, **extra}))
    evaluations = [line["top1"] for line in run.history if line["kind"] == "eval" and line["split"] == "val"]
    config = Config.load(run.folder / "config.yaml")
    chosen = {field: value for field, value in config.fields().items() if field.startswith(_SHOWN)}
    return {
        **{"set": name, "settings": settings, "top1": run.best.value if run.best else None, "last": evaluations[-1]},
        **{"curve": evaluations, "seconds": round(time.perf_counter() - start), "flags": {**flags, **extra}},
        **{"summary": run.summary["best"], "config": chosen},
    }


_SHOWN = ("model.", "data.image_size", "data.crop", "batch.", "train.", "optimizer.", "augment.", "loss.", "evaluate.e")


def done_before(results: Path) -> dict[tuple[str, str], Flags]:
    """Return the results in a file by set and settings."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {(line["set"], line["settings"]): line for line in map(json.loads, lines)}


def table(results: dict[tuple[str, str], Flags]) -> Iterator[str]:
    """Yield a table of the regret on each set for which there are results."""
    yield "| set | train | classes | default | hand-tuned | regret |"
    yield "| --- | --- | --- | --- | --- | --- |"
    regrets = []
    for name, small_set in SETS.items():
        default = results.get((name, DEFAULT))
        others = {key[1]: line["top1"] for key, line in results.items() if key[0] == name and key[1] != DEFAULT}
        if default is None or not others:
            continue
        regrets.append(max(others.values()) - default["top1"])
        texts = ", ".join(f"{settings} {top1:.1f}" for settings, top1 in others.items())
        about = f"`{name}`: {small_set.about} | {small_set.images:,} | {small_set.classes}"
        yield f"| {about} | {default['top1']:.1f} | {texts} | {regrets[-1]:+.1f} |"
    if regrets:
        yield ""
        yield f"Regret: {sum(regrets) / len(regrets):+.2f} on average, {max(regrets):+.1f} at most."


def main() -> None:
    """Make the sets, train what has no result yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the raw images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sets, runs and results")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of each training")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sets", default=",".join(SETS), help="names, with commas")
    parser.add_argument("--settings", default="", help="names, with commas; empty: all")
    parser.add_argument("--extra", type=json.loads, default={}, help="further flags of all trainings, as JSON")
    parser.add_argument("--more", type=Path, help="JSON file of further settings: {set: {settings: flags}}")
    parser.add_argument("--table", action="store_true", help="print the table of the results there are")
    parser.add_argument(
        "--one", nargs=2, metavar=("SET", "SETTINGS"), help="do this training alone, and print its result"
    )
    args = parser.parse_args()
    more: dict[str, dict[str, Flags]] = json.loads(args.more.read_text(encoding="utf-8")) if args.more else {}
    for name, settings_of_set in more.items():
        _HAND_TUNED[name] = {**_HAND_TUNED[name], **settings_of_set}
    if args.one:
        name, settings = args.one
        root, runs = args.out / "sets" / name, args.out / "runs"
        print(json.dumps(train_one(name, settings, root, runs, args.device, args.workers, args.extra)), flush=True)
        return
    results = args.out / "results.jsonl"
    if not args.table:
        names = args.sets.split(",")
        make_sets(names, args.data, args.out / "sets")
        wanted = [(name, settings) for name in names for settings in (DEFAULT, *_HAND_TUNED[name])]
        if args.settings:
            wanted = [pair for pair in wanted if pair[1] in args.settings.split(",")]
        missing = [pair for pair in wanted if pair not in done_before(results)]
        # The comparison itself first, and its longest trainings first.
        missing.sort(key=lambda pair: (pair[1] in more.get(pair[0], {}), -SETS[pair[0]].images))
        with ThreadPoolExecutor(args.jobs) as pool:
            for done in as_completed([pool.submit(_in_process, pair, args) for pair in missing]):
                with results.open("a", encoding="utf-8") as file:
                    file.write(done.result())
    print("\n".join(table(done_before(results))))


def _in_process(pair: tuple[str, str], args: argparse.Namespace) -> str:
    """Train in a process of its own and return the line of its result; say what went wrong, and return nothing."""
    command = [sys.executable, __file__, "--one", *pair, "--data", str(args.data), "--out", str(args.out)]
    command += ["--device", args.device, "--workers", str(args.workers), "--extra", json.dumps(args.extra)]
    command += ["--more", str(args.more)] if args.more else []
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        print(*pair, "failed:", done.stderr.strip()[-2000:], file=sys.stderr, flush=True)
        return ""
    result = json.loads(lines[-1])
    print(*pair, result["top1"], f"{result['seconds']} s", file=sys.stderr, flush=True)
    return f"{lines[-1]}\n"


if __name__ == "__main__":
    main()
