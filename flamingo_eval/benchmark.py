"""What a benchmark is: one TOML file in ``benchmarks/``, read into a frozen record."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_eval.errors import DataError, UserError
from flamingo_eval.files import resource_folder, user_path
from flamingo_eval.nouns import Decoding, Ranking, Task
from flamingo_eval.reading import read_toml

DEFAULT_PROTOCOL = "openflamingo"


@dataclass(frozen=True, slots=True)
class PlanRules:
    """How queries and demonstrations are drawn.

    Attributes:
        reseed_pool: seed NumPy with the trial's seed again before the pool of demonstrations is drawn.
        one_set: queries and pool are drawn together from one set, the pool first, and visited in that order.
        num_samples: queries per trial if the user names no number; None for all.
        seeds: seeds of the trials if the user names none.
        selectors: the ways to pick demonstrations that these rules know; empty for all.
    """

    reseed_pool: bool = False
    one_set: bool = False
    num_samples: int | None = None
    seeds: tuple[int, ...] = (42, 43, 44)
    selectors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How prompts are written; templates use an example's fields as ``{caption}`` or ``{caption|strip}``.

    Attributes:
        text: template of what follows the image, in demonstrations and in the query alike.
        answer: template of a demonstration's answer.
        separator: what stands behind each demonstration.
        zero_shot_demonstrations: how many text-only demonstrations a zero-shot prompt has.
        zero_shot_keeps_images: hand the images of text-only demonstrations over all the same, so that the query's
            mark meets the first of them (a defect of the reference's classification; only a renderer that follows the
            reference repeats it).
        rgb: convert images to RGB before the transform.
    """

    text: str
    answer: str
    separator: str = ""
    zero_shot_demonstrations: int = 2
    zero_shot_keeps_images: bool = False
    rgb: bool = False


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How an answer is cut out of the raw text.

    Attributes:
        cut: one after the other, the text is cut before the first occurrence of any string of the group.
        remove: strings removed after that.
        stem: stem the words as OK-VQA's answers are stemmed.
    """

    cut: tuple[tuple[str, ...], ...] = ()
    remove: tuple[str, ...] = ()
    stem: bool = False


@dataclass(frozen=True, slots=True)
class DataRules:
    """Where the data is and how to read it.

    Attributes:
        loader: name of the file format's loader.
        folder: folder of the benchmark under the data root.
        train: name of the split that demonstrations come from.
        layout: what the folder holds, for people.
        options: what else the loader wants to know: file names, keys.
    """

    loader: str
    folder: str
    train: str
    layout: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Everything that tells one benchmark from another, under one protocol.

    Attributes:
        scoring: what the metric wants to know.
        also: other protocols -> their ``scoring``, where the same answers can be scored by it too.
        submission: how an evaluation server wants answers: ``key`` (``question_id`` or ``image``), ``split`` whose
            questions must all be answered, ``from`` which splits a run may be.
    """

    name: str
    title: str
    split: str
    splits: tuple[str, ...]
    protocol: str
    metric: str
    scoring: Mapping[str, Any]
    also: Mapping[str, Mapping[str, Any]]
    data: DataRules
    plan: PlanRules
    prompt: PromptRules
    task: Task
    answer: AnswerRules
    submission: Mapping[str, Any]
    sources: tuple[str, ...]


MORE_BENCHMARKS = "FLAMINGO_EVAL_BENCHMARKS"
"""Environment variable: a folder with further benchmarks, one TOML file each."""


@cache
def _files() -> dict[str, Path]:
    """Name -> TOML file of every benchmark: those that ship with the package, and the user's own."""
    folders = [resource_folder("benchmarks")]
    if os.environ.get(MORE_BENCHMARKS):
        folders.append(user_path(os.environ[MORE_BENCHMARKS], MORE_BENCHMARKS))
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            if path.name == "flamingo-eval.toml":  # the configuration file, where both lie in one folder
                continue
            if not path.stem.replace("_", "").isalnum() or path.stem.lower() != path.stem:
                raise UserError(f"{path}: a benchmark's file is named by small letters, digits and underscores")
            if path.stem in files:
                raise UserError(f"{path}: there is a benchmark {path.stem} already ({files[path.stem]})")
            files[path.stem] = path
    return files


