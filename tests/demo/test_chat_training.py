"""The recipe of the demo that chats: conversations are read as prompts are, and every stage resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.prompting import Chat, build_prompt
from flamingo_eval.core.records import Example
from flamingo_eval.demo import world

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
ROLES = {"captions": "coco", "questions": "vqav2", "owners": "okvqa", "marks": "hateful_memes", "classes": "imagenet"}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from flamingo_eval.demo.recipe.chat.processor import save_processor

    return save_processor(tmp_path_factory.mktemp("processor"))


@pytest.mark.parametrize("task", ROLES)
def test_conversations_are_read_as_prompts_are(task: str, processor: Any) -> None:
    """What training shows are the tokens that the processor makes of the benchmark's few-shot prompt."""
    from flamingo_eval.demo.recipe.chat.episodes import ConversationMaker
    from flamingo_eval.demo.recipe.chat.processor import FAKE, GLOBAL, IMAGE, IMAGE_TOKENS
    from flamingo_eval.models.transformers_vlm.families import family_of
    from flamingo_eval.models.transformers_vlm.reading import Reader

    generator = np.random.RandomState(0)
    scenes = tuple(world.draw_scene(generator, printed=0.5) for _ in range(300))
    maker, words = ConversationMaker(scenes, processor.tokenizer), processor.tokenizer
    for seed in range(20):
        batch = maker.draw_conversations(np.random.RandomState(seed), 1, 100, task=task)
        row = batch.input_ids[0].tolist()
        text = words.decode(row).replace(FAKE + GLOBAL + IMAGE * IMAGE_TOKENS + FAKE, IMAGE)
        turns = [part.split("<assistant>") for part in text.split("<user>")[1:]]
        asked = [turn[0].removesuffix("<end_of_utterance>") for turn in turns]
        if all(one.startswith(IMAGE) for one in asked) and "insufficient" not in text:
            break
    answers = [turn[1].removesuffix("<end_of_utterance>") for turn in turns]
    rules = load_benchmark(ROLES[task], chat=True).prompt
    fields = [
        {"caption": answer, "answer": answer, "label": answer, "question": one[len(IMAGE) :].partition("\n")[0],
         "text": ([*one.split("'"), ""])[1]}
        for one, answer in zip(asked, answers, strict=True)
    ]  # fmt: skip
    examples = [Example(i, f"{i}.png", own) for i, own in enumerate(fields)]
    prompt = build_prompt(rules, examples[:-1], examples[-1], len(examples) - 1)
    reader = Reader(processor, family_of("idefics3"), Chat(), template=processor.chat_template)
    ids = reader.tokens(prompt, [reader.text_of_size((64, 64), "")] * len(examples)).ids
    assert ids == row[: len(ids)]
    assert words.decode(row[len(ids) :]) == answers[-1] + "<end_of_utterance>"
    counted = [id for id, label in zip(row, batch.labels[0].tolist(), strict=True) if label >= 0]
    assert words.decode(counted).split("<end_of_utterance>")[:-1] == answers, (
        "the loss is on every answer, and nothing else"
    )
    bound = [(id, number) for id, number in zip(row, batch.own[0].tolist(), strict=True) if number >= 0]
    assert words.decode([id for id, _ in bound]) == "".join(
        f"<assistant>{answer}<end_of_utterance>" for answer in answers
    )
    assert [*dict.fromkeys(number for _, number in bound)] == [*dict.fromkeys(batch.images[0].tolist())]


def test_images_are_prepared_as_the_processor_does(processor: Any) -> None:
    import torch

    from flamingo_eval.demo.recipe.chat.model import normalise

    generator = np.random.RandomState(1)
    image = world.render(world.draw_scene(generator), generator)
    expected = processor(text=["<image>"], images=[[image]], return_tensors="pt")["pixel_values"][0]
    own = normalise(torch.from_numpy(np.asarray(image).copy())[None])
    assert own == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.long
@pytest.mark.slow
def test_it_trains_from_nothing_and_resumes(tmp_path: Path) -> None:
    """A few steps only: the stages, the saved states, and a checkpoint that answers; not the quality."""
    from flamingo_eval.core.images import Images
    from flamingo_eval.core.records import Decoding, Prompt, Turn
    from flamingo_eval.core.registry import model_source
    from flamingo_eval.demo.recipe.chat import train

    how: dict[str, Any] = {"vision_steps": 2, "images": 3000, "probe": 0.0, "episode_steps": 3, "install": False}
    train.main(work=tmp_path / "w", **how)
    train.main(work=tmp_path / "w", **how)
    entries = [json.loads(line) for line in (tmp_path / "w/log.jsonl").read_text().splitlines()]
    assert [one["resumed at"] for one in entries if "resumed at" in one] == [2, 3]
    assert entries[-1]["bytes"] < 6e6
    with pytest.raises(SystemExit, match="other settings"):
        train.main(work=tmp_path / "w", **{**how, "episode_steps": 4})
    model: Any = model_source(f"hf:{tmp_path / 'w/bundle'}", {}, {"keep": False}).load("cpu", "fp32")
    assert model.why_plain == ""
    generator = np.random.RandomState(2)
    world.render(world.draw_scene(generator), generator).save(tmp_path / "a.png")
    task = Decoding(4, num_beams=1)
    prepared = model.prepare(Prompt((), Turn(("a.png",), "What is it?")), task, Images(tmp_path))
    assert len(prepared.tokens.ids) < 40
    assert isinstance(model.answer([prepared], task)[0], str)
