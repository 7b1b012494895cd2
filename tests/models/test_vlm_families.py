"""Twelve architectures of transformers, as tiny random models, against a plain loop that uses none of this package.

The plain loop is what transformers documents: the processor's ``apply_chat_template`` on a conversation, ``generate``;
log-likelihoods by a forward pass over prompt and name as one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Prompt, Ranking, Task, Turn
from tests.support.small_vlms import FAMILIES, save_vlm

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

SIZES = ((40, 30), (60, 40), (40, 30), (30, 60), (80, 30), (50, 50))
TEXT, BEAMS, NAMES = (
    Decoding(12, num_beams=1),
    Decoding(12, num_beams=3),
    Ranking(("a dog", "no", "yes", "a cat on it")),
)


def noise(seed: int, width: int, height: int) -> Image.Image:
    """Coarse noise, of which little is lost when it is made smaller."""
    colours = np.random.RandomState(seed).randint(0, 256, (height // 5, width // 5, 3))
    return Image.fromarray(np.kron(colours, np.ones((5, 5, 1))).astype(np.uint8))


@dataclass
class Plain:
    """transformers alone."""

    model: Any
    processor: Any
    root: Path

    def inputs(self, prompt: Prompt) -> Any:
        messages: list[dict[str, Any]] = []
        for turn in (*prompt.demonstrations, prompt.query):
            shown = [{"type": "image", "image": Image.open(self.root / name).convert("RGB")} for name in turn.images]
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": turn.text}]})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def text(self, prompt: Prompt, beams: int) -> str:
        inputs = self.inputs(prompt)
        how = {"num_beams": beams, "length_penalty": 0.0} if beams > 1 else {}
        ids = self.model.generate(**inputs, max_new_tokens=12, do_sample=False, **how)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True))

    def logprob(self, prompt: Prompt, name: str) -> float:
        import torch

        inputs = self.inputs(prompt)
        own = torch.tensor([self.processor.tokenizer(name, add_special_tokens=False)["input_ids"]])
        start = inputs["input_ids"].shape[1]
        longer = dict(inputs) | {"input_ids": torch.cat((inputs["input_ids"], own), 1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        for types in {"token_type_ids", "mm_token_type_ids"} & longer.keys():
            longer[types] = torch.cat((longer[types], torch.zeros_like(own)), 1)
        with torch.no_grad():
            logits = self.model(**longer).logits[0, start - 1 : -1]
        return float(logits.log_softmax(-1)[range(own.shape[1]), own[0]].mean())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i, size in enumerate(SIZES):
        noise(i, *size).save(folder / f"{i}.png")
        noise(i, 40, 30).save(folder / f"same{i}.png")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(family, tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def plain(folder: Path, root: Path) -> Plain:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Plain(model, AutoProcessor.from_pretrained(folder), root)


@pytest.fixture
def model(folder: Path) -> Iterator[Any]:
    loaded = load(folder)
    yield loaded
    loaded.close()


def load(folder: Path, **options: Any) -> Any:
    """The checkpoint as this package loads it; nothing is kept on the disk."""
    from flamingo_eval.core.registry import model_source

    return model_source(f"hf:{folder}", {"rendering": "chat", **options}, {"keep": False}).load("cpu", "fp32")


def prompts(shots: int, name: str = "{}.png") -> list[Prompt]:
    """Five prompts over six images, their texts of different lengths."""
    made = []
    for k in range(5):
        shown = [(k + j) % 6 for j in range(shots + 1)]
        turns = [Turn((name.format(i),), f"what is {i}?", f"a dog {i}") for i in shown[:-1]]
        made.append(Prompt(tuple(turns), Turn((name.format(shown[-1]),), f"what is {shown[-1]}{'x' * k}?")))
    return made


def answers(model: Any, some: Sequence[Prompt], task: Task, root: Path, batch: int) -> list[Any]:
    """What the model says, in batches."""
    images, found = Images(root), []
    for start in range(0, len(some), batch):
        found += model.answer([model.prepare(one, task, images) for one in some[start : start + batch]], task)
    return found


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_the_same_as_a_plain_loop(model: Any, plain: Plain, root: Path, shots: int) -> None:
    assert model.why_plain == "", "answered by the fast paths"
    asked = prompts(shots)
    texts = [plain.text(one, 1) for one in asked]
    assert len(set(texts)) > 1, "what it is shown shows in what it says"
    for batch in (1, 5):
        assert answers(model, asked, TEXT, root, batch) == texts
        assert answers(model, asked, BEAMS, root, batch) == [plain.text(one, 3) for one in asked]
        for one, found in zip(asked, answers(model, asked, NAMES, root, batch), strict=True):
            expected = {name: plain.logprob(one, name) for name in NAMES.names}
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_tokens_and_pixels(model: Any, plain: Plain, family: str, root: Path, shots: int) -> None:
    import torch

    images = Images(root)
    for one in prompts(shots):
        prepared = model.prepare(one, TEXT, images)
        assert prepared.tokens.ids == plain.inputs(one)["input_ids"][0].tolist()
    for one in prompts(shots, "same{}.png"):  # of one size: processors pad images of a prompt to the largest
        expected = plain.inputs(one)["pixel_values"]
        variant = model.reader.variant(shots + 1)
        parts = [
            model.reader.process(images.decode(name, lambda opened: opened.convert("RGB")), variant).pixels
            for name in one.images
        ]
        across = 1 if family in ("idefics2", "idefics3", "smolvlm") else 0
        assert torch.equal(torch.cat([part["pixel_values"] for part in parts], across), expected)


def test_each_image_is_encoded_once(model: Any, root: Path, family: str) -> None:
    runs: list[Any] = []
    tower = getattr(model.generator.model.base_model, "vision_tower", None)
    tower = tower or getattr(model.generator.model.base_model, "vision_model", None)
    tower = tower or model.generator.model.base_model.visual
    handle = tower.register_forward_hook(lambda _module, given, _result: runs.append(given))
    some = prompts(4)
    answers(model, some, TEXT, root, 5)
    assert 1 <= len(runs) <= 6
    before, encoded = len(runs), model.encoded
    assert encoded == 6
    for task in (TEXT, BEAMS, NAMES):
        answers(model, some, task, root, 2)
    assert (len(runs), model.encoded) == (before, encoded), "nothing is encoded again"
    answers(model, prompts(0), TEXT, root, 5)
    tiles_alone = family == "llava_onevision"  # an image alone is cut into tiles, one of several is not
    assert model.encoded == encoded + (5 if tiles_alone else 0)
    handle.remove()


def test_images_matter_and_nothing_is_left_behind(model: Any, root: Path) -> None:
    import torch

    first, images = prompts(4)[0], Images(root)
    one, two, *rest = first.demonstrations
    swapped = Prompt(
        (Turn(two.images, one.text, one.answer), Turn(one.images, two.text, two.answer), *rest), first.query
    )

    def logits(prompt: Prompt) -> Any:
        with torch.inference_mode():
            return model.generator.read(model.batches([model.prepare(prompt, TEXT, images)])[0]).logits

    before = logits(first)
    assert not torch.equal(logits(swapped), before)
    assert float((logits(swapped) - before).abs().max()) > 1e-3
    answers(model, prompts(1), NAMES, root, 3)
    assert torch.equal(logits(first), before), "swapped back: the same to the bit"


def test_the_plain_path(folder: Path, plain: Plain, root: Path) -> None:
    slow = load(folder, plain=True)
    some = prompts(2)[:2]
    assert answers(slow, some, TEXT, root, 2) == [plain.text(one, 1) for one in some]
    assert answers(slow, some, BEAMS, root, 2) == [plain.text(one, 3) for one in some]
    expected = [{name: plain.logprob(one, name) for name in NAMES.names} for one in some]
    for found, wanted in zip(answers(slow, some, NAMES, root, 2), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    slow.close()


def test_from_the_disk(folder: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flamingo_eval.core.registry import model_source

    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path))
    found: list[Any] = []
    for encoded in (6, 0):
        model: Any = model_source(f"hf:{folder}", {"rendering": "chat"}).load("cpu", "fp32")
        found.append([answers(model, prompts(4), task, root, 5) for task in (TEXT, NAMES)])
        model.close()
        assert model.encoded == encoded
    assert found[0] == found[1]
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 6
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    model = model_source(f"hf:{folder}", {"rendering": "chat"}).load("cpu", "fp32")
    assert answers(model, prompts(4), TEXT, root, 5) == found[0][0]
    model.close()
    assert model.encoded == 1, "what is damaged there is made again"


def test_one_text_with_images_in_it(folder: Path, plain: Plain, root: Path) -> None:
    """``--rendering interleaved`` is the benchmark's text with the processor's image tokens."""
    model = load(folder, rendering="interleaved")
    written = plain.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "END"}]}]
    )
    mark = written.partition("<|user|>")[2].partition("END")[0].strip()
    one = Prompt(prompts(1)[0].demonstrations, prompts(1)[0].query, separator="\n")
    text = "".join(f"{mark}{turn.text}{turn.answer or ''}\n" for turn in one.demonstrations) + mark + one.query.text
    shown = [[Image.open(root / name).convert("RGB") for name in one.images]]
    inputs: Mapping[str, Any] = plain.processor(text=[text], images=shown, return_tensors="pt")
    assert model.prepare(one, TEXT, Images(root)).tokens.ids == inputs["input_ids"][0].tolist()
    ids = plain.model.generate(**inputs, max_new_tokens=12, do_sample=False)
    expected = plain.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answers(model, [one], TEXT, root, 1) == [expected]
    model.close()
