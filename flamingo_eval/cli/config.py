"""``flamingo-eval.toml``: defaults for options, and where a user's files are called otherwise.

Keys at the top are long options without dashes in front; a section per benchmark overrides them, and its ``data``
section overrides the benchmark's own file names::

    checkpoint = "openflamingo/OpenFlamingo-4B-vitl-rpj3b"
    data-root = "/data"

    [coco]
    shots = [0, 4]

    [coco.data]
    annotations = "karpathy/dataset_coco.json"

Flags win over environment variables (``FLAMINGO_EVAL_SHOTS``), those over this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flamingo_eval import registry
from flamingo_eval.benchmark import benchmark_names, canonical_name
from flamingo_eval.errors import UserError
from flamingo_eval.files import is_file
from flamingo_eval.reading import read_toml

FILE = Path("flamingo-eval.toml")
_OPTIONS = (
    "shots", "seeds", "trials", "checkpoint", "data_root", "num_samples", "query_set_size", "batch_size", "precision",
    "device", "out", "format", "protocol", "split", "ensemble", "select", "weights", "feature_cache", "on_error",
    "image_formats",
)  # fmt: skip
_TEXTS = ("select", "checkpoint", "data_root", "protocol", "split", "device", "weights", "feature_cache", "batch_size",
          "on_error", "image_formats", "out")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of a file: option defaults for all benchmarks, for each one, and ``[data]`` overrides."""

    general: dict[str, Any] = field(default_factory=dict)
    by_benchmark: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)

    def defaults(self, benchmark: str | None) -> dict[str, Any]:
        """Option defaults for a command on a benchmark."""
        return {**self.general, **self.by_benchmark.get(benchmark or "", {})}


def read_config(path: Path | None) -> Config:
    """Reads a configuration file; without a path, ``flamingo-eval.toml`` of the current folder if there is one.

    Raises:
        UserError: missing, malformed, or with keys that mean nothing; the message lists those that do.
    """
    if path is None:
        if not is_file(FILE):
            return Config()
        path = FILE
    table = read_toml(path, any_kind=True)
    config = Config(
        general=_options(path, {k: v for k, v in table.items() if not isinstance(v, dict)}, "the top level")
    )
    for name, section in table.items():
        if isinstance(section, dict):
            if name.replace("-", "_") not in benchmark_names():
                raise UserError(f"{path}: unknown section [{name}]; benchmarks: {', '.join(benchmark_names())}")
            benchmark = canonical_name(name)
            data = section.pop("data", {})
            if not isinstance(data, dict):
                raise UserError(f"{path}: [{name}] data must be a section of its own, [{name}.data]")
            config.data[benchmark] = data
            config.by_benchmark[benchmark] = _options(path, section, f"[{name}]")
    return config


def _options(path: Path, section: dict[str, Any], where: str) -> dict[str, Any]:
    found = {}
    settings = registry.selector_settings()
    switches = {name for name, setting in settings.items() if setting.kind is bool}
    options, texts = (*_OPTIONS, *settings), {*_TEXTS, *(settings.keys() - switches)}
    for key, value in section.items():
        option = key.replace("-", "_")
        if option not in options:
            known = ", ".join(name.replace("_", "-") for name in options)
            raise UserError(f"{path}: unknown key {key!r} in {where}; known keys: {known}")
        if isinstance(value, bool) != (option in switches):
            kind = "true or false" if option in switches else "a text, a number or a list"
            raise UserError(f"{path}: {key} in {where} must be {kind}, not {value!r}")
        if isinstance(value, list) and option not in ("shots", "seeds", "image_formats"):
            raise UserError(f"{path}: {key} in {where} must be one value, not a list")
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if "\0" in str(value):
            raise UserError(f"{path}: {key} in {where} holds a null character")
        found[option] = str(value) if option in texts else value
    return found
