"""Break runs of two processes in every way, by launcher: what is printed, how long all of it takes, what is lost.

    python benchmarks/failures.py [--out benchmarks/results/failures.json] [--only WORD …]

Each run is broken at update 12 of 40. Then the same command runs again, and must end as a run of the same two
processes that nothing has disturbed; and a copy of what was left goes on as one process. `--only` runs the cases whose
names hold one of the words, and keeps the others of the file. Two hosts are network namespaces, which take root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from breaking_loss import AT
from broken_runs import CASES, MARK, REPOSITORY, Case, Launched, environment, hosts, marked

TIMEOUT = 10  # run.timeout, in seconds
_LIMIT = 120.0  # seconds after which what still runs is said to go on
VALUES: dict[str, Any] = {
    **{"data.workers": 1, "data.image_size": 8, "model.patch_size": 4, "model.width": 32, "model.depth": 2},
    **{"model.heads": 2, "batch.global_size": 16, "batch.micro_size": 8, "optimizer.lr": 1e-3, "train.ema": 0.9},
    **{"train.duration": "40 updates", "evaluate.every": "10 updates", "checkpoint.every": "5 updates"},
    **{"log.every": "1 updates", "log.trackers": "none", "log.report": False, "run.device": "cpu", "run.threads": 1},
    **{"run.timeout": TIMEOUT, "loss.name": "benchmarks.breaking_loss:loss"},
}


def write_images(root: Path) -> None:
    """Write scikit-learn's digits as files: 40 of each for train and 10 for val."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    counts = [0] * 10
    for pixels, label in zip(digits.images, digits.target, strict=True):
        split = "train" if counts[label] < 40 else "val"
        counts[label] += 1
        if counts[label] <= 50:
            folder = root / split / f"digit-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{counts[label]:03}.png")


def file_of_second(root: Path) -> Path:
    """Return the image that process 1 alone reads, at the update where a run is broken."""
    from vit_dist.plan.plan import Plan
    from vit_dist.training.resolve import resolve

    resolved = resolve(_config(root, Path("run")))
    train = resolved.data.splits["train"]
    plan = Plan.from_config(resolved.config, len(train), 2)
    index = int(plan.slots(AT - 1, 1).index[0])
    source: Any = train.source
    return Path(str(source.paths[train.indices[index]]))


def _config(root: Path, folder: Path, more: Mapping[str, Any] | None = None) -> Any:
    from vit_dist import Config

    return Config.load("folder", {**VALUES, "data.root": str(root), "run.dir": str(folder), **(more or {})})


def _flags(root: Path, folder: Path) -> list[str]:
    values = {**VALUES, "data.root": root, "run.dir": folder}
    return ["--config", "folder", *(f"--{name}={value}" for name, value in values.items())]


