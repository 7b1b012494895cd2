"""Turns what the user gave (on the command line, in the environment, in the file) into a run's settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from flamingo_eval.cli.config import Config
from flamingo_eval.cli.options import ON_COMMAND_LINE, Given
from flamingo_eval.core import registry
from flamingo_eval.core.benchmark import canonical_name, load_benchmark
from flamingo_eval.core.cluster_settings import CLUSTER_SETTINGS
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.run_settings import (
    DEMO,
    DEMO_CHECKPOINTS,
    PER_BENCHMARK,
    SETTINGS,
    RunSettings,
    RunSpec,
)
from flamingo_eval.core.server_settings import SERVER_SETTINGS
from flamingo_eval.core.settings import Setting

ALL = frozenset(SETTINGS)
RUN = ALL
BENCH = ALL - {"on_error", "process", "executor", "out", "notes", *CLUSTER_SETTINGS}
PLAN = BENCH - {"precision", "batch_size", "feature_cache", "plain", "format", "device_map"}
FEATURES = frozenset({"data_root", "protocol", "split", "select", "device", "image_formats", "offline"})
SLURM = RUN - {"process", *CLUSTER_SETTINGS}
REPRODUCE = RUN - {"seeds", "trials", "checkpoint", "out", "notes"}
CONTROLS = frozenset(
    {*SERVER_SETTINGS, "weights", "offline", "device", "device_map", "batch_size", "feature_cache", "plain", "format"}
)
DATA = frozenset({"data_root", "protocol", "split"})
DATA_PREPARE = DATA | {"offline"}
DATA_CHECK = DATA | {"image_formats"}
SCORE = frozenset({"data_root", "protocol", "split", "on_error", "format", "notes"})
GIVEN = SCORE | {"shots", "seeds", "num_samples", "out"}
REPORT = frozenset({"format", "notes"})
"""The settings that each command can use."""


def resolve(config: Config, benchmark: str | None, given: Given, names: Collection[str]) -> Given:
    """Returns the strongest value given for each setting.

    Args:
        config: the configuration file.
        benchmark: the benchmark whose section of the file applies; None for no section.
        given: the values from the command line and the environment.
        names: the settings that the command can use; ``select`` includes the selectors' own.

    Raises:
        UserError: seeds and trials are given in the same place.
    """
    usable = {*names, *(registry.selector_settings() if "select" in names else ())}
    resolved = {**config.given(benchmark, usable), **given}
    if "seeds" in resolved and "trials" in resolved:
        seeds, trials = resolved["seeds"], resolved["trials"]
        if seeds.strength == trials.strength:
            raise UserError(f"{seeds.where} and {trials.where} both choose the trials: give one of them")
        del resolved["seeds" if trials.strength > seeds.strength else "trials"]
    return resolved


def make_spec(
    config: Config, benchmarks: Iterable[str], given: Given, names: Collection[str], *, model: bool = True
) -> RunSpec:
    """Builds a run of some benchmarks.

    With neither checkpoint nor data named, both are the demo's, and the run says so. With one of them named, the other
    must be named too: nothing falls back to the demo silently. ``--checkpoint demo`` and ``demo-chat`` name both.

    Args:
        config: the configuration file.
        benchmarks: their names.
        given: the values from the command line and the environment.
        names: the settings that the command can use.
        model: whether it loads a model.

    Raises:
        UserError: the given values do not fit together; the message states where they were given.
    """
    wanted = tuple(dict.fromkeys(canonical_name(name) for name in benchmarks))
    resolved = {name: resolve(config, name, given, names) for name in wanted}
    common = _common(resolved, {name: one for name, one in SETTINGS.items() if name not in PER_BENCHMARK})
    _check_named(common, model=model)
    settings = _record(common)
    own = {name: replace(settings, **{key: one.value for key, one in resolved[name].items() if key in PER_BENCHMARK})
           for name in wanted}  # fmt: skip
    # the demo's files have the benchmark's own names
    own_files = settings.data_root != DEMO
    overrides = {name: config.data[name] for name in wanted if own_files and name in config.data}
    for name in wanted:  # before anything is read
        load_benchmark(name, overrides.get(name), protocol=settings.protocol)
    return RunSpec(
        **{
            one.name: getattr(own[wanted[0]] if len(wanted) == 1 else settings, one.name) for one in fields(RunSettings)
        },
        benchmarks=wanted,
        own=own,
        selection=_selection(settings.select, resolved),
        data_overrides=overrides,
    )


def settings_for(config: Config, benchmarks: Iterable[str], given: Given, names: Collection[str]) -> RunSettings:
    """Returns the settings of a command that makes no run; without benchmarks, no benchmark's section applies."""
    resolved = {name: resolve(config, name, given, names) for name in benchmarks}
    return _record(_common(resolved or {"": resolve(config, None, given, names)}, SETTINGS))


def _record(resolved: Given) -> RunSettings:
    settings = RunSettings(**{name: one.value for name, one in resolved.items()})
    if settings.offline:  # huggingface_hub reads this when it is imported, which has not happened yet
        os.environ["HF_HUB_OFFLINE"] = "1"
    return settings


def _common(resolved: Mapping[str, Given], settings: Mapping[str, Setting]) -> Given:
    """Returns the values that all benchmarks share. Raises UserError for a setting on which they differ."""
    common: Given = {}
    for name, setting in settings.items():
        first = next((given[name] for given in resolved.values() if name in given), None)
        if first is None:
            continue
        values = {
            benchmark: given[name].value if name in given else setting.default for benchmark, given in resolved.items()
        }
        others = [benchmark for benchmark, value in values.items() if value != first.value]
        if others:
            raise UserError(
                f"{first.where} does not hold for {', '.join(others)}, and several benchmarks together have one "
                f"{name.replace('_', '-')}: run them one by one, or say it on the command line"
            )
        common[name] = first
    return common


def _check_named(resolved: Given, *, model: bool) -> None:
    """Raises UserError if only one of checkpoint and data is named, so that the other would be the demo's.

    A command that loads no ``model`` needs only data.
    """
    data, checkpoint = resolved.get("data_root"), resolved.get("checkpoint")
    if model and checkpoint is None and data is not None and data.value != DEMO:
        raise UserError(
            f"{data.where} {data.value} is given, but no checkpoint: add --checkpoint (or --checkpoint demo)"
        )
    if data is None and checkpoint is not None and checkpoint.value not in DEMO_CHECKPOINTS:
        raise UserError(
            f"{checkpoint.where} {checkpoint.value} is given, but no data: add --data-root (or --data-root demo)"
        )


def _selection(select: str, resolved: Mapping[str, Given]) -> dict[str, Any]:
    """Returns the chosen selector's settings. Raises UserError for another selector's on the command line."""
    own = {setting.name: setting for setting in registry.selector(select).settings}
    for name in registry.selector_settings().keys() - own.keys():
        here = next((given[name] for given in resolved.values() if name in given), None)
        if here is not None and here.strength == ON_COMMAND_LINE:
            owners = [one for one, known in registry.selectors().items() if name in [s.name for s in known.settings]]
            raise UserError(f"{here.where} needs --select {' or '.join(owners)}")
    return {name: one.value for name, one in _common(resolved, own).items()}
