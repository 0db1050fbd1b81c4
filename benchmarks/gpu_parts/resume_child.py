"""Train digits in bf16, whole and stopped in the middle by SIGTERM; print whether what both leave is the same.

python benchmarks/gpu_parts/resume_child.py DEVICE UPDATES
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vit_dist import train
from vit_dist.config.config import Config

_LOSS = """
import os, signal
from torch.nn import functional as F
STOP, SEEN = [0], [0]
def loss(outputs, targets):
    SEEN[0] += 1
    if SEEN[0] == STOP[0]:
        os.kill(os.getpid(), signal.SIGTERM)
    return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)
"""


def main(device: str, updates: int) -> None:
    folder = Path(tempfile.mkdtemp())
    sys.path.insert(0, str(folder))
    (folder / "stopping_loss.py").write_text(_LOSS, encoding="utf-8")
    import stopping_loss  # type: ignore[import-not-found]

    def run(name: str) -> Any:
        fields = {
            **{"run.dir": str(folder / name), "run.deterministic": True, "run.device": device},
            **{"train.precision": "bf16", "train.duration": f"{updates} updates", "train.ema": 0.99},
            **{"loss.name": "stopping_loss:loss", "loss.label_smoothing": 0.0, "evaluate.every": "100 updates"},
            **{"log.every": "20 updates", "log.report": False, "log.level": "warning", "log.trackers": "none"},
            "checkpoint.every": "1000 updates",
        }
        return train(Config.load("digits", fields))

    def digest(name: str) -> dict[str, str]:
        last = folder / name / "checkpoints" / f"update_{updates:08d}"
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in last.glob("*.safetensors")}

    began = time.perf_counter()
    whole = run("whole")
    seconds = time.perf_counter() - began
    stopping_loss.SEEN[0], stopping_loss.STOP[0] = 0, updates // 2 + 3
    stopped = run("parts").stopped
    stopping_loss.STOP[0] = 0
    resumed = run("parts")
    lines = [line for line in whole.history if line["kind"] == "train"][2:]
    found = {
        "stopped_in_the_middle": stopped,
        "finished": not resumed.stopped,
        "resume_bit_identical": bool(digest("whole")) and digest("whole") == digest("parts"),
        "test_top1": whole.summary["test"]["top1"],
        "update_ms": round(1e3 * statistics.median(line["update_seconds"] for line in lines), 2),
        "data_wait_fraction": round(statistics.median(line["data_wait_fraction"] for line in lines), 3),
        "seconds_of_one_run": round(seconds, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
