"""Counts the tokens of a trial's prompts."""

from __future__ import annotations

from statistics import median

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.measuring import TokenCounter
from flamingo_eval.core.progress import progress_bar
from flamingo_eval.engine.plan import TrialPlan


def tokens_line(trial: TrialPlan, counter: TokenCounter) -> str:
    """A line with the minimum, median and maximum tokens of a trial's prompts, their limit, and how many exceed it."""
    counts, refused = list[int](), list[str]()
    source = trial.source
    with progress_bar(len(trial), "query", "tokens") as bar:
        for query in trial:
            try:
                counts.append(max(counter.count(prompt, source.images) for prompt in query.prompts))
            except QueryError as error:
                refused.append(str(error))
            bar.update(1)
    name, shots, seed = trial.key
    line = f"{name}  {shots} shots  seed {seed}: "
    if not counts:
        return f"{line}no prompt of its {len(trial)} queries can be counted: {refused[0]}"
    limit = counter.limit(source.task)
    line += f"tokens per prompt: least {min(counts)}, median {median(counts):.0f}, most {max(counts)}"
    over = sum(count > limit for count in counts) if limit is not None else 0
    line += "; no limit" if limit is None else f"; limit {limit} (besides the answer)"
    line += f", {over} of {len(counts)} prompts are too long" if over else ""
    return line + (f"; {len(refused)} can't be counted: {refused[0]}" if refused else "")
