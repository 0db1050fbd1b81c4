"""The pages in a real browser: figures are shown, nothing is fetched, nothing scrolls sideways, dark is dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.report.runs import finished_run, reported_run
from vit_dist.files import read_json
from vit_dist.formatting import big, duration, loss_text
from vit_dist.report.comparison import write_comparison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
    *("--virtual-time-budget=3000", "--enable-logging=stderr", "--v=0"),
)
PHONE = 390

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed: chromium, google-chrome")


def browse(page: Path, scratch: Path, *flags: str) -> tuple[str, list[str]]:
    """Return the page's document after its scripts (empty with --screenshot) and the lines of its console."""
    assert BROWSER is not None
    shutil.rmtree(scratch / "profile", ignore_errors=True)
    command = [BROWSER, *FLAGS, f"--user-data-dir={scratch / 'profile'}", *flags, page.resolve().as_uri()]
    browser = subprocess.run(command, capture_output=True, text=True, timeout=80, check=True, stdin=subprocess.DEVNULL)
    return browser.stdout, [line for line in browser.stderr.splitlines() if "CONSOLE" in line]


def requested_addresses(log: Path) -> list[str]:
    """Return the addresses that a page requested, from a net log, without the browser's own requests."""
    logged = json.loads(log.read_text(encoding="utf-8"))
    number = logged["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event.get("params", {}) for event in logged["events"] if event["type"] == number]
    return [params["url"] for params in requests if params.get("initiator", "not an origin") != "not an origin"]


def open_page(page: Path, scratch: Path) -> tuple[str, list[str], list[str]]:
    """Return the page's document, the lines of its console and the network addresses that it requested."""
    log = scratch / "net.json"
    document, console = browse(
        page, scratch, "--dump-dom", f"--log-net-log={log}", "--net-log-capture-mode=IncludeSensitive"
    )
    return document, console, requested_addresses(log)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the pages of a run's report and of its comparison with a run by hand of another learning rate."""
    folder = tmp_path_factory.mktemp("compared")
    other = finished_run(folder / "other", optimizer__lr=2e-3, test={"loss": 1.0, "top1": 43.21, "top5": 87.65})
    comparison, _ = write_comparison([run, other], folder / "comparison")
    return {"report": run / "report" / "index.html", "comparison": comparison}


@pytest.fixture(scope="module")
def layouts(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the layout of each page in frames as wide as a phone and a screen.

    Frames, because no browser window is as narrow as a phone.
    """
    scratch = tmp_path_factory.mktemp("frames")
    probe = """<script>addEventListener("load", () => {
      const root = document.documentElement, overflowing = [];
      for (const e of document.querySelectorAll("details")) e.open = true;
      for (const e of document.querySelectorAll("body *"))
        if (e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg"))
          overflowing.push(e.outerHTML);
      const charts = [...document.querySelectorAll("svg.chart")].map(e => e.getBoundingClientRect());
      const runs = [...document.querySelectorAll(".scroll:has(table.runs)")];
      parent.document.getElementById(window.name + " layout").textContent = JSON.stringify({
        width: innerWidth, scrolled: root.scrollWidth, overflowing: overflowing.slice(0, 5).map(e => e.slice(0, 200)),
        text: document.body.innerText, broken: [...document.images].filter(e => !e.naturalWidth).length,
        cut: runs.some(e => e.scrollWidth > e.clientWidth),
        charts: charts.map(e => [e.left, e.width, e.height])});
    })</script></body>"""
    frames = []
    for name, page in pages.items():
        inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", probe))
        for width in (PHONE, 1200):
            frames.append(
                f'<pre id="{name} {width} layout"></pre><iframe name="{name} {width}" srcdoc="{inner}" '
                f'style="border: 0; width: {width}px; height: 900px"></iframe>'
            )
    outer = scratch / "frames.html"
    outer.write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}', encoding="utf-8")
    document, _ = browse(outer, scratch, "--dump-dom", "--window-size=1400,1000")
    layouts_as_json = re.findall(r'<pre id="([^"]*) layout">(.*?)</pre>', document, re.DOTALL)
    return {name: json.loads(html.unescape(text)) for name, text in layouts_as_json}


def test_the_report_shows_the_numbers_of_the_summary(run: Path, layouts: dict[str, dict[str, Any]]) -> None:
    summary, text = read_json(run / "summary.json"), layouts["report 1200"]["text"]
    test = summary["test"]
    for value in (
        *(f"accuracy on test\n{test['top1']:.2f} %\n±", f"loss on test\n{loss_text(test['loss'])}\n"),
        *(f"60 updates of 48 images = {summary['epochs']:.4g} epochs, in {duration(summary['train_seconds'])}",),
        *(f"{summary['samples_per_second']:,.0f} images/s", f"{big(summary['parameters'])} parameters"),
    ):
        assert value in text, value
    assert layouts["report 1200"]["broken"] == 0
    assert len(layouts["report 1200"]["charts"]) == 8


def test_the_comparison_shows_both_runs(run: Path, layouts: dict[str, dict[str, Any]]) -> None:
    text = layouts["comparison 1200"]["text"]
    assert f"\t{read_json(run / 'summary.json')['test']['top1']:.2f} % (" in text
    assert "\t43.21 %\t" in text
    assert re.search("\nrun\tdata\t.*\tlr\t", text)
    assert len(layouts["comparison 1200"]["charts"]) == 3
    assert not layouts["comparison 1200"]["cut"]


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_no_page_scrolls_sideways(name: str, layouts: dict[str, dict[str, Any]]) -> None:
    for width in (PHONE, 1200):
        layout = layouts[f"{name} {width}"]
        assert layout["overflowing"] == []
        assert layout["width"] == width
        assert layout["scrolled"] <= width
        for left, wide, high in layout["charts"]:
            assert left >= 0
            assert wide > 250
            assert high > 80


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_fetch_nothing_and_log_nothing_to_the_console(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    document, console, addresses = open_page(pages[name], tmp_path)
    assert "</html>" in document
    assert console == []
    assert addresses == []
    for reference in re.findall(r'\b(?:href|src|srcset)="([^"]*)"', document):
        assert reference.startswith(("data:", "#")), reference[:80]


def test_a_request_and_a_script_error_are_detected(pages: dict[str, Path], tmp_path: Path) -> None:
    """Check that the test above can fail."""
    text = pages["comparison"].read_text(encoding="utf-8")
    faults = '<img src="http://127.0.0.1:9/picture.png"><script>throw new Error("spoilt")</script></body>'
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", faults), encoding="utf-8")
    _, console, addresses = open_page(page, tmp_path)
    assert addresses == ["http://127.0.0.1:9/picture.png"]
    assert any("spoilt" in line for line in console)


def test_the_page_follows_the_preferred_colour_scheme(pages: dict[str, Path], tmp_path: Path) -> None:
    screenshots = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        path = tmp_path / f"{name}.png"
        flags = (f"--screenshot={path}", "--window-size=1200,900", f"--blink-settings=preferredColorScheme={scheme}")
        browse(pages["report"], tmp_path, *flags)
        with Image.open(path) as image:
            screenshots[name] = image.convert("RGB")
    assert screenshots["dark"].size == (1200, 900)
    assert [screenshots[name].getpixel((3, 3)) for name in ("dark", "light")] == [(13, 17, 23), (255, 255, 255)]
    # Only letters and lines stand out from the background.
    dark = screenshots["dark"].convert("L").histogram()
    light = screenshots["light"].convert("L").histogram()
    assert sum(dark[:60]) > 0.85 * sum(dark)
    assert sum(light[200:]) > 0.85 * sum(light)
