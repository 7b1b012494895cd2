"""Makes the screenshots of docs/viewer.md again: ``python docs/make_images.py`` (needs Chromium, and the demo)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.viewing import need_chromium, viewing  # noqa: E402

RUN = ("run", "coco", "okvqa", "hateful-memes", "--shots", "0,4,8", "--num-samples", "100", "--device", "cpu")


def main() -> None:
    """Runs the demo, and saves screenshots of two of its pages."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)  # so that the page shows no path of this machine
        run = Path("demo-run")
        subprocess.run([sys.executable, "-m", "flamingo_eval", *RUN, "--out", str(run)], check=True)
        with viewing(run) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=need_chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 860})
            page.goto(address)
            page.wait_for_selector(".histograms svg")
            _save(page, "viewer-run.png")
            page.goto(f"{address}#/answers?benchmark=okvqa&shots=4&sort=score-down")
            page.locator("table.answers td.id a").first.click()
            page.locator(".explanation li").first.wait_for()
            page.wait_for_function("() => [...document.images].every((one) => one.complete)")
            _save(page, "viewer-answer.png")
            browser.close()


def _save(page: Page, name: str) -> None:
    page.evaluate("() => scrollTo(0, 0)")
    page.screenshot(path=ROOT / "docs/images" / name)


if __name__ == "__main__":
    main()
