"""Checkpoints of every format that was ever written are read, and give what they gave.

fixtures/format_1 was written by vit_dist as of commit 6ab109e, the last with that format; fixtures/format_2 as of
commit dab26eb. Both by `python -m vit_dist train --config FILE --run.dir runs/format_N` with this FILE, of whose
checkpoints they are the one at update 2:

    run: {device: cpu, threads: 1, seed: 0}
    data: {name: digits, workers: 0}
    model: {name: vit_tiny, patch_size: 4, width: 8, depth: 1, heads: 2, mlp_ratio: 1, pool: mean}
    batch: {global_size: 32, micro_size: 16}
    optimizer: {name: adamw, lr: 0.01}
    schedule: {warmup: 1 updates}
    train: {duration: 4 updates, ema: 0.9}
    evaluate: {every: 2 updates}
    checkpoint: {every: 2 updates}
    log: {trackers: none, report: false}

The values below are those that the version that wrote a checkpoint gave at the time: `evaluate … --json` of it,
`predict … --split test --format jsonl`, and the `eval` lines of val at update 4 of the same run, which was not stopped.
Both versions gave the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.checkpointing.states import rehash
from tests.cli.commands import command, metrics_line
from vit_dist import Config, train
from vit_dist.checkpointing.checkpoint import open_checkpoint
from vit_dist.checkpointing.formats import FORMAT
from vit_dist.checkpointing.state import Best
from vit_dist.files import read_json

FIXTURES = Path(__file__).parent / "fixtures"
EVALUATION = {"loss": 2.2513105982193378, "top1": 28.41225626740947, "top5": 80.77994428969359, "seen": 359}
PREDICTIONS = [
    ("test/203", {"0": 0.109444, "3": 0.108151, "9": 0.10467}),
    ("test/933", {"6": 0.106829, "0": 0.103643, "8": 0.10264}),
    ("test/243", {"0": 0.109905, "9": 0.109053, "3": 0.107906}),
]
LOSSES_AT_4 = {"raw": 2.217047585381402, "ema": 2.221451653374566}

formats = pytest.mark.parametrize("path", [FIXTURES / f"format_{n}" / "update_00000002" for n in range(1, FORMAT + 1)])


@formats
def test_every_format_is_opened(path: Path) -> None:
    state = open_checkpoint(path).state
    assert (state.train_state.position, state.train_state.applied_updates, state.train_state.skipped_updates) == (
        2,
        2,
        0,
    )
    assert state.train_state.best == Best(2, "top1", 27.77777777777778, "ema")
    made = state.preprocessing  # which had neither an interpolation nor a fit
    assert (made.interpolation, made.fit, state.config.data.fit) == ("bicubic", "crop", "auto")
    assert state.train_state.patience_baseline == 27.77777777777778
    assert (state.samples, state.updates, state.channels, state.precision) == (1294, 4, 1, "fp32")
    assert (state.preprocessing.image_size, state.preprocessing.mean) == (8, (0.3053,))
    assert state.config.model.width == 8
    assert state.classes == [str(i) for i in range(10)]


@formats
def test_every_format_is_evaluated_as_at_its_time(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(capsys, "evaluate", path, "--json", tmp_path / "result.json").code == 0
    result = read_json(tmp_path / "result.json")
    assert {name: result[name] for name in EVALUATION} == pytest.approx(EVALUATION, rel=1e-5)
    assert (result["weights"], result["update"]) == ("ema", 2)


@formats
def test_every_format_predicts_as_at_its_time(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = command(capsys, "predict", path, "--split", "test", "--format", "jsonl").out
    for line, (image, expected) in zip(out.splitlines()[: len(PREDICTIONS)], PREDICTIONS, strict=True):
        prediction = json.loads(line)
        assert prediction["image"] == image
        found = {entry["class"]: entry["probability"] for entry in prediction["top"]}
        assert list(found) == list(expected)
        assert found == pytest.approx(expected, abs=2e-5)


@formats
@pytest.mark.parametrize("in_folder", [True, False])
def test_every_format_is_resumed_as_at_its_time(path: Path, in_folder: bool, tmp_path: Path) -> None:
    values = open_checkpoint(path).state.config.to_dict()
    values["run"] |= {"dir": str(tmp_path / "run"), "resume": "auto" if in_folder else str(path)}
    config = Config.from_dict(values)
    if in_folder:
        shutil.copytree(path, config.folder / "checkpoints" / path.name)
        (config.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    run = train(config)
    assert run.history[0]["update"] == 2
    for weights, loss in LOSSES_AT_4.items():
        line = metrics_line(config.folder, split="val", update=4, weights=weights)
        assert line["loss"] == pytest.approx(loss, rel=1e-5)
    if in_folder:
        assert run.best == Best(2, "top1", 27.77777777777778, "ema")
        assert run.summary["test"]["loss"] == pytest.approx(EVALUATION["loss"], rel=1e-5)


def test_a_later_format_is_refused_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "update_00000002"
    shutil.copytree(FIXTURES / "format_2" / path.name, path)
    (path / "state.json").write_text(json.dumps(read_json(path / "state.json") | {"format": 3, "new": 1}))
    rehash(path)
    for words in (["evaluate", path], ["predict", path], ["export", path, tmp_path / "model.onnx"]):
        result = command(capsys, *words)
        assert (result.code, result.out) == (2, "")
        assert result.err == (
            f"vit-dist: {path / 'state.json'}: format 3, and this version of vit_dist reads formats up to 2: use the "
            "version that wrote it\n"
        )
