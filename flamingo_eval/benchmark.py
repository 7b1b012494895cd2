"""What a benchmark is: one TOML file in ``benchmarks/``, read into a frozen record."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from flamingo_eval.errors import UserError
from flamingo_eval.files import resource_folder
from flamingo_eval.nouns import Decoding


@dataclass(frozen=True, slots=True)
class PromptRules:
    """How prompts are written; templates use an example's fields as ``{caption}`` or ``{caption|strip}``.

    Attributes:
        demonstration: template of one demonstration, separator included.
        query: template of the query.
        zero_shot_demonstrations: how many text-only demonstrations a zero-shot prompt has.
    """

    demonstration: str
    query: str
    zero_shot_demonstrations: int


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How an answer is cut out of the raw text.

    Attributes:
        cut: one after the other, the text is cut before the first occurrence of any string of the group.
        remove: strings removed after that.
    """

    cut: tuple[tuple[str, ...], ...] = ()
    remove: tuple[str, ...] = ()


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
    """Everything that tells one benchmark from another."""

    name: str
    title: str
    split: str
    protocol: str
    metric: str
    data: DataRules
    prompt: PromptRules
    decoding: Decoding
    answer: AnswerRules
    sources: tuple[str, ...]


@cache
def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks that ship with the package, sorted."""
    return tuple(sorted(path.stem for path in resource_folder("benchmarks").glob("*.toml")))


def canonical_name(name: str) -> str:
    """The benchmark's name as files spell it; on the command line a dash does as well as an underscore.

    Raises:
        UserError: unknown name; the message lists the known ones.
    """
    spelled = name.replace("-", "_")
    if spelled not in benchmark_names():
        raise UserError(f"unknown benchmark {name!r}; known benchmarks: {', '.join(benchmark_names())}")
    return spelled


def load_benchmark(name: str, data_overrides: Mapping[str, Any] | None = None) -> Benchmark:
    """A benchmark that ships with the package, with the user's own file names where they differ.

    Raises:
        UserError: unknown benchmark, or an override that its ``[data]`` section does not know.
    """
    path = resource_folder("benchmarks") / f"{canonical_name(name)}.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    for key, value in (data_overrides or {}).items():
        if key not in table["data"]:
            raise UserError(
                f"unknown data setting {key!r} for {name}; known settings: {', '.join(sorted(table['data']))}"
            )
        table["data"][key] = value
    return parse_benchmark(table, path)


def parse_benchmark(table: Mapping[str, Any], path: Path) -> Benchmark:
    """Checks a benchmark's table and turns it into records.

    Raises:
        UserError: a key is missing or unknown; the message names it.
    """
    known = {*(f.name for f in fields(Benchmark))}
    _check_keys(path, "the top level", table, known, known)
    data = dict(table["data"])
    named = {"loader", "folder", "train", "layout"}
    _check_keys(path, "[data]", data, named, {*named, *data})
    prompt_keys, decoding_keys, answer_keys = (
        {f.name for f in fields(kind)} for kind in (PromptRules, Decoding, AnswerRules)
    )
    _check_keys(path, "[prompt]", table["prompt"], prompt_keys, prompt_keys)
    _check_keys(path, "[decoding]", table["decoding"], decoding_keys, decoding_keys)
    _check_keys(path, "[answer]", table["answer"], set(), answer_keys)
    return Benchmark(
        name=table["name"],
        title=table["title"],
        split=table["split"],
        protocol=table["protocol"],
        metric=table["metric"],
        data=DataRules(
            loader=data["loader"],
            folder=data["folder"],
            train=data["train"],
            layout=tuple(data["layout"]),
            options={key: value for key, value in data.items() if key not in named},
        ),
        prompt=PromptRules(**table["prompt"]),
        decoding=Decoding(**table["decoding"]),
        answer=AnswerRules(
            cut=tuple(tuple(group) for group in table["answer"].get("cut", ())),
            remove=tuple(table["answer"].get("remove", ())),
        ),
        sources=tuple(table["sources"]),
    )


def _check_keys(path: Path, where: str, table: Mapping[str, Any], required: set[str], known: set[str]) -> None:
    for key in sorted(required - table.keys()):
        raise UserError(f"{path}: {key!r} is missing in {where}")
    for key in sorted(table.keys() - known):
        raise UserError(f"{path}: unknown key {key!r} in {where}; known keys: {', '.join(sorted(known))}")
