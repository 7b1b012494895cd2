"""Texts that would be programs, addresses, or wider than any page: shown as the texts that they are, everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.support.helpers import karpathy_image
from tests.support.viewing import viewing

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    "</script><script>alert(4)//",
    "javascript:alert(5)",
    "' onmouseover='alert(6)",
    "\u202egnp.exe\u202c\x1b[31m",
    "w" * 5000,
    "{{constructor.constructor('alert(7)')()}}",
    "__proto__",
    "\n\n\n" * 50 + "end",
)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose captions, answers, questions, names of files, checkpoint and folder are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    write_coco(folder / "data")
    write_memes(folder / "data")
    out = folder / "<b onclick=alert(8)>run"
    done = subprocess.run(
        [sys.executable, "-m", "flamingo_eval", "run", "coco", "hateful-memes", "--shots", "0,2", "--seeds", "42",
         "--checkpoint", "scripted", "--data-root", str(folder / "data"), "--out", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("run.json", "scores.json"):
        table = json.loads((out / name).read_text())
        table["checkpoint"]["name"] = HOSTILE[0]
        table["checkpoint"]["notes"] = list(HOSTILE)
        (out / name).write_text(json.dumps(table))
    table = json.loads((out / "scores.json").read_text())
    table["notes"] = list(HOSTILE)
    (out / "scores.json").write_text(json.dumps(table))
    return out


def write_coco(root: Path) -> None:
    images = []
    for number in range(24):
        image = karpathy_image(100 + number, "train" if number < 12 else "test")
        text = HOSTILE[number % len(HOSTILE)]
        image["sentences"] = [{"raw": text}, {"raw": "a plain caption"}]
        image["filename"] = f"COCO_{number}_" + text.replace("/", "_").replace("\n", "_")[:80] + ".png"
        path = root / "coco" / image["filepath"] / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 9, 80, 80)).save(path)
        images.append(image)
    (root / "coco/dataset_coco.json").write_text(json.dumps({"images": images}))


def write_memes(root: Path) -> None:
    folder = root / "hateful_memes"
    (folder / "img").mkdir(parents=True)
    for file, start in (("train.jsonl", 0), ("dev_seen.jsonl", 100)):
        lines = []
        for number, text in enumerate(HOSTILE):
            Image.new("RGB", (8, 8)).save(folder / f"img/{start + number}.png")
            lines.append(
                json.dumps(
                    {"id": start + number, "img": f"img/{start + number}.png", "label": number % 2, "text": text}
                )
            )
        (folder / file).write_text("\n".join(lines))


@pytest.fixture(scope="module", params=["server", "files"])
def where(request: pytest.FixtureRequest, hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "server":
        with viewing(hostile_run) as address:
            yield address
    else:
        folder = tmp_path_factory.mktemp("bundle") / "page"
        subprocess.run(
            [sys.executable, "-m", "flamingo_eval", "view", str(hostile_run), "--bundle", str(folder)],
            check=True,
            capture_output=True,
        )
        yield f"file://{folder}/index.html"


def look(page: Page) -> None:
    """Nothing wider than the window, nothing that the page did not make."""
    page.wait_for_timeout(100)
    wide, window = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= window
    found = page.evaluate("""() => ({
        scripts: document.scripts.length, frames: document.querySelectorAll("iframe, object, embed, base").length,
        handlers: [...document.querySelectorAll("*")].filter((one) => [...one.attributes].some((a) => a.name.startsWith("on"))).length,
        links: [...document.links].map((one) => one.href).filter((href) => !/^(http:..127|file:)/.test(href)),
        images: [...document.images].map((one) => one.getAttribute("src")).filter((src) => !/^images.[0-9a-f]+([.]png|[.]jpg)?$/.test(src)),
        inlined: document.querySelectorAll("b, script:not([src]), main svg:not([role])").length,
    })""")
    assert found == {"scripts": 10, "frames": 0, "handlers": 0, "links": [], "images": [], "inlined": 0}


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts(page: Page, where: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 850})
    page.goto(where)
    page.get_by_role("heading", name="Scores", exact=True).wait_for()
    assert HOSTILE[0] in page.locator(".about").inner_text()
    page.get_by_text("notes", exact=False).first.click()
    for text in HOSTILE[:6]:
        assert page.locator("main").get_by_text(text).count() >= 1, text
    look(page)
    page.goto(f"{where}#/answers?benchmark=coco&shots=2")
    page.wait_for_selector("table.answers tbody tr")
    body = page.locator("table.answers").inner_text()
    assert HOSTILE[0] in body
    assert "\\u202egnp.exe" in body
    assert "\\u001b[31m" in body
    look(page)
    count = page.locator("table.answers tbody tr").count()
    assert count == 12
    page.locator("table.answers td.id a").first.click()
    for _ in range(count):
        page.locator(".turns img").first.wait_for()
        page.wait_for_function("() => [...document.images].every((one) => one.complete && one.naturalWidth > 0)")
        page.locator(".explanation li").first.wait_for()
        for summary in page.locator("summary").all():
            summary.click()
        look(page)
        heading = page.locator("h1").inner_text()
        if page.locator('a[rel="next"]').count():
            page.keyboard.press("j")
            page.wait_for_function("(before) => document.querySelector('h1').innerText !== before", arg=heading)
    page.goto(f"{where}#/answers?benchmark=hateful_memes&text=onerror")
    page.wait_for_function("() => document.getElementById('count')?.innerText.includes('of 2 answers')")
    page.locator("table.answers td.id a").first.click()
    page.locator(".turns img").first.wait_for()
    assert HOSTILE[0] in page.locator(".turns").inner_text()
    look(page)
    page.goto(f"{where}#/answer/0/{'%3Cimg%20src%3Dx%3E'}/2/42/x/0")
    page.get_by_text("This run has no such answer").wait_for()
    look(page)
