"""Prompts and answers."""

from __future__ import annotations

import json
import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.core.benchmark import AnswerRules, load_benchmark, parse_benchmark
from flamingo_eval.core.digests import changed_fields, digest
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import INTERLEAVED, build_prompt, extract_answer, fill, mark_in
from flamingo_eval.core.records import Example
from flamingo_eval.models.flamingo.rendering import RENDERER

COCO = load_benchmark("coco")
DEMONSTRATIONS = [Example(1, "a.jpg", {"caption": " A dog.\n"}), Example(2, "b.jpg", {"caption": "a {cat} \n on it"})]
QUERY = Example(3, "c.jpg", {"caption": "unseen"})


def test_few_shot_prompt() -> None:
    prompt = RENDERER.render(build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=2))
    assert prompt.text == (
        "<image>Output:A dog.<|endofchunk|>\n<image>Output:a {cat} \n on it<|endofchunk|>\n<image>Output:"
    )
    assert prompt.images == ("a.jpg", "b.jpg", "c.jpg")


def test_zero_shot_prompt_has_two_text_only_demonstrations() -> None:
    prompt = RENDERER.render(build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=0))
    assert prompt.text == "Output:A dog.<|endofchunk|>\nOutput:a {cat} \n on it<|endofchunk|>\n<image>Output:"
    assert prompt.images == ("c.jpg",)


@pytest.mark.parametrize("token", ["<image>", "<|endofchunk|>"])
def test_a_text_that_holds_a_special_token_is_found_where_it_is_shown(token: str) -> None:
    rogue = Example(9, "d.jpg", {"caption": f"an {token} of a dog"})
    rules, marks = COCO.prompt, RENDERER.marks
    assert mark_in((rules.text, rules.answer), rogue, marks) == token
    assert mark_in((rules.text,), rogue, marks) is None, "a query does not show its caption"
    assert mark_in((rules.text, rules.answer), DEMONSTRATIONS[0], marks) is None


@given(st.text(), st.text())
def test_fields_are_put_in_as_they_are(a: str, b: str) -> None:
    assert fill("<{a}|{b|strip}>", {"a": a, "b": b}) == f"<{a}|{b.strip()}>"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ('a "red" dog', "a red dog"),
        (" a dog Output:a cat", " a dog "),
        ("Output", ""),
        ("output is lower case", "output is lower case"),
    ],
)
def test_caption_answers(raw: str, answer: str) -> None:
    assert extract_answer(COCO.answer, raw) == answer


def test_cuts_are_made_one_group_after_the_other_at_the_first_word_found() -> None:
    rules = AnswerRules(cut=(("Question", "Answer", "Short"), (", ",)))
    assert extract_answer(rules, "red, blue Short Answer") == "red"
    assert extract_answer(rules, "two Answer Question") == "two "


def test_the_first_formats_runs_have_the_same_rules(golden: Path) -> None:
    """What run.json of the first format calls a benchmark's rules, of which its prompts are a part, is what it is now."""
    for name, expected in json.loads((golden / "first_format_rules.json").read_text()).items():
        benchmark, protocol = name.split()
        rules = load_benchmark(benchmark, protocol=protocol)
        parts = [dict(RENDERER.describe(rules.prompt)), changed_fields(rules.task), changed_fields(rules.plan)]
        assert digest(parts) == expected, name


def test_benchmarks_written_for_the_first_format(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    table = tomllib.loads(Path(__file__).parents[2].joinpath("benchmarks/vqav2.toml").read_text())
    turns = {key: table["prompt"].pop(key) for key in ("text", "answer", "separator")}
    table = {**table, "name": "mine", "protocols": {}}
    asked = f"<image>{turns['text']}"
    table["prompt"] |= {"demonstration": f"{asked}{turns['answer']}<|endofchunk|>{turns['separator']}", "query": asked}
    rules = parse_benchmark(table, path).prompt
    assert {key: getattr(rules, key) for key in turns} == turns
    section = {"prompt": {"demonstration": f"{asked}{turns['answer']}<|endofchunk|>"}}
    old = {**table, "protocols": {"older": section}}
    assert parse_benchmark(old, path, protocol="older").prompt.separator == "", "as the first versions' files had it"
    with pytest.raises(UserError, match="'text' stands beside 'demonstration' or 'query'"):
        parse_benchmark({**table, "prompt": {**table["prompt"], "text": "x"}}, path)
    table["prompt"]["query"] = "Question:"
    with pytest.raises(UserError, match=r"write 'text' .*, 'answer' and 'separator' .* in place of"):
        parse_benchmark(table, path)


def test_a_prompt_is_structure_and_can_be_pickled() -> None:
    prompt = build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=2)
    assert [turn.answer for turn in prompt.demonstrations] == ["A dog.", "a {cat} \n on it"]
    assert (prompt.query.text, prompt.query.answer, prompt.images) == ("Output:", None, ("a.jpg", "b.jpg", "c.jpg"))
    assert pickle.loads(pickle.dumps(prompt)) == prompt  # noqa: S301  # our own
    bare = build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=0)
    assert [(turn.images, turn.hidden) for turn in bare.demonstrations] == [((), ("a.jpg",)), ((), ("b.jpg",))]


def test_only_a_renderer_that_follows_the_reference_keeps_hidden_images() -> None:
    rules = load_benchmark("imagenet").prompt
    shown = [Example(i, f"{i}.jpg", {"label": f"thing {i}"}) for i in range(2)]
    prompt = build_prompt(rules, shown, QUERY, shots=0)
    assert RENDERER.render(prompt).images == ("0.jpg", "1.jpg", "c.jpg")
    assert RENDERER.render(prompt).text.count("<image>") == 1
    assert INTERLEAVED.render(prompt).images == prompt.images == ("c.jpg",)
