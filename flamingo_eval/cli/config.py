"""``flamingo-eval.toml``: settings for every command, and the names of a user's data files where they differ.

Keys at the top level are settings, named like the options without the leading dashes. A section per benchmark
overrides them for every command that runs this benchmark. Its ``data`` section overrides the benchmark's own file
names::

    checkpoint = "openflamingo/OpenFlamingo-4B-vitl-rpj3b"
    data-root = "/data"

    [coco]
    shots = [0, 4]

    [coco.data]
    annotations = "karpathy/dataset_coco.json"

Options win over environment variables (``FLAMINGO_EVAL_SHOTS``), and environment variables win over this file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flamingo_eval.cli.options import IN_FILE, IN_SECTION, Given, GivenValue, all_settings
from flamingo_eval.core.benchmark import benchmark_names, canonical_name
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import is_file
from flamingo_eval.core.reading import read_toml
from flamingo_eval.core.settings import Setting

FILE = Path("flamingo-eval.toml")


@dataclass(frozen=True)
class Config:
    """The content of a configuration file: settings for all benchmarks and for each one, and ``data`` overrides."""

    general: Given = field(default_factory=dict)
    by_benchmark: Mapping[str, Given] = field(default_factory=dict)
    data: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def given(self, benchmark: str | None, names: Collection[str]) -> Given:
        """Returns the settings with these names for a benchmark; for None, those at the top level."""
        own = {**self.general, **self.by_benchmark.get(benchmark or "", {})}
        return {name: value for name, value in own.items() if name in names}


def read_config(path: Path | None) -> Config:
    """Reads a configuration file; without a path, ``flamingo-eval.toml`` of the current folder if there is one.

    Raises:
        UserError: the file is missing or malformed, or has an unknown key or section; the message lists the known ones.
    """
    if path is None:
        if not is_file(FILE):
            return Config()
        path = FILE
    table = read_toml(path, any_kind=True)
    general = {key: value for key, value in table.items() if not isinstance(value, dict)}
    by_benchmark, data = {}, {}
    for name, section in table.items():
        if isinstance(section, dict):
            if name.replace("-", "_") not in benchmark_names():
                raise UserError(f"{path}: unknown section [{name}]; benchmarks: {', '.join(benchmark_names())}")
            benchmark = canonical_name(name)
            if benchmark in data:
                raise UserError(f"{path}: two sections are about {benchmark}")
            data[benchmark] = section.pop("data", {})
            if not isinstance(data[benchmark], dict):
                raise UserError(f"{path}: [{name}] data must be a section of its own, [{name}.data]")
            by_benchmark[benchmark] = _settings(path, section, f"[{name}]", IN_SECTION)
    return Config(_settings(path, general, "the top level", IN_FILE), by_benchmark, data)


def _settings(path: Path, section: Mapping[str, Any], where: str, strength: int) -> Given:
    known = _by_key()
    found: Given = {}
    for key, value in section.items():
        setting = known.get(key.replace("-", "_"))
        if setting is None:
            names = ", ".join(name.replace("_", "-") for name in all_settings())
            raise UserError(f"{path}: unknown key {key!r} in {where}; known keys: {names}")
        place = f"{path}: {key} in {where}"
        if setting.name in found:
            other = found[setting.name].where.partition(": ")[2]
            raise UserError(f"{place} and {other} are the same setting: give one of them")
        found[setting.name] = GivenValue(setting.read(value, f"{place} is"), strength, place)
    return found


def _by_key() -> dict[str, Setting]:
    settings = all_settings()
    return {**{old: one for one in settings.values() for old in one.was}, **settings}
