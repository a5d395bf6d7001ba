"""Debian's chromium, driven by playwright, with axe-core at hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SERIOUS = ("serious", "critical")


class Tab:
    """A page that is shown, what it fetched and what the browser complained of."""

    def __init__(self, context: Any, url: str, media: str) -> None:
        self._context = context
        self._page = context.new_page()
        self.fetched: list[str] = []
        self.complaints: list[str] = []
        self._page.on("request", lambda request: self.fetched.append(request.url))
        self._page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self._page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self._page.emulate_media(media=media)
        self._page.goto(url)

    def violations(self) -> list[str]:
        """What axe-core finds that is serious, by rule and first element."""
        axe = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
        self._page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        found = self._page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in found if one["impact"] in SERIOUS]

    def wider_than_the_screen(self) -> bool:
        return bool(self._page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def on_the_first_screen(self, which: str) -> list[str]:
        """Texts of elements that are seen whole without scrolling."""
        code = "which => [...document.querySelectorAll(which)].filter(e => e.getBoundingClientRect().bottom <= innerHeight).map(e => e.innerText.trim())"
        return list(self._page.evaluate(code, which))

    def title(self) -> str:
        return str(self._page.title())

    def print_to(self, target: Path) -> None:
        self._page.pdf(path=str(target), format="A4")

    def close(self) -> None:
        self._context.close()


class Browser:
    """A browser that opens tabs, each with a profile of its own."""

    def __init__(self, driven: Any) -> None:
        self._driven = driven

    def open(self, url: str, *, width: int, height: int, scheme: str, media: str = "screen") -> Tab:
        # The page's own policy forbids every script, axe-core's too: it is set aside for the test alone.
        context = self._driven.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True)
        return Tab(context, url, media)


@contextmanager
def driven() -> Iterator[Any]:
    """Playwright's handle of a browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here to show the page")  # a program of Debian's: `.ci/run` installs it
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, which drives chromium here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that opens tabs which take note of what they fetch and complain of."""
    with driven() as opened:
        yield Browser(opened)
