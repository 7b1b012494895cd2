"""Finds plug-ins by name, without importing any before it is asked for."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, cast

from flamingo_eval.errors import UserError
from flamingo_eval.ports import EncoderSource, Loader, Metric, ModelFamily, ModelSource, Renderer, Selector

_PACKAGE = "flamingo_eval"


@cache
def plugin_names(kind: str) -> tuple[str, ...]:
    """Names of the plug-ins of a kind (``loaders``, ``selectors``, ``models``, ``metrics``), sorted."""
    folder = str(Path(__file__).parent / kind)
    return tuple(sorted(m.name for m in pkgutil.iter_modules([folder]) if not m.name.startswith("_")))


def _plugin(kind: str, name: str, attribute: str) -> Any:
    if name not in plugin_names(kind):
        raise UserError(f"unknown {kind[:-1]} {name!r}; known {kind}: {', '.join(plugin_names(kind))}")
    return getattr(importlib.import_module(f"{_PACKAGE}.{kind}.{name}"), attribute)


def loader(name: str) -> Loader:
    """The loader of a file format. Raises UserError listing the known ones."""
    return cast(Loader, _plugin("loaders", name, "LOADER"))


def selector(name: str) -> Selector:
    """A way to pick demonstrations. Raises UserError listing the known ones."""
    return cast(Selector, _plugin("selectors", name, "SELECTOR"))


@cache
def metric(name: str) -> Metric:
    """A metric. Raises UserError listing the known ones."""
    return cast(Metric, _plugin("metrics", name, "METRIC"))


def _model_families() -> list[ModelFamily]:
    return [cast(ModelFamily, _plugin("models", name, "MODEL")) for name in plugin_names("models")]


def renderer(name: str) -> Renderer:
    """A way to write prompts, by the name that a run's record has. Raises UserError listing the known ones."""
    known = {one.name: one for family in _model_families() for one in family.renderers()}
    if name not in known:
        raise UserError(f"unknown rendering {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def known_checkpoints() -> dict[str, str]:
    """Names that ``--checkpoint`` takes -> one line about each."""
    return {name: about for family in _model_families() for name, about in family.known().items()}


def model_source(checkpoint: str, weights: Path | None = None) -> ModelSource:
    """The model that ``--checkpoint`` names: a known name or a TOML file.

    Args:
        checkpoint: what the user named.
        weights: a folder of copies to take a known checkpoint's files from.

    Raises:
        UserError: neither; the message lists the known names.
        CheckpointError: the file does not describe a checkpoint.
    """
    families = sorted(_model_families(), key=lambda family: checkpoint not in family.known())
    for family in families:
        source = family.find(checkpoint, weights)
        if source is not None:
            return source
    raise UserError(
        f"unknown checkpoint {checkpoint!r}; known: {', '.join(known_checkpoints())}, or the path of a TOML file"
    )


def live_source(model: Any, tokenizer: Any, transform: Any, name: str) -> ModelSource:
    """A model that is in memory already. Raises UserError if no family takes it."""
    for family in _model_families():
        source = family.find_live(model, tokenizer, transform, name)
        if source is not None:
            return source
    raise UserError(f"{type(model).__name__} is no model that can be evaluated")


def image_encoder(model: str, pretrained: str | None, quick_gelu: bool | None = None) -> EncoderSource:
    """The image encoder that ``--rices-model``, ``--rices-pretrained`` and ``--rices-quick-gelu`` name.

    Raises:
        UserError: no family knows it.
        CheckpointError: a file does not describe what it should.
    """
    families = sorted(_model_families(), key=lambda family: model not in family.known())  # a name of its own goes first
    for family in families:
        source = family.find_encoder(model, pretrained, quick_gelu)
        if source is not None:
            return source
    raise UserError(f"unknown --rices-model {model!r}: give an open_clip model name, demo, or a checkpoint's TOML file")
