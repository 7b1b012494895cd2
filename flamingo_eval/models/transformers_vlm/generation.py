"""Answers a batch by transformers' own ``generate``: greedy text, beam search, or log-likelihoods of class names.

``generate`` knows each architecture's positions, masks and caches. Here it only gets images' features in place of
pixels and, for names and beams, the cache of a prompt that it has already read.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor
from transformers.cache_utils import DynamicLayer

from flamingo_eval.core.records import Decoding
from flamingo_eval.models.transformers_vlm.foreign import Arguments, Inputs


@dataclass(frozen=True)
class Batch:
    """Prompts on their device.

    Attributes:
        ids: (rows, longest prompt), padded on the left.
        mask: (rows, longest prompt), 1 where there is a token.
        types: further values for each token, (rows, longest prompt), by name.
        along: small tensors that belong to images, such as their grids, by name.
        features: image features in place of pixels, as ``mm_encoder_outputs``; None without images.
    """

    ids: Tensor
    mask: Tensor
    types: Mapping[str, Tensor]
    along: Mapping[str, Tensor]
    features: Any = None

    def inputs(self) -> Arguments:
        """Arguments for ``generate``. It modifies them, so the features are copied."""
        images = {} if self.features is None else {"mm_encoder_outputs": {"image": copy.copy(self.features)}}
        return {"input_ids": self.ids, "attention_mask": self.mask, **self.types, **self.along, **images}

    def without_last(self) -> Batch:
        """The same prompts without their last token."""
        types = {name: row[:, :-1] for name, row in self.types.items()}
        return Batch(self.ids[:, :-1], self.mask[:, :-1], types, self.along, self.features)


def stacked(parts: Sequence[Batch], pad_id: int) -> Batch:
    """The prompts of all parts, padded on the left, without their images, which have been read already."""
    longest = max(part.ids.shape[1] for part in parts)

    def rows(tensors: Sequence[Tensor], fill: int) -> Tensor:
        return torch.cat([pad(one, (longest - one.shape[1], 0), value=fill) for one in tensors])

    names = sorted({name for part in parts for name in part.types})
    types = {name: rows([part.types.get(name, torch.zeros_like(part.ids)) for part in parts], 0) for name in names}
    return Batch(rows([part.ids for part in parts], pad_id), rows([part.mask for part in parts], 0), types, {})


@dataclass(frozen=True)
class Read:
    """The result of reading prompts (prefill).

    Attributes:
        logits: of the next token, (rows, vocabulary).
        cache: keys and values.
        deltas: offsets of positions from token indices, (rows, 1), for an architecture with ``rope_deltas``; else None.
    """

    logits: Tensor
    cache: Any
    deltas: Tensor | None

    @property
    def joinable(self) -> bool:
        """Whether caches like this one can be joined: none of its layers drops distant tokens."""
        layers = getattr(self.cache, "layers", None) or ()
        return len(layers) > 0 and all(type(layer) is DynamicLayer for layer in layers)


class Watch(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Watches generation: notices when the prompts have been read, and whether all logits are numbers.

    Args:
        start: tokens of a prompt, with padding.
        rows: number of prompts.
        ends: ids of tokens that end a text.
        first: called when the prompts have been read.
    """

    def __init__(self, start: int, rows: int, ends: Tensor, first: Callable[[], None]) -> None:
        self._start, self._rows, self._ends, self._first = start, rows, ends, first
        self._sound: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite = scores.float().logsumexp(-1).isfinite() | torch.isin(input_ids[:, self._start :], self._ends).any(-1)
        finite = finite.view(self._rows, -1).all(-1)
        if self._sound is None:
            self._first()
            self._sound = finite
        else:
            self._sound = self._sound & finite
        return scores

    @property
    def sound(self) -> Tensor:
        """For each row, whether all logits that determined its text were numbers, (rows,)."""
        assert self._sound is not None
        return self._sound


