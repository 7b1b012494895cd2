"""The Flamingo as the engine sees it: prompts in, text out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from flamingo_eval.errors import QueryError
from flamingo_eval.models.flamingo.checkpoint import read_state_dict, sort_keys
from flamingo_eval.models.flamingo.cross_attention import Media
from flamingo_eval.models.flamingo.hub import fetch
from flamingo_eval.models.flamingo.model import Flamingo, assemble, load_language
from flamingo_eval.models.flamingo.ranking import score_names
from flamingo_eval.models.flamingo.spec import FlamingoSpec, HubFile
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import PatchTokens, Transform, load_clip, read_picture
from flamingo_eval.nouns import NO_PICTURE, Answer, Decoding, Prompt, Ranking, Task

MAX_PROMPT_TOKENS = 2000
"""Longer prompts are refused. The reference cuts them on the right (open_flamingo/eval/models/open_flamingo.py,
``max_length=2000``), which cuts off the query itself."""

_WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp_bf16": torch.float32}


@dataclass(frozen=True)
class PreparedPrompt:
    """One prompt as tensors on the CPU: token ids, and pictures of (3, height, width), None for a withheld one."""

    ids: list[int]
    pixels: list[Tensor | None]


class FlamingoModel:
    """A loaded Flamingo with its tokenizer and image transform.

    Args:
        model: the network, already on its device.
        tokenizer: its tokenizer.
        transform: open_clip's inference transform.
        data_root: what picture paths are relative to.
        precision: ``fp32``, ``bf16``, ``fp16`` (weights in that type) or ``amp_bf16`` (float32 weights, autocast).
    """

    def __init__(
        self, model: Flamingo, tokenizer: FlamingoTokenizer, transform: Transform, *, data_root: Path, precision: str
    ) -> None:
        self.model, self.tokenizer, self._transform = model, tokenizer, transform
        self._data_root, self._precision = data_root, precision
        self._names: dict[Ranking, list[list[int]]] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.perceiver.latents.device

    def prepare(self, prompt: Prompt, task: Task) -> PreparedPrompt:
        """Reads and transforms pictures, encodes text.

        Raises:
            QueryError: a picture can't be read, or the prompt is too long.
        """
        ids = self.tokenizer.encode(prompt.text)
        limit = min(MAX_PROMPT_TOKENS, self.model.language.config.max_position_embeddings - self._room(task))
        if len(ids) > limit:
            raise QueryError(f"a prompt has {len(ids)} tokens, the limit is {limit}: use fewer shots")
        pixels = [
            None if image == NO_PICTURE else read_picture(self._data_root / image, self._transform, rgb=prompt.rgb)
            for image in prompt.images
        ]
        return PreparedPrompt(ids, pixels)

    def _room(self, task: Task) -> int:
        """Tokens that must fit behind the prompt."""
        if isinstance(task, Decoding):
            return task.max_new_tokens
        return max(len(name) for name in self._name_ids(task))

    def _name_ids(self, task: Ranking) -> list[list[int]]:
        """Token ids of class names: alone, without leading space or special tokens."""
        if task not in self._names:
            self._names[task] = [self.tokenizer.encode_plain(name) for name in task.names]
        return self._names[task]

    @torch.inference_mode()
    def answer(self, prepared: Sequence[PreparedPrompt], task: Task) -> list[Answer]:
        """Text, or log-likelihoods of class names, for each prompt."""
        if isinstance(task, Decoding):
            return [*self._generate(prepared, task)]
        return [*self._rank(prepared, task)]

    def _generate(self, prepared: Sequence[PreparedPrompt], decoding: Decoding) -> list[str]:
        """Raw text of each prompt, spaces tidied as transformers 4.28 did."""
        ids, mask = self._pad(prepared)
        with self._autocast():
            media = Media.of(self._latents(prepared), ids, self.tokenizer.image_id)
            generated = self.model.generate(
                ids, mask, media, decoding, end_id=self.tokenizer.end_of_chunk_id, pad_id=self.tokenizer.pad_id
            )
        return [self.tokenizer.decode(row) for row in generated.tolist()]

    def _rank(self, prepared: Sequence[PreparedPrompt], ranking: Ranking) -> list[dict[str, float]]:
        """Mean log-likelihood of each name's tokens; pictures are encoded outside autocast, as in the reference."""
        ids, mask = self._pad(prepared)
        media = Media.of(self._latents(prepared), ids, self.tokenizer.image_id)
        with self._autocast():
            scores = score_names(self.model, ids, mask, media, self._name_ids(ranking))
        return [dict(zip(ranking.names, row, strict=True)) for row in scores.tolist()]

    def _pad(self, prepared: Sequence[PreparedPrompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, (rows, longest prompt), padded on the left."""
        longest = max(len(p.ids) for p in prepared)
        ids = torch.tensor([[self.tokenizer.pad_id] * (longest - len(p.ids)) + p.ids for p in prepared])
        mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prepared])
        return ids.to(self.device), mask.to(self.device)

    def _latents(self, prepared: Sequence[PreparedPrompt]) -> Tensor:
        """(rows, most images of a row, n, width); zeros where a row has fewer, and for withheld pictures.

        Attending to zeros adds nothing: keys and values have no biases.
        """
        shape = (len(prepared), max(len(p.pixels) for p in prepared), *self.model.perceiver.latents.shape)
        latents = torch.zeros(shape, dtype=self.model.perceiver.latents.dtype, device=self.device)
        places = [(i, j) for i, p in enumerate(prepared) for j, one in enumerate(p.pixels) if one is not None]
        pixels = [one for p in prepared for one in p.pixels if one is not None]
        if pixels:
            rows, columns = torch.tensor(places, device=self.device).T
            encoded = self.model.encode(torch.stack(pixels).to(self.device, latents.dtype))
            latents[rows, columns] = encoded.to(latents.dtype)
        return latents

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._precision == "amp_bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def load_model(spec: FlamingoSpec, *, data_root: Path, device: str, precision: str) -> FlamingoModel:
    """Builds a Flamingo from its parts and loads its weights.

    Raises:
        CheckpointError: a part is missing or does not fit; the message names it.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    dtype = _WEIGHTS[precision]
    clip, transform = load_clip(spec.vision)
    language, host = load_language(spec.language.model, dtype)
    tokenizer = FlamingoTokenizer(spec.language.tokenizer, tidies_spaces=host.tidies_spaces)
    path = fetch(spec.checkpoint) if isinstance(spec.checkpoint, HubFile) else spec.checkpoint
    layers = len(language.get_submodule(host.decoder_path))  # type: ignore[arg-type]  # a ModuleList
    trained = sort_keys(read_state_dict(path), host, layers, spec.cross_attn_every_n_layers, str(path))
    model = assemble(
        vision=PatchTokens(clip.get_submodule("visual")),
        language=language,
        host=host,
        trained=trained,
        vocabulary=len(tokenizer),
        head_width=spec.head_width,
    )
    model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    return FlamingoModel(model, tokenizer, transform, data_root=data_root, precision=precision)
