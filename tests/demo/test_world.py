"""The demo's world: scenes, words, questions, and the data sets written from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.digests import file_digest
from flamingo_eval.core.records import Annotation
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.source import read_source
from flamingo_eval.demo import words, world
from flamingo_eval.demo.data import DIALECT, SIZE, demo_data_root, write_coco
from flamingo_eval.demo.held_out import DIALECTS, OWNED, RULES, draw_except
from flamingo_eval.demo.others import SIZES
from flamingo_eval.demo.writing import read_truth
from flamingo_eval.engine.plan import TrialPlan, plan_trial
from flamingo_eval.loaders.karpathy import LOADER
from flamingo_eval.models.flamingo.rendering import RENDERER


def test_every_word_belongs_to_one_concept_or_is_a_loan_word() -> None:
    own = [word for pair in words.OWN_WORDS.values() for word in pair]
    telling = [*own, *words.LOAN_COLOURS, *words.LOAN_SHAPES, *words.OWNERS, *world.PRINTED]
    assert len(set(telling)) == len(telling) == 32 + 16 + 16 + 16
    frames = (*words.FRAMES, words.ON_SIDE, words.WITH_WORD, *words.NUMBERS.values(), *world.SIDES, *world.RELATIONS)
    assert not {w for text in frames for w in text.replace("{", " ").replace("}", " ").split()} & set(telling)


def test_a_dialect_has_a_word_of_its_own_for_every_concept() -> None:
    generator = np.random.RandomState(0)
    loans = 0
    for _ in range(200):
        dialect = words.draw_dialect(generator)
        assert list(dialect) == list(words.CONCEPTS)
        assert len(set(dialect.values())) == 16
        loans += sum(word in (*words.LOAN_COLOURS, *words.LOAN_SHAPES) for word in dialect.values())
    assert loans / (200 * 16) == pytest.approx(1 / 3, abs=0.03)
    assert any(dialect[c] not in words.OWN_WORDS[c] for dialect in DIALECTS.values() for c in words.CONCEPTS)


def test_references_differ_and_are_in_the_dialect() -> None:
    generator = np.random.RandomState(3)
    for _ in range(50):
        scene = world.draw_scene(generator)
        texts = words.captions(scene, DIALECT, generator)
        assert len(set(texts)) == 5
        assert all(DIALECT[t.colour] in text and DIALECT[t.shape] in text for text in texts for t in scene.things)


def test_scenes_are_what_they_say() -> None:
    """Copies are of one thing, pairs differ in both, relations and sides hold on the image."""
    generator = np.random.RandomState(1)
    counts: Counter[str] = Counter()
    for _ in range(500):
        scene = world.draw_scene(generator)
        things, main, last = scene.things, scene.main, scene.things[-1]
        counts[scene.place or "copies"] += 1
        assert all(t.radius < t.x < 64 - t.radius and t.radius < t.y <= world.SKY for t in things)
        if scene.is_pair:
            assert main.colour != last.colour
            assert main.shape != last.shape
            apart = (last.x - main.x, last.y - main.y)
            assert apart[0 if scene.place == "left of" else 1] > 12
        elif scene.place:
            x, y = main.x - 32, main.y - world.SKY / 2
            assert {"left": -x, "right": x, "top": -y, "bottom": y}[scene.place] > 2
        else:
            assert 2 <= len(things) <= 4
            assert len({(t.colour, t.shape) for t in things}) == 1
    assert counts.keys() == {*world.SIDES, *world.RELATIONS, "copies"}


def test_questions_are_answered_right() -> None:
    generator = np.random.RandomState(2)
    thing = world.Thing("red", "circle", 17, 25, 9)
    other = world.Thing("blue", "star", 47, 25, 9)
    pair = world.Scene((thing, other), "left of", 200, "")
    dialect = {c: pair_of[0] for c, pair_of in words.OWN_WORDS.items()}
    right = {
        "What color is the circle?": "red", "What color is the star?": "blue", "What shape is the red thing?": "circle",
        "What shape is the blue thing?": "star", "How many things are there?": "2", "On which side is the circle?": "left",
        "On which side is the star?": "right", "Is the circle left of the star?": "yes",
        "Is the star left of the circle?": "no",
    }  # fmt: skip
    asked = {}
    for _ in range(400):
        question = words.ask(pair, dialect, generator)
        asked[question.text] = question.answer
        assert question.other
        assert question.answer not in question.other
    assert asked == right
    assert words.ask_word(pair).answer == "unanswerable"
    alone = world.Scene((thing,), "left", 200, "zest")
    assert words.ask_word(alone).answer == "zest"
    assert words.ask_owner(alone, OWNED).answer == OWNED["red"]
    output = {words.ask(alone, dialect, generator).text for _ in range(400)}
    assert {"Is there a red circle?", "On which side is the circle?", "How many things are there?"} < output
    for _ in range(400):
        question = words.ask(alone, dialect, generator)
        if question.text.startswith("Is there a"):
            assert question.answer == ("yes" if question.text == "Is there a red circle?" else "no")


def test_ten_people_answer_and_most_are_right() -> None:
    question = words.Question("?", "red", ("crimson", "scarlet"))
    generator = np.random.RandomState(0)
    dissent = Counter(10 - words.annotate(question, generator).count("red") for _ in range(500))
    assert set(dissent) == {0, 1, 2, 3}
    assert dissent[0] > dissent[1] > dissent[3]


def test_what_is_held_out_is_never_drawn() -> None:
    draws = iter([DIALECTS["captions"], DIALECTS["questions"], other := {"red": "dax"}])
    assert draw_except(lambda _: next(draws), np.random.RandomState(0), *DIALECTS.values()) is other
    assert len(set(RULES)) == len(RULES) == 12
    assert all(len(rule) == 4 for rule in RULES)


@pytest.mark.slow
def test_data_is_in_cocos_format_and_of_the_promised_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path))
    root = demo_data_root()
    assert root == demo_data_root()
    data = LOADER.examples(load_benchmark("coco").data, root, "test")
    assert (len(data.train), len(data.test)) == (SIZE.train, SIZE.test)
    assert SIZE.train >= 2200
    assert SIZE.test >= 200
    references = LOADER.references(load_benchmark("coco").data, root, "test")
    assert references.notes == ("references from captions_val2014.json",), "the Karpathy file agrees"
    assert all(len(set(texts)) == 5 for texts in references.by_id.values())
    assert all((root / example.image).is_file() for example in (*data.train, *data.test))
    write_coco(tmp_path / "again")
    files = sorted(p.relative_to(root / "coco") for p in (root / "coco").rglob("*") if p.is_file())
    assert [file_digest(root / "coco" / p) for p in files] == [file_digest(tmp_path / "again" / p) for p in files]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "nothing half-written is left"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coco", "flickr30k", "vqav2", "okvqa", "textvqa", "vizwiz", "hateful_memes", "imagenet"]
)
def test_every_benchmark_reads_its_mini_version(name: str) -> None:
    root = demo_data_root()
    source = read_source(name, root)
    folder = source.data.test[0].image.split("/")[0]
    size = {"coco": SIZE, **SIZES}[folder]
    assert (len(source.data.train), len(source.data.test)) == (size.train, size.test)
    truth = read_truth(root / folder)
    assert {e.image.split("/", 1)[1] for e in (*source.data.train, *source.data.test)} == set(truth)
    for annotation in source.references.by_id.values():
        if isinstance(annotation, Annotation):
            assert len(annotation.answers) == 10
            assert Counter(answer.text for answer in annotation.answers).most_common(1)[0][1] >= 7


def trials_of(name: str, shots: int) -> list[TrialPlan]:
    source = read_source(name, demo_data_root())
    return [plan_trial(source, RENDERER, RunSpec(), shots=shots, seed=seed) for seed in (42, 43, 44)]


@pytest.mark.slow
def test_the_perfect_observer_learns_from_demonstrations_only() -> None:
    """AUC for half of eight colours by counting (expected about 50, 83, 95, 99); the others rise, or are all right."""
    from flamingo_eval.demo.controls import BENCHMARKS, observe

    def curve(name: str) -> list[float]:
        row = observe([trial for k in (0, 4, 16) for trial in trials_of(name, k)])
        return [row[k].mean for k in (0, 4, 16)]

    chance, some, most = curve("hateful_memes")
    assert chance == pytest.approx(50)
    assert 78 < some < 95
    assert most > 97
    for name in ("coco", "flickr30k", "vqav2", "okvqa", "imagenet"):
        zero, four, sixteen = curve(name)
        assert zero < four < sixteen, name
    assert curve("okvqa")[0] < 30, "one of the two owners whose names were said"
    assert curve("textvqa") == pytest.approx([100, 100, 100])
    assert len(BENCHMARKS) == 8
