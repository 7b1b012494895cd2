"""What transformers takes and gives, by name: its functions have no types of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Inputs = Mapping[str, Any]
"""Arguments of a function of transformers, by name, or what one gives."""

Arguments = dict[str, Any]
"""The same, to be changed."""

Conversation = list[dict[str, Any]]
"""Messages, as chat templates have them: ``role`` and ``content``, a list of parts."""

Table = Mapping[str, Any]
"""What a configuration file of transformers holds."""

Switches = Mapping[str, Any]
"""Variables of a chat template that a user has set."""
