"""What an architecture needs besides the general: a file named after its ``model_type``, with a ``FAMILY`` in it.

Most need none: :class:`flamingo_eval.models.transformers_vlm.families.base.Family` is what they have in common.
"""

from __future__ import annotations

import importlib.util
from functools import cache

from flamingo_eval.models.transformers_vlm.families.base import Family


@cache
def family_of(architecture: str) -> Family:
    """The family of an architecture, by its ``model_type``."""
    name = f"{__name__}.{architecture.replace('-', '_').replace('.', '_')}"
    if architecture == "base" or importlib.util.find_spec(name) is None:
        return Family()
    found: Family = importlib.import_module(name).FAMILY
    return found
