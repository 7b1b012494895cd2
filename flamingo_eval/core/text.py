"""Text for people: text from data and models must not move the cursor, hide a line or break a file format."""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except line break and tab, line separators, marks of text direction, unpaired surrogates."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    r"""The text with control characters escaped, in a form that JSON reads as the character itself.

    >>> printable("a\x1b[31m red\n")
    'a\\u001b[31m red\n'
    """
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    r"""Like :func:`printable`, with line breaks and tabs escaped too: for a table cell or an attribute.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def neutralised(cell: str) -> str:
    """A CSV cell that no spreadsheet reads as a formula: text that begins like one gets an apostrophe.

    >>> neutralised("=1+1"), neutralised("a = b")
    ("'=1+1", 'a = b')
    """
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