def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks, sorted."""
    return tuple(sorted(_files()))


def canonical_name(name: str) -> str:
    """The benchmark's name as files spell it; on the command line a dash does as well as an underscore.

    Raises:
        UserError: unknown name; the message lists the known ones.
    """
    spelled = name.replace("-", "_")
    if spelled not in benchmark_names():
        raise UserError(f"unknown benchmark {name!r}; known benchmarks: {', '.join(benchmark_names())}")
    return spelled


def load_benchmark(
    name: str,
    data_overrides: Mapping[str, Any] | None = None,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    split: str | None = None,
) -> Benchmark:
    """A benchmark by name, with the user's own file names where they differ.

    Args:
        name: its name.
        data_overrides: ``[data]`` settings that differ.
        protocol: whose rules; a protocol's section overrides the file's other sections.
        split: which split to query; None for the protocol's own.

    Raises:
        UserError: unknown benchmark, protocol, split or override; the message lists the known ones.
    """
    path = _files()[canonical_name(name)]
    try:
        table = read_toml(path)
    except DataError as error:
        raise UserError(f"not a benchmark: {error}") from error
    return parse_benchmark(table, path, data_overrides or {}, protocol=protocol, split=split)


def parse_benchmark(
    table: Mapping[str, Any],
    path: Path,
    data_overrides: Mapping[str, Any] | None = None,
    *,
    protocol: str = DEFAULT_PROTOCOL,
    split: str | None = None,
) -> Benchmark:
    """Checks a benchmark's table and turns it into records.

    Raises:
        UserError: a key is missing or unknown; the message names it.
    """
    base = {key: value for key, value in table.items() if key != "protocols"}
    protocols: Mapping[str, Any] = {DEFAULT_PROTOCOL: {}, **table.get("protocols", {})}
    if protocol not in protocols:
        raise UserError(f"{path.stem} has no protocol {protocol!r}; it has: {', '.join(protocols)}")
    chosen = protocols[protocol]
    if "refused" in chosen:
        raise UserError(f"{path.stem} is not run under {protocol}: {chosen['refused']}")
    merged = _merge(_with_turns(path, base), _with_turns(path, chosen))
    _check_tables(path, merged)
    merged["data"] = _override(path, merged["data"], data_overrides or {})
    if merged["name"] != path.stem:
        raise UserError(f"{path}: the name {merged['name']!r} must be the file's, {path.stem!r}")
    if split is not None and split not in merged["splits"]:
        raise UserError(f"{path.stem} has no split {split!r}; it has: {', '.join(merged['splits'])}")
    named = ("loader", "folder", "train", "layout")
    also = {
        other: _merge(base, rules)["scoring"]
        for other, rules in protocols.items()
        if other != protocol and "refused" not in rules and "scoring" in rules and rules.keys() <= {"scoring"}
    }
    if also and "scoring" in chosen:
        also[DEFAULT_PROTOCOL] = base["scoring"]
    return Benchmark(
        name=merged["name"],
        title=merged["title"],
        split=split or merged["split"],
        splits=tuple(merged["splits"]),
        protocol=protocol,
        metric=merged["metric"],
        scoring=merged.get("scoring", {}),
        also=also,
        data=DataRules(
            **{key: merged["data"][key] for key in named[:3]},
            layout=tuple(merged["data"]["layout"]),
            options={key: value for key, value in merged["data"].items() if key not in named},
        ),
        plan=PlanRules(**_tuples(merged.get("plan", {}))),
        prompt=PromptRules(**merged["prompt"]),
        task=_task(merged),
        answer=AnswerRules(**_tuples(merged["answer"])),
        submission=merged.get("submission", {}),
        sources=tuple(merged["sources"]),
    )


_FIRST_QUERY = re.compile(r"<\w+>(?P<text>.*)", re.DOTALL)
_FIRST_REST = re.compile(r"(?P<answer>.*)<\|\w+\|>(?P<separator>\s*)", re.DOTALL)


def _with_turns(path: Path, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """A table whose ``[prompt]`` says ``text``, ``answer`` and ``separator``.

    In the first versions it had whole templates in it, ``demonstration`` and ``query``, with a model's marks.
    """
    prompt = table.get("prompt")
    if not isinstance(prompt, dict) or not {"demonstration", "query"} & prompt.keys():
        return table
    shown, asked = str(prompt.get("demonstration", "")), str(prompt.get("query", ""))
    query, rest = _FIRST_QUERY.fullmatch(asked), _FIRST_REST.fullmatch(shown.removeprefix(asked))
    if query is None or rest is None or not shown.startswith(asked):
        raise UserError(
            f"{path}: in [prompt] write 'text' (what follows the image), 'answer' and 'separator' (what stands behind "
            "a demonstration) in place of 'demonstration' and 'query'"
        )
    others = {key: value for key, value in prompt.items() if key not in ("demonstration", "query")}
    return {**table, "prompt": {**others, **query.groupdict(), **rest.groupdict()}}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, table by table."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def _override(path: Path, data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``[data]`` with a user's own settings; tables (a split's files) are merged key by key."""
    for key, value in overrides.items():
        known: Mapping[str, Any] = data
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            known, value = data[key], value
            unknown = sorted(value.keys() - known.keys())
        else:
            unknown = [] if key in data else [key]
        if unknown:
            raise UserError(
                f"unknown data setting {unknown[0]!r} for {path.stem}; known settings: {', '.join(sorted(known))}"
            )
        for inner, new in value.items() if isinstance(value, dict) else ((key, value),):
            if type(new) is not type(known[inner]):
                raise UserError(
                    f"data setting {inner!r} for {path.stem} must be of type {type(known[inner]).__name__}, not {new!r}"
                )
    return _merge(data, overrides)


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's lists as tuples, also inside lists."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {key: frozen(value) for key, value in table.items()}