class _Forced(LogitsProcessor):  # type: ignore[misc]
    """Forces each row to continue with given tokens, and keeps their log-likelihoods."""

    def __init__(self, rows: Sequence[Sequence[int]], device: torch.device) -> None:
        longest = max(map(len, rows))
        self._tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        wanted = self._tokens[:, len(self.logprobs), None]
        logits = scores.float()
        self.logprobs.append((logits.gather(-1, wanted) - logits.logsumexp(-1, keepdim=True))[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, wanted, 0.0)


class Generator:
    """A model that generates.

    Args:
        model: a model of transformers, on its device.
        tokens: which tokens end a text, pad it, and so on; a checkpoint's sampling settings don't apply.
    """

    def __init__(self, model: Any, tokens: Inputs) -> None:
        self.model, self._tokens = model, dict(tokens)
        self.pad_id = int(self._tokens["pad_token_id"])
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.joinable = False
        """Whether prompts can be read separately, and then be continued together."""

    def config(self, **how: Any) -> GenerationConfig:
        """Settings of ``generate``."""
        return GenerationConfig(**self._tokens, **how)

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the tokens that end a text."""
        ends = self._tokens.get("eos_token_id")
        return frozenset(() if ends is None else ends if isinstance(ends, list) else [ends])

    def text(self, parts: Sequence[Batch], decoding: Decoding, read: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Generated ids, (rows, tokens), and whether each row's logits were numbers, (rows,).

        Args:
            parts: the prompts; each part is read in one pass.
            decoding: how text is generated.
            read: called when all prompts have been read.
        """
        if decoding.num_beams == 1 and len(parts) == 1:
            return self._run(parts[0].inputs(), parts[0], decoding, read)
        # the prompts are read once, except for their last token, which every beam reads for itself
        joined = stacked(parts, self.pad_id)
        cache = self._joined([self.read(part.without_last()) for part in parts], parts)
        if decoding.num_beams > 1:
            cache.batch_repeat_interleave(decoding.num_beams)
        return self._run(joined.inputs() | {"past_key_values": cache}, joined, decoding, read)

    def _joined(self, found: Sequence[Read], parts: Sequence[Batch]) -> Any:
        """One cache for all parts, each padded on the left; positions follow from the mask of the joined batch."""
        if len(found) == 1:
            return found[0].cache
        lengths = [one.cache.get_seq_length() for one in found]
        cache, longest = found[0].cache, max(lengths)
        for number, layer in enumerate(cache.layers):
            others = [one.cache.layers[number] for one in found]
            pads = [(0, 0, longest - length, 0) for length in lengths]
            layer.keys = torch.cat([pad(one.keys, by, value=0.0) for one, by in zip(others, pads, strict=True)])
            layer.values = torch.cat([pad(one.values, by, value=0.0) for one, by in zip(others, pads, strict=True)])
        deltas = [one.deltas for one in found if one.deltas is not None]
        if len(deltas) == len(parts):
            _model_with_deltas(self.model).rope_deltas = torch.cat(deltas)
        return cache

    def _run(
        self, inputs: Arguments, batch: Batch, decoding: Decoding, read: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        rows, start = batch.ids.shape
        watch = Watch(start, rows, torch.tensor(sorted(self.end_ids), device=self.model.device), read)
        beams = {"length_penalty": decoding.length_penalty} if decoding.num_beams > 1 else {}
        config = self.config(
            max_new_tokens=decoding.max_new_tokens,
            min_new_tokens=decoding.min_new_tokens or None,
            num_beams=decoding.num_beams,
            do_sample=False,
            **beams,
        )
        with self._own_settings():
            ids = self.model.generate(**inputs, generation_config=config, logits_processor=[watch])
        return ids[:, start:], watch.sound

    def read(self, batch: Batch) -> Read:
        """Reads prompts."""
        return self.read_inputs(batch.inputs())

    def read_inputs(self, inputs: Inputs) -> Read:
        """Like :meth:`read`, for any arguments of ``generate``, pixels included."""
        config = self.config(
            max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True, use_cache=True
        )
        with self._own_settings():
            found = self.model.generate(**inputs, generation_config=config)
        return Read(found.logits[0], found.past_key_values, _rope_deltas(self.model))

    def text_of_inputs(self, inputs: Inputs, decoding: Decoding) -> tuple[Tensor, Tensor]:
        """Like :meth:`text`, for a prompt with pixels."""
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], {}, {})
        return self._run(dict(inputs), batch, decoding, lambda: None)

    def mean_logprob(self, inputs: Inputs, name: Sequence[int]) -> float:
        """Mean log-likelihood of a name's tokens after a prompt with pixels, both read as one sequence."""
        length = inputs["input_ids"].shape[1]
        own = torch.tensor([[*name]], device=inputs["input_ids"].device)
        longer = {
            key: torch.cat((value, own if key == "input_ids" else torch.full_like(own, key == "attention_mask")), dim=1)
            if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == length and "pixel" not in key
            else value
            for key, value in inputs.items()
        }
        last = {"logits_to_keep": len(name) + 1} if self._keeps_last else {}
        logits = self.model(**longer, **last).logits[0, -len(name) - 1 : -1].float()
        return float(logits.log_softmax(-1).gather(-1, own.T).mean())

    def rank(
        self, parts: Sequence[Batch], names: Sequence[Sequence[int]], read: Callable[[], None], copies: int
    ) -> Tensor:
        """Mean log-likelihood of each name's tokens after each prompt, (rows, names), in float32.

        Args:
            parts: the prompts; each part is read in one pass.
            names: token ids of each name.
            read: called when all prompts have been read.
            copies: how many names may be scored at once, each after a copy of every prompt.
        """
        found = [self.read(part) for part in parts]
        read()
        first = torch.cat([one.logits for one in found]).float()
        totals = first[:, [name[0] for name in names]] - first.logsumexp(-1, keepdim=True)
        longer = sorted((i for i, name in enumerate(names) if len(name) > 1), key=lambda i: len(names[i]))
        if longer:
            joined, cache = stacked(parts, self.pad_id), self._joined(found, parts)
            found.clear()  # frees the single caches, which have been joined
            deltas = _rope_deltas(self.model)
            for start in range(0, len(longer), copies):
                chosen = longer[start : start + copies]
                totals[:, chosen] += self._rest(joined, cache, deltas, [names[i] for i in chosen])
        means: Tensor = totals / torch.tensor([len(name) for name in names], device=totals.device)
        return means

    def _rest(self, batch: Batch, cache: Any, deltas: Tensor | None, names: Sequence[Sequence[int]]) -> Tensor:
        """Summed log-likelihood of every token but the first of each name, (rows, names)."""
        rows, count, device = len(batch.ids), len(names), batch.ids.device
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(count)
        if deltas is not None:
            _model_with_deltas(self.model).rope_deltas = deltas.repeat_interleave(count, dim=0)

        def wide(tensor: Tensor, new: Tensor) -> Tensor:
            return torch.cat((tensor.repeat_interleave(count, dim=0), new.repeat(rows, 1)), dim=1)

        head = torch.tensor([[name[0]] for name in names], device=device)
        forced = _Forced([name[1:] for name in names] * rows, device)
        config = self.config(max_new_tokens=max(map(len, names)) - 1, do_sample=False)
        config.eos_token_id = None  # a name may contain such a token, and its row must continue
        with self._own_settings():
            self.model.generate(
                input_ids=wide(batch.ids, head), attention_mask=wide(batch.mask, torch.ones_like(head)),
                **{name: wide(row, torch.zeros_like(head)) for name, row in batch.types.items()},
                past_key_values=own, generation_config=config, logits_processor=[forced],
            )  # fmt: skip
        steps = torch.stack(forced.logprobs, dim=-1).view(rows, count, -1)
        counts = [len(name) - 1 for name in names]
        return torch.stack([steps[:, i, :n].sum(-1) for i, n in enumerate(counts)], dim=1)

    def _own_settings(self) -> Any:
        """Within this context, the checkpoint's sampling settings don't fill in what our settings leave open."""
        return _Replaced(self.model, "generation_config", GenerationConfig())


class _Replaced:
    """Within this context, an object's attribute has another value."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self._value = owner, name, value

    def __enter__(self) -> None:
        self._before = getattr(self._owner, self._name)
        setattr(self._owner, self._name, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(self._owner, self._name, self._before)


def _model_with_deltas(model: Any) -> Any:
    """The module that keeps the offsets of positions from token indices (``rope_deltas`` of Qwen2-VL and others)."""
    return model if hasattr(model, "rope_deltas") else getattr(model, "model", model)


def _rope_deltas(model: Any) -> Tensor | None:
    """These offsets after the prompts have been read, (rows, 1); None for a model without them."""
    found: Tensor | None = getattr(_model_with_deltas(model), "rope_deltas", None)
    return found
