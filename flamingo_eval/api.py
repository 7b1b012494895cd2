"""The Python API: load a checkpoint, generate text with it, evaluate it or your own model."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import canonical_name
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.protocols import ModelSource
from flamingo_eval.core.records import Cell
from flamingo_eval.core.run_settings import COMMAND_LINE_ONLY, DEMO_CHECKPOINTS, SETTINGS, SHOWN_TO_MODEL, RunSpec
from flamingo_eval.core.workers import bound_spinning


def load_model(
    checkpoint: str,
    *,
    weights: str | Path | None = None,
    data_root: str | Path = ".",
    device: str = "auto",
    precision: str = "auto",
    **options: Any,
) -> Any:
    """Loads a checkpoint as a ``FlamingoModel`` or, for ``hf:``, as a ``VlmModel``; both have ``generate``.

    Args:
        checkpoint: a known name, ``demo``, the path of a TOML file, or ``hf:NAME_OR_FOLDER[@REVISION]``.
        weights: a folder with copies of a known checkpoint's files.
        data_root: the folder that image paths given to ``generate`` are relative to.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``, ``amp_bf16``.
        options: for an ``hf:`` model: ``rendering``, ``system``, ``template_arg``, ``image_tokens``, ``max_pixels``,
            ``device_map``, as on the command line.

    Raises:
        UserError, CheckpointError: the checkpoint or an option is unknown or can't be used.
        DeviceMemoryError: the model does not fit into the device's memory.
    """
    bound_spinning()
    strange = sorted(options.keys() - _OF_MODELS)
    if strange:
        raise UserError(f"there is no option {strange[0]!r}; there are {', '.join(sorted(_OF_MODELS))}")
    chosen = {name: SETTINGS[name].read(value, name) for name, value in options.items()}
    copies = {} if weights is None else {"weights": Path(weights)}
    source: Any = registry.model_source(checkpoint, {**chosen, **copies})
    loaded = source.load(*source.resolve(device, precision))
    loaded.root = Path(data_root)
    return loaded


def evaluate(
    model: Any,
    benchmarks: str | Sequence[str],
    *,
    processor: Any = None,
    tokenizer: Any = None,
    transform: Callable[[Any], Any] | None = None,
    name: str = "live model",
    **settings: Any,
) -> list[Cell]:
    """Evaluates a model in this process, and returns the cells of its results table.

    Args:
        model: what :func:`load_model` returns; or the name of a checkpoint; or any object that fulfils
            :class:`flamingo_eval.core.protocols.Model`; or a live model. That is a module in the released layout
            (``perceiver``, ``vision_encoder``, ``lang_encoder`` with its ``gated_cross_attn_layer``), or an
            image-text-to-text model of transformers. It may be in training: its tensors are shared, and it is left as
            it was.
        benchmarks: the name of one benchmark, or several names.
        processor: the processor of a live transformers model.
        tokenizer: the tokenizer of a live module, with its special tokens.
        transform: the transform of a live module, from a Pillow image to a tensor.
        name: the name of a live module in the results.
        settings: settings of the command line and of the selector, named with underscores and with the same defaults,
            such as ``shots=[0, 4]``, ``seeds=[42]``, ``data_root="/data"``, ``batch_size=8``.
            ``data_root`` is required unless the model is the demo's. ``out`` names a run folder, which keeps the
            answers and allows a resume; without it nothing is kept.
            ``help(flamingo_eval.evaluate)`` lists the settings of the command line.

    Raises:
        UserError, DataError, CheckpointError: as on the command line.
    """
    from flamingo_eval.demo.root import data_folder
    from flamingo_eval.engine.run import execute

    bound_spinning()

    listed = [benchmarks] if isinstance(benchmarks, str) else [*(benchmarks or ())]
    if not listed or not all(isinstance(one, str) for one in listed):
        raise UserError(f"benchmarks is {repr(benchmarks)[:60]}: give a name, or some")
    names = tuple(canonical_name(one) for one in listed)
    called = model if isinstance(model, str) else name
    if settings.get("data_root") is None and not (isinstance(model, str) and model in DEMO_CHECKPOINTS):
        raise UserError(f'{called} is evaluated, but no data is named: add data_root=... (or data_root="demo")')
    spec = _spec(
        names, called, {key: value for key, value in settings.items() if key != "data_root" or value is not None}
    )
    with tempfile.TemporaryDirectory(prefix="flamingo-eval-") as scratch:
        folder = Path(scratch) / "run" if spec.out is None else spec.out
        with _left_as_it_was(model):
            parts = {"processor": processor, "tokenizer": tokenizer, "transform": transform}
            source = _source(model, parts, name, spec.model_options)
            spec = replace(spec, **getattr(source, "settings", {}))
            cells = execute(spec, data_folder, folder, model_source=source).cells
    return [replace(cell, data=spec.data_root) for cell in cells]


_OF_MODELS = frozenset(("rendering", "device_map", *SHOWN_TO_MODEL))
"""Settings that :func:`load_model` accepts, too."""


def _spec(benchmarks: tuple[str, ...], checkpoint: str, given: Mapping[str, Any]) -> RunSpec:
    """The settings of a run. Raises UserError for an unknown setting, or a value that a setting can't have."""
    core = {name: one for name, one in SETTINGS.items() if name not in COMMAND_LINE_ONLY}
    old = {former: one.name for one in core.values() for former in one.was}
    twice = next((name for name in given if old.get(name) in given), None)
    if twice:
        raise UserError(f"{twice} and {old[twice]} say the same thing: give one of them")
    given = {old.get(name, name): value for name, value in given.items()}
    if given.get("seeds") is not None and given.get("trials") is not None:
        raise UserError("seeds and trials both choose the trials: give one of them")
    select = core["select"].read(given.get("select"), "select")
    own = {one.name: one for one in registry.selector(select).settings}
    strange = sorted(given.keys() - core.keys() - own.keys())
    if strange:
        of_selector = f"{select} has the settings {', '.join(own)}" if own else f"{select} has no settings"
        raise UserError(f"there is no setting {strange[0]!r}; there are {', '.join(core)}; {of_selector}")
    values = {name: {**core, **own}[name].read(value, name) for name, value in given.items()}
    return RunSpec(
        benchmarks=benchmarks,
        checkpoint=checkpoint,
        selection={name: values.pop(name) for name in own if name in values},
        **values,
    )


def _with_settings_in_help(function: Callable[..., list[Cell]]) -> None:
    """Adds the settings to a function's signature, so that ``help`` and editors show each with its default."""
    signature = inspect.signature(function)
    parameters = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default)
        for one in SETTINGS.values()
        if one.name not in COMMAND_LINE_ONLY
    ]
    last = inspect.Parameter("selection", inspect.Parameter.VAR_KEYWORD)
    function.__signature__ = signature.replace(parameters=[*parameters, last])  # type: ignore[attr-defined]


_with_settings_in_help(evaluate)


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """Restores the training mode of a module's parts afterwards: evaluation shares the parts and switches them."""
    torch = sys.modules.get("torch")  # without torch there is no module
    before = {part: part.training for part in model.modules()} if torch and isinstance(model, torch.nn.Module) else {}
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _source(model: Any, parts: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> ModelSource:
    given = {part: value for part, value in parts.items() if value is not None}
    if isinstance(model, str):
        for part in given:
            raise UserError(f"{part} is for a model in memory; {model} comes with its own")
        return registry.model_source(model, options)
    for option in options.keys() - _OF_MODELS:
        raise UserError(f"{option} is for a checkpoint that is named; this model is loaded already")
    return registry.adopted(model, name, {**given, **options})