def _task(table: Mapping[str, Any]) -> Task:
    if "ranking" not in table:
        return Decoding(**table["decoding"])
    names = table["ranking"]["names"]
    if isinstance(names, str):  # a file of names that ships with the package
        names = (resource_folder("benchmarks") / names).read_text(encoding="utf-8").splitlines()
    return Ranking(tuple(dict.fromkeys(names)))


def _check_tables(path: Path, table: Mapping[str, Any]) -> None:
    kinds = {"plan": PlanRules, "prompt": PromptRules, "answer": AnswerRules, "decoding": Decoding, "ranking": Ranking}
    required = {"name", "title", "split", "splits", "metric", "sources", "data", "prompt", "answer"}
    required |= set() if "ranking" in table else {"decoding"}
    _check_keys(path, "the top level", table, required, required | kinds.keys() | {"scoring", "submission"})
    for section in ("data", "prompt", "answer", *(set(kinds) & table.keys())):
        if not isinstance(table[section], dict):
            raise UserError(f"{path}: [{section}] must be a section")
    _check_keys(path, "[data]", table["data"], {"loader", "folder", "train", "layout"}, {*table["data"], "loader"})
    for section, kind in kinds.items():
        if section in table:
            needed = {f.name for f in fields(kind) if f.default is MISSING}
            _check_keys(path, f"[{section}]", table[section], needed, {f.name for f in fields(kind)})


def _check_keys(path: Path, where: str, table: Mapping[str, Any], required: set[str], known: set[str]) -> None:
    for key in sorted(required - table.keys()):
        raise UserError(f"{path}: {key!r} is missing in {where}")
    for key in sorted(table.keys() - known):
        raise UserError(f"{path}: unknown key {key!r} in {where}; known keys: {', '.join(sorted(known))}")
