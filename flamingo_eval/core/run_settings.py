"""Every setting of a run, declared once, and a run as one frozen record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flamingo_eval.core.cluster_settings import CLUSTER_SETTINGS, ClusterSettings
from flamingo_eval.core.images import formats_with
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.server_settings import SERVER_SETTINGS, ServerSettings
from flamingo_eval.core.settings import (
    BATCH,
    HOW,
    MODEL,
    NAMES,
    OUT,
    PAIRS,
    PATH,
    PATH_TEXT,
    SIZE,
    SWITCH,
    TEXT,
    Setting,
    choice,
    declared,
    integer,
    numbers,
)

DEMO = "demo"
"""Name of the embedded Flamingo and of the embedded data, wherever either can be named."""

DEMO_CHAT = "demo-chat"
"""Name of the embedded transformers model, which answers conversations about the same data."""

DEMO_CHECKPOINTS = (DEMO, DEMO_CHAT)

SHOWN_TO_MODEL = ("system", "template_arg", "image_tokens", "max_pixels")
"""Settings that decide, together with the rendering, what a model is shown of a prompt."""

FORMATS = ("table", "markdown", "csv", "json", "latex", "html")
"""Formats in which tables are printed."""


@dataclass(frozen=True, kw_only=True)
class RunSettings(ClusterSettings, ServerSettings):
    """Every setting of a run."""

    shots: tuple[int, ...] = declared(
        (0, 4, 8, 16, 32),
        numbers(10_000),
        "Numbers of in-context demonstrations, separated by commas. At 0 the protocol shows two, most without "
        "images; a conversation shows none.",
        metavar="LIST",
        default_text="0,4,8,16,32",
        named=False,
    )
    seeds: tuple[int, ...] | None = declared(
        None,
        numbers(2**32 - 1),
        "One trial per seed, such as 42,43,44.",
        metavar="LIST",
        default_text="42,43,44, unless the protocol has its own",
        named=False,
    )
    trials: int | None = declared(
        None,
        integer(1, 1000),
        "Number of trials, with seeds from the protocol's first on; --seeds names them instead.",
        metavar="N",
        default_text="the protocol's",
        named=False,
    )
    data_root: str = declared(
        DEMO,
        PATH_TEXT,
        "Folder with one folder per benchmark ('flamingo-eval data where coco' shows its layout), or 'demo'.",
        metavar="DIR",
        default_text="the demo's, if no checkpoint is named",
        named=False,
    )
    protocol: str = declared(
        "openflamingo",
        TEXT,
        "Whose rules: openflamingo, openflamingo-2023-06, openflamingo-2023-03, or official.",
        metavar="NAME",
        named=False,
    )
    split: str | None = declared(
        None,
        TEXT,
        "Which split to query, where there are several.",
        metavar="NAME",
        default_text="the protocol's",
        named=False,
    )
    num_samples: int | None = declared(
        None,
        integer(1),
        "Queries per trial, drawn by its seed. Scores of different numbers can't be compared.",
        metavar="N",
        default_text="all, unless the protocol has its own number",
        named=False,
    )
    pool_size: int = declared(
        2048,
        integer(1),
        "How many training examples random demonstrations are drawn from; at most all of them.",
        metavar="N",
        named=False,
        was=("query_set_size",),
    )
    ensemble: int = declared(
        1,
        integer(1, 1000),
        "Ask each ranking query in up to this many orders of its demonstrations; the reference takes 6.",
        metavar="N",
        named=False,
    )
    select: str = declared(
        "random", TEXT, "How demonstrations are picked.", metavar="NAME", named=False, was=("selector",)
    )
    checkpoint: str = declared(
        DEMO,
        PATH_TEXT,
        "A known name ('flamingo-eval list checkpoints'), or a TOML file that names vision model, language model and "
        "checkpoint file. hf:FOLDER, hf:NAME or hf:NAME@REVISION: a model of transformers. openai:MODEL: one behind a "
        "server (--base-url). demo and demo-chat: the embedded ones.",
        metavar="NAME|hf:NAME|TOML",
        panel=MODEL,
        default_text="the demo's, if no data root is named",
        named=False,
    )
    weights: str | None = declared(
        None,
        PATH_TEXT,
        "Take a known checkpoint's files from a folder of copies instead of the hub: DIR/<repository>/checkpoint.pt, "
        "DIR/<language model>/config.json, ...",
        metavar="DIR",
        panel=MODEL,
        named=False,
    )
    offline: bool = declared(
        False,
        SWITCH,
        "Download nothing; use only files that are already there (like HF_HUB_OFFLINE=1).",
        panel=MODEL,
        changes_answers=False,
    )
    precision: str = declared(
        "auto",
        TEXT,
        "Number format: fp32, bf16, fp16 or amp_bf16 (products in bfloat16, all else in float32). auto: amp_bf16 on a "
        "CUDA card that has bfloat16, else fp32; of an hf: model the type of its weights, on a CPU fp32.",
        metavar="NAME",
        panel=MODEL,
        named=False,
    )
    rendering: str = declared(
        "auto",
        choice("auto", "chat", "interleaved"),
        "How an hf: model is shown prompts: chat (a conversation, by its own template) or interleaved (the benchmark's "
        "text with images in it, for base models).",
        metavar="NAME",
        panel=MODEL,
        default_text="chat if the model has a template",
        named=False,
    )
    system: str | None = declared(
        None, TEXT, "A system message before the conversation.", metavar="TEXT", panel=MODEL, default_text="none"
    )
    template_arg: Mapping[str, Any] | None = declared(
        None,
        PAIRS,
        "A switch of the chat template, such as enable_thinking=true; may be repeated.",
        metavar="KEY=VALUE",
        panel=MODEL,
        default_text="thinking is off",
    )
    image_tokens: int | None = declared(
        None,
        integer(1),
        "At most so many tokens per image, by the processor's own settings; an error where they don't go so low.",
        metavar="N",
        panel=MODEL,
        default_text="the processor's own",
    )
    max_pixels: int | None = declared(
        None,
        integer(1),
        "At most so many pixels per image, and no tiles, by the processor's own settings; an error where they can't.",
        metavar="N",
        panel=MODEL,
        default_text="the processor's own",
    )
    device_map: str | None = declared(
        None,
        choice("auto", "balanced", "balanced_low_0", "sequential"),
        "Spread an hf: model over all cards: auto, balanced, balanced_low_0 or sequential, as accelerate has them.",
        metavar="NAME",
        panel=HOW,
        changes_answers=False,
        default_text="one device",
    )
    device: str = declared(
        "auto",
        TEXT,
        "Where the model runs: cpu, cuda, cuda:N, mps or xpu. auto: CUDA if there is one.",
        metavar="NAME",
        panel=HOW,
        changes_answers=False,
    )
    image_formats: tuple[str, ...] = declared(
        (),
        NAMES,
        "Also read images of these formats, such as AVIF,JPEG2000. Always read: JPEG, PNG, WEBP, GIF, BMP, TIFF; "
        "other decoders are less tested.",
        metavar="LIST",
        panel=HOW,
        changes_answers=False,
        default_text="none",
    )
    batch_size: int | None = declared(
        None,
        BATCH,
        "Queries per batch. In fp32 it changes nothing beyond rounding; in bf16, fp16 and amp_bf16 a few near-ties may "
        "change. A batch that does not fit into memory is halved.",
        metavar="N",
        panel=HOW,
        changes_answers=False,
        default_text="auto",
    )
    feature_cache: int | None = declared(
        None,
        SIZE,
        "Memory for encoded images, such as 8GB; all of them are also kept in the cache folder.",
        metavar="SIZE",
        panel=HOW,
        changes_answers=False,
        default_text="8GB",
    )
    plain: bool = declared(
        False,
        SWITCH,
        "Turn all speed-ups off, to check them; same answers, several times slower.",
        panel=HOW,
        changes_answers=False,
    )
    on_error: str = declared(
        "stop",
        choice("stop", "skip"),
        "When queries can't be answered (unreadable images, overflow). stop: an error once all others are answered. "
        "skip: score what is there and mark every number as partial (exit 4).",
        metavar="stop|skip",
        panel=HOW,
        changes_answers=False,
    )
    process: str | None = declared(
        None,
        TEXT,
        "Which of the processes that share this run's work this is, such as 0/8. All need the same command and see the "
        "same run folder; the first one scores.",
        metavar="RANK/COUNT",
        panel=HOW,
        changes_answers=False,
        default_text="as torchrun or Slurm's srun say",
    )
    executor: str | None = declared(
        None,
        TEXT,
        "Who answers: local (this process), processes (those that share the run's folder), ray (workers of a Ray "
        "cluster), or a plug-in.",
        metavar="NAME",
        panel=HOW,
        changes_answers=False,
        default_text="local, or processes where there are several",
    )
    out: Path | None = declared(  # noqa: RUF009  # it is a field
        None,
        PATH,
        "Run folder.",
        metavar="DIR",
        panel=OUT,
        changes_answers=False,
        default_text="results/runs/<benchmark>-<digest of what determines answers>",
    )
    format: str = declared(
        "table",
        choice(*FORMATS),
        f"How the table is printed: {', '.join(FORMATS)}. bench, controls and reproduce: table, markdown, json.",
        metavar="NAME",
        panel=OUT,
        changes_answers=False,
    )
    notes: bool = declared(
        False,
        SWITCH,
        "All that is to be known of a table's numbers under it, not only a line.",
        panel=OUT,
        changes_answers=False,
    )

    @property
    def model_options(self) -> dict[str, Any]:
        """Settings for the model only, without those at their defaults."""
        weights = None if self.weights is None else user_path(self.weights, "--weights")
        given: dict[str, Any] = {"weights": weights, "plain": self.plain or None, "feature_cache": self.feature_cache}
        given |= {name: getattr(self, name) for name in (*SHOWN_TO_MODEL, *SERVER_SETTINGS, "device_map")}
        given["rendering"] = None if self.rendering == "auto" else self.rendering
        return {name: value for name, value in given.items() if value is not None}

    @property
    def formats(self) -> tuple[str, ...]:
        """The image formats that may be decoded. Raises UserError for one that is unknown to Pillow or never read."""
        return formats_with(self.image_formats)

    @property
    def demo_parts(self) -> tuple[str, ...]:
        """Which parts are the demo's: any of ``checkpoint`` and ``data``."""
        parts = (("checkpoint", self.checkpoint in DEMO_CHECKPOINTS), ("data", self.data_root == DEMO))
        return tuple(part for part, is_demo in parts if is_demo)

    def seeds_by(self, protocol: tuple[int, ...]) -> tuple[int, ...]:
        """The seeds that were given; else ``trials`` seeds, counted from the protocol's first; else the protocol's."""
        if self.seeds is not None:
            return self.seeds
        return protocol if self.trials is None else tuple(range(protocol[0], protocol[0] + self.trials))


