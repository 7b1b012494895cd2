"""Stage 3 of the demo's recipe, second half: the untrained Flamingo, its loss, and a measure of what it understands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from flamingo_eval.demo.recipe.episodes import TASKS, Episodes
from flamingo_eval.demo.recipe.vision import HEAD_WIDTH, HEADS, IGNORED
from flamingo_eval.demo.recipe.vision import WIDTH as VISION_WIDTH
from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock, Media
from flamingo_eval.models.flamingo.hosts.gpt_neox import HOST
from flamingo_eval.models.flamingo.model import Flamingo
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

WIDTH, LAYERS = 128, 4
TEMPLATE_WEIGHT = 0.3
"""Weight in the loss of a token that is not telling: a caption has ten of them, an answer one."""


def build_flamingo(vision: torch.nn.Module, perceiver: PerceiverResampler, vocabulary: int) -> Flamingo:
    """A Flamingo with an untrained language part; gates start half open, since nothing there is pretrained."""
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
    blocks = {
        i: GatedCrossAttentionBlock(
            width=WIDTH, media_width=VISION_WIDTH, inner=HEADS * HEAD_WIDTH, head_width=HEAD_WIDTH, hidden=4 * WIDTH
        )
        for i in range(LAYERS)
    }
    for block in blocks.values():
        torch.nn.init.constant_(block.attn_gate, 0.5)
        torch.nn.init.constant_(block.ff_gate, 0.5)
    return Flamingo(vision=vision, perceiver=perceiver, blocks=blocks, language=language, host=HOST)


def _init_for_small_width(language: torch.nn.Module) -> None:
    """Starts matrices at 1 / sqrt(width) instead of transformers' 0.02, which is meant for widths of thousands.

    Embeddings start at 0.5. This decides whether the model learns to look words up in its demonstrations (LOG.md).
    """
    for name, parameter in language.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5 if "embed" in name else WIDTH**-0.5)


def forward(model: Flamingo, latents: Tensor, batch: Episodes, tokenizer: FlamingoTokenizer) -> Tensor:
    """Logits (episodes, length, vocabulary) from the latents of all images, (n, latents, width)."""
    seen = latents[batch.images.flatten()].unflatten(0, batch.images.shape)
    media = Media.of(seen, batch.input_ids, tokenizer.image_id)
    logits: Tensor = model(batch.input_ids, (batch.input_ids != tokenizer.pad_id).long(), media)
    return logits


def answer_loss(logits: Tensor, batch: Episodes) -> Tensor:
    """Cross entropy of the answers' tokens, the telling ones with full weight."""
    counted = batch.labels[:, 1:] != IGNORED
    losses = F.cross_entropy(logits[:, :-1][counted], batch.labels[:, 1:][counted], reduction="none")
    weights = torch.where(batch.telling[:, 1:][counted] >= 0, 1.0, TEMPLATE_WEIGHT)
    return (losses * weights).sum() / weights.sum()


def telling_accuracy(logits: Tensor, batch: Episodes) -> dict[str, tuple[float, float]]:
    """For each task the accuracy on telling words (not yet shown in the episode, already shown).

    For questions, the first number also covers counts, sides, printed words, yes and no, which no demonstration shows.
    Only telling tokens are measured: template tokens would hide the difference.
    """
    right = logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
    telling = batch.telling[:, 1:]
    return {
        task: tuple(round(right[telling == 2 * i + shown].float().mean().item(), 3) for shown in (0, 1))  # type: ignore[misc]  # two of them
        for i, task in enumerate(TASKS)
        if (telling // 2 == i).any()
    }
