"""Finds plug-ins by name; most are imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, cast

from flamingo_eval.core.adopted import AdoptedSource
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.measuring import TokenCounter
from flamingo_eval.core.plugins import found
from flamingo_eval.core.progress import warn
from flamingo_eval.core.prompting import ELSEWHERE, INTERLEAVED, Chat
from flamingo_eval.core.protocols import (
    IMAGE_EMBEDDINGS,
    NOTHING,
    EncoderFamily,
    EncoderSource,
    Loader,
    Metric,
    Model,
    ModelFamily,
    ModelSource,
    Renderer,
    Retrieval,
    RetrievingSelector,
    Selector,
)
from flamingo_eval.core.run_settings import SETTINGS
from flamingo_eval.core.settings import Setting, settings_problem, with_defaults


def _plugin(kind: str, name: str) -> Any:
    known = found(kind)
    if name not in known:
        raise UserError(f"unknown {kind[:-1]} {name!r}; known {kind}: {', '.join(sorted(known))}")
    plugin = known[name]()
    try:
        problem = _FORMS[kind](plugin)
    except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
        problem = f"inspecting it raised {error!r}"
    if problem:
        raise UserError(f"the {kind[:-1]} {name!r} can't be used: {problem}")
    return plugin


def _lacking(*names: str) -> Callable[[Any], str | None]:
    """A check of an object for these attributes, which returns what is wrong with it, or None."""

    def problem(plugin: Any) -> str | None:
        lacking = [name for name in names if not hasattr(plugin, name)]
        if isinstance(plugin, type):
            return "it is a class, and should be an object"
        return f"it has no {', '.join(lacking)}" if lacking else None

    return problem


def _selector_problem(plugin: Any) -> str | None:
    problem = _lacking("about", "needs", "settings", "select")(plugin)
    if problem:
        return problem
    if plugin.needs not in (NOTHING, IMAGE_EMBEDDINGS):
        return f"it needs {plugin.needs!r}, and there are {NOTHING!r} and {IMAGE_EMBEDDINGS!r}"
    if plugin.needs == IMAGE_EMBEDDINGS and not hasattr(plugin, "retrieval"):
        return "it needs embeddings and has no retrieval"
    return settings_problem(plugin.settings, _TAKEN)


_TAKEN = frozenset(SETTINGS) | {old for one in SETTINGS.values() for old in one.was} | {
    "context", "given", "benchmark", "benchmarks", "queries", "fresh", "as_json", "json", "help", "config", "debug",
    "version", "model", "name", "tokenizer", "transform", "like", "selection", "settings",
}  # fmt: skip
"""Names that a selector's setting can't have, since commands and ``evaluate`` use them."""


def _model_problem(plugin: Any) -> str | None:
    problem = _lacking("options", "known", "renderers", "find", "adopt")(plugin)
    if problem:
        return problem
    if not isinstance(plugin.known(), Mapping) or not all(isinstance(one, Renderer) for one in plugin.renderers()):
        return "known() should give a mapping, and renderers() a sequence of flamingo_eval.core.protocols.Renderer"
    if not isinstance(getattr(plugin, "aliases", dict)(), Mapping):
        return "aliases() should give a mapping"
    return None


_FORMS: dict[str, Callable[[Any], str | None]] = {
    "loaders": _lacking("examples", "references"),
    "selectors": _selector_problem,
    "models": _model_problem,
    "encoders": _lacking("find"),
    "metrics": _lacking("title", "value_key", "value_kinds", "check", "compute"),
    "executors": lambda plugin: None if callable(plugin) else "it should be a class",
}
"""Kind of plug-in -> check of an object, which returns what is wrong with it, or None."""


def loader(name: str) -> Loader:
    """The loader of a file format. Raises UserError listing the known ones."""
    return cast(Loader, _plugin("loaders", name))


def selector(name: str) -> Selector:
    """The selector with this name. Raises UserError listing the known ones."""
    known = selectors()
    if name not in known:
        raise UserError(f"unknown selector {name!r}; known selectors: {', '.join(known)}")
    return known[name]


@cache
def _usable(kind: str) -> dict[str, Any]:
    """All plug-ins of a kind that can be loaded, by name; one that can't be loaded is reported and left out."""
    usable = {}
    for name in found(kind):
        try:
            usable[name] = _plugin(kind, name)
        except UserError as error:
            warn(f"left out: {error}")
    return usable


@cache
def selectors() -> dict[str, Selector]:
    """All selectors that can be loaded, by name. A setting of the same name means the same for all of them."""
    usable, settings = dict[str, Selector](), dict[str, Setting]()
    for name, one in _usable("selectors").items():  # the package's own come first
        other = [own.name for own in one.settings if not settings.get(own.name, own).like(own)]
        if other:
            warn(f"left out: the selector {name!r}: another one has a setting {other[0]!r} that is not the same")
            continue
        settings = {**{own.name: own for own in one.settings}, **settings}
        usable[name] = one
    return dict(sorted(usable.items()))


def selector_settings() -> dict[str, Setting]:
    """The settings of all selectors, by name."""
    return {one.name: one for known in selectors().values() for one in known.settings}


def retrieval(name: str, settings: Mapping[str, Any], demo: bool) -> Retrieval | None:
    """What a selector retrieves by; None for one that needs no embeddings.

    Args:
        name: name of the selector.
        settings: the settings of the selector that were given.
        demo: whether the data is the demo's.
    """
    chosen = selector(name)
    if chosen.needs != IMAGE_EMBEDDINGS:
        return None
    return cast(RetrievingSelector, chosen).retrieval(with_defaults(chosen.settings, settings), demo)


