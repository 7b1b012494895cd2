"""The plain path: it encodes every image for every prompt, copies beams, and scores one name at a time.

Its attention is dense. The fast paths are compared with it, and ``--plain`` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flamingo_eval.core.records import Decoding, NoAnswer, Ranking, Task
from flamingo_eval.devices import to_device
from flamingo_eval.models.flamingo.adapter import FlamingoModel, PreparedPrompt
from flamingo_eval.models.flamingo.cross_attention import Media
from flamingo_eval.models.flamingo.decoding import decode
from flamingo_eval.models.flamingo.latents import LatentStore, StoredImage
from flamingo_eval.models.flamingo.model import Flamingo


class Copies:
    """Prompts that are read once per beam; transformers' own code copies their caches when beams change."""

    def __init__(self, model: Flamingo, ids: Tensor, mask: Tensor, media: Media, beams: int) -> None:
        self._model, self._beams = model, beams
        self._media = media.repeat(beams)
        self._mask = mask.repeat_interleave(beams, dim=0)
        self._cache = DynamicCache(config=model.language.config)
        logits = self._read(ids.repeat_interleave(beams, dim=0))
        self.logits = logits[::beams]
        self.lengths = mask.sum(-1)

    def extend(self, ids: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Logits (rows, beams, vocabulary) of one more token per beam; ``visible`` shows which beam each continues."""
        rows, beams = ids.shape
        if int(depths[0]) > 0:
            before = visible[..., -2 * beams : -beams].int().argmax(-1)  # (rows, beams): its beam one step before
            self._cache.reorder_cache((before + torch.arange(rows, device=ids.device)[:, None] * beams).flatten())
        self._mask = torch.cat((self._mask, torch.ones_like(self._mask[:, :1])), dim=1)
        logits: Tensor = self._read(ids.flatten()[:, None]).unflatten(0, (rows, beams))
        return logits

    def _read(self, ids: Tensor) -> Tensor:
        """Logits (rows * beams, vocabulary) of the last token in each row of ``ids``."""
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with self._model.attending_to(self._media):
            logits: Tensor = self._model.language(
                input_ids=ids, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache,
                use_cache=True,
            ).logits  # fmt: skip
        last: Tensor = logits[:, -1]
        return last


class PlainFlamingoModel(FlamingoModel):
    """Gives the same answers as ``FlamingoModel``, slowly."""

    def __init__(self, model: Flamingo, *arguments: Any, **settings: Any) -> None:
        if model.host.make_plain is not None:
            model.host.make_plain(model.language)
        super().__init__(model, *arguments, **settings)

    def _read(self, store: LatentStore, images: Sequence[StoredImage]) -> None:
        """Reads images only to find those that can't be read; keeps nothing."""
        for image in images:
            store.pixels(image)

    def _generate(self, prepared: Sequence[PreparedPrompt], decoding: Decoding) -> list[str | NoAnswer]:
        ids, mask = (to_device(tensor, self.device) for tensor in self._pad(prepared))
        media = Media.of(self._dense_latents(prepared, decoding), ids, self.tokenizer.image_id)
        with self._autocast():
            copies = Copies(self.model, ids, mask, media, decoding.num_beams)
            decoded = decode(copies, decoding, end_id=self.tokenizer.end_of_chunk_id, pad_id=self.tokenizer.pad_id)
        return self._texts(decoded.ids.tolist(), decoded.sound.tolist())

    def _rank(self, prepared: Sequence[PreparedPrompt], ranking: Ranking) -> list[dict[str, float] | NoAnswer]:
        names = self._name_ids(ranking)
        rows: list[dict[str, float] | NoAnswer] = []
        for one in prepared:
            latents = self._dense_latents([one], ranking)
            values = [self._mean_logprob(one.ids, name, latents) for name in names]
            rows.append(self._ranked(ranking, values))
        return rows

    def _mean_logprob(self, prompt: Sequence[int], name: Sequence[int], latents: Tensor) -> float:
        """Mean log-likelihood of a name's tokens, with prompt and name as one sequence."""
        sequence = torch.tensor([[*prompt, *name]], device=self.device)
        media = Media.of(latents, sequence, self.tokenizer.image_id)
        with self._autocast():
            logits = self.model(sequence, torch.ones_like(sequence), media)
        logprobs = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        return float(logprobs.gather(-1, sequence[0, len(prompt) :, None]).mean())

    def _dense_latents(self, prepared: Sequence[PreparedPrompt], task: Task) -> Tensor:
        """Latents (rows, most images of a row, n, width); zeros where a row has fewer, and for withheld images."""
        like, store = self.model.perceiver.latents, self._store(task)
        most = max(1, *(len(p.images) for p in prepared))
        latents = torch.zeros(len(prepared), most, *like.shape, dtype=like.dtype, device=self.device)
        for i, one in enumerate(prepared):
            for j, image in enumerate(one.images):
                if image is not None:
                    encoded = self._encode(self._autocasts_images(task), store.pixels(image)[None])
                    latents[i, j] = encoded[0].to(latents.dtype)
        return latents
