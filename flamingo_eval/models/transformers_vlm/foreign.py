"""Named types for what functions of transformers accept and return, since these are not typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Inputs = Mapping[str, Any]
"""Arguments of a function of transformers, by name, or what it returns."""

Arguments = dict[str, Any]
"""The same, but mutable."""

Conversation = list[dict[str, Any]]
"""Messages in the form that chat templates use: ``role`` and ``content``, a list of parts."""

Table = Mapping[str, Any]
"""The content of a configuration file of transformers."""

Switches = Mapping[str, Any]
"""Variables of a chat template that a user has set."""
