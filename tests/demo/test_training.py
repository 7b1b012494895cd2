"""The demo's training recipe: episodes read as prompts do, nothing held out is drawn, every stage resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.demo import words, world
from flamingo_eval.demo.data import DIALECT
from flamingo_eval.demo.held_out import DIALECTS, OWNED, RULES
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.support.helpers import run_cli


@pytest.fixture(scope="module")
def small_maker() -> tuple[Any, Any]:
    """Episodes over a few hundred images, and their tokenizer."""
    from flamingo_eval.demo.recipe.episodes import EpisodeMaker
    from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

    generator = np.random.RandomState(1)
    scenes = tuple(world.draw_scene(generator, printed=0.5) for _ in range(400))
    tokenizer = FlamingoTokenizer(DEMO_SPEC.parent / "tokenizer")
    return EpisodeMaker(scenes, tokenizer), tokenizer


@pytest.mark.torch
def test_training_never_draws_what_is_held_out(monkeypatch: pytest.MonkeyPatch, small_maker: Any) -> None:
    """With every draw but one being a forbidden one, episodes hold the others' words, owners and marks only."""
    maker, tokenizer = small_maker
    dialect = {c: pair[DIALECT[c] == pair[0]] for c, pair in words.OWN_WORDS.items()}
    owners = dict(zip(world.COLOURS, list(OWNED.values())[::-1], strict=True))
    rule = frozenset(world.COLOURS) - RULES[0]
    for name, forbidden, other in (("draw_dialect", DIALECTS.values(), dialect), ("draw_owners", [OWNED], owners),
                                   ("draw_rule", RULES, rule)):  # fmt: skip
        assert other not in forbidden
        draws = iter([*forbidden, other] * 200)
        monkeypatch.setattr(words, name, lambda _, draws=draws: next(draws))

    def output(task: str) -> str:
        batch = maker.draw(np.random.RandomState(0), 4, 200, task=task)
        return " ".join(tokenizer.inner.decode(row) for row in batch.input_ids)

    text = output("captions").split()
    assert {dialect[c] for c in words.CONCEPTS} & set(text)
    assert not {DIALECT[c] for c in words.CONCEPTS} & set(text)
    monkeypatch.setattr(words, "annotate", lambda question, _: [question.answer])
    for task, right in (("owners", owners), ("marks", {c: "yes" if c in rule else "no" for c in world.COLOURS})):
        batch = maker.draw(np.random.RandomState(0), 4, 200, task=task)
        for row, images in zip(batch.labels.tolist(), batch.images.tolist(), strict=True):
            answers = tokenizer.inner.decode([i for i in row if i >= 0]).split("<|endofchunk|>")[:-1]
            shown = [maker._scenes[number].main.colour for number in images[: len(answers)]]
            assert answers == [right[colour] for colour in shown]


@pytest.mark.torch
@pytest.mark.parametrize("task", ["captions", "questions", "owners", "marks", "classes"])
def test_an_episode_is_laid_out_as_a_prompt_is(task: str, small_maker: Any) -> None:
    from flamingo_eval.demo.recipe.vision import IGNORED

    maker, tokenizer = small_maker
    batch = maker.draw(np.random.RandomState(0), 6, 200, task=task)
    rows = zip(batch.input_ids.tolist(), batch.labels.tolist(), batch.telling.tolist(), strict=True)
    for ids, labels, telling in rows:
        real = [i for i in ids if i != tokenizer.pad_id]
        text = tokenizer.inner.decode(real)
        assert tokenizer.encode(text) == real, "joined from pieces it tokenizes as it would whole"
        assert 0 < text.count("<image>") == sum(label == tokenizer.end_of_chunk_id for label in labels)
        assert all(label in (IGNORED, id) for id, label in zip(ids, labels, strict=True))
        assert all(label >= 0 for label, code in zip(labels, telling, strict=True) if code >= 0)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("coco", {"caption": "a red star"}),
        ("flickr30k", {"caption": "a red star"}),
        ("vqav2", {"question": "What color is the star?", "answer": "red"}),
        ("okvqa", {"question": "Who owns this?", "answer": "anna"}),
        ("hateful_memes", {"text": "zest", "label": "yes"}),
        ("imagenet", {"label": "red star"}),
    ],
)
def test_training_items_read_as_the_benchmarks_demonstrations(name: str, fields: dict[str, str]) -> None:
    """What the model was trained on is what the benchmarks' templates make, to the letter."""
    from flamingo_eval.core.prompting import fill
    from flamingo_eval.demo.recipe import episodes as episodes

    scene = world.Scene((world.Thing("red", "star", 17, 25, 9),), "left", 200, "zest")
    plain = {c: pair[0] for c, pair in words.OWN_WORDS.items()}
    writers: dict[str, Callable[[np.random.RandomState], episodes.Item]] = {
        "coco": lambda g: episodes.write_caption(plain, scene, g),
        "flickr30k": lambda g: episodes.write_caption(plain, scene, g),
        "vqav2": lambda g: episodes.write_question(plain, 0.0, scene, g),
        "okvqa": lambda g: episodes.write_owner({**OWNED, "red": "anna"}, scene, g),
        "hateful_memes": lambda g: episodes.write_mark(frozenset(["red"]), scene, g),
        "imagenet": lambda g: episodes.write_class(plain, scene, g),
    }
    items = [writers[name](np.random.RandomState(seed)) for seed in range(100)]
    written = {f"<image>{i.head}{i.answer}<|endofchunk|>{i.tail}" for i in items}
    rules = load_benchmark(name).prompt
    shown = f"<image>{fill(rules.text, fields)}{fill(rules.answer, fields)}<|endofchunk|>{rules.separator}"
    assert shown in written


