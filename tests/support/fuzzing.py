"""Files with something in them that is not what it should be."""

from __future__ import annotations

import random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 10**30, "", "x", "../../etc/passwd", "\ud800", "a\0b", [], [[]], {}, {"a": 1}, [None],
    float("nan"), float("inf"), "<image>", {"question_id": {}}, [1, "2", None], "9" * 500, "1e999",
)  # fmt: skip


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut off, with a piece gone, doubled or overwritten."""
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((0, 1, 2, 10, 300)))
    piece = draw.choice(
        (b"", b"\n", b"\0", b"\xff\xfe", b"{", b'"', b"[" * 3000, data[start:end] * 2, draw.randbytes(4))
    )
    return data[:start] if draw.random() < 0.2 else data[:start] + piece + data[end:]


def damaged_json(value: Any, draw: random.Random) -> Any:
    """The same with something in it replaced, removed, doubled or renamed."""
    if draw.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return draw.choice(VALUES)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
    what = draw.random()
    if what < 0.7:
        copy[key] = damaged_json(copy[key], draw)
    elif what < 0.85:
        del copy[key]
    elif isinstance(copy, dict):
        copy[str(draw.choice(VALUES))] = copy[key]
    else:
        copy.append(copy[key])
    return copy
