"""From what was said, on the command line, in the environment, in the file, to a run's settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from flamingo_eval import registry
from flamingo_eval.benchmark import canonical_name, load_benchmark
from flamingo_eval.cli.config import Config
from flamingo_eval.cli.options import SAID_HERE, Given
from flamingo_eval.errors import UserError
from flamingo_eval.runspec import DEMO, PER_BENCHMARK, SETTINGS, RunSettings, RunSpec

ALL = frozenset(SETTINGS)
RUN = ALL
BENCH = ALL - {"on_error", "process", "executor", "out", "format"}
PLAN = BENCH - {"precision", "batch_size", "feature_cache", "plain"}
FEATURES = frozenset({"data_root", "protocol", "split", "select", "device", "image_formats", "offline"})
REPRODUCE = RUN - {"seeds", "trials", "protocol", "split", "ensemble", "checkpoint", "out", "format"}
CONTROLS = frozenset({"weights", "offline", "device", "batch_size", "feature_cache", "plain"})
DATA_OF = frozenset({"data_root", "protocol", "split", "image_formats"})
SCORE = frozenset({"data_root", "protocol", "split", "on_error", "format"})
"""Which settings commands can use."""


def make_spec(
    config: Config, benchmarks: Iterable[str], given: Given, names: Collection[str], *, model: bool = True
) -> RunSpec:
    """A run of some benchmarks.

    With neither checkpoint nor data named, both are the demo's, and the run says so. With one of them named, the other
    must be named too: nothing falls back to the demo in silence. ``--checkpoint demo`` names both.

    Args:
        config: the configuration file.
        benchmarks: their names.
        given: what the command line and the environment say.
        names: the settings that the command can use.
        model: whether it loads a model.

    Raises:
        UserError: what was said makes no sense together; the message says where it was said.
    """
    wanted = tuple(dict.fromkeys(canonical_name(name) for name in benchmarks))
    usable = {*names, *(registry.selector_settings() if "select" in names else ())}
    said = {name: _strongest({**config.given(name, usable), **given}) for name in wanted}
    common = _common(said)
    _check_named(common, model=model)
    values = {name: one.value for name, one in common.items()}
    selection = {name: values.pop(name) for name in registry.selector_settings() if name in values}
    settings = RunSettings(**values)
    own = {name: replace(settings, **{key: one.value for key, one in said[name].items() if key in PER_BENCHMARK})
           for name in wanted}  # fmt: skip
    for name in wanted:  # before anything is read
        load_benchmark(name, config.data.get(name), protocol=settings.protocol)
    if settings.offline:  # huggingface_hub reads this when it is imported, which has not happened yet
        os.environ["HF_HUB_OFFLINE"] = "1"
    return RunSpec(
        **{
            one.name: getattr(own[wanted[0]] if len(wanted) == 1 else settings, one.name) for one in fields(RunSettings)
        },
        benchmarks=wanted,
        own=own,
        selection=_of_selector(settings.select, selection, common),
        data_overrides={name: config.data[name] for name in wanted if name in config.data},
    )


def settings_for(config: Config, benchmark: str | None, given: Given, names: Collection[str]) -> RunSettings:
    """The settings of a command that makes no run, from what was said of a benchmark, or of none in particular."""
    said = _strongest({**config.given(benchmark, names), **given})
    settings = RunSettings(**{name: one.value for name, one in said.items()})
    if settings.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return settings


def _strongest(said: Given) -> Given:
    """``trials`` said more directly than ``seeds`` wins over them."""
    if "seeds" in said and "trials" in said and said["trials"].strength > said["seeds"].strength:
        return {name: one for name, one in said.items() if name != "seeds"}
    return said


def _common(said: Mapping[str, Given]) -> Given:
    """What is said of all benchmarks alike. Raises UserError for what is not, and would have to be."""
    names = dict.fromkeys(name for given in said.values() for name in given if name not in PER_BENCHMARK)
    common: Given = {}
    for name in names:
        values = {benchmark: given.get(name) for benchmark, given in said.items()}
        found = {one.value if one is not None else None for one in values.values()}
        one = next(one for one in values.values() if one is not None)
        if len(found) > 1:
            others = ", ".join(b for b, other in values.items() if other is None or other.value != one.value)
            raise UserError(
                f"{one.where} does not hold for {others}, and a run of several benchmarks has one "
                f"{name.replace('_', '-')}: run them one by one, or say it on the command line"
            )
        common[name] = one
    return common


def _check_named(said: Given, *, model: bool) -> None:
    """Raises UserError where one of checkpoint and data is named, and the other would be the demo's.

    A command that loads no ``model`` needs data alone.
    """
    data, checkpoint = said.get("data_root"), said.get("checkpoint")
    if model and checkpoint is None and data is not None and data.value != DEMO:
        raise UserError(
            f"--data-root {data.value} is given, but no checkpoint: add --checkpoint (or --checkpoint demo)"
        )
    if data is None and checkpoint is not None and checkpoint.value != DEMO:
        raise UserError(f"--checkpoint {checkpoint.value} is given, but no data: add --data-root (or --data-root demo)")


def _of_selector(select: str, selection: Mapping[str, Any], said: Given) -> dict[str, Any]:
    """The chosen selector's settings. Raises UserError for another one's on the command line."""
    own = {setting.name for setting in registry.selector(select).settings}
    for name in selection.keys() - own:
        if said[name].strength == SAID_HERE:
            owners = [one for one, known in registry.selectors().items() if name in [s.name for s in known.settings]]
            raise UserError(f"{said[name].where} goes with --select {' or '.join(owners)}")
    return {name: value for name, value in selection.items() if name in own}
