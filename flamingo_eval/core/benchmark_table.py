"""Changes the table of a benchmark's file: merges a protocol and a user's settings, old spellings, conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flamingo_eval.core.errors import UserError

_FIRST_QUERY = re.compile(r"<\w+>(?P<text>.*)", re.DOTALL)
_FIRST_REST = re.compile(r"(?P<answer>.*)<\|\w+\|>(?P<separator>\s*)", re.DOTALL)


def with_turns(path: Path, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table whose ``[prompt]`` has ``text``, ``answer`` and ``separator``.

    In the first versions it had complete templates instead, ``demonstration`` and ``query``, with a model's marks.
    These are converted. Raises UserError if that is not possible.
    """
    prompt = table.get("prompt")
    if not isinstance(prompt, dict) or not {"demonstration", "query"} & prompt.keys():
        return table
    both = sorted({"text", "answer", "separator"} & prompt.keys())
    if both:
        raise UserError(f"{path}: in [prompt] {both[0]!r} stands beside 'demonstration' or 'query', which it replaces")
    shown, asked = str(prompt.get("demonstration", "")), str(prompt.get("query", ""))
    query, rest = _FIRST_QUERY.fullmatch(asked), _FIRST_REST.fullmatch(shown.removeprefix(asked))
    if query is None or rest is None or not shown.startswith(asked):
        raise UserError(
            f"{path}: in [prompt] write 'text' (what follows the image), 'answer' and 'separator' (what stands behind "
            "a demonstration) in place of 'demonstration' and 'query'"
        )
    others = {key: value for key, value in prompt.items() if key not in ("demonstration", "query")}
    return {**table, "prompt": {**others, **query.groupdict(), **rest.groupdict()}}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; nested tables are merged too."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def override(path: Path, data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``[data]`` with a user's own settings; tables (a split's files) are merged key by key."""
    for key, value in overrides.items():
        known: Mapping[str, Any] = data
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            known, value = data[key], value
            unknown = sorted(value.keys() - known.keys())
        else:
            unknown = [] if key in data else [key]
        if unknown:
            raise UserError(
                f"unknown data setting {unknown[0]!r} for {path.stem}; known settings: {', '.join(sorted(known))}"
            )
        for inner, new in value.items() if isinstance(value, dict) else ((key, value),):
            if type(new) is not type(known[inner]):
                raise UserError(
                    f"data setting {inner!r} for {path.stem} must be of type {type(known[inner]).__name__}, not {new!r}"
                )
    return merge(data, overrides)


def in_form(path: Path, table: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """A table whose ``chat`` sections replace the sections that contain them, or are left out.

    A conversation has no text-only demonstrations at zero shots and is answered greedily, unless the ``chat`` sections
    state otherwise.

    Raises:
        UserError: the file has no ``[prompt.chat]``, or a ``chat`` key that is not a section.
    """
    parts = {name: dict(table[name]) for name in ("prompt", "decoding", "answer") if isinstance(table.get(name), dict)}
    of_chat = {name: part.pop("chat") for name, part in parts.items() if "chat" in part}
    if not chat:
        return {**table, **parts}
    if "prompt" not in of_chat:
        raise UserError(
            f"{path} does not say what is asked in a conversation: add [prompt.chat] with text and answer, or ask with "
            "--rendering interleaved"
        )
    wrong = [name for name, part in of_chat.items() if not isinstance(part, dict)]
    if wrong:
        raise UserError(f"{path}: [{wrong[0]}.chat] is {of_chat[wrong[0]]!r:.60}: expected a section")
    kept = {key: value for key, value in parts["prompt"].items() if key == "rgb"}
    length = {key: value for key, value in parts.get("decoding", {}).items() if key == "max_new_tokens"}
    own = {
        "prompt": {"zero_shot_demonstrations": 0, **kept, **of_chat["prompt"]},
        "decoding": {**length, "num_beams": 1, **of_chat.get("decoding", {})},
        "answer": of_chat.get("answer", parts.get("answer")),
    }
    return {**table, **{name: part for name, part in own.items() if name in parts}}
