"""The pages in a real browser: their numbers are rendered, nothing is fetched, nothing scrolls sideways, and dark is
dark."""

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

from tests.report.test_comparison import finished
from tests.report.test_page import one_run
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
    """(the page's document as it ends up, or nothing with --screenshot; what its console says)."""
    assert BROWSER is not None
    shutil.rmtree(scratch / "profile", ignore_errors=True)
    command = [BROWSER, *FLAGS, f"--user-data-dir={scratch / 'profile'}", *flags, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, check=True, stdin=subprocess.DEVNULL)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def requests(log: Path) -> list[str]:
    """The addresses that a page asked for by a net log; not those that the browser asks for of its own accord."""
    logged = json.loads(log.read_text(encoding="utf-8"))
    number = logged["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    found = [event.get("params", {}) for event in logged["events"] if event["type"] == number]
    return [params["url"] for params in found if params.get("initiator", "not an origin") != "not an origin"]


def seen(page: Path, scratch: Path) -> tuple[str, list[str], list[str]]:
    """(document, console, addresses on the network that were asked for)."""
    log = scratch / "net.json"
    document, console = browse(
        page, scratch, "--dump-dom", f"--log-net-log={log}", "--net-log-capture-mode=IncludeSensitive"
    )
    return document, console, requests(log)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return one_run(tmp_path_factory)


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a run, and it against one by hand of another rate."""
    folder = tmp_path_factory.mktemp("compared")
    other = finished(folder / "other", optimizer__lr=2e-3, test={"loss": 1.0, "top1": 43.21, "top5": 87.65})
    comparison, _ = write_comparison([run, other], folder / "comparison")
    return {"report": run / "report" / "index.html", "comparison": comparison}


@pytest.fixture(scope="module")
def measured(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each page is in frames as wide as a phone and a screen; a window itself is never that narrow."""
    scratch = tmp_path_factory.mktemp("frames")
    probe = """<script>addEventListener("load", () => {
      const root = document.documentElement, odd = [];
      for (const e of document.querySelectorAll("body *"))
        if (e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg")) odd.push(e.outerHTML);
      const charts = [...document.querySelectorAll("svg.chart")].map(e => e.getBoundingClientRect());
      parent.document.getElementById(window.name + " found").textContent = JSON.stringify({
        width: innerWidth, scrolled: root.scrollWidth, odd: odd.slice(0, 5).map(e => e.slice(0, 200)),
        text: document.body.innerText, broken: [...document.images].filter(e => !e.naturalWidth).length,
        charts: charts.map(e => [e.left, e.width, e.height])});
    })</script></body>"""
    frames = []
    for name, page in pages.items():
        inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", probe))
        for width in (PHONE, 1200):
            frames.append(
                f'<pre id="{name} {width} found"></pre><iframe name="{name} {width}" srcdoc="{inner}" '
                f'style="border: 0; width: {width}px; height: 900px"></iframe>'
            )
    outer = scratch / "frames.html"
    outer.write_text(f'<!doctype html><meta charset="utf-8">{"".join(frames)}', encoding="utf-8")
    document, _ = browse(outer, scratch, "--dump-dom", "--window-size=1400,1000")
    found = re.findall(r'<pre id="([^"]*) found">(.*?)</pre>', document, re.DOTALL)
    return {name: json.loads(html.unescape(text)) for name, text in found}


def test_the_report_shows_the_numbers_of_the_summary(run: Path, measured: dict[str, dict[str, Any]]) -> None:
    summary, text = read_json(run / "summary.json"), measured["report 1200"]["text"]
    test = summary["test"]
    for value in (
        *(f"{test['top1']:.2f} %\ntop1 on test", f"{test['top5']:.2f} %\ntop5 on test"),
        *(f"{loss_text(test['loss'])}\nloss on test", f"best loss on val, update {summary['best']['update']}\n"),
        *("60\nupdates", f"{summary['epochs']:.4g}\nepochs", f"{duration(summary['train_seconds'])}\ntraining"),
        *(f"{summary['samples_per_second']:,.0f}\nimages/s", f"{big(summary['parameters'])}\nparameters"),
        f"359 images by the EMA weights of update {summary['best']['update']}: {test['top1']:.2f} % correct",
    ):
        assert value in text, value
    assert measured["report 1200"]["broken"] == 0
    assert len(measured["report 1200"]["charts"]) == 8


def test_the_comparison_shows_both_runs(run: Path, measured: dict[str, dict[str, Any]]) -> None:
    text = measured["comparison 1200"]["text"]
    assert f"{read_json(run / 'summary.json')['test']['top1']:.2f}\t43.21\n" in text
    assert "optimizer.lr 0.001 → 0.002" in text
    assert len(measured["comparison 1200"]["charts"]) == 4


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_scrolls_sideways(name: str, measured: dict[str, dict[str, Any]]) -> None:
    for width in (PHONE, 1200):
        found = measured[f"{name} {width}"]
        assert found["odd"] == []
        assert found["width"] == width
        assert found["scrolled"] <= width
        for left, wide, high in found["charts"]:
            assert left >= 0
            assert wide > 250
            assert high > 80


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_nothing_is_fetched_and_the_console_is_quiet(name: str, pages: dict[str, Path], tmp_path: Path) -> None:
    document, console, asked = seen(pages[name], tmp_path)
    assert "</html>" in document
    assert console == []
    assert asked == []
    for reference in re.findall(r'\b(?:href|src|srcset)="([^"]*)"', document):
        assert reference.startswith(("data:", "#")), reference[:80]


def test_a_page_that_fetches_and_fails_is_found_out(pages: dict[str, Path], tmp_path: Path) -> None:
    """That the test above can fail."""
    text = pages["comparison"].read_text(encoding="utf-8")
    spoilt = '<img src="http://127.0.0.1:9/picture.png"><script>throw new Error("spoilt")</script></body>'
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", spoilt), encoding="utf-8")
    _, console, asked = seen(page, tmp_path)
    assert asked == ["http://127.0.0.1:9/picture.png"]
    assert any("spoilt" in line for line in console)


def test_dark_is_dark_and_light_is_light(pages: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{name}.png"
        flags = (f"--screenshot={shot}", "--window-size=1200,900", f"--blink-settings=preferredColorScheme={scheme}")
        browse(pages["report"], tmp_path, *flags)
        with Image.open(shot) as image:
            found[name] = image.convert("RGB")
    assert found["dark"].size == (1200, 900)
    assert [found[name].getpixel((3, 3)) for name in ("dark", "light")] == [(13, 17, 23), (255, 255, 255)]
    # In the dark nothing is as light as a sheet of paper but letters and lines.
    dark = found["dark"].convert("L").histogram()
    light = found["light"].convert("L").histogram()
    assert sum(dark[:60]) > 0.85 * sum(dark)
    assert sum(light[200:]) > 0.85 * sum(light)
