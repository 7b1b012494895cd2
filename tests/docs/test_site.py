"""The site: it builds strictly, its links lead somewhere, it loads nothing from elsewhere, and its commands run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flamingo_eval
from flamingo_eval.cli.main import _command
from flamingo_eval.core import errors
from tests.docs.site_pages import (
    Block,
    Built,
    dead_links,
    loaded_from_elsewhere,
    neither_run_nor_marked,
    read_page,
    read_site,
)
from tests.support.serving import serve
from tests.support.viewing import Proxy

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
CONFIG = "docs/site/mkdocs.yml"
OWN_PAGES = sorted(
    path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")
)
PAGES = [*OWN_PAGES, "readme.html", "contributing.html", "demo.html"]
"""Those whose commands are run."""
SAMPLE = ("tutorials/server.html", "tutorials/ci-gate.html")
"""Those of them that every run of the tests takes."""
KINDS = ("index", "tutorials/first-curve", "comparing", "options", "reference/commands", "reference/python",
         "reference/files", "reference/exit-codes", "contributing", "demo", "runs", "readme")  # fmt: skip


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """The site of a checkout."""
    pytest.importorskip("mkdocs", reason="the site needs mkdocs-material (the extra docs)")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(root / CONFIG)]
    return subprocess.run([*command, "--site-dir", str(target)], capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    target = tmp_path_factory.mktemp("site") / "built"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Built]:
    """Its pages."""
    return read_site(site)


@pytest.mark.slow
def test_links_lead_somewhere(site: Path, pages: dict[str, Built]) -> None:
    assert len(pages) > len(OWN_PAGES)
    assert dead_links(site, pages) == []


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Built]) -> None:
    assert loaded_from_elsewhere(site, pages) == []


@pytest.mark.slow
def test_commands_are_run_or_marked(pages: dict[str, Built]) -> None:
    assert neither_run_nor_marked(pages, PAGES) == []


@pytest.mark.slow
def test_links_out_of_the_folder_become_pages(pages: dict[str, Built]) -> None:
    assert "demo.html" in pages["demo-chat.html"].links
    assert "demo-chat.html" in pages["demo.html"].links
    assert "contributing.html" in pages["index.html"].links


@pytest.mark.slow
def test_the_reference_has_everything(pages: dict[str, Built], site: Path) -> None:
    def names(command: Any, way: str) -> list[str]:
        inner = [(name, one) for name, one in getattr(command, "commands", {}).items() if not one.hidden]
        return [found for name, one in inner for found in names(one, f"{way}-{name}")] if inner else [way]

    assert {*names(_command(), "flamingo-eval")} <= pages["reference/commands.html"].anchors
    assert {name.lower() for name in flamingo_eval.__all__} <= pages["reference/python.html"].anchors
    text = (site / "reference/exit-codes.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in text for name in vars(errors) if name.endswith("Error") and name[0] != "F")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.pages) for name in PAGES]
)
def test_its_commands_run(name: str, pages: dict[str, Built], tmp_path: Path) -> None:
    """One folder for a page: later blocks use what earlier ones made."""
    if not any(runnable(block) for block in pages[name].blocks):
        pytest.skip("it has no block that is run")
    carry_out(pages[name], tmp_path)


def runnable(block: Block) -> bool:
    """Whether it is run, or written as a file."""
    return not block.marks and bool(block.title or block.is_script or block.language == "python")


def carry_out(page: Built, folder: Path) -> None:
    """What a page's reader does: titled blocks are files, the others programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    for block in filter(runnable, page.blocks):
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
            continue
        python = block.language == "python"
        command = [sys.executable, "-c", block.text] if python else ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL, timeout=900)  # fmt: skip
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site, served."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=site))
    serve(server)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_it_fits_the_window(address: str, browser: Browser, proxy: Proxy) -> None:
    """Wide and narrow: tables and code scroll within themselves, pages do not. No browser asks another host."""
    before = len(proxy.hosts)
    wide: list[str] = []
    complaints: list[str] = []
    asked: list[str] = []
    for width in (1400, 400):
        with closing(browser.new_page(viewport={"width": width, "height": 900})) as page:
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.on("requestfailed", lambda request: complaints.append(request.url))
            for kind in KINDS:
                page.goto(f"{address}/{kind}.html", wait_until="networkidle")
                needed = page.evaluate("() => document.scrollingElement.scrollWidth - innerWidth")
                wide += [f"{kind} at {width}: {needed} pixels too wide"] if needed > 0 else []
    with closing(browser.new_page(viewport={"width": 1400, "height": 900})) as page:
        page.goto(address, wait_until="networkidle")
        page.locator("input.md-search__input").click()
        page.keyboard.type("baseline")
        page.wait_for_function("() => document.querySelectorAll('.md-search-result__item').length > 2")
    assert wide == []
    assert complaints == []
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert [host for host in proxy.hosts[before:] if not host.startswith("127.0.0.1")] == []


@pytest.mark.slow
def test_dead_links_stop_the_build(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "build") and not entry.name.startswith("."):
            (copy / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", copy / "docs")
    with (copy / "docs/speed.md").open("a", encoding="utf-8") as file:
        file.write("\n[page](nowhere.md), [anchor](data.md#nowhere), [file](../nowhere.py)\n")
    (copy / "docs/options.md").write_text("# Options\n", encoding="utf-8")
    done = build(copy, tmp_path / "built")
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for planted in (
        "'nowhere.md'",
        "'data.md#nowhere'",
        "'../nowhere.py'",
        "docs/options.md is not what the code says",
    ):
        assert any(planted in line for line in warnings), (planted, warnings)
    assert len(warnings) == 4, warnings


PLANTED = """
<h2 id="here">x</h2> <a href="#here"></a> <a href="#gone"></a> <a href="gone.html"></a> <a href="https://example.org"></a>
<script src="https://cdn.example.org/x.js"></script> <img src="//example.org/x.png"> <link rel="canonical" href="https://a">
<div class="language-sh needs-data highlight"><pre><span></span><code>flamingo-eval <span>coco</span> --data-root /data
</code></pre></div>
<div class="language-yaml highlight"><pre><code>  - run: flamingo-eval check
</code></pre></div>
<div class="language-text highlight"><pre><code>A=1 flamingo-eval list &lt; /dev/null; touch done
</code></pre></div>
<div class="language-sh highlight"><span class="filename">a/b.txt</span><pre><code>no program
</code></pre></div>
<p><code>flamingo-eval view</code></p>
"""


@pytest.mark.slow
def test_that_the_tests_would_see_it(tmp_path: Path) -> None:
    page = read_page(PLANTED)
    (tmp_path / "page.html").write_text(PLANTED, encoding="utf-8")
    assert dead_links(tmp_path, {"page.html": page}) == ["page.html: #gone", "page.html: gone.html"]
    assert [one.rpartition("/")[2] for one in loaded_from_elsewhere(tmp_path, {"page.html": page})] == ["x.js", "x.png"]
    assert neither_run_nor_marked({"page.html": page}, ["page.html"]) == ["page.html: yaml: - run: flamingo-eval check"]
    assert len(neither_run_nor_marked({"page.html": page}, [])) == 2
    assert [runnable(block) for block in page.blocks] == [False, False, True, True]
    carry_out(page, tmp_path)
    assert (tmp_path / "done").is_file()
    assert (tmp_path / "a/b.txt").read_text() == "no program\n"
    with pytest.raises(AssertionError, match="no such"):
        carry_out(Built(blocks=[Block("sh", text="echo no such; flamingo-eval no-such-command | cat")]), tmp_path)
