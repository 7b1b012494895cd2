"""Prompts and answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.benchmark import AnswerRules, load_benchmark
from flamingo_eval.nouns import Example
from flamingo_eval.prompting import build_prompt, extract_answer, fill, special_token_in

COCO = load_benchmark("coco")
DEMONSTRATIONS = [Example(1, "a.jpg", {"caption": " A dog.\n"}), Example(2, "b.jpg", {"caption": "a {cat} \n on it"})]
QUERY = Example(3, "c.jpg", {"caption": "unseen"})


def test_few_shot_prompt() -> None:
    prompt = build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=2)
    assert prompt.text == (
        "<image>Output:A dog.<|endofchunk|>\n<image>Output:a {cat} \n on it<|endofchunk|>\n<image>Output:"
    )
    assert prompt.images == ("a.jpg", "b.jpg", "c.jpg")


def test_zero_shot_prompt_has_two_text_only_demonstrations() -> None:
    prompt = build_prompt(COCO.prompt, DEMONSTRATIONS, QUERY, shots=0)
    assert prompt.text == "Output:A dog.<|endofchunk|>\nOutput:a {cat} \n on it<|endofchunk|>\n<image>Output:"
    assert prompt.images == ("c.jpg",)


@pytest.mark.parametrize("token", ["<image>", "<|endofchunk|>"])
def test_a_text_that_holds_a_special_token_is_found_where_it_is_shown(token: str) -> None:
    rogue = Example(9, "d.jpg", {"caption": f"an {token} of a dog"})
    assert special_token_in(COCO.prompt.demonstration, rogue) == token
    assert special_token_in(COCO.prompt.query, rogue) is None, "a query does not show its caption"
    assert special_token_in(COCO.prompt.demonstration, DEMONSTRATIONS[0]) is None


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
