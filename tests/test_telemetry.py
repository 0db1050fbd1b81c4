"""Telemetry: the journal and its reader, meters by hand, peaks, and W&B offline for real."""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_dist.config import BatchConfig, Config, LogConfig, RunConfig, ScheduleConfig, TrainConfig
from vit_dist.journal import Journal, finite, place, read_json, read_metrics, write_json
from vit_dist.plan import Plan
from vit_dist.runtime import Runtime
from vit_dist.telemetry import Clock, Meter, matmul_flops, peak_flops
from vit_dist.trackers import Trackers, chosen_trackers, wandb_mode

NOT_LOGGED_IN = "wandb: not logged in, so metrics stay in this folder; `wandb login` sends them along"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime(RunConfig(device="cpu", threads=1), "fp32")
    yield runtime
    runtime.end()


def plan() -> Plan:
    """50 updates of 4, but for the last, which has 2; 30 samples an epoch."""
    config = Config(
        batch=BatchConfig(global_size=4, micro_size=4),
        schedule=ScheduleConfig(warmup="0 updates"),
        train=TrainConfig(duration="198 samples"),
    )
    return Plan.of(config, 30, 1)


def test_a_start_line_supersedes_what_lies_beyond_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, writes=True)
    for kind, update in (("start", 0), ("train", 10), ("train", 20), ("eval", 20), ("train", 30)):
        assert journal.write(kind, {"update": update})["kind"] == kind
    journal.close()
    again = Journal(path, writes=True)
    again.write("start", {"update": 20})
    again.write("train", {"update": 25})
    again.close()
    assert len(path.read_text().splitlines()) == 7
    kept = [("start", 0), ("train", 10), ("train", 20), ("eval", 20), ("start", 20), ("train", 25)]
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == kept
    third = Journal(path, writes=True)
    third.write("start", {"update": 0})
    third.close()
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == [("start", 0), ("start", 0)]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, writes=True)
    journal.write("start", {"update": 0})
    journal.write("train", {"update": 10, "loss": 1.5})
    journal.close()
    whole = path.read_text()
    for torn in ('{"kind": "train", "upda', "{", "\n"):
        path.write_text(whole + torn)
        assert [line["update"] for line in read_metrics(path)] == [0, 10]


def test_each_line_is_in_the_file_at_once_and_other_ranks_write_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, writes=True)
    line = journal.write("train", {"update": 1, "path": tmp_path})
    assert json.loads(path.read_text()) == {**line, "path": str(tmp_path)}
    with pytest.raises(ValueError):
        journal.write("train", {"update": 2, "loss": float("nan")})
    journal.close()
    silent = Journal(tmp_path / "other.jsonl", writes=False)
    assert silent.write("train", {"update": 3})["update"] == 3
    silent.close()
    assert not (tmp_path / "other.jsonl").exists()


def test_json_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "running"})
    before = path.stat().st_ino
    with pytest.raises(ValueError):
        write_json(path, {"state": float("inf")})
    assert read_json(path) == {"state": "running"}
    with path.open() as old:
        write_json(path, {"state": "finished", "update": 3})
        assert json.load(old) == {"state": "running"}
    assert read_json(path) == {"state": "finished", "update": 3}
    assert path.stat().st_ino != before
    assert [one.name for one in tmp_path.iterdir()] == ["status.json"]


def test_what_json_has_no_number_for_is_text() -> None:
    assert finite(-1.5) == -1.5
    assert [finite(value) for value in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200", "fp32", 67e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA GeForce RTX 4090", "fp16", 165e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA H2000", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peaks_are_the_data_sheets(device: str, precision: str, peak: float | None) -> None:
    assert peak_flops(device, precision) == peak


class Watch(Clock):
    """A clock that is set by hand."""

    now = 0.0

    @property
    def seconds(self) -> float:
        return self.now


def test_a_meters_numbers(runtime: Runtime) -> None:
    watch = Watch()
    meter = Meter(plan(), runtime, watch, flops=1000, matmul=1e6)
    assert meter.peak is None
    watch.now = 100.0
    meter.restart(10, 1.0)
    watch.now = 105.0
    line = meter.line(20, 2.5, (30.0, 10.0, 40.0), lr=0.25, grad_norm=3.0, skipped=2)
    assert line.pop("peak_memory_bytes") > 2**20
    assert line == {
        "update": 20,
        "epoch": pytest.approx(80 / 30, rel=1e-15),
        "samples": 80,
        "loss": 0.75,
        "top1": 25.0,
        "lr": 0.25,
        "grad_norm": 3.0,
        "samples_per_second": 8.0,
        "samples_per_second_per_device": 8.0,
        "update_seconds": 0.5,
        "data_wait_fraction": pytest.approx(0.3, rel=1e-15),
        "mfu": None,
        "matmul_fraction": pytest.approx(0.024, rel=1e-15),
        "skipped_updates": 2,
    }
    # The next line counts from that one, and the run's last update is short.
    meter.peak, runtime.world_size, watch.now = 1e5, 2, 108.0
    line = meter.line(50, 2.5, (math.nan, 0.0, 118.0), lr=0.0, grad_norm=math.inf, skipped=0)
    assert (line["update"], line["samples"], line["loss"], line["grad_norm"]) == (50, 198, "nan", "inf")
    assert line["samples_per_second"] == pytest.approx(118 / 3, rel=1e-15)
    assert line["samples_per_second_per_device"] == pytest.approx(118 / 6, rel=1e-15)
    assert line["mfu"] == pytest.approx(3 * 1000 * 118 / 6 / 1e5, rel=1e-15)
    assert (line["data_wait_fraction"], line["update_seconds"]) == (0.0, 0.1)


def test_place_in_the_run() -> None:
    assert place(plan(), 0) == {"update": 0, "epoch": 0.0, "samples": 0}
    assert place(plan(), 15) == {"update": 15, "epoch": 2.0, "samples": 60}
    assert place(plan(), 50) == {"update": 50, "epoch": 6.6, "samples": 198}


def test_the_clock_stands_still_while_paused(runtime: Runtime) -> None:
    clock = Clock(10.0)
    assert clock.seconds == 10.0
    clock.start()
    first = clock.seconds
    assert 10.0 < first < 20.0
    with clock.paused(runtime):
        paused = clock.seconds
        matmul = matmul_flops(runtime)
        assert clock.seconds == paused >= first
    assert clock.seconds > paused
    assert 1e8 < matmul < 1e13


@pytest.mark.parametrize(
    ("environ", "names", "reason"),
    [
        ({}, [], NOT_LOGGED_IN),
        ({"WANDB_API_KEY": "k"}, ["wandb"], None),
        ({"WANDB_MODE": "offline"}, ["wandb"], None),
        ({"WANDB_MODE": "online"}, [], NOT_LOGGED_IN),
        ({"WANDB_MODE": "disabled"}, [], None),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, [], None),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "k"}, [], None),
    ],
)
def test_auto_is_wandb_where_the_user_is_logged_in(
    environ: dict[str, str], names: list[str], reason: str | None, tmp_path: Path
) -> None:
    environ = {"NETRC": str(tmp_path / "none"), **environ}
    assert chosen_trackers("auto", environ) == (names, reason)
    assert chosen_trackers("none", environ) == ([], None)
    assert chosen_trackers("wandb", environ) == (["wandb"], None)


