"""Stage 3 of the demo's recipe: episodes of captioned pictures, each episode in a dialect of its own.

An episode is laid out exactly as a few-shot prompt. The loss is on every picture's caption, so one episode of 33
pictures trains 0 to 32 shots at once; a quarter of the episodes begin with two text-only captions, as zero-shot
prompts do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from flamingo_eval.demo import world
from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock, Media
from flamingo_eval.models.flamingo.hosts.gpt_neox import HOST
from flamingo_eval.models.flamingo.model import Flamingo
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

WIDTH, LAYERS, HEAD_WIDTH, HEADS = 128, 4, 64, 2
VISION_WIDTH, LATENTS, DEPTH = 96, 16, 2
IGNORED = -100
SIZES = ((16, 9), (16, 9), (8, 17), (4, 33))  # (episodes, pictures) of a step: about as many tokens each
SHORT_STEPS = 400  # the first steps use the first size only


def build_flamingo(vision: torch.nn.Module, vocabulary: int) -> Flamingo:
    """An untrained Flamingo of the demo's size; gates start half open, since nothing here is pretrained."""
    language = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=2048,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    _init_for_small_width(language)
    inner = HEADS * HEAD_WIDTH
    perceiver = PerceiverResampler(
        width=VISION_WIDTH, n_latents=LATENTS, depth=DEPTH, inner=inner, head_width=HEAD_WIDTH, hidden=4 * VISION_WIDTH
    )
    blocks = {
        i: GatedCrossAttentionBlock(
            width=WIDTH, media_width=VISION_WIDTH, inner=inner, head_width=HEAD_WIDTH, hidden=4 * WIDTH
        )
        for i in range(LAYERS)
    }
    for block in blocks.values():
        torch.nn.init.constant_(block.attn_gate, 0.5)
        torch.nn.init.constant_(block.ff_gate, 0.5)
    return Flamingo(vision=vision, perceiver=perceiver, blocks=blocks, language=language, host=HOST)


def _init_for_small_width(language: torch.nn.Module) -> None:
    """Starts matrices at 1 / sqrt(width) instead of transformers' 0.02, which is meant for widths of thousands.

    It decides whether the model learns to look words up in its demonstrations: at 0.02 it was still at chance after
    1,400 steps, with this it was at 78% after 300.
    """
    for name, parameter in language.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else WIDTH**-0.5)


@dataclass(frozen=True)
class Episodes:
    """One step's episodes.

    Attributes:
        pictures: (episodes, pictures), numbers of training pictures.
        input_ids: (episodes, length), padded on the right.
        labels: (episodes, length), the id itself where it counts for the loss, else -100.
        shown: (episodes, length), True where a caption's colour or shape word was already shown in the episode.
        hidden: the same where the word was not yet shown.
    """

    pictures: Tensor
    input_ids: Tensor
    labels: Tensor
    shown: Tensor
    hidden: Tensor


class EpisodeMaker:
    """Draws episodes over fixed pictures, never in the forbidden dialect (the shipped data set's)."""

    def __init__(self, scenes: tuple[world.Scene, ...], tokenizer: FlamingoTokenizer, forbidden: world.Dialect) -> None:
        self._scenes, self._tokenizer, self._forbidden = scenes, tokenizer, forbidden
        self._ids = {text: tokenizer.encode(text) for text in world.all_texts()}
        self._output, self._newline = tokenizer.encode("Output:"), tokenizer.encode("\n")

    def draw(self, generator: np.random.RandomState, episodes: int, pictures: int) -> Episodes:
        """Episodes of equally many pictures."""
        chosen = generator.randint(len(self._scenes), size=(episodes, pictures))
        rows = [self._row(generator, numbers) for numbers in chosen.tolist()]
        length = max(len(row[0]) for row in rows)
        fills = (self._tokenizer.pad_id, IGNORED, 0, 0)
        ids, labels, shown, hidden = (
            torch.tensor([row[k] + [fill] * (length - len(row[k])) for row in rows]) for k, fill in enumerate(fills)
        )
        return Episodes(torch.from_numpy(chosen), ids, labels, shown.bool(), hidden.bool())

    def _row(self, generator: np.random.RandomState, numbers: list[int]) -> tuple[list[int], ...]:
        dialect = world.draw_dialect(generator)
        while dialect == self._forbidden:
            dialect = world.draw_dialect(generator)
        ids: list[int] = []
        labels: list[int] = []
        shown: list[int] = []
        hidden: list[int] = []
        known: set[str] = set()
        pair = generator.randint(len(self._scenes), size=2).tolist() if generator.rand() < 0.25 else []
        for position, number in enumerate([*pair, *numbers]):
            scene = self._scenes[number]
            with_image = position >= len(pair)
            caption = self._ids[world.captions(scene, dialect, generator, 1)[0]]
            head = [self._tokenizer.image_id] * with_image + self._output
            target = [*caption, self._tokenizer.end_of_chunk_id]
            telling = {self._word_id(c, dialect): c in known for c in (scene.colour, scene.shape)}
            ids += head + target + self._newline
            labels += (
                [IGNORED] * len(head)
                + (target if with_image else [IGNORED] * len(target))
                + [IGNORED] * len(self._newline)
            )
            shown += (
                [0] * len(head) + [int(telling.get(t, False) and with_image) for t in target] + [0] * len(self._newline)
            )
            hidden += (
                [0] * len(head)
                + [int(not telling.get(t, True) and with_image) for t in target]
                + [0] * len(self._newline)
            )
            known |= {scene.colour, scene.shape}
        return ids, labels, shown, hidden

    def _word_id(self, concept: str, dialect: world.Dialect) -> int:
        """The token of a concept's word with a space before it, which every frame writes it with."""
        ids = self._tokenizer.encode(" " + world.word(concept, dialect))
        if len(ids) != 1:
            raise ValueError(f"the word for {concept} must be one token, it is {ids}")
        return ids[0]


def step_size(step: int) -> tuple[int, int]:
    """(episodes, pictures) of a step."""
    return SIZES[0 if step < SHORT_STEPS else step % len(SIZES)]


def forward(model: Flamingo, tokens: Tensor, batch: Episodes, tokenizer: FlamingoTokenizer) -> Tensor:
    """Logits (episodes, length, vocabulary) from the frozen tower's tokens of all pictures."""
    latents = model.perceiver(tokens[batch.pictures.flatten()]).unflatten(0, batch.pictures.shape)
    media = Media.of(latents, batch.input_ids, tokenizer.image_id)
    logits: Tensor = model(batch.input_ids, (batch.input_ids != tokenizer.pad_id).long(), media)
    return logits


def caption_loss(logits: Tensor, batch: Episodes) -> Tensor:
    """Cross entropy of the captions' tokens."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


def telling_accuracy(logits: Tensor, batch: Episodes) -> tuple[float, float]:
    """Accuracy on colour and shape words (already shown in the episode, not yet shown).

    Measured on the telling tokens only: template tokens would hide it.
    """
    right = logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
    return right[batch.shown[:, 1:]].float().mean().item(), right[batch.hidden[:, 1:]].float().mean().item()
