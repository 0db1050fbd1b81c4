"""Free memory, of the machine and of a container."""

from __future__ import annotations

from pathlib import Path

from vit_dist.runtime.free_memory import free_memory


def test_the_smaller_of_machine_and_container_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\nHugePages_Total:  0\n")
    assert free_memory(tmp_path) == 5000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1500000\n")
    (group / "memory.stat").write_text("anon 1000000\ninactive_file 300000\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 5000 * 1024
    (group / "memory.max").write_text("2000000\n")
    assert free_memory(tmp_path) == 800_000
    (group / "memory.max").write_text("1000000\n")
    assert free_memory(tmp_path) == 0
