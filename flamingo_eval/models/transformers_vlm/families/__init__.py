"""What an architecture needs in addition to the defaults: a file named after its ``model_type``, with a ``FAMILY``.

Most architectures need none: :class:`flamingo_eval.models.transformers_vlm.families.base.Family` has the defaults.
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
