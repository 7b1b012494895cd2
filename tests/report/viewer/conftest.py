"""A browser, pages that complain about nothing, and runs to look at."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, Request

THREE = (
    "run",
    "coco",
    "okvqa",
    "hateful-memes",
    "--shots",
    "0,4",
    "--seeds",
    "42,43",
    "--num-samples",
    "40",
    "--device",
    "cpu",
)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three benchmarks by the demo's own checkpoint."""
    return _run(tmp_path_factory.mktemp("demo") / "demo-run")


@pytest.fixture(scope="session")
def scripted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by a model that repeats the last demonstration; nothing is imported for it."""
    return _run(tmp_path_factory.mktemp("scripted") / "scripted-run", "--checkpoint", "scripted", "--data-root", "demo")


def _run(out: Path, *more: str) -> Path:
    done = subprocess.run([sys.executable, "-m", "flamingo_eval", *THREE, *more, "--out", str(out)], capture_output=True,
                          text=True, check=False, cwd=out.parent)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must end without an error, a warning, or a dialog."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    one = context.new_page()
    one.set_default_timeout(20_000)
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def opened(dialog: Dialog) -> None:
        complaints.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def asked(request: Request) -> None:
        if not re.match(r"http://127\.0\.0\.1:|file://|blob:|about:", request.url):
            complaints.append(f"a request: {request.url}")

    one.on("console", heard)
    one.on("pageerror", lambda error: complaints.append(str(error)))
    one.on("dialog", opened)
    one.on("request", asked)
    yield one
    context.close()
    assert complaints == []
