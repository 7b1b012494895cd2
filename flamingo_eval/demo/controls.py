"""Shows where the demos' scores come from: ``python -m flamingo_eval.demo.controls``, ``... --checkpoint demo-chat``.

Every mini benchmark is run by the model and beside it by these controls:

- *perfect observer*: sees everything, knows what its demonstrations show, guesses the rest (``observer.py``); also with
  RICES, since similar demonstrations show more about the query;
- *nearest demonstration*: the most frequent answer of the demonstrations, or the nearest one's; no model;
- *blind*: the model, without the query's image;
- *text only*: the model, without the images of the demonstrations;
- *images shuffled*, *text shuffled*: the model, with the demonstrations' images or texts in another order;
- *other dialect* and *wrong images* (captions): demonstrations in which every word is from another dialect; queries
  that show another query's image.

The mini Hateful Memes is also run under the eleven other held-out rules. With ``--write`` the tables go into the demo's
page, and the first demo's also into this project's README. Runs are kept: the same command continues them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from flamingo_eval.analysis.controls import run_controls
from flamingo_eval.core import registry
from flamingo_eval.core.paths import cache_folder
from flamingo_eval.core.progress import note
from flamingo_eval.core.records import Answer, Cell, Id, Trial
from flamingo_eval.core.run_settings import DEMO, DEMO_CHAT, DEMO_CHECKPOINTS, RunSettings, RunSpec
from flamingo_eval.core.source import read_source
from flamingo_eval.demo import words
from flamingo_eval.demo.data import DIALECT, demo_data_root, world_digest, write_coco, write_once
from flamingo_eval.demo.held_out import RULES, SEED
from flamingo_eval.demo.observer import Observer
from flamingo_eval.demo.others import write_hateful_memes
from flamingo_eval.demo.root import data_folder
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.reopen import reopen
from flamingo_eval.engine.run import execute
from flamingo_eval.report.grid import markdown_grid
from flamingo_eval.report.shown import format_value
from flamingo_eval.storage.run_folder import RunFolder

SHOTS, SEEDS = (0, 4, 8, 16, 32), (42, 43, 44)
CONTROLLED = (4, 16)
"""Numbers of shots at which the controls are run."""
BENCHMARKS: Mapping[str, tuple[str, Callable[[Observer, int], Answer]]] = {
    "coco": ("captions", Observer.caption),
    "flickr30k": ("more captions", Observer.caption),
    "vqav2": ("questions", Observer.answer),
    "okvqa": ("questions", Observer.owner),
    "textvqa": ("questions", Observer.answer),
    "vizwiz": ("questions", Observer.answer),
    "hateful_memes": ("questions", Observer.mark),
    "imagenet": ("classes", Observer.class_name),
}
"""Benchmark -> name of its dialect, and how the perfect observer answers."""
TITLES = {"majority": "nearest demonstration, no model", "blind": "blind", "text-only": "text only",
          "images-shuffled": "images shuffled", "text-shuffled": "text shuffled"}  # fmt: skip

CHECKOUT = Path(__file__).parents[2]
PAGES = {DEMO: Path(__file__).parent / "README.md", DEMO_CHAT: CHECKOUT / "docs" / "demo-chat.md"}
"""A demo's checkpoint -> the page with its tables."""

Row = dict[int, Cell]
"""A table's row: number of shots -> cell."""


def other_dialect() -> words.Dialect:
    """A dialect in which the word for every concept differs from that of the shipped captions."""
    return {c: next(w for w in pair if w != DIALECT[c]) for c, pair in words.OWN_WORDS.items()}


def control_root(name: str, write: Callable[[Path], None], last: str) -> Path:
    """A control's data root in the cache folder, written if ``last``, the file that is written last, is not there."""
    return write_once(cache_folder() / f"demo-control-{name}-{world_digest()}", last, write)


def other_dialect_root() -> Path:
    """Data root of the captions with demonstrations in another dialect."""
    return control_root("other-dialect", lambda root: write_coco(root / "coco", demonstrations=other_dialect()),
                        "coco/annotations/captions_val2014.json")  # fmt: skip


def wrong_images_root() -> Path:
    """Data root of the captions in which every query has another query's image."""
    return control_root("wrong-images", lambda root: write_coco(root / "coco", wrong_images=True),
                        "coco/annotations/captions_val2014.json")  # fmt: skip


def rule_root(number: int) -> Path:
    """Data root of the mini Hateful Memes under another held-out rule, with images of its own."""
    generator = np.random.RandomState([SEED, 200 + number])
    return control_root(f"rule-{number}", lambda root: write_hateful_memes(root, generator, RULES[number]),
                        "hateful_memes/dev_seen.jsonl")  # fmt: skip