def weights(folder: Path) -> list[str]:
    """Return the digest of each file of tensors of the last checkpoint."""
    files = sorted((folder / "checkpoints" / "last").glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def difference(folder: Path, reference: Path) -> float:
    """Return the largest difference between two runs' last weights, relative to the largest weight."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (folder, reference))
    largest = max(float(value.abs().max()) for value in theirs.values())
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest


def run_whole(case: Case, nodes: list[Any], root: Path, folder: Path) -> list[int]:
    """Run a case's command with nothing that breaks it; return the exit codes."""
    return Launched(case, nodes, _flags(root, folder), environment()).wait()


def break_run(case: Case, root: Path, work: Path, broken: Path, reference: Path) -> dict[str, Any]:
    """Break a run, run it again, and return a row of the table."""
    from vit_dist import train
    from vit_dist.run_folder.status import status

    folder, stamp = work / "run", work / "stamp"
    filler = work / "filler"
    original = broken.read_bytes()
    environ = {
        **environment(),
        MARK: str(work),
        "BREAK": case.act if case.act != "link" else "",
        "BREAK_RANK": str(case.rank),
    }
    environ |= {"BREAK_STAMP": str(stamp), "BREAK_FILE": str(broken if case.act == "image" else filler)}
    whole = {**environ, "BREAK": ""}
    with hosts(case) as nodes:
        launched = Launched(case, nodes, _flags(root, folder), environ)
        if case.send is not None or case.act == "link":
            launched.at_update.wait(90)
            begun = time.time()
            if case.send is None:
                nodes[1].set_link("down")
            elif case.send == signal.SIGINT:  # as a terminal does, to the whole group
                os.killpg(launched.processes[-1].pid, case.send)
            else:
                launched.processes[-1].send_signal(case.send)
        else:
            begun = None
        limit, alive = time.monotonic() + 90 + _LIMIT, marked(str(work))
        while alive and time.monotonic() < limit:
            if begun is None and stamp.exists() and case.act != "image":
                begun = stamp.stat().st_mtime
            time.sleep(0.05)
            alive = marked(str(work))
            if begun is not None and time.time() - begun > _LIMIT:
                break
        ended = time.time()
        if case.act == "image":
            begun = stamp.stat().st_mtime
        state = status(folder)
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        codes = launched.wait()
        broken.write_bytes(original)
        filler.unlink(missing_ok=True)
        finished = state.get("state") == "finished"
        alone = work / "alone"
        if not finished and folder.exists() and case.launcher == "torchrun":
            shutil.copytree(folder, alone, symlinks=True)
        if case.act == "link":
            nodes[1].set_link("up")
        again = [] if finished else Launched(case, nodes, _flags(root, folder), whole).wait()
    printed = [line for lines in launched.printed for line in lines]
    told = [line for line in printed if line.startswith("vit-dist: ") and " note: " not in line]
    row = {
        "seconds": round(ended - (begun or ended), 1),
        "goes on": len(alive),
        "exit codes": codes,
        "told": [re.sub(r"/\S*/", "", line) for line in told],
        "lines": len(printed) - sum(line.startswith(("update ", "epoch ")) for line in printed),
        "state": state.get("state"),
        "reason": re.sub(r"/\S*/", "", str(state.get("reason", state.get("error", "")))),
        "update": state.get("update"),
        "again": again,
        "same": weights(folder) == weights(reference),
        "state again": status(folder).get("state"),
    }
    if alone.exists():
        train(_config(root, alone, {"log.level": "warning"}))
        row["difference alone"] = difference(alone, reference)
    return row


def table(rows: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    lines = ["| case | seconds | exit | state | told | again |", "| --- | --- | --- | --- | --- | --- |"]
    for name, row in rows.items():
        alone = row.get("difference alone")
        again = "the same" if row["same"] else f"differs ({row['again']}, {row['state again']})"
        again += f"; alone {alone:.0e}" if alone is not None else ""
        seconds = f"{row['seconds']:.1f}" if not row["goes on"] else f"goes on ({row['goes on']})"
        codes = ", ".join(map(str, row["exit codes"]))
        told = "<br>".join(line.removeprefix("vit-dist: ") for line in row["told"]) or "nothing"
        lines.append(f"| {name} | {seconds} | {codes} | {row['state']} | {told} | {again} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cases, print the table and write the results."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, in all processes below
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results" / "failures.json")
    parser.add_argument("--only", nargs="*", default=[""])
    arguments = parser.parse_args()
    rows: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        root = top / "images"
        write_images(root)
        broken = file_of_second(root)
        references = {}
        for launcher in ("torchrun", "accelerate --cpu"):
            references[launcher] = top / launcher.replace(" ", "")
            codes = run_whole(Case(launcher, ""), [None], root, references[launcher])
            assert codes == [0], codes
        for case in CASES:
            if not any(word in case.name for word in arguments.only):
                continue
            work = top / hashlib.sha256(case.name.encode()).hexdigest()[:8]
            work.mkdir()
            reference = references["accelerate --cpu" if case.launcher == "accelerate --cpu" else "torchrun"]
            if case.act == "disk":
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(work)], check=True)
            try:
                rows[case.name] = break_run(case, root, work, broken, reference)
            finally:
                if case.act == "disk":
                    subprocess.run(["umount", "-l", str(work)], check=True)
            print(table({case.name: rows[case.name]}).splitlines()[-1], flush=True)
            rows = {case.name: rows[case.name] for case in CASES if case.name in rows}
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
