"""The model against the reference's outputs, on the small random Flamingo that lies beside them.

Each trap of the current stack (what transformers 5 and open_clip 3 changed) breaks one of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import load_over
from tests.support.helpers import LazyModule, pixels_of

torch: Any = LazyModule("torch")
pytestmark = [pytest.mark.torch, pytest.mark.goldens]

TOLERANCE = 1e-4  # float32; the differences measured are below 7e-6


@pytest.fixture(scope="module")
def expected(goldens: Path) -> dict[str, Any]:
    table: dict[str, Any] = torch.load(goldens / "model_outputs.pt", weights_only=True)
    return table


@pytest.fixture(scope="module")
def model(goldens: Path) -> Any:
    from flamingo_eval.core import registry

    source = registry.model_source(str(goldens / "model" / "model.toml"))
    return load_over(source, goldens / "data")


def prepared(model: Any, expected: dict[str, Any], number: int) -> Any:
    from flamingo_eval.core.records import Decoding, Rendering

    prompt = Rendering(expected["prompts"][number], tuple(expected["image_paths"][number]))
    return model.read(prompt, Decoding(max_new_tokens=20))


def given(expected: dict[str, Any]) -> list[int]:
    """Numbers of the prompts whose outputs are there (one is kept back)."""
    numbers = [i for i, single in enumerate(expected["single"]) if single is not None]
    assert len(numbers) >= 3
    return numbers


def test_tokens_and_pixels(model: Any, expected: dict[str, Any]) -> None:
    """The tokenizer gets its own <PAD>: transformers 5 would supply <|padding|> and come out one row short."""
    assert len(model.tokenizer) == 2003
    assert model.tokenizer.pad_id == 2002
    for number in given(expected):
        item, single = prepared(model, expected, number), expected["single"][number]
        assert item.ids == single["input_ids"][0].tolist()
        pixels = pixels_of(model, item)
        assert torch.equal(pixels, single["pixels"].reshape(pixels.shape))


def test_vision_tokens_latents_and_logits(model: Any, expected: dict[str, Any]) -> None:
    """Patch tokens before ln_post (open_clip 3 applies it); logits through embed_out (transformers 5: lm_head)."""
    from flamingo_eval.models.flamingo.cross_attention import Media

    for number in given(expected):
        item, single = prepared(model, expected, number), expected["single"][number]
        ids = torch.tensor([item.ids])
        with torch.inference_mode():
            tokens = model.model.vision(pixels_of(model, item))
            latents = model.model.perceiver(tokens)
            media = Media.of(latents[None], ids, model.tokenizer.image_id)
            logits = model.model(ids, torch.ones_like(ids), media)
        for ours, name in ((tokens, "vision_tokens"), (latents, "perceiver"), (logits, "logits")):
            theirs = single[name].reshape(ours.shape)
            assert theirs.abs().max() > 0.1
            assert (ours - theirs).abs().max() < TOLERANCE, name


@pytest.mark.parametrize(
    ("beams", "tokens", "name"), [(3, 20, "beam3_ids_20"), (3, 5, "beam3_ids_5"), (1, 20, "greedy_ids_20")]
)
def test_generated_ids(model: Any, expected: dict[str, Any], beams: int, tokens: int, name: str) -> None:
    from flamingo_eval.core.records import Decoding
    from flamingo_eval.models.flamingo.cross_attention import Media
    from flamingo_eval.models.flamingo.decoding import decode
    from flamingo_eval.models.flamingo.plain import Copies

    for number in given(expected):
        item, single = prepared(model, expected, number), expected["single"][number]
        ids = torch.tensor([item.ids])
        with torch.inference_mode():
            media = Media.of(model.model.encode(pixels_of(model, item))[None], ids, model.tokenizer.image_id)
            special = {"end_id": model.tokenizer.end_of_chunk_id, "pad_id": model.tokenizer.pad_id}
            plain = decode(
                Copies(model.model, ids, torch.ones_like(ids), media, beams), Decoding(tokens, beams), **special
            )
            fast = decode(model._prefix([item], Decoding(tokens, beams), 60), Decoding(tokens, beams), **special)
        expected_ids = single[name][0].tolist()
        assert [*item.ids, *plain.ids[0].tolist()][: len(expected_ids)] == expected_ids
        assert [*item.ids, *fast.ids[0].tolist()][: len(expected_ids)] == expected_ids


@pytest.mark.parametrize("tokens", [5, 20])
def test_texts_alone_and_in_one_left_padded_batch(model: Any, expected: dict[str, Any], tokens: int) -> None:
    """Prompts with one, three and five images, text-only demonstrations among them: the batch changes nothing."""
    from flamingo_eval.core.records import Decoding

    decoding = Decoding(max_new_tokens=tokens)
    items = [prepared(model, expected, number) for number in range(len(expected["prompts"]))]
    assert len({len(item.ids) for item in items}) == len({len(item.images) for item in items}) + 1 == 4
    alone = [model.answer([item], decoding)[0] for item in items]
    assert model.answer(items, decoding) == alone
    for number in given(expected):
        assert alone[number] == expected["single"][number][f"beam3_text_{tokens}"]
        assert alone[number] == expected["batched"][f"beam3_text_{tokens}"][number]


def test_batched_logits(model: Any, expected: dict[str, Any]) -> None:
    from flamingo_eval.core.records import Decoding
    from flamingo_eval.models.flamingo.cross_attention import Spans

    items = [prepared(model, expected, number) for number in range(len(expected["prompts"]))]
    ids, mask = model._pad(items)
    assert torch.equal(mask.bool(), expected["batched"]["attention_mask"])
    assert torch.equal(ids, expected["batched"]["input_ids"])
    with torch.inference_mode():
        latents, numbers = model._latents(items, Decoding(5))
        logits = model.model(ids, mask, Spans.of(latents, numbers, ids, model.tokenizer.image_id))
    theirs = expected["batched"]["logits"]
    for number in given(expected):
        real = mask[number].bool()
        assert (logits[number][real] - theirs[number][real]).abs().max() < TOLERANCE
