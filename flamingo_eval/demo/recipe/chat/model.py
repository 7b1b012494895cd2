"""The untrained Idefics3 of the demo's size, its vision stage, and the loss of its episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from flamingo_eval.demo import world
from flamingo_eval.demo.recipe.chat.episodes import Episodes
from flamingo_eval.demo.recipe.chat.processor import IMAGE_TOKENS
from flamingo_eval.demo.recipe.episodes import TASKS
from flamingo_eval.demo.recipe.vision import IGNORED, LABELS, Images

WIDTH, LAYERS, HEADS = 128, 5, 4
VISION_WIDTH, VISION_LAYERS = 96, 4
ROPE_THETA = 1e8
"""So large that most of a head's 32 dimensions hardly rotate in a conversation, and match content at any distance."""
EMBEDDING_SCALE = 0.5
"""Initial standard deviation of the embeddings of tokens, and of an image's tokens."""
BOUND = ("colour", "shape", "second colour", "second shape")
"""The labels that a word of an answer is bound to."""
TEMPLATE_WEIGHT = 0.3
"""Weight in the loss of the tokens that are not telling."""


def build(vocabulary: int, ids: Mapping[str, int]) -> Any:
    """An untrained model.

    Args:
        vocabulary: rows of the embeddings.
        ids: of the tokens ``image``, ``end`` and ``pad``.
    """
    config = Idefics3Config(
        text_config={
            "model_type": "llama", "vocab_size": vocabulary, "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
            "max_position_embeddings": 4096, "rope_theta": ROPE_THETA, "pad_token_id": ids["pad"],
            "bos_token_id": None, "eos_token_id": ids["end"], "tie_word_embeddings": False,
        },
        vision_config={
            "hidden_size": VISION_WIDTH, "intermediate_size": 4 * VISION_WIDTH, "num_hidden_layers": VISION_LAYERS,
            "num_attention_heads": 3, "image_size": world.SIDE, "patch_size": 8,
        },
        scale_factor=2, image_token_id=ids["image"], pad_token_id=ids["pad"], tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = Idefics3ForConditionalGeneration(config)
    for name, parameter in model.model.text_model.named_parameters():
        if parameter.ndim == 2:  # transformers' 0.02 is meant for widths of thousands (LOG.md)
            nn.init.normal_(parameter, std=EMBEDDING_SCALE if "embed" in name else parameter.shape[1] ** -0.5)
    nn.init.normal_(model.lm_head.weight, std=WIDTH**-0.5)
    for name, parameter in model.model.vision_model.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.02 if "position" in name else parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids["end"], ids["pad"]
    return model


def normalise(pixels: Tensor) -> Tensor:
    """Bytes (n, 64, 64, 3) -> what the processor gives for an image that needs no resizing, (n, 3, 64, 64)."""
    return ((pixels.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)


def image_tokens(model: Any, pixels: Tensor) -> Tensor:
    """(n, 3, 64, 64) -> (n, image tokens, width), as the language model gets them."""
    side = world.SIDE // 8
    mask = torch.ones(len(pixels), side, side, dtype=torch.bool)
    seen = model.model.vision_model(pixel_values=pixels, patch_attention_mask=mask).last_hidden_state
    tokens: Tensor = model.model.connector(seen)
    return tokens


class Probe(nn.Module):
    """Reads every label off an image's tokens like an attention head: a query each, keys, one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.queries = nn.Parameter(torch.randn(len(LABELS), 32))
        self.keys = nn.Linear(WIDTH, 32)
        self.places = nn.Parameter(torch.zeros(IMAGE_TOKENS, 32))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, count) for count in LABELS.values())

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens (n, image tokens, width) -> for each label its logits (n, values)."""
        tokens = self.norm(tokens)
        weights = (self.queries @ (self.keys(tokens) + self.places).transpose(1, 2) / 32**0.5).softmax(dim=-1)
        seen = weights @ tokens
        return {name: head(seen[:, i]) for i, (name, head) in enumerate(zip(LABELS, self.heads, strict=True))}


class VisionTask(nn.Module):
    """The vision model, the connector and the probe; its forward is the training loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.connector = model.model.vision_model, model.model.connector
        self.probe = Probe()
        self._model = [model]  # in a list, so that it is no submodule: its language model is trained later

    def tokens(self, pixels: Tensor) -> Tensor:
        """See :func:`image_tokens`."""
        return image_tokens(self._model[0], pixels)

    def forward(self, pixels: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        predicted = self.probe(self.tokens(pixels))
        losses = (F.cross_entropy(predicted[n], labels[n], ignore_index=IGNORED, reduction="sum") for n in LABELS)
        loss: Tensor = sum(losses, torch.zeros(()))
        return loss / len(pixels)


@torch.inference_mode()
def probe_accuracy(task: VisionTask, images: Images) -> dict[str, float]:
    """For each label, the share of images whose tokens show it correctly."""
    chunks = [task.probe(task.tokens(normalise(chunk))) for chunk in images.pixels.split(500)]
    accuracy = {}
    for name in LABELS:
        predicted = torch.cat([chunk[name] for chunk in chunks]).argmax(-1)
        asked = images.labels[name] != IGNORED
        accuracy[name] = round((predicted == images.labels[name])[asked].float().mean().item(), 4)
    return accuracy


@torch.inference_mode()
def scale_connector(model: Any, images: Images) -> None:
    """Makes an image's tokens as large as a word's embedding; otherwise layers would have to unlearn the difference."""
    spread = image_tokens(model, normalise(images.pixels[:500])).std()
    model.model.connector.modality_projection.proj.weight.mul_(EMBEDDING_SCALE / spread)


@torch.inference_mode()
def tokens_of(model: Any, images: Images) -> Tensor:
    """The tokens of all images, (n, image tokens, width): computed once, used in every episode."""
    return torch.cat([image_tokens(model, normalise(chunk)) for chunk in images.pixels.split(500)]).clone()


class OwnImageProbe(nn.Module):
    """Reads what an answer's image shows off the language model's states after its second layer.

    Its loss binds a word to what its image shows before any later layer has to look it up. Without it, the model learns
    that late, or not at all (LOG.md). The probe is not exported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, LABELS[name]) for name in BOUND})

    def forward(self, states: Tensor, batch: Episodes, images: Images) -> Tensor:
        """states (episodes, length, width) -> the mean loss over answers' tokens and labels."""
        answered = batch.own >= 0
        states, numbers = self.norm(states[answered]), batch.own[answered]
        loss = torch.zeros(())
        for name, head in self.heads.items():
            labels = images.labels[name][numbers]
            total = F.cross_entropy(head(states), labels, ignore_index=IGNORED, reduction="sum")
            loss = loss + total / (labels != IGNORED).sum().clamp(min=1)
        return loss / len(self.heads)


