"""Check and time vit_dist on one GPU, part by part, in a few minutes; print one JSON line at the end.

    python benchmarks/gpu.py [--budget SECONDS] [--out FILE] [--only NAME,NAME] [--skip NAME] [--device cpu] [--small]

Parts (benchmarks/gpu_parts/): augmentation, exact updates, skipped updates and resuming, on the GPU against the CPU;
updates per second of ViT-S, B and L by way of compiling; where the host waits for the device; what the data path
costs; a profile by kind of kernel. A part that fails leaves its error in the JSON, and the rest goes on. When the
budget is spent, what there is so far is printed. `matmul_fraction` is of a product of two random 8192-square bf16
matrices that ran for half a second. --small: tiny models, to try it on a CPU. docs/log.md and benchmarks/results/ keep
what was measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

START = time.perf_counter()
# In order: name → (module and function in gpu_parts, seconds that must be left).
PARTS = {
    "machine": ("machine.machine", 5),
    "rates": ("machine.rates", 5),
    "augmentation": ("exactness.augmentation", 20),
    "exact_update_float64": ("exactness.exact_update", 10),
    "skipped_updates": ("exactness.skipped_updates", 10),
    "resume_deterministic": ("exactness.resume", 40),
    "eager": ("speed.eager", 30),
    "blocks": ("speed.blocks", 60),
    "host_syncs": ("host.host_syncs", 10),
    "data_path": ("host.data_path", 20),
    "profile": ("host.profile", 15),
    "loader": ("host.loader", 25),
    "attention": ("machine.attention", 10),
    "graph": ("speed.graph", 60),
    "matrix_of_levers": ("speed.levers", 60),
    "model": ("speed.whole_model", 80),
    "max_autotune": ("speed.max_autotune", 170),
}


class Report:
    """Keep what the parts find, and write it at the end of the last or of the budget, whichever comes first."""

    def __init__(self, budget: float, out: str) -> None:
        self.budget, self.out = budget, out
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self._ending = threading.Lock()

    def left(self) -> float:
        """Return the seconds that are left of the budget."""
        return self.budget - (time.perf_counter() - START)

    def watch(self) -> None:
        """Wait until the budget is spent, and end the process."""
        while self.left() > 0:
            time.sleep(0.5)
        self.results["cut_off"] = f"budget of {self.budget} s spent"
        self.finish()

    def finish(self) -> None:
        """Write and print the results, and end the process, whatever still runs in it."""
        self._ending.acquire()
        seconds = {name: round(each, 1) for name, each in list(self.seconds.items())}
        self.results["seconds"] = {**seconds, "all": round(time.perf_counter() - START, 1)}
        text = "{}"
        for _ in range(5):  # the main thread may be adding to it
            with contextlib.suppress(RuntimeError):
                text = json.dumps(self.results, default=str)
                break
        if self.out:
            Path(self.out).write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        os._exit(0)

    def run(self, name: str, needs: float, setting: Any) -> None:
        """Run a part if there is time for it."""
        if self.left() < needs:
            self.results[name] = {"skipped": f"{self.left():.0f} s left"}
            return
        module, function = PARTS[name][0].split(".")
        began = time.perf_counter()
        try:
            self.results[name] = getattr(importlib.import_module(f"gpu_parts.{module}"), function)(setting)
        except BaseException as error:
            lines = traceback.format_exc().strip().splitlines()
            text = f"{type(error).__name__}: {str(error)[:300]}"
            self.results[name] = {"error": text, "at": [line.strip() for line in lines[-7:-1]]}
        self.seconds[name] = time.perf_counter() - began
        said = json.dumps(self.results[name], default=str)[:260]
        print(f"[{time.perf_counter() - START:5.0f} s] {name}: {said}", file=sys.stderr, flush=True)


def main() -> None:
    def names(text: str) -> set[str]:
        chosen = set(filter(None, text.split(",")))
        if unknown := chosen - set(PARTS):
            raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
        return chosen

    out = str(Path(os.environ["OUT"]) / "gpu.json") if os.environ.get("OUT") else ""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450, help="seconds")
    parser.add_argument("--out", default=out, help="file of the JSON; default: $OUT/gpu.json if OUT is set")
    parser.add_argument("--only", type=names, default=set(), help="parts, with commas")
    parser.add_argument("--skip", type=names, default=set(), help="parts, with commas")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--small", action="store_true", help="tiny models: to try this on a CPU")
    own = parser.parse_args()
    report = Report(own.budget, own.out)
    threading.Thread(target=report.watch, daemon=True).start()  # before torch, whose import may hang too
    os.environ.setdefault("WANDB_MODE", "disabled")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    warnings.simplefilter("ignore")
    import torch
    from gpu_parts.setting import Setting

    cuda = own.device != "cpu" and torch.cuda.is_available()
    setting = Setting(torch.device("cuda", 0) if cuda else torch.device("cpu"), own.small, report.left, report.results)
    for name, (_, needs) in PARTS.items():
        if (not own.only or name in own.only) and name not in own.skip:
            report.run(name, needs, setting)
    report.finish()


if __name__ == "__main__":
    main()
