"""Print to the terminal: notes, tables, one progress line. Silent on ranks other than 0."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, track
from rich.table import Column

from vit_dist.errors import one_line, visible_lines
from vit_dist.formatting import duration, loss_text, weights_text
from vit_dist.plan.plan import Plan

Item = TypeVar("Item")

# Terminal columns that the whole progress line needs, without and with a bar.
_FULL_WIDTH, _WIDTH_WITH_BAR = 110, 130


class Console:
    """The terminal of a run: a live progress line on a terminal, plain lines elsewhere."""

    def __init__(
        self, *, speaks: bool, stream: TextIO | None = None, level: str = "info", may_fail: bool = False
    ) -> None:
        """speaks: False prints nothing. stream: standard output by default. level: warning prints notes alone.

        may_fail: go on if nothing can be printed, as a run does, whose results are in its folder.
        """
        self.speaks = speaks
        self.stream = stream
        self.level = level
        self.may_fail = may_fail
        self.copy: Callable[[str], None] = lambda text: None  # gets each line too
        self.lost: str | None = None  # what is wrong, once something could not be printed
        self._live: Progress | None = None
        self._task: Any = None

    def note(self, text: str) -> None:
        """Print a line that the user should see at every level."""
        self._print(text)

    def say(self, text: str) -> None:
        """Print a line, above the progress line if there is one; not at the warning level."""
        if self.level != "warning":
            self._print(text)

    def _print(self, text: str) -> None:
        if not self.speaks:
            return
        text = visible_lines(text)
        self.copy(text)
        live = self._live
        if live is not None:
            self._try(lambda: live.console.print(text, markup=False, highlight=False, soft_wrap=True))
        else:
            self._try(lambda: print(text, file=self.stream, flush=True))

    def _try(self, show: Callable[[], None]) -> None:
        """Show something, if that works: whoever reads the output may have gone, or its disk may be full."""
        try:
            show()
        except (OSError, ValueError) as error:
            if not self.may_fail:
                raise
            reason = error.strerror if isinstance(error, OSError) else None
            self.lost = f"console: cannot be written: {reason or one_line(error)}"
            self.speaks = not isinstance(error, BrokenPipeError)  # nobody comes back to a pipe

    def table(self, rows: Mapping[str, str]) -> None:
        """Print names and values, aligned."""
        width = max(map(len, rows))
        for name, value in rows.items():
            self.say(f"  {name:<{width}}  {value}")

    def counted(self, items: Iterable[Item], count: int) -> Iterable[Item]:
        """Return the items, counted by a progress line on standard error if only that is a terminal."""
        if not self.speaks or not sys.stderr.isatty() or sys.stdout.isatty():
            return items
        return track(items, "", count, console=RichConsole(stderr=True), transient=True)

    def start(self, plan: Plan, position: int) -> None:
        """Show the progress line, on a terminal."""
        if not self.speaks or self.level == "warning" or not sys.stdout or not sys.stdout.isatty():
            return
        self._live = Progress(TextColumn("{task.description}", table_column=Column(no_wrap=True)), transient=True)
        if self._live.console.width >= _WIDTH_WITH_BAR:
            self._live.columns = (BarColumn(16), *self._live.columns)
        self._task = self._live.add_task("", total=plan.updates, completed=position)
        self._try(self._live.start)

    def progress(self, plan: Plan, line: Mapping[str, Any]) -> None:
        """Show a `train` line of the metrics."""
        left = (plan.updates - line["update"]) * line["update_seconds"]
        text = (
            f"update {line['update']}/{plan.updates}  epoch {line['epoch']:.2f}  loss {loss_text(line['loss'])}  "
            f"lr {line['lr']:.1e}  {line['samples_per_second']:,.0f} images/s  "
            f"data wait {line['data_wait_fraction']:.0%}  {duration(left)} left"
        )
        if self._live is None:
            self.say(text)
            return
        self.copy(text)
        if self._live.console.width < _FULL_WIDTH:
            text = text.removeprefix("update ").replace("images/s", "img/s").replace("data wait", "wait")
        self._live.update(self._task, completed=line["update"], description=text)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Print an `eval` line of the metrics."""
        fifth = f"  top5 {line['top5']:.2f} %" if line["top5"] is not None else ""
        bad = f", {line['bad']} left out," if line.get("bad") else ""
        self.say(
            f"{line['split']}, {weights_text(line['weights'])} of update {line['weights_update']}: "
            f"loss {loss_text(line['loss'])}  top1 {line['top1']:.2f} %{fifth}  "
            f"of {line['seen']} images{bad} in {line['seconds']:.1f} s" + ("  best so far" if line["best"] else "")
        )

    def stop(self) -> None:
        """Remove the progress line."""
        if self._live is not None:
            self._try(self._live.stop)
            self._live = None