def observe(trials: Sequence[TrialPlan], selector: str = "random") -> Row:
    """The perfect observer's scores on one benchmark; captions use the best frame at each number of shots."""
    benchmark = trials[0].source.benchmark
    dialect, answer = BENCHMARKS[benchmark.name]
    metric, references = registry.metric(benchmark.metric), trials[0].source.references.by_id
    row = {}
    for shots in dict.fromkeys(trial.shots for trial in trials):
        members = [trial for trial in trials if trial.shots == shots]
        answered = [Observer(trial, dialect).answers(answer) for trial in members]
        variants = [answered]
        if answer is Observer.caption:
            variants = [[_framed(frame, texts) for texts in answered] for frame in words.FRAMES]
        scored = [metric.compute(variant, references, benchmark.scoring) for variant in variants]
        best = max(scored, key=lambda scores: sum(score.value for score in scores))
        results = tuple(Trial(t.seed, s.value, len(t), len(t)) for t, s in zip(members, best, strict=True))
        row[shots] = Cell(benchmark.name, benchmark.split, shots, selector, benchmark.protocol, metric.title, results)
    return row


def _framed(frame: str, answered: Mapping[Id, Answer]) -> dict[Id, Answer]:
    return {id: frame.format(x=text) for id, text in answered.items()}


def best_single_caption(references: Mapping[Id, Sequence[str]]) -> tuple[str, float]:
    """The reference that scores best when it is the caption of every image, and its score."""
    texts = sorted({text for answered in references.values() for text in answered})
    scores = registry.metric("cider").compute([dict.fromkeys(references, text) for text in texts], references, {})
    best = max(range(len(texts)), key=lambda i: scores[i].value)
    return texts[best], scores[best].value


