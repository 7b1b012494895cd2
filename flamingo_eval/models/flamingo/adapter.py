"""The Flamingo as the engine sees it: prompts in, text out."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import DeviceMemoryError, QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.measuring import Work
from flamingo_eval.core.records import WITHHELD, Answer, Decoding, NoAnswer, Prompt, Ranking, Rendering, Task
from flamingo_eval.devices import autocast, free_memory, is_out_of_memory, numerics, peak_memory, to_device
from flamingo_eval.devices import room as free_bytes
from flamingo_eval.measure import Clock, counted, matrix_peak
from flamingo_eval.models.flamingo.batching import Footprint, sizes_for, suggested
from flamingo_eval.models.flamingo.cross_attention import Spans
from flamingo_eval.models.flamingo.decoding import Decoded, decode
from flamingo_eval.models.flamingo.decoding import room_needed as decoding_room
from flamingo_eval.models.flamingo.hosts import max_positions
from flamingo_eval.models.flamingo.latents import LatentStore, StoredImage
from flamingo_eval.models.flamingo.model import Flamingo
from flamingo_eval.models.flamingo.prefix import Part, Prefix, Prompts
from flamingo_eval.models.flamingo.ranking import room_needed as ranking_room
from flamingo_eval.models.flamingo.ranking import score_names
from flamingo_eval.models.flamingo.rendering import IMAGE, RENDERER
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import Transform
from flamingo_eval.storage.vectors import FeatureStore
from flamingo_eval.task_tokens import TaskTokens

MAX_PROMPT_TOKENS = 2000
"""Longer prompts are refused. The reference cuts them on the right (open_flamingo/eval/models/open_flamingo.py,
``max_length=2000``), which cuts off the query itself."""


@dataclass(frozen=True)
class PreparedPrompt:
    """One prompt: token ids, and its images in order, None for a withheld one."""

    ids: list[int]
    images: list[StoredImage | None]


@dataclass(frozen=True)
class Caching:
    """Where latents are kept.

    Attributes:
        memory: bytes of latents kept in memory.
        folder: folder on disk for all latents; None to keep them in memory only.
        digest: digest of everything that determines latents, except the image.
    """

    memory: int = 8 << 30
    folder: Path | None = None
    digest: str = ""

    def disk(self, autocast: bool) -> FeatureStore | None:
        """The store on disk, if there is a folder."""
        if self.folder is None:
            return None
        key = digest([self.digest, autocast])
        return FeatureStore(self.folder / key, key)


class FlamingoModel:
    """A loaded Flamingo with its tokenizer and image transform.

    Args:
        model: the network, already on its device.
        tokenizer: its tokenizer.
        transform: open_clip's inference transform.
        precision: ``fp32``, ``bf16``, ``fp16`` (weights in that type) or ``amp_bf16`` (float32 weights, autocast).
        caching: where latents are kept.
    """

    def __init__(
        self,
        model: Flamingo,
        tokenizer: FlamingoTokenizer,
        transform: Transform,
        *,
        precision: str,
        caching: Caching | None = None,
    ) -> None:
        caching = caching or Caching()
        self.model, self.tokenizer, self.transform = model, tokenizer, transform
        self.precision = precision
        self.root = Path()
        """Image paths given to :meth:`generate` are relative to this folder."""
        tokens = TaskTokens(self.tokenizer.encode_plain)
        self._room, self._name_ids = tokens.room, tokens.names
        self._clock, self._reading = Clock(self.device), 0.0
        self._sizes = sizes_for(self.device)
        self._footprint: Footprint | None = None
        like = model.perceiver.latents
        # generation encodes images under autocast, ranking does not, as in the reference (eval/models)
        self.stores = {
            autocasts: LatentStore(
                transform, partial(self._encode, autocasts), like, budget=caching.memory, disk=caching.disk(autocasts)
            )
            for autocasts in ((False, True) if precision == "amp_bf16" else (False,))
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.perceiver.latents.device

    def prepare(self, prompt: Prompt, task: Task, images: Images) -> PreparedPrompt:
        """Reads and transforms images, encodes text.

        Raises:
            QueryError: an image can't be read, or the prompt is too long.
        """
        return self.read(RENDERER.render(prompt), task, images)

    def read(self, prompt: Rendering, task: Task, images: Images) -> PreparedPrompt:
        """Like :meth:`prepare`, for a prompt that is rendered already. Raises QueryError."""
        store = self._store(task)
        try:
            ids = self._encode_prompt(prompt.text, task)
            shown = [None if image == WITHHELD else store.find(image, prompt.rgb, images) for image in prompt.images]
            began = time.perf_counter()
            self._read(store, [image for image in shown if image is not None])
        except QueryError:
            store.drop(self._found(store, prompt, images))  # this prompt encodes none; others read theirs again
            raise
        self._reading += time.perf_counter() - began
        return PreparedPrompt(ids, shown)

    def prefetch(self, prompts: Sequence[Prompt], task: Task, images: Images) -> None:
        """Reads the images of several prompts together. Ignores errors: :meth:`prepare` reports them."""
        store = self._store(task)
        shown = [image for prompt in map(RENDERER.render, prompts) for image in self._found(store, prompt, images)]
        began = time.perf_counter()
        with contextlib.suppress(QueryError):
            self._read(store, shown)
        self._reading += time.perf_counter() - began

    @staticmethod
    def _found(store: LatentStore, prompt: Rendering, images: Images) -> list[StoredImage]:
        """A prompt's images, except those that are withheld or missing."""
        found = []
        for image in prompt.images:
            with contextlib.suppress(QueryError):
                if image != WITHHELD:
                    found.append(store.find(image, prompt.rgb, images))
        return found

    def close(self) -> None:
        """Closes the latent stores: frees latents and stops the threads that read images."""
        for store in self.stores.values():
            store.close()

    def _encode_prompt(self, text: str, task: Task) -> list[int]:
        """Token ids; raises QueryError if there are too many."""
        ids = self.tokenizer.encode(text)
        limit = min(MAX_PROMPT_TOKENS, max_positions(self.model.language.config) - self._room(task))
        if len(ids) > limit:
            raise QueryError(f"a prompt has {len(ids)} tokens, the limit is {limit}: use fewer shots")
        return ids

    def _autocasts_images(self, task: Task) -> bool:
        return self.precision == "amp_bf16" and isinstance(task, Decoding)

    def _store(self, task: Task) -> LatentStore:
        """The latent store that a task uses."""
        return self.stores[self._autocasts_images(task)]

    def _read(self, store: LatentStore, images: Sequence[StoredImage]) -> None:
        store.read(images)

    def _encode(self, autocasts: bool, pixels: Tensor) -> Tensor:
        with self._clock.section("vision"), self._autocast() if autocasts else contextlib.nullcontext():
            return self.model.encode(to_device(pixels, self.device).to(self.model.perceiver.latents.dtype))

    @torch.inference_mode()
    def answer(self, prepared: Sequence[PreparedPrompt], task: Task) -> list[Answer | NoAnswer]:
        """Text, or log-likelihoods of class names, for each prompt; NoAnswer where its logits are not finite."""
        with numerics(self.device):
            try:
                return [*(self._generate(prepared, task) if isinstance(task, Decoding) else self._rank(prepared, task))]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            finally:
                self._clock.settle()
        free_memory()  # here, where nothing refers any more to the tensors that did not fit
        if len(prepared) == 1:  # it will not be tried again
            self._store(task).drop([image for image in prepared[0].images if image is not None])
        longest = max(len(prompt.ids) for prompt in prepared)
        many = "a prompt" if len(prepared) == 1 else f"{len(prepared)} prompts"
        raise DeviceMemoryError(
            f"{many} of {longest} tokens do{'es' * (len(prepared) == 1)} not fit into the memory of {self.device}: "
            "use fewer shots, a narrower --precision, or a larger device"
        )

    def timings(self) -> dict[str, float]:
        """Seconds so far: ``vision``, ``prefill``, ``decode`` (or ranking), and ``images``, which overlaps these."""
        return {**self._clock.seconds(), "images": self._reading}

    @property
    def encoded(self) -> int:
        """How many images were encoded."""
        return sum(store.encoded for store in self.stores.values())

    @torch.inference_mode()
    def work(self, prepared: Sequence[PreparedPrompt], task: Task) -> Work:
        """See :class:`flamingo_eval.core.measuring.Measurable`."""
        with numerics(self.device):
            return self._work(prepared, task)

    def _work(self, prepared: Sequence[PreparedPrompt], task: Task) -> Work:
        flops: dict[str, float] = {}
        first = next((image for p in prepared for image in p.images if image is not None), None)
        if first is not None:
            pixels = self._store(task).pixels(first)[None]
            with counted(flops, "vision"):  # not by _encode: the clock must not count it
                self.model.encode(to_device(pixels, self.device).to(self.model.perceiver.latents.dtype))
        self._latents(prepared, task)  # so that images are not counted twice
        behind = decoding_room(task) if isinstance(task, Decoding) else ranking_room(self._name_ids(task))
        with counted(flops, "prefill"):
            prefix = self._prefix(prepared, task, behind)
        with counted(flops, "decode"), self._autocast():
            if isinstance(task, Decoding):
                self._decode(prefix, task)
            else:
                score_names(prefix, self._name_ids(task), self._sizes.logits)
        arithmetic = torch.bfloat16 if self.precision == "amp_bf16" else self.model.perceiver.latents.dtype
        return Work(flops, matrix_peak(self.device, arithmetic), peak_memory(self.device))

    def suggested_batch(self, prompt: Prompt, task: Task) -> int:
        """Number of prompts that keeps the device busy and fits into its memory."""
        tokens = len(self.tokenizer.encode(RENDERER.render(prompt).text))
        behind = decoding_room(task) if isinstance(task, Decoding) else ranking_room(self._name_ids(task))
        free = free_bytes(self.device)
        return suggested(self._sizes, self._measured() if free is not None else None, task, tokens, behind, free or 0)

    @torch.inference_mode()
    def _measured(self) -> Footprint:
        """Memory that answering needs. Bytes per token are measured, since models store keys in different ways."""
        if self._footprint is None:
            ids = torch.full((1, 1), self.tokenizer.pad_id)
            with numerics(self.device):
                nothing = torch.zeros_like(self.model.perceiver.latents)[None]
                spans = Spans.of(nothing, [[]], ids, self.tokenizer.image_id)
                part = Part(to_device(ids, self.device), torch.ones_like(ids, device=self.device), spans, padded=False)
                with self._autocast():
                    token = Prefix(self.model, [part], 1).bytes_per_token
            self._footprint = Footprint.of(self.model, self.precision, token, self._sizes.pass_tokens)
        return self._footprint

    def _generate(self, prepared: Sequence[PreparedPrompt], decoding: Decoding) -> list[str | NoAnswer]:
        """Raw text for each prompt, with spaces tidied as in transformers 4.28."""
        prefix = self._prefix(prepared, decoding, decoding_room(decoding))
        with self._clock.section("decode"):
            decoded = self._decode(prefix, decoding)
            ids, sound = decoded.ids.tolist(), decoded.sound.tolist()
        return self._texts(ids, sound)

    def _texts(self, ids: Sequence[Sequence[int]], sound: Sequence[bool]) -> list[str | NoAnswer]:
        return [self.tokenizer.decode(row) if good else self._no_answer() for row, good in zip(ids, sound, strict=True)]

    def _no_answer(self) -> NoAnswer:
        return NoAnswer(f"the logits are not numbers (NaN or infinite) in {self.precision}; another --precision may do")

    def _decode(self, prefix: Prompts, decoding: Decoding) -> Decoded:
        with self._autocast():
            return decode(prefix, decoding, end_id=self.tokenizer.end_of_chunk_id, pad_id=self.tokenizer.pad_id)

    def _rank(self, prepared: Sequence[PreparedPrompt], ranking: Ranking) -> list[dict[str, float] | NoAnswer]:
        """Mean log-likelihood of each name's tokens."""
        names = self._name_ids(ranking)
        prefix = self._prefix(prepared, ranking, ranking_room(names))
        with self._clock.section("decode"), self._autocast():
            scores = score_names(prefix, names, self._sizes.logits)
        return [self._ranked(ranking, row) for row in scores.tolist()]

    def _ranked(self, ranking: Ranking, scores: Sequence[float]) -> dict[str, float] | NoAnswer:
        if not all(map(math.isfinite, scores)):
            return self._no_answer()
        return dict(zip(ranking.names, scores, strict=True))

    def generate(
        self,
        prompt: str,
        images: Sequence[Image.Image | str | Path] = (),
        *,
        max_new_tokens: int = 20,
        num_beams: int = 3,
        length_penalty: float = 0.0,
        min_new_tokens: int = 0,
    ) -> str:
        """Generates text that continues a prompt with images.

        Args:
            prompt: text with an ``<image>`` in place of each image, and ``<|endofchunk|>`` after each demonstration.
            images: Pillow images or paths, one for each ``<image>``.
            max_new_tokens: maximum number of generated tokens.
            num_beams: number of beams; 1 is greedy decoding.
            length_penalty: as in transformers 4.28.
            min_new_tokens: minimum number of generated tokens.

        Raises:
            UserError: not as many images as ``<image>`` tags; an image can't be read; the prompt is too long; the
                logits are not finite.
            DeviceMemoryError: the prompt does not fit into memory.
        """
        if prompt.count(IMAGE) != len(images):
            raise UserError(f"the prompt has {prompt.count(IMAGE)} {IMAGE} tags, and there are {len(images)} images")
        task = Decoding(max_new_tokens, num_beams, min_new_tokens, length_penalty)
        store = self._store(task)
        ids = self._encode_prompt(prompt, task)
        shown: list[StoredImage] = []
        with numerics(self.device):  # one thread at a time
            try:
                for image in images:
                    shown.append(store.adopt(image if isinstance(image, Image.Image) else self.root / image))
                result = self.answer([PreparedPrompt(ids, [*shown])], task)[0]
            finally:
                store.drop(shown)
        if isinstance(result, NoAnswer):
            raise QueryError(result.reason)
        return str(result)

    def _prefix(self, prepared: Sequence[PreparedPrompt], task: Task, behind: int) -> Prefix:
        """Runs the prefill of a batch of prompts with their images."""
        longest = max(len(prompt.ids) for prompt in prepared)
        rows = max(1, self._sizes.pass_tokens // longest)
        parts = [self._part(prepared[i : i + rows], task) for i in range(0, len(prepared), rows)]
        with self._clock.section("prefill"), self._autocast():
            return Prefix(self.model, parts, behind)

    def _part(self, prepared: Sequence[PreparedPrompt], task: Task) -> Part:
        ids, mask = self._pad(prepared)
        spans = Spans.of(*self._latents(prepared, task), ids, self.tokenizer.image_id)
        padded = not bool(mask.all())  # no waiting: the mask is on the CPU here
        return Part(to_device(ids, self.device), to_device(mask, self.device), spans, padded)

    def _pad(self, prepared: Sequence[PreparedPrompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, (rows, longest prompt), padded on the left, on the CPU."""
        longest = max(len(p.ids) for p in prepared)
        ids = torch.tensor([[self.tokenizer.pad_id] * (longest - len(p.ids)) + p.ids for p in prepared])
        mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prepared])
        return ids, mask

    def _latents(self, prepared: Sequence[PreparedPrompt], task: Task) -> tuple[Tensor, list[list[int]]]:
        """Latents of the batch's distinct images, on the device, and each prompt's images as indices into them.

        A withheld image has latents of zeros: attending to them adds nothing, since keys and values have no biases.
        """
        distinct = {image.key: image for p in prepared for image in p.images if image is not None}
        place = {key: i for i, key in enumerate(distinct)}
        latents = self.model.perceiver.latents
        nothing = torch.zeros(1, *latents.shape, dtype=latents.dtype)
        known = [self._store(task).latents([*distinct.values()])] if distinct else []
        numbers = [[len(distinct) if image is None else place[image.key] for image in p.images] for p in prepared]
        return to_device(torch.cat([*known, nothing]), self.device), numbers

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return autocast(self.device, self.precision)