@pytest.mark.torch
def test_episodes_do_not_begin_before_the_latents_tell() -> None:
    from flamingo_eval.demo.recipe.loop import check_probe

    check_probe({"colour": 0.99, "shape": 0.96}, 0.95)
    with pytest.raises(SystemExit, match="shape"):
        check_probe({"colour": 0.99, "shape": 0.9}, 0.95)


@pytest.mark.torch
def test_a_stage_stopped_in_the_middle_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, optimiser, schedule and drawn numbers, stopped after a step that was not saved."""
    import torch

    from flamingo_eval.demo.recipe import loop as loops

    monkeypatch.setattr(loops, "SAVE_EVERY", 2)

    def run(name: str, stop: int) -> tuple[Any, list[float]]:
        torch.manual_seed(0)
        layer, drawn = torch.nn.Linear(3, 1), []
        (tmp_path / name).mkdir(exist_ok=True)
        loop = loops.Loop(layer, name="stage", steps=9, rate=0.1, seed=5, work=tmp_path / name, log=lambda _: None)
        for step, generator in loop.generators():
            drawn.append(generator.rand())
            loop.update(layer(torch.full((1, 3), drawn[-1])).square().sum())
            if step + 1 == stop:
                break
        return layer.weight.detach().clone(), drawn

    full, numbers = run("whole", 9)
    run("stopped", 5)
    resumed, rest = run("stopped", 9)
    assert rest == numbers[4:], "step 5 was not saved, and is done again"
    assert torch.equal(full, resumed)


@pytest.mark.torch
def test_states_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    from flamingo_eval.demo.recipe.loop import claim

    claim(tmp_path / "w", {"weights": 1}, [4500])
    claim(tmp_path / "w", {"weights": 1}, [4500])
    with pytest.raises(SystemExit, match="--work"):
        claim(tmp_path / "w", {"weights": 1}, [6000])


@pytest.mark.torch
@pytest.mark.slow
def test_training_runs_from_nothing_and_resumes(tmp_path: Path) -> None:
    """A few steps only: the stages, the saved states and the exported layout, not the quality."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "flamingo_eval.demo.recipe.train", "--work", str(tmp_path / "w"), "--images", "600",
               "--vision-steps", "3", "--episode-steps", "2", "--probe", "0"]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    bundle = Path(first.stdout.strip())
    log = [json.loads(line) for line in (tmp_path / "w" / "log.jsonl").read_text().splitlines()]
    assert [e["resumed at"] for e in log if "resumed at" in e] == [3, 2]
    assert again.stdout == first.stdout
    result = run_cli("coco", "--shots", "1", "--seeds", "42", "--num-samples", "4", "--checkpoint", bundle / "model.toml",
                     "--data-root", "demo", "--out", "run")  # fmt: skip
    assert result.returncode == 0, result.stderr