SETTINGS: Mapping[str, Setting] = {
    one.name: Setting(one.name, one.metadata["kind"], one.metadata["help"], one.default, **one.metadata["more"])
    for one in sorted(fields(RunSettings), key=lambda one: one.name in (*CLUSTER_SETTINGS, *SERVER_SETTINGS))
}
"""The settings of a run, by name."""

NAMED_SETTINGS = tuple(name for name, one in SETTINGS.items() if one.changes_answers and one.named)
"""Settings that a run's identity contains under their own names, where they are not at their defaults."""

COMMAND_LINE_ONLY = frozenset({"checkpoint", "offline", "process", "executor", "format", "notes", *CLUSTER_SETTINGS})
"""Settings that ``evaluate`` lacks: there the model is passed in, in this process, and cells are returned."""

PER_BENCHMARK = frozenset({"shots", "seeds", "trials"})
"""Settings that each benchmark of a run may have for itself."""


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


@dataclass(frozen=True, kw_only=True)
class RunSpec(RunSettings):
    """A run: its settings, and what it evaluates.

    Attributes:
        benchmarks: names of the benchmarks.
        own: benchmark -> its own settings, which may differ from the run's in ``PER_BENCHMARK``.
        selection: settings of the selector, by name; those that are missing have their defaults.
        data_overrides: benchmark -> its ``[data]`` settings that differ from its file's.
        worker: which of the run's processes this is.
    """

    benchmarks: tuple[str, ...] = ()
    own: Mapping[str, RunSettings] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    data_overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    worker: Process = Process()

    def of(self, benchmark: str) -> RunSettings:
        """The settings of a benchmark of the run; those in ``PER_BENCHMARK`` can be its own."""
        return self.own.get(benchmark, self)
