"""What the demo's curve is made of: ``python -m flamingo_eval.demo.controls``.

Beside the demo itself, at each number of shots:

- *other dialect*: the same demonstrations with their text in another dialect; what the model gained from
  reading its demonstrations is gone.
- *wrong pictures*: every query shows another query's picture; what the model gained from seeing is gone.
- *perfect observer*: sees every concept, knows the words its demonstrations showed and guesses the others.
- *best single caption*: one and the same caption for every picture, the one that scores best.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from flamingo_eval import registry
from flamingo_eval.demo import world
from flamingo_eval.demo.data import DIALECT, SEED, demo_data_root, world_digest, write_coco
from flamingo_eval.engine.plan import TrialPlan
from flamingo_eval.engine.run import execute, plan_all, read_sources
from flamingo_eval.files import cache_folder
from flamingo_eval.nouns import Cell, Id, Trial
from flamingo_eval.runspec import DEMO, RunSpec

_CONCEPT_OF = {word: concept for concept, words in world.SYNONYMS.items() for word in words}
SHOTS = (0, 4, 8, 16)
SEEDS = (42, 43, 44)


def other_dialect() -> world.Dialect:
    """A dialect whose every word differs from the shipped data set's."""
    return tuple((choice + 1) % 3 for choice in DIALECT)


def control_root(name: str, write: Callable[[Path], None]) -> Path:
    """A control's data root in the cache folder, written if it is not there."""
    folder = cache_folder() / f"demo-control-{name}-{world_digest()}"
    if not (folder / "coco" / "annotations" / "captions_val2014.json").exists():  # the file that is written last
        write(folder / "coco")
    return folder


def concepts_in(text: str) -> list[str]:
    """The concepts whose words a caption holds, in order."""
    return [_CONCEPT_OF[word] for word in text.split() if word in _CONCEPT_OF]


def observe(trial: TrialPlan, references: Mapping[Id, Sequence[str]], frame: str) -> dict[Id, str]:
    """The perfect observer's captions of one trial, all in one frame."""
    generator = np.random.RandomState([SEED, trial.shots, trial.seed])
    captions = {}
    for position in range(len(trial)):
        shown = [trial.source.data.train[i].fields["caption"] for i in trial.demonstrations[position][0]]
        known = {concept for text in shown for concept in concepts_in(text)}
        id = trial.slots[position][0]
        colour, shape = sorted(concepts_in(references[id][0]), key=lambda concept: concept in world.SHAPES)
        words = {
            kind: world.word(concept, DIALECT if concept in known else world.draw_dialect(generator))
            for kind, concept in (("colour", colour), ("shape", shape))
        }
        captions[id] = frame.format(**words)
    return captions


def observer_cells(trials: Sequence[TrialPlan]) -> list[Cell]:
    """The perfect observer's scores, in the frame that suits it best at each number of shots."""
    metric = registry.metric("cider")
    references = trials[0].source.references.by_id
    cells = []
    for shots in SHOTS:
        members = [trial for trial in trials if trial.shots == shots]
        by_frame = [
            metric.compute([observe(trial, references, frame) for trial in members], references, {})
            for frame in world.FRAMES
        ]
        best = max(by_frame, key=lambda scores: sum(score.value for score in scores))
        results = tuple(Trial(t.seed, s.value, len(t), len(t)) for t, s in zip(members, best, strict=True))
        cells.append(Cell("coco", "test", shots, "random", "openflamingo", metric.title, results))
    return cells


def best_single_caption(references: Mapping[Id, Sequence[str]]) -> tuple[str, float]:
    """The caption of the world that scores best when every picture gets it, and its score."""
    texts = sorted(
        frame.format(colour=world.word(c, DIALECT), shape=world.word(s, DIALECT))
        for frame, c, s in itertools.product(world.FRAMES, world.COLOURS, world.SHAPES)
    )
    scores = registry.metric("cider").compute([dict.fromkeys(references, text) for text in texts], references, {})
    best = max(range(len(texts)), key=lambda i: scores[i].value)
    return texts[best], scores[best].value


def main(
    out: Annotated[Path, typer.Option(help="Folder for the three runs.")] = Path("results/runs/demo-controls"),
) -> None:
    """Run the demo beside its controls and print one table."""
    spec = RunSpec(benchmarks=("coco",), shots=SHOTS, seeds=SEEDS)
    root = demo_data_root()

    def root_of(data_root: str) -> Path:
        return root if data_root == DEMO else Path(data_root)

    roots = {
        "demo": root,
        "other dialect": control_root("other-dialect", lambda f: write_coco(f, demonstrations=other_dialect())),
        "wrong pictures": control_root("wrong-pictures", lambda f: write_coco(f, wrong_pictures=True)),
    }
    trials = plan_all(spec, read_sources(spec, root), spec.cells)
    rows = {"perfect observer": observer_cells(trials)}
    for name, data in roots.items():
        print(f"note: {name}", file=sys.stderr)
        named = RunSpec(benchmarks=("coco",), shots=SHOTS, seeds=SEEDS, data_root=DEMO if data == root else str(data))
        rows[name] = execute(named, root_of, out / name.replace(" ", "-")).cells
    caption, value = best_single_caption(trials[0].source.references.by_id)
    print("| CIDEr x 100, mean (standard deviation) of 3 trials | " + " | ".join(f"{k} shots" for k in SHOTS) + " |")
    print("| --- |" + " ---: |" * len(SHOTS))
    for name in ("perfect observer", *roots):
        print(f"| {name} | " + " | ".join(f"{c.mean:.1f} ({c.std or 0:.1f})" for c in rows[name]) + " |")
    print(f"| best single caption: {caption} |" + f" {value:.1f} |" * len(SHOTS))


if __name__ == "__main__":
    typer.run(main)
