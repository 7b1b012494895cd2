"""Converts tables that contain an identity from the form that files have to the form that its record has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.run_settings import NAMED_SETTINGS
from flamingo_eval.core.schema import typed
from flamingo_eval.storage.run_records import Identity


def identity_from(table: Any) -> Any:
    """A file's identity table, in the form of :class:`Identity`; anything else is returned as it is, to be refused."""
    if not isinstance(table, Mapping):
        return table
    rest = {key: value for key, value in table.items() if key not in NAMED_SETTINGS}
    selector = table.get("selector")
    if isinstance(selector, str) and selector not in Identity.__struct_fields__ and selector in rest:
        rest["retrieval"] = rest.pop(selector)
    return {**rest, "named": {name: table[name] for name in NAMED_SETTINGS if name in table}}


def with_identity(table: Any, kind: type[Any], where: str) -> Any:
    """A table that contains an identity, as a record. Raises UserError, which names file and key."""
    if not isinstance(table, Mapping) or "identity" not in table:
        return typed(table, kind, where)
    identity = table["identity"]
    selector = identity.get("selector") if isinstance(identity, Mapping) else None
    try:
        return typed({**table, "identity": identity_from(identity)}, kind, where)
    except UserError as error:
        raise UserError(str(error).replace("identity.retrieval", f"identity.{selector}")) from error
