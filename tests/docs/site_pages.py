"""What the built pages of the site hold: anchors, links, what they load, and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

MARKS = frozenset(("needs-gpu", "needs-weights", "needs-cluster", "needs-server", "needs-data", "not-run"))
"""Classes of a block that is not run: what it needs, or just that."""
SHELL = ("sh", "bash", "shell")
COMMAND = re.compile(r"^[\s$-]*(?:run:\s*)?(?:\w+=\S*\s+)*(?:srun\s+)?flamingo-eval\s", re.MULTILINE)
_LOADING = ("stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest", "import")


@dataclass
class Block:
    """A block of code.

    Attributes:
        language: as its fence has it; text without one.
        marks: those of :data:`MARKS` that it has.
        title: of a block that is a file: its name.
        text: the code.
    """

    language: str = "text"
    marks: frozenset[str] = frozenset()
    title: str = ""
    text: str = ""

    @property
    def has_command(self) -> bool:
        """Whether a line of it calls the command."""
        return COMMAND.search(self.text) is not None

    @property
    def is_script(self) -> bool:
        """Whether it is one for the shell: one without a language is, if it calls the command."""
        return self.language in SHELL or (self.language == "text" and self.has_command)


@dataclass
class Built:
    """A built page."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Built()
        self._depth = 0  # of elements inside the block that is being read
        self._text: list[str] | None = None
        self._title: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = given.get("class", "").split()
        page = self.page
        page.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            page.links.append(given["href"])
        elif tag == "link" and set(given.get("rel", "").split()) & {*_LOADING}:
            page.loads.append(given.get("href", ""))
        elif "src" in given:
            page.loads.append(given["src"])
        page.loads += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]
        if tag == "div" and "highlight" in classes:
            language = next((one.removeprefix("language-") for one in classes if one.startswith("language-")), "text")
            page.blocks.append(Block(language, frozenset(classes) & MARKS))
        elif tag == "span" and "filename" in classes:
            self._title = []
        elif tag == "code" and page.blocks and self.get_starttag_text() and self._in_pre:
            self._text = []
        self._in_pre = tag == "pre" or (self._in_pre and tag in ("span", "a", "code"))

    _in_pre = False

    def handle_endtag(self, tag: str) -> None:
        if tag == "code" and self._text is not None:
            self.page.blocks[-1].text = "".join(self._text)
            self._text = None
        elif tag == "span" and self._title is not None:
            self.page.blocks[-1].title = "".join(self._title).strip()
            self._title = None
        elif tag == "pre":
            self._in_pre = False

    def handle_data(self, data: str) -> None:
        for texts in (self._text, self._title):
            if texts is not None:
                texts.append(data)


def read_page(html: str) -> Built:
    """What a page's HTML holds."""
    reader = _Reader()
    reader.feed(html)
    return reader.page


def read_site(folder: Path) -> dict[str, Built]:
    """Every page of a built site, by its path."""
    pages = sorted(folder.rglob("*.html"))
    return {path.relative_to(folder).as_posix(): read_page(path.read_text(encoding="utf-8")) for path in pages}


def dead_links(folder: Path, pages: dict[str, Built]) -> list[str]:
    """Links within the site, and what pages load, that lead nowhere; anchors that are not there."""
    found = []
    for name, page in pages.items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = unquote(parts.path)
            base = folder if path.startswith("/") else (folder / name).parent
            file = (base / path.lstrip("/")).resolve() if path else folder / name
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(f"{name}: {target}")
            elif parts.fragment and file.suffix == ".html":
                there = pages[file.relative_to(folder.resolve()).as_posix() if path else name]
                if unquote(parts.fragment) not in there.anchors:
                    found.append(f"{name}: {target}")
    return found


def loaded_from_elsewhere(folder: Path, pages: dict[str, Built]) -> list[str]:
    """What pages and style sheets load from other hosts."""
    found = [f"{name}: {one}" for name, page in pages.items() for one in page.loads if urlsplit(one).netloc]
    for sheet in sorted(folder.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        addresses = re.findall(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')]+)", text)
        found += [f"{sheet.name}: {one}" for one in addresses]
    return found


def neither_run_nor_marked(pages: dict[str, Built], run: Collection[str]) -> list[str]:
    """Commands without a mark in blocks that are no script (a workflow's file, output), or on pages that are not run."""
    return [
        f"{name}: {block.language}: {block.text.strip().splitlines()[0]}"
        for name, page in pages.items()
        for block in page.blocks
        if block.has_command and not block.marks and not (block.is_script and name in run)
    ]
