"""Print to the terminal: notes, tables, rows and one live line. Silent on ranks other than 0."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TextIO, TypeVar

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress import track
from rich.text import Text

from vit_dist.errors import one_line, visible_lines
from vit_dist.formatting import duration, loss_text, weights_text
from vit_dist.plan.plan import Plan
from vit_dist.run_folder.pair_figures import figures_text, is_of_pairs
from vit_dist.telemetry.rows import Rows, aligned_row, heading, labelled_row, waiting_text

Item = TypeVar("Item")

_ROWS_PER_HEADING = 20
_BAR = 16
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Console:
    """The output of a run: on a terminal a live line and colours, plain lines elsewhere."""

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
        self._live: Live | None = None
        self._phases: list[tuple[str, float]] = []  # before the first update, with when they began
        self._phase: tuple[str, float] | None = None  # what is going on now, in place of updates
        self._rows: Rows | None = None
        self._position = 0
        self._last: Mapping[str, Any] | None = None  # `train` line
        self._since_heading = _ROWS_PER_HEADING

    @property
    def on_terminal(self) -> bool:
        """Return whether the output is a terminal that can show colours and a live line."""
        stream = self.stream or sys.stdout
        return bool(stream) and stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

    def __enter__(self) -> Self:
        """Return it; at the end of the block the live line is removed."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the live line."""
        self.stop()

    def note(self, text: str) -> None:
        """Print a line that the user should see at every level."""
        self._print(text, "yellow")

    def say(self, text: str, style: str = "") -> None:
        """Print a line, above the live line if there is one; not at the warning level. style: its colour."""
        if self.level != "warning":
            self._print(text, style)

    def _print(self, text: str, style: str = "", first: int = 0) -> None:
        """Print a text. first: the style is that of so many characters at its start; 0: of all."""
        if not self.speaks:
            return
        text = visible_lines(text)
        self.copy(text)
        if not self.on_terminal:
            self._try(lambda: print(text, file=self.stream, flush=True))
            return
        shown = Text(text)
        shown.stylize(style, 0, first or None)
        console = self._live.console if self._live else RichConsole(file=self.stream)
        self._try(lambda: console.print(shown, soft_wrap=True))

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
            if self.level != "warning":
                self._print(f"  {name:<{width}}  {value}", "bold", first=width + 2)

    def counted(self, items: Iterable[Item], count: int, *, printed: bool) -> Iterable[Item]:
        """Return the items, counted by a progress line on standard error if that is a terminal.

        printed: what is made of them goes to standard output, with which a line on the same terminal would be mixed:
        then only if that is a file.
        """
        if not self.speaks or not sys.stderr.isatty() or (printed and not _is_file(sys.stdout)):
            return items
        return track(items, "", count, console=RichConsole(stderr=True), transient=True)

    def phase(self, name: str) -> None:
        """Show what begins now, and for how long it has been going on, until the next phase, update or `stop`."""
        self._phase = name, time.monotonic()
        if self._rows is None:
            self._phases.append(self._phase)
        self._show_live()

    def _show_live(self) -> None:
        if self._live is None and self.speaks and self.level != "warning" and self.on_terminal:
            self._live = Live(
                console=RichConsole(file=self.stream),
                get_renderable=self._render,
                transient=True,
                refresh_per_second=5,
                redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),  # else what goes there is another's
                redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),
            )
            live = self._live
            self._try(lambda: live.start(refresh=True))

    def start(self, plan: Plan, position: int, images: Mapping[str, int], *, ema: bool) -> None:
        """Begin to show updates. images: split → its number of images. ema: there are two sets of weights."""
        self.phase("warming up")
        self._rows = Rows(plan, position, images, ema=ema)
        self._position = position

    def tick(self, position: int) -> None:
        """Show the update that has been made; the first one prints what its start took. Waits for nothing."""
        self._position = position
        if self._phases:
            begins = [begin for _, begin in self._phases]
            lengths = [later - begin for begin, later in zip(begins, [*begins[1:], time.monotonic()], strict=True)]
            parts = ", ".join(
                f"{name} {duration(length)}" for (name, _), length in zip(self._phases, lengths, strict=True)
            )
            self._phases = []
            self.say(f"first update after {duration(sum(lengths))}: {parts}", "dim")
        self._phase = None

    def progress(self, plan: Plan, line: Mapping[str, Any]) -> None:
        """Show a `train` line of the metrics."""
        rows = self._rows = self._rows or Rows(plan, line["update"], {}, ema=False)
        rows.add_train(line)
        self._last = line
        text = "  ".join(rows.train_text(line))
        if self._live is None:
            self.say(text)
        else:
            self.copy(text)
        if rows.row_is_due_without_val(line["update"]):
            self._show_row(line["update"])

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Take an `eval` line of the metrics, and print it unless it is of val, which `evaluated` prints."""
        if self._rows is not None:
            self._rows.add_evaluation(line)
        if line.get("bad"):
            self.say(f"{line['split']}: {line['bad']} images could not be read and are left out", "yellow")
        if line["split"] == "val" and self._rows is not None:
            return
        if is_of_pairs(line):
            found = f"{figures_text(line)}; loss {loss_text(line['loss'])}"
        else:
            fifth = f"  top5 {line['top5']:.2f} %" if line["top5"] is not None else ""
            found = f"top1 {line['top1']:.2f} %  loss {loss_text(line['loss'])}{fifth}"
        self.say(
            f"{line['split']}, {weights_text(line['weights'])} of update {line['weights_update']}: {found}  "
            f"of {line['seen']:,} images  evaluation {duration(line['seconds'])}"
        )

    def evaluated(self, position: int) -> None:
        """Print the row of an evaluation of val, once its lines are in."""
        self._phase = None
        self._show_row(position)

    def _show_row(self, position: int) -> None:
        cells = self._rows.row(position) if self._rows is not None else None
        if cells is None:
            return
        style = "bold green" if cells[-1][1] == "best" else ""
        if not self.on_terminal:
            self.say(labelled_row(cells))
            return
        if self._since_heading >= _ROWS_PER_HEADING:
            self._since_heading = 0
            self.say(heading(cells), "bold")
        self._since_heading += 1
        self.say(aligned_row(cells), style)

    def _render(self) -> Text:
        """Return the live line of this moment."""
        width = self._live.console.width if self._live else 80
        if self._phase is not None:
            name, begin = self._phase
            spinner = _SPINNER[int(time.monotonic() * 5) % len(_SPINNER)]
            parts = [f"{spinner} {name}", f"{time.monotonic() - begin:.0f} s"]
            if self._rows is not None and self._position:
                parts += [self._rows.where(self._position)[0], self._rows.left_text(self._position)]
            return _fitting(parts, width)
        rows, position = self._rows, self._position
        if rows is None:
            return Text("")
        parts = rows.where(position)
        if self._last is not None:
            parts += [rows.left_text(position), f"loss {loss_text(self._last['loss'])}"]
            parts += [f"{self._last['samples_per_second']:,.0f} images/s", f"lr {self._last['lr']:.1e}"]
            parts += waiting_text(self._last)
        done = round(_BAR * position / rows.plan.updates)
        bar = ("━" * done, "green"), ("━" * (_BAR - done), "dim")
        return Text.assemble(*bar, "  ", _fitting(parts, width - _BAR - 2), no_wrap=True, overflow="ellipsis")

    def stop(self) -> None:
        """Remove the live line."""
        self._phase = self._rows = None
        if self._live is not None:
            live, self._live = self._live, None
            self._try(live.stop)


def _fitting(parts: list[str], width: int) -> Text:
    """Return as many of the parts as fit on a line, at least the first."""
    shown = parts[0]
    for part in filter(None, parts[1:]):
        if len(shown) + 2 + len(part) < width:
            shown += f"  {part}"
    return Text(shown, no_wrap=True, overflow="ellipsis")


def _is_file(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False