def _rows(cells: Sequence[Cell]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for cell in cells:
        rows.setdefault(cell.benchmark, {})[cell.shots] = cell
    return rows


@dataclass(frozen=True)
class Runs:
    """The runs of one of the demo's checkpoints.

    Attributes:
        checkpoint: its name.
        out: folder of the runs' folders.
    """

    checkpoint: str
    out: Path

    def folder(self, name: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.out / name.replace(" ", "-"))

    def run(self, name: str, benchmarks: Sequence[str], shots: Sequence[int], root: Path | None = None,
            selector: str = "random") -> dict[str, Row]:  # fmt: skip
        """Starts a run or continues it; benchmark -> row."""
        note(name)
        spec = RunSpec(benchmarks=tuple(benchmarks), shots=tuple(shots), seeds=SEEDS, select=selector,
                       checkpoint=self.checkpoint, data_root=DEMO if root is None else str(root))  # fmt: skip
        return _rows(execute(spec, data_folder, self.folder(name).path).cells)


def benchmark_table(runs: Runs, demo: Mapping[str, Row], rices: Mapping[str, Row]) -> str:
    """Every benchmark's scores and controls; demonstrations are random except in the two RICES rows."""
    controlled = _controls(runs.folder("demo"), tuple(TITLES))
    observed, observed_rices = (_observed(runs.folder(run)) for run in ("demo", "rices"))
    lines = []
    for name, row in demo.items():
        rows = {
            f"**{runs.checkpoint}**": row,
            f"{runs.checkpoint}, RICES (one trial)": rices[name],
            "perfect observer": observed[name],
            "perfect observer, RICES": observed_rices[name],
            **{title: controlled[control].get(name, {}) for control, title in TITLES.items()},
        }
        firsts = [f"{name}, {row[SHOTS[0]].metric}", *[""] * (len(rows) - 1)]
        lines += [[first, who, *_numbers(one, SHOTS)] for first, (who, one) in zip(firsts, rows.items(), strict=True)]
    return _table(["benchmark", "who"], SHOTS, lines)


def _observed(folder: RunFolder) -> dict[str, Row]:
    """The perfect observer's scores on every benchmark of a run, with that run's demonstrations."""
    record, trials = reopen(folder, data_folder)
    selector = record.identity.selector
    names = dict.fromkeys(trial.source.benchmark.name for trial in trials)
    return {name: observe([t for t in trials if t.source.benchmark.name == name], selector) for name in names}


def rules_table(runs: Runs) -> str:
    """The mini Hateful Memes under every held-out rule; means over rules, with and without demonstrations' images."""
    shots = SHOTS[:4]
    rows, text_only = [], []
    for number in range(len(RULES)):
        name = f"rule {number}"
        rows.append(runs.run(name, ["hateful_memes"], shots, rule_root(number) if number else None)["hateful_memes"])
        text_only.append(_controls(runs.folder(name), ["text-only"])["text-only"]["hateful_memes"])
    titles = [", ".join(sorted(rule)) for rule in RULES]
    lines = [[title, *_numbers(row, shots)] for title, row in zip(titles, rows, strict=True)]
    lines.append([f"**mean of {len(RULES)} rules** (deviation between rules)", *_numbers(_mean(rows), shots)])
    lines.append(["the same, text only", *_numbers(_mean(text_only), shots)])
    return _table(["rule: marked colours"], shots, lines)


def _mean(rows: Sequence[Row]) -> Row:
    """A row whose mean and deviation are over the given rows instead of over trials."""
    return {
        k: replace(cell, trials=tuple(Trial(i, row[k].mean, 1, 1) for i, row in enumerate(rows)))
        for k, cell in rows[0].items()
    }


def _controls(folder: RunFolder, names: Sequence[str]) -> dict[str, dict[str, Row]]:
    """Controls of a run: name -> benchmark -> row."""
    results = run_controls(folder, data_folder, controls=names, shots=CONTROLLED, data_root=None,
                           settings=RunSettings())  # fmt: skip
    return {name: _rows(cells) for name, cells in results.cells.items()}


def caption_table(runs: Runs, demo: Row) -> str:
    """The captioning curve beside its controls."""
    shots = SHOTS[:4]
    references = read_source("coco", demo_data_root()).references.by_id
    caption, value = best_single_caption(references)
    other = runs.run("other dialect", ["coco"], shots, other_dialect_root())["coco"]
    wrong = runs.run("wrong images", ["coco"], shots, wrong_images_root())["coco"]
    named = ((runs.checkpoint, demo), ("other dialect", other), ("wrong images", wrong))
    lines = [[name, *_numbers(row, shots)] for name, row in named]
    lines.append([f"best single caption: {caption}", *[f"{value:.1f}"] * len(shots)])
    return _table([f"coco, {demo[0].metric}"], shots, lines)


def front_tables(demo: Mapping[str, Row], rices: Mapping[str, Row]) -> dict[str, str]:
    """The tables at the top of this project's README: the captioning curve, its plot, a line for every benchmark."""
    curve = demo["coco"]
    means = [curve[k].mean for k in SHOTS]
    top = 100 * math.ceil(max(means) / 100)
    plot = f"""```mermaid
xychart-beta
    title "The demo learns from its demonstrations"
    x-axis "shots" [{", ".join(map(str, SHOTS))}]
    y-axis "{curve[0].metric}" 0 --> {top}
    line [{", ".join(f"{mean:.1f}" for mean in means)}]
```"""
    lines = [[name, row[0].metric, *_numbers(row, SHOTS), format_value(rices[name][4])] for name, row in demo.items()]
    heads = ["benchmark", "metric", *(f"{k} shots" for k in SHOTS), "RICES, 4 shots"]
    return {
        "curve": _table(
            ["benchmark", "split", "metric"], SHOTS, [["coco", "test", curve[0].metric, *_numbers(curve, SHOTS)]]
        ),
        "plot": plot,
        "all": markdown_grid(heads, lines, left=2).rstrip("\n"),
    }


def _table(words_of: Sequence[str], shots: Sequence[int], lines: Sequence[Sequence[str]]) -> str:
    """Markdown: columns of words, then one for each number of shots."""
    return markdown_grid([*words_of, *(f"{k} shots" for k in shots)], lines, left=len(words_of)).rstrip("\n")


def _numbers(row: Row, shots: Sequence[int]) -> list[str]:
    return [format_value(row[k]) if k in row else "" for k in shots]


def fill_in(page: Path, tables: Mapping[str, str]) -> None:
    """Puts tables between their markers, ``<!-- name -->`` and ``<!-- /name -->``."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not found or not end:
            raise SystemExit(f"{page} has no place for the table {name}")
        text = f"{before}{found}{table}\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def main(
    checkpoint: Annotated[str, typer.Option(help=f"One of {', '.join(DEMO_CHECKPOINTS)}.")] = DEMO,
    out: Annotated[Path | None, typer.Option(help="Folder for the runs.")] = None,
    write: Annotated[bool, typer.Option(help="Put the tables into the pages of a checkout.")] = False,
) -> None:
    """Run a demo beside its controls and print the tables."""
    if checkpoint not in PAGES:
        raise SystemExit(f"--checkpoint {checkpoint}: none of {', '.join(PAGES)}")
    runs = Runs(checkpoint, out or Path(f"results/runs/{checkpoint}-controls"))
    rows = runs.run("demo", list(BENCHMARKS), SHOTS)
    rices = runs.run("rices", list(BENCHMARKS), (4, 16), selector="rices")
    tables = {
        "benchmarks": benchmark_table(runs, rows, rices),
        "captions": caption_table(runs, rows["coco"]),
        "rules": rules_table(runs),
    }
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
    if write:
        fill_in(PAGES[checkpoint], tables)
    if write and checkpoint == DEMO:
        fill_in(CHECKOUT / "README.md", front_tables(rows, rices))


if __name__ == "__main__":
    typer.run(main)