def forward(model: Any, tokens: Tensor, batch: Episodes, image_id: int) -> tuple[Tensor, Tensor]:
    """Logits and hidden states of a step's episodes.

    The logits, (counted, vocabulary), are those of the tokens before one that counts for the loss, in order. The
    states, (episodes, length, width), are those of all tokens after the second layer.
    """
    embeddings = model.model.text_model.get_input_embeddings()(batch.input_ids)
    seen = tokens[batch.images[batch.images >= 0]].flatten(0, 1)
    embeddings = embeddings.masked_scatter((batch.input_ids == image_id)[..., None], seen)
    out = model.model.text_model(inputs_embeds=embeddings, use_cache=False, output_hidden_states=True)
    logits: Tensor = model.lm_head(out.last_hidden_state[:, :-1][batch.labels[:, 1:] != IGNORED])
    return logits, out.hidden_states[2]


def answer_loss(logits: Tensor, batch: Episodes) -> Tensor:
    """Cross entropy of the answers' tokens: the mean over tasks for telling ones, plus a weighted mean of all others.

    A caption has several telling tokens and an owner one: without the mean over tasks, owners would hardly count
    (LOG.md).
    """
    counted = batch.labels[:, 1:] != IGNORED
    losses = F.cross_entropy(logits, batch.labels[:, 1:][counted], reduction="none")
    tasks = batch.telling[:, 1:][counted] // 2  # -1 for tokens that are not telling
    means = [losses[tasks == task].mean() for task in range(len(TASKS)) if (tasks == task).any()]
    return torch.stack(means).mean() + TEMPLATE_WEIGHT * losses[tasks < 0].mean()


def telling_accuracy(logits: Tensor, batch: Episodes) -> dict[str, tuple[float, float]]:
    """For each task the accuracy on telling words (not yet shown in the episode, already shown)."""
    counted = batch.labels[:, 1:] != IGNORED
    right, telling = logits.argmax(-1) == batch.labels[:, 1:][counted], batch.telling[:, 1:][counted]
    return {
        task: tuple(round(right[telling == 2 * i + shown].float().mean().item(), 3) for shown in (0, 1))  # type: ignore[misc]  # two of them
        for i, task in enumerate(TASKS)
        if (telling // 2 == i).any()
    }
