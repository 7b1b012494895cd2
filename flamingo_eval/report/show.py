"""Runs and single queries for people to read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flamingo_eval.core.prompting import OpenAIMessage
from flamingo_eval.report.grid import text_grid
from flamingo_eval.storage.run_folder import describe_age
from flamingo_eval.storage.runs import RunState


def runs_text(runs: Sequence[RunState]) -> str:
    """One line per run."""
    head = ["run", "benchmarks", "checkpoint", "state", "shots", "trials", "answered", "age"]
    body = [
        [str(run.path), ", ".join(run.benchmarks), run.checkpoint, run.state, ",".join(map(str, run.shots)),
         str(run.trials), _progress(run), describe_age(run.age)]
        for run in runs
    ]  # fmt: skip
    lines = [f"{run.path} is held by {run.holder}\n" for run in runs if run.holder]
    return text_grid(head, body, left=4) + "".join(lines)


def runs_json(runs: Sequence[RunState]) -> str:
    """The same as a JSON list."""
    rows = [
        {"run": str(run.path), "state": run.state, "benchmarks": list(run.benchmarks), "checkpoint": run.checkpoint,
         "shots": list(run.shots), "trials": run.trials, "answered": run.answered, "planned": run.planned,
         "age_seconds": round(run.age, 1) if math.isfinite(run.age) else None, "holder": run.holder}
        for run in runs
    ]  # fmt: skip
    return json.dumps(rows, indent=1) + "\n"


def _progress(run: RunState) -> str:
    if run.planned is None:
        return str(run.answered)
    share = f" ({100 * run.answered / run.planned:.0f}%)" if run.planned else ""
    return f"{run.answered}/{run.planned}{share}"


def run_text(record: Mapping[str, Any]) -> str:
    """``run.json``, one line per value."""
    return "".join(f"{line}\n" for line in _lines(record, ""))


def _lines(value: Any, indent: str) -> Iterator[str]:
    pairs = value.items() if isinstance(value, Mapping) else ((f"[{i}]", item) for i, item in enumerate(value))
    for key, item in pairs:
        simple = isinstance(item, list) and not any(isinstance(part, dict | list) for part in item)
        if isinstance(item, Mapping | list) and item and not simple:
            yield f"{indent}{key}"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and len(item) == 3 and key.startswith("["):
            yield f"{indent}{item[0]}, {item[1]} shots, seed {item[2]}"
        else:
            yield f"{indent}{key:<{max(1, 24 - len(indent))}} {_short(item)}"


def _short(value: Any) -> str:
    if isinstance(value, list | Mapping):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def query_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Everything about a query, a part for each trial that asks it."""
    return "\n".join("".join(f"{line}\n" for line in _query_lines(row)) for row in rows)


def _query_lines(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"{row['benchmark']}, {row['shots']} shots, seed {row['seed']}, query {row['query_id']}"
    yield f"  image         {row['example']['image']}"
    for field, text in row["example"].items():
        if field not in ("id", "image") and text:
            yield f"  {field:<13} {text}"
    yield "  demonstrations, the last one next to the query"
    for shown in row["demonstrations"]:
        line = "; ".join(f"{field} {text!r}" for field, text in shown.items() if field not in ("id", "image"))
        yield f"    {shown['id']}  {shown['image']}  {line}"
    yield "  prompt"
    yield from (f"    {line}" for line in _prompt_lines(row["prompt"]))
    if row["failed"]:
        yield f"  NOT ANSWERED  {row['failed']}"
        return
    if "class_logprobs" in row:
        ranked = sorted(row["class_logprobs"].items(), key=lambda pair: -pair[1])
        more = f" and {len(ranked) - 10} more" if len(ranked) > 10 else ""
        yield f"  log-likelihoods  {', '.join(f'{name} {value:.4f}' for name, value in ranked[:10])}{more}"
    else:
        yield f"  raw           {row['raw']!r}"
    yield f"  answer        {_short(row['answer'])}"
    yield f"  score         {_short(row['score'])}"
    yield f"  references    {_references(row['references'])}"


def _prompt_lines(prompt: str | Sequence[OpenAIMessage]) -> Iterator[str]:
    """A text's lines, or a conversation's messages."""
    if isinstance(prompt, str):
        yield from prompt.splitlines()
        return
    for message in prompt:
        parts = [
            part["text"] if part["type"] == "text" else f"[{part['image_url']['url']}]" for part in message["content"]
        ]
        first, *more = " ".join(parts).splitlines() or [""]
        yield f"{message['role']}: {first}"
        yield from (f"    {line}" for line in more)


def _references(value: Any) -> str:
    if isinstance(value, Mapping):
        answers = [answer["text"] for answer in value.get("answers", ())]
        return f"{', '.join(map(repr, answers))} ({value.get('answer_type')}, {value.get('question_type')})"
    if isinstance(value, list | tuple):
        return "; ".join(map(repr, value))
    return _short(value)