@cache
def metric(name: str) -> Metric:
    """The metric with this name. Raises UserError listing the known ones."""
    return cast(Metric, _plugin("metrics", name))


def _model_families() -> list[ModelFamily]:
    return [*_usable("models").values()]


def renderer(name: str, settings: Mapping[str, Any] | None = None) -> Renderer:
    """A renderer, by its name in a run's record.

    Args:
        name: its name.
        settings: the run's settings that its identity contains by name.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    chat = Chat((settings or {}).get("system"))
    known: dict[str, Renderer] = {one.name: one for one in (INTERLEAVED, chat, ELSEWHERE)}
    known |= {one.name: one for family in _model_families() for one in family.renderers()}
    if name not in known:
        raise UserError(f"unknown rendering {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def executor(name: str) -> Any:
    """The class of an executor. Raises UserError listing the known ones."""
    return _plugin("executors", name)


def known_checkpoints() -> dict[str, str]:
    """Names that ``--checkpoint`` takes -> one line about each."""
    return {name: about for family in _model_families() for name, about in family.known().items()}


def checkpoint_name(checkpoint: str) -> str:
    """The name of the known checkpoint that a short name stands for; any other text stays as it is."""
    for family in _model_families():
        aliases: Mapping[str, str] = getattr(family, "aliases", dict)()
        if checkpoint in aliases:
            return aliases[checkpoint]
    return checkpoint


def model_source(
    checkpoint: str, options: Mapping[str, Any] | None = None, wishes: Mapping[str, Any] | None = None
) -> ModelSource:
    """The model that ``--checkpoint`` names: a known name or a file.

    Args:
        checkpoint: what the user named.
        options: settings for it, by name.
        wishes: the same, ignored by a model that has no such setting.

    Raises:
        UserError: the name is unknown (the message lists the known ones), or an option does not apply to the model.
        CheckpointError: the file does not describe a checkpoint.
    """
    families = sorted(_model_families(), key=lambda family: checkpoint not in family.known())
    for family in families:
        source = family.find(checkpoint, _settings(family, options, wishes))
        if source is None:
            continue
        strange = sorted((options or {}).keys() - family.options)
        if strange:
            raise UserError(
                f"--checkpoint {checkpoint}: {', '.join(_option(name) for name in strange)} does not apply to it"
            )
        return source
    if checkpoint.endswith((".pt", ".pth", ".bin", ".safetensors")):
        raise UserError(
            f"{checkpoint} is a file of weights; a checkpoint is described by a TOML file that names it "
            "(docs/checkpoints.md)"
        )
    raise UserError(
        f"unknown checkpoint {checkpoint!r}; known: {', '.join(known_checkpoints())}, hf:NAME_OR_FOLDER for "
        "a model of transformers, or the path of a TOML file"
    )


def token_counter(source: ModelSource) -> TokenCounter:
    """The token counter of a model's prompts. Raises UserError for a model that has none."""
    found = getattr(source, "token_counter", None)
    if found is None:
        raise UserError(f"--tokens: {source.info().name} does not say how many tokens a prompt has")
    return cast(TokenCounter, found())


def _settings(
    family: ModelFamily, options: Mapping[str, Any] | None, wishes: Mapping[str, Any] | None
) -> dict[str, Any]:
    given = {**(wishes or {}), **(options or {})}
    return {name: value for name, value in given.items() if name in family.options}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_options(family: ModelFamily, options: Mapping[str, Any], name: str) -> None:
    """Raises UserError for an option that a model in memory of this family does not accept."""
    strange = sorted(options.keys() - family.options)
    if strange:
        raise UserError(f"{strange[0]} is not for {name}")


def adopted(model: Any, name: str, options: Mapping[str, Any]) -> ModelSource:
    """A model that is already in memory: of a known family, or any object that implements the protocol.

    Raises:
        UserError: it is neither, or does not accept an option.
    """
    for family in _model_families():
        source = family.adopt(model, name, _settings(family, options, None))
        if source is not None:
            _check_options(family, options, type(model).__name__)
            return source
    if isinstance(model, Model) and not isinstance(model, type):
        for option in options:
            raise UserError(f"{option} is not for {type(model).__name__}")
        return AdoptedSource(model, name)
    methods = ("prepare", "answer", "prefetch", "suggested_batch", "timings", "close")
    lacking = [method for method in methods if not callable(getattr(model, method, None))]
    raise UserError(
        f"{type(model).__name__} is no model that can be evaluated"
        + (
            f": it has no {', '.join(lacking)} (flamingo_eval.core.protocols.ModelBase has all but prepare and answer)"
            if lacking
            else ""
        )
    )


def image_encoder(name: str, options: Mapping[str, Any] | None = None) -> EncoderSource:
    """An image encoder.

    Args:
        name: what the user named.
        options: see :class:`flamingo_eval.core.protocols.EncoderFamily`; those that are None count as not given.

    Raises:
        UserError: no family knows it.
        CheckpointError: a file does not describe what it should.
    """
    given = {key: value for key, value in (options or {}).items() if value is not None}
    for family in _encoder_families():
        source = family.find(name, given)
        if source is not None:
            return source
    raise UserError(f"unknown image encoder {name!r}: give an open_clip model name, demo, or a checkpoint's TOML file")


def _encoder_families() -> list[EncoderFamily]:
    """All encoder families; one that accepts any name comes last."""
    families: list[EncoderFamily] = [*_usable("encoders").values()]
    return sorted(families, key=lambda family: bool(getattr(family, "takes_any_name", False)))
