"""The page's files: what they must not hold, and colours that can be told apart."""

from __future__ import annotations

import re

import pytest

from flamingo_eval.report.viewer.server import POLICY
from flamingo_eval.report.viewer.views import PAGE, page_file

TEXT = {name: page_file(name).decode() for name in PAGE}


def test_no_text_becomes_html() -> None:
    """Elements are made from text only; nothing is evaluated; nothing is loaded from elsewhere."""
    for name, text in TEXT.items():
        scripts = text.replace("http://www.w3.org/2000/svg", "")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http://",
            "https://",
            "srcdoc",
        ):
            assert word not in scripts, (name, word)
        assert not re.search(r"""\son\w+\s*=\s*["']""", text), name
        assert "style=" not in text, name


def test_the_page_loads_its_own_files_in_order() -> None:
    assert re.findall(r'<script src="([^"]+)"', TEXT["index.html"]) == [name for name in PAGE if name.endswith(".js")]
    own = re.search(r'Content-Security-Policy" content="([^"]+)"', TEXT["index.html"])
    assert own is not None
    assert f"{own[1]}; frame-ancestors 'none'" == POLICY
    assert "unsafe" not in POLICY


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", text))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: str) -> None:
    """WCAG 2, level AA: 4.5 for text, 3 for what is drawn."""
    light, dark = TEXT["viewer.css"].split("@media (prefers-color-scheme: dark)")
    known = colours(light) if scheme == "light" else {**colours(light), **colours(dark.split("\n}\n")[0])}
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text in ("ink", "quiet", "link", "good", "bad", "c1"):
        assert contrast(known[text], known["paper"]) >= 4.5, text
    for text in ("ink", "quiet", "link"):
        assert contrast(known[text], known["soft"]) >= 4.5, text
    assert contrast(known["ink"], known["mark"]) >= 4.5
    assert contrast(known["paper"], known["bad"]) >= 4.5
    for drawn in ("c0", "c1", "published"):
        assert contrast(known[drawn], known["paper"]) >= 3, drawn
