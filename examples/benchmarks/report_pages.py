"""The pages of saved runs in a real browser: how soon they are shown, what they fetch and complain of, and what axe-core finds serious.

    python examples/benchmarks/report_pages.py RUN ... [--shots FOLDER]

RUN is a folder that `forensics audit` wrote, as `organisms.py --out` leaves them; its page is written anew. Each is opened in Debian's chromium at phone and laptop width, light and
dark, and on paper, and a screenshot of the first screen is kept where --shots says. Last comes a page of 2,000 prompts that the first run's is blown up to.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.sync_api import sync_playwright

from forensics.runfolder import SavedRun, load_run
from reports.html import render

SIZES = {"phone": (390, 844), "laptop": (1366, 768), "paper": (794, 1123)}
SERIOUS = ("serious", "critical")
MANY = 2000
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
Row = tuple[list[float], int, int, set[str], bool]


def looked_at(browser: Any, page: Path, shots: Path | None) -> Row:
    """Milliseconds until it is loaded, what it fetched besides itself, what it complained of, serious rules it breaks, and whether it is wider than a screen."""
    times, fetched, complaints, broken, wide = [], 0, 0, set[str](), False
    for name, (width, height) in SIZES.items():
        for scheme in ("light",) if name == "paper" else ("light", "dark"):
            # The page forbids scripts, axe-core's too: its policy is set aside for the look alone.
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
            tab = context.new_page()
            asked: list[str] = []
            said: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.emulate_media(media="print" if name == "paper" else "screen")
            begun = time.perf_counter()
            tab.goto(page.as_uri())
            times.append(1000 * (time.perf_counter() - begun))
            if shots:
                tab.screenshot(path=str(shots / f"{page.stem}-{name}-{scheme}.png"))
            wide |= bool(tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
            fetched, complaints = fetched + len(asked) - 1, complaints + len(said)
            tab.evaluate(AXE)
            found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            broken |= {one["id"] for one in found if one["impact"] in SERIOUS}
            context.close()
    return times, fetched, complaints, broken, wide


def blown_up(saved: SavedRun) -> SavedRun:
    """The run with `MANY` prompts: its own, again and again under other ids."""
    prompts = list(saved.prompts.values())
    more = {
        f"{prompt.id}/{place}": replace(prompt, id=f"{prompt.id}/{place}")
        for place in range(1 + MANY // len(prompts))
        for prompt in prompts
    }
    kept = dict(list(more.items())[:MANY])
    items = [item.model_copy(update={"id": f"{item.id}/{place}"}) for place in range(1 + MANY // len(prompts)) for item in saved.items]
    return replace(saved, prompts=kept, items=tuple(item for item in items if item.id in kept))


def main() -> None:
    """Print a line a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--shots", type=Path)
    options = parser.parse_args()
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    print(
        "| page | action | KiB | ms until loaded, median (most) | fetched besides | console messages | serious violations | wider than the screen |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        saved = [(run.name, load_run(str(run))) for run in options.runs]
        for name, run in [*saved, (f"{saved[0][0]}, {MANY} prompts", blown_up(saved[0][1]))]:
            page = Path(folder) / f"{name.replace(', ', '-').replace(' ', '-')}.html"
            page.write_bytes(render(run).encode("utf-8", "replace"))
            times, fetched, complaints, broken, wide = looked_at(browser, page, options.shots)
            print(
                f"| {name} | {run.record.verdict.action} | {page.stat().st_size / 1024:.0f} | {statistics.median(times):.0f} ({max(times):.0f}) | {fetched} | {complaints} "
                f"| {', '.join(sorted(broken)) or 'none'} | {'yes' if wide else 'no'} |",
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main()
