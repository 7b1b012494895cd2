"""What the site adds to ``docs/``: pages from the code, pages from elsewhere in the repository, and links."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reference  # mkdocs puts the hook's folder on the path

from flamingo_eval.cli import options_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "examples/README.md": "examples.md",
    "flamingo_eval/demo/README.md": "demo.md",
    "flamingo_eval/demo/LOG.md": "demo-log.md",
    "tests/parity/README.md": "parity.md",
    "tests/speed/README.md": "speed-tests.md",
}
"""Files outside ``docs/`` -> the pages that they become."""
GENERATED = {
    "reference/commands.md": reference.commands,
    "reference/python.md": reference.python,
    "reference/files.md": reference.files,
    "reference/exit-codes.md": reference.exit_codes,
}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
"""Front matter of the README's page: search leaves it out, since other pages say the same in full."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+)[^\n]*\n.*?^(?P=indent)(?P=fence) *$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(
    r"(?P<code>(?P<ticks>`+)[^`].*?(?P=ticks))"  # code: what looks like a link in it is not one
    r"|(?P<start>!?\[(?P<text>(?:`[^`]*`|[^\[\]])*)\]\()(?P<target>[^)\s]+)(?P<end>(?:\s+\"[^\"]*\")?\))",
    re.DOTALL,
)
_MERMAID = re.compile(r"^```mermaid\n.*?^```\n", re.DOTALL | re.MULTILINE)
_log = logging.getLogger("mkdocs.hooks.site")  # mkdocs counts its warnings, and a strict build fails on one


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in ``docs/``."""
    from mkdocs.structure.files import File

    for source, page in ELSEWHERE.items():
        if (ROOT / source).is_file():
            text = (ROOT / source).read_text(encoding="utf-8")
            text = _MERMAID.sub("", text)  # the theme would load Mermaid from another site
            head = NOT_SEARCHED if source == "README.md" else ""
            files.append(File.generated(config, page, content=head + text))
    for page, write in GENERATED.items():
        files.append(File.generated(config, page, content=write()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's text, its links into the repository replaced by links of the site."""
    here = page.file.src_uri
    if here == "options.md":
        expected = options_page.reference()
        if markdown.strip() != expected.strip():
            _log.warning("docs/options.md is not what the code says: run `make docs`")
        markdown = expected
    if here in GENERATED:
        return markdown
    source = next((path for path, name in ELSEWHERE.items() if name == here), f"docs/{here}")
    return rewritten(markdown, source, here, lambda path: _publish(path, config, files))


def rewritten(markdown: str, source: str, page: str, publish: Any) -> str:
    """A text with its links into the repository replaced by links of the site.

    Args:
        markdown: the text.
        source: its file, relative to the repository.
        page: its page, relative to the site.
        publish: called with a file that is no page; returns its place in the site.
    """

    def link(found: re.Match[str]) -> str:
        if found["code"] or re.match(r"[a-z][a-z0-9+.-]*:|#|/", found["target"]):
            return found[0]
        target, mark, anchor = found["target"].partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("..") or not (ROOT / path).exists():
            return found[0]  # a dead link: mkdocs complains
        if (ROOT / path).is_dir():
            return found["text"]  # a folder has no page
        if path in ELSEWHERE:
            place = ELSEWHERE[path]
        else:
            place = path.removeprefix("docs/") if path.startswith("docs/") else publish(path)
        new = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{found['start']}{new}{mark}{anchor}{found['end']}"

    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(link, markdown[end:])])


def _publish(path: str, config: MkDocsConfig, files: Files) -> str:
    """Puts a file of the repository into the site as it is, once; warns about a Markdown file, which must be a page."""
    from mkdocs.structure.files import File

    place = f"files/{path}"
    if path.endswith(".md"):
        _log.warning("%s is linked and has no page: name it in ELSEWHERE of docs/site/hooks.py", path)
    elif files.get_file_from_path(place) is None:
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return place
