"""Turns a data root as users name it into its folder."""

from __future__ import annotations

from pathlib import Path

from flamingo_eval.core.paths import user_path
from flamingo_eval.core.run_settings import DEMO


def data_folder(data_root: str) -> Path:
    """The folder that a data root names; the demo's is written first if need be."""
    if data_root != DEMO:
        return user_path(data_root, "--data-root")
    from flamingo_eval.demo.data import demo_data_root

    return demo_data_root()
