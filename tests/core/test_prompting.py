"""Prompts and answers."""

from __future__ import annotations

import contextlib
import json
import pickle
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamingo_eval.core import benchmark as benchmark_module
from flamingo_eval.core.benchmark import AnswerRules, load_benchmark, parse_benchmark
from flamingo_eval.core.digests import changed_fields, digest
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import INTERLEAVED, Chat, build_prompt, extract_answer, fill, mark_in, openai_form
from flamingo_eval.core.records import WITHHELD, Decoding, Example, Prompt, Turn
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


def test_a_conversation() -> None:
    """User and assistant in turn, images before the text; what is withheld is not there."""
    dog, cat = Turn(("1.jpg",), "What is it?", "a dog"), Turn((WITHHELD,), "And this?")
    rendering = Chat("Be brief.").render(Prompt((dog,), cat))
    image = {"type": "image_url", "image_url": {"url": "1.jpg"}}
    assert json.loads(rendering.text) == openai_form(rendering.messages) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}]},
    ]  # fmt: skip
    assert rendering.images == ("1.jpg",)
    assert [message.role for message in Chat().render(Prompt((), cat)).messages] == ["user"]


VQA = "Who is it?\nAnswer the question using a single word or phrase."
ASKED = {
    "coco": ("Provide a one-sentence caption for the provided image.", "a dog", 30),
    "flickr30k": ("Provide a one-sentence caption for the provided image.", "a dog", 30),
    "vqav2": (VQA, "Ann", 16),
    "okvqa": (VQA, "Ann", 16),
    "textvqa": (VQA, "Ann", 16),
    "vizwiz": (VQA.replace("\n", "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"), "Ann", 16),
    "hateful_memes": (
        "This image has the text 'hello' written on it. Is it hateful? Answer with yes or no.", "no", None,
    ),
    "imagenet": ("What is the main object in this image? Answer with its name only.", "no", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_a_conversation_asks(name: str) -> None:
    benchmark = load_benchmark(name, chat=True)
    example = Example(
        1, "1.jpg", {"caption": " a dog ", "question": "Who is it? ", "answer": "Ann", "text": "hello", "label": "no"}
    )
    asked, answered, tokens = ASKED[name]
    one, two = build_prompt(benchmark.prompt, [example], example, 1), build_prompt(benchmark.prompt, [], example, 0)
    assert (one.demonstrations[0].text, one.demonstrations[0].answer, one.query.text) == (asked, answered, asked)
    assert (two.demonstrations, benchmark.prompt.zero_shot_demonstrations) == ((), 0), "none at zero shots"
    if tokens is None:
        assert benchmark.task == load_benchmark(name).task, "the same names are ranked"
    else:
        assert benchmark.task == Decoding(tokens, num_beams=1)
    for protocol in ("official", "openflamingo-2023-06"):
        with contextlib.suppress(UserError):  # not each has both
            assert load_benchmark(name, protocol=protocol, chat=True).prompt == benchmark.prompt, (
                "scoring and drawing alone"
            )


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("A dog.", "A dog"),
        ("\n\n A dog\nIt is brown.", "A dog"),
        ("<think>A cat?\nNo.</think>\n\nA dog.", "A dog"),
        ("A cat?</think> A dog", "A dog"),
        ("<think>A cat?", ""),
        ("", ""),
        ("3.5", "3.5"),
    ],
)
def test_the_answer_in_a_conversation(raw: str, answer: str) -> None:
    assert extract_answer(load_benchmark("vqav2", chat=True).answer, raw) == answer


def test_a_benchmark_without_a_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "_files", lambda: {"own": tmp_path / "own.toml"})
    text = (
        (Path(__file__).parents[2] / "benchmarks/coco.toml")
        .read_text(encoding="utf-8")
        .replace('"coco"\ntitle', '"own"\ntitle')
    )
    begin = text.index("[prompt.chat]")
    (tmp_path / "own.toml").write_text(text[:begin] + text[text.index("[decoding]") :], encoding="utf-8")
    assert load_benchmark("own").prompt.text == "Output:"
    with pytest.raises(
        UserError, match=r"own\.toml does not say what is asked in a conversation: add \[prompt\.chat\]"
    ):
        load_benchmark("own", chat=True)
    (tmp_path / "own.toml").write_text(text[:begin] + "chat = 3\n" + text[text.index("[decoding]") :], encoding="utf-8")
    with pytest.raises(UserError, match=r"\[prompt\.chat\] is 3: expected a section"):
        load_benchmark("own", chat=True)