def test_a_login_in_netrc_counts_for_its_host(tmp_path: Path) -> None:
    path = tmp_path / "netrc"
    environ = {"NETRC": str(path)}
    path.write_text("machine api.wandb.ai login user password k\n")
    assert chosen_trackers("auto", environ) == (["wandb"], None)
    own = {**environ, "WANDB_BASE_URL": "https://wandb.example.com/"}
    assert chosen_trackers("auto", own) == ([], NOT_LOGGED_IN)
    path.write_text("machine wandb.example.com login user password k\n")
    assert chosen_trackers("auto", own) == (["wandb"], None)
    assert chosen_trackers("auto", environ) == ([], NOT_LOGGED_IN)
    path.write_text("machine {\n")
    assert chosen_trackers("auto", environ) == ([], NOT_LOGGED_IN)


def test_wandb_is_offline_where_its_server_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}/"}
        assert wandb_mode(url) == "online"
    assert wandb_mode(url) == "offline"
    assert wandb_mode({**url, "HTTPS_PROXY": "http://proxy"}) == "online"
    assert wandb_mode({**url, "WANDB_MODE": "disabled"}) == "disabled"


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, 32 KiB blocks, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_offline_gets_the_lines_numbers(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    config = Config(
        run=RunConfig(name="mine", dir=str(folder), device="cpu"),
        log=LogConfig(trackers="auto", project="digits", group="group", tags=("a", "b")),
    )
    said: list[str] = []
    trackers = Trackers(config, runtime, said.append)
    trackers.start(None)
    assert trackers.names == ["wandb"]
    trackers.log({"kind": "train", "time": 1.0, "update": 10, "loss": 1.5, "top1": None, "grad_norm": "nan"})
    evaluation = {"kind": "eval", "time": 2.0, "update": 20, "split": "val", "weights": "raw", "loss": 1.25}
    trackers.log(evaluation)
    trackers.end()
    assert trackers.names == []
    assert said == [f"wandb: offline; later: wandb sync {folder / 'wandb'}/offline-run-*"]
    assert trackers.run_id

    (path,) = folder.glob(f"wandb/offline-run-*/run-{trackers.run_id}.wandb")
    lines, settings, runs = [], {}, []
    for record in wandb_records(path):
        settings |= values_of(record.config.update) | values_of(record.run.config.update)
        if record.WhichOneof("record_type") == "run":
            runs.append((record.run.project, record.run.display_name, record.run.run_group, list(record.run.tags)))
        if record.WhichOneof("record_type") == "history":
            found = values_of(record.history.item)
            lines.append({name: value for name, value in found.items() if not name.startswith("_") or name == "_step"})
    assert lines == [{"_step": 10, "train/loss": 1.5}, {"_step": 20, "eval/val_raw_loss": 1.25}]
    assert runs[0] == ("digits", "mine", "group", ["a", "b"])
    assert (settings["optimizer.lr"], settings["train.duration"]) == (1e-3, "20 epochs")


def test_without_a_login_nothing_starts_and_one_line_says_so(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    said: list[str] = []
    trackers = Trackers(Config(run=RunConfig(dir=str(tmp_path))), runtime, said.append)
    trackers.start(None)
    trackers.log({"kind": "train", "update": 1, "loss": 1.0})
    trackers.end()
    assert (said, trackers.names, trackers.run_id) == ([NOT_LOGGED_IN], [], None)
    assert list(tmp_path.iterdir()) == []


def test_a_start_after_a_torn_line_still_supersedes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "time": 0, "update": update} for update in (5, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    journal = Journal(path, writes=True)
    journal.write("start", {"update": 5})
    journal.write("train", {"update": 6})
    journal.close()
    assert [(line["kind"], line["update"]) for line in read_metrics(path)] == [("train", 5), ("start", 5), ("train", 6)]
