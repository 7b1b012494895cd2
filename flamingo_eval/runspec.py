"""What a user asked for, as one frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flamingo_eval.files import user_path
from flamingo_eval.images import FORMATS

DEMO = "demo"
"""Name of the embedded checkpoint and of the embedded data, wherever either can be named."""


@dataclass(frozen=True)
class Process:
    """One of the processes that carry out a run together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number among those on its machine; picks its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class RunSpec:
    """A run: what decides its plan and answers, then how it is carried out.

    Attributes:
        benchmarks: names of the benchmarks.
        shots: numbers of demonstrations.
        seeds: one trial each.
        checkpoint: a known name, ``demo``, or the path of a TOML file.
        data_root: folder that holds one folder a benchmark, or ``demo``.
        protocol: whose rules.
        split: which split to query; None for each benchmark's own.
        selector: how demonstrations are picked.
        selection: settings of the selector, by name; those that it is not told are its defaults.
        ensemble: in how many orders of its demonstrations a ranking query is asked, at most.
        num_samples: queries per trial, drawn by the trial's seed; None for all.
        query_set_size: size of the pool of random demonstrations.
        data_overrides: benchmark -> its ``[data]`` settings that differ.
        precision: ``fp32``, ``bf16``, ``fp16``, ``amp_bf16``, or ``auto``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``local:1`` for the second process of a machine.
        batch_size: queries per batch, None for what the model suggests; does not change answers.
        weights: folder of copies to take a known checkpoint's files from.
        plain: answer without any shortcut; does not change answers.
        feature_cache: bytes of memory for what is computed once per picture; None for the default.
        image_formats: the image formats that may be decoded; does not change answers.
        on_error: ``stop``: an error once all other queries are answered; ``skip``: score what is there, as partial.
        process: which of the run's processes this is.
        executor: who answers; None for this process, or for the processes of a run together where there are several.
    """

    benchmarks: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    checkpoint: str = DEMO
    data_root: str = DEMO
    protocol: str = "openflamingo"
    split: str | None = None
    selector: str = "random"
    selection: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int | None = None
    query_set_size: int = 2048
    ensemble: int = 1
    data_overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    weights: str | None = None
    plain: bool = False
    feature_cache: int | None = None
    image_formats: tuple[str, ...] = FORMATS
    on_error: str = "stop"
    process: Process = Process()
    executor: str | None = None

    @property
    def model_options(self) -> dict[str, Any]:
        """Settings for the model alone, as far as they are not the defaults."""
        weights = None if self.weights is None else user_path(self.weights, "--weights")
        given = {"weights": weights, "plain": self.plain or None, "feature_cache": self.feature_cache}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def demo_parts(self) -> tuple[str, ...]:
        """Which parts are the demo's: any of ``checkpoint`` and ``data``."""
        named = (("checkpoint", self.checkpoint), ("data", self.data_root))
        return tuple(part for part, value in named if value == DEMO)

    @property
    def trial_keys(self) -> tuple[tuple[str, int, int], ...]:
        """(benchmark, shots, seed) of every trial asked for, in the order they are run."""
        return tuple((b, k, s) for b in self.benchmarks for k in self.shots for s in self.seeds)
