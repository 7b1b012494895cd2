"""Typed records from the content of files. Content that does not fit raises an error with file, key and value.

msgspec does the checking. Of the libraries that turn tables into typed records it is the fastest to import (a tenth of
a second less than pydantic, at every start of the command line), and it has no dependencies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from flamingo_eval.core.errors import UserError

T = TypeVar("T")
_PLACE = re.compile(r"(.*?)(?: - at `(\$.*?)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_GOT = re.compile(r"got `(\w+)`")
_KINDS = {"str": str, "int": int, "float": float, "bool": bool, "null": type(None), "array": list, "object": dict}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that a file holds; an unknown key is an error."""


def typed(value: Any, kind: type[T], where: str) -> T:
    """A table of a TOML or JSON file as a record.

    Args:
        value: the table.
        kind: a dataclass, a :class:`Record`, or a type such as ``dict[str, int]``.
        where: the file, and the section if the table is one, for the message.

    Raises:
        UserError: it does not fit; the message has ``where``, the key, what was expected and what is there.

    >>> typed({"a": [1, 2]}, dict[str, list[int]], "x.toml")
    {'a': [1, 2]}
    >>> typed({"a": [1, "2"]}, dict[str, list[int]], "x.toml")
    Traceback (most recent call last):
        ...
    flamingo_eval.core.errors.UserError: x.toml: a[1] is '2': expected `int`, got `str`
    """
    strange = _unknown_key(value, _info(kind), "")  # type: ignore[arg-type]
    if strange:
        raise UserError(f"{where}: {strange}")
    try:
        return msgspec.convert(value, kind)
    except UnicodeEncodeError as error:
        raise UserError(f"{where} holds a text with half a character in it") from error
    except (msgspec.ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {_described(str(error), value)}") from error


@cache
def _info(kind: Any) -> inspect.Type:
    return inspect.type_info(kind)


def _unknown_key(value: Any, info: inspect.Type, place: str) -> str | None:
    """A message about a key that the table has and its record does not, with the known keys. Records of files that
    this package writes accept unknown keys, except in an identity, since a later version may write more."""
    if isinstance(info, inspect.UnionType):
        return next((message for one in info.types if (message := _unknown_key(value, one, place))), None)
    closed = isinstance(info, inspect.StructType) and info.cls.__struct_config__.forbid_unknown_fields
    if isinstance(info, inspect.DictType) and isinstance(value, Mapping):
        inner = ((value[key], info.value_type, f"{place}.{key}".lstrip(".")) for key in value)
        return next((message for one in inner if (message := _unknown_key(*one))), None)
    if not isinstance(value, Mapping) or not isinstance(info, inspect.StructType | inspect.DataclassType):
        return None
    known = {field.encode_name: field.type for field in info.fields}
    strange = sorted(map(str, value.keys() - known.keys()))
    if strange and (closed or isinstance(info, inspect.DataclassType)):
        where = f"[{place}]" if place else "the top level"
        return f"unknown key {strange[0]!r} in {where}; known keys: {', '.join(known)}"
    inner = ((value[key], known[key], f"{place}.{key}".lstrip(".")) for key in value.keys() & known.keys())
    return next((message for one in inner if (message := _unknown_key(*one))), None)


def _described(message: str, value: Any) -> str:
    match = _PLACE.fullmatch(message)
    what, place = (match[1], match[2] or "$") if match else (message, "$")
    what = what[:1].lower() + what[1:]
    steps = [key or index for key, index in _STEP.findall(place)]
    got = _GOT.search(what)
    found = [*_places(value, steps, _KINDS.get(got[1]) if got else None)]
    if len(found) != 1 and not (found and got):  # it is not clear under which of a table's keys it is
        return f"{place.removeprefix('$').lstrip('.')}: {what}" if steps else what
    at, there = found[0][0].lstrip("."), found[0][1]
    if not steps or "missing" in what:
        return f"{at}: {what}" if at else what
    return f"{at} is {repr(there)[:60]}: {what}"


def _places(value: Any, steps: Sequence[str], kind: type | None) -> Iterator[tuple[str, Any]]:
    """Finds the values of a type at the end of some steps, of which ``...`` stands for any key or index."""
    if not steps:
        if kind is None or type(value) is kind:
            yield "", value
        return
    step, *rest = steps
    if isinstance(value, Mapping):
        keys: Iterable[Any] = value if step == "..." else [step] if step in value else []
        found = ((f".{key}", value[key]) for key in keys)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        places = (
            range(len(value)) if step == "..." else [int(step)] if step.isdigit() and int(step) < len(value) else []
        )
        found = ((f"[{i}]", value[i]) for i in places)
    else:
        return
    for at, inner in found:
        for deeper, there in _places(inner, rest, kind):
            yield at + deeper, there


_IMAGE_ID = re.compile(r"\{image_id(?::0?(\d{1,2})d)?\}")


def image_name(template: str, id: int | str) -> str:
    """The file name that a template gives for an image's id: ``{image_id}``, or ``{image_id:012d}`` with zeros.

    Other braces are refused: Python's own formatting could read attributes, and make texts of any length.

    Raises:
        ValueError: the template has no such field or other braces, or it needs a number and the id is a text.

    >>> image_name("train2014/COCO_train2014_{image_id:012d}.jpg", 9)
    'train2014/COCO_train2014_000000000009.jpg'
    """
    rest = _IMAGE_ID.sub("", template)
    if "{" in rest or "}" in rest or rest == template:
        raise ValueError(f"{template!r} must hold {{image_id}} or {{image_id:012d}}, and no other braces")

    def filled(match: re.Match[str]) -> str:
        if match[1] is None:
            return str(id)
        if not isinstance(id, int):
            raise ValueError(f"{id!r} is not a number")  # noqa: TRY004  # it comes from a file
        return f"{id:0{match[1]}d}"

    return _IMAGE_ID.sub(filled, template)
