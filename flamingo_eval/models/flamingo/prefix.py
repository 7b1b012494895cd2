"""One prompt, many continuations: its keys and values are computed once and never copied.

Beams, and class names, are laid out side by side behind their prompt as one sequence of tokens, in which each token
sees the prompt and its own ancestors only, at the position it would have if it stood there alone. Choosing beams then
changes a mask, not the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.models.flamingo.cross_attention import LastImages, Spans
from flamingo_eval.models.flamingo.model import Flamingo


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one decoder layer, with room for all that comes after the prompts.

    Args:
        rows: prompts.
        length: tokens of the longest.
        room: tokens behind them.
    """

    def __init__(self, rows: int, length: int, room: int) -> None:
        super().__init__()
        self.rows, self.prompt, self.room = rows, length, room
        self.length = 0
        self.reading: slice | None = slice(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes room."""
        size = self.prompt + self.room
        heads, key_width, value_width = key_states.shape[1], key_states.shape[3], value_states.shape[3]
        self.keys = key_states.new_empty(self.rows, heads, size, key_width)
        self.values = value_states.new_empty(self.rows, heads, size, value_width)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keeps the keys and values of prompts being read, or appends in place; never copies what is there."""
        key_states, value_states = _as_multiplied(key_states), _as_multiplied(value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.reading is not None:
            start = self.prompt - key_states.shape[2]
            for mine, new in ((self.keys, key_states), (self.values, value_states)):
                mine[self.reading, :, :start] = 0  # masked, but a number all the same
                mine[self.reading, :, start : self.prompt] = new
            return key_states, value_states
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def forget(self) -> None:
        """All prompts have been read, and nothing stands behind them."""
        self.reading, self.length = None, self.prompt

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens with the next ones, offset)."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


def _as_multiplied(states: Tensor) -> Tensor:
    """In the type that autocast would cast them to for every product, at every step anew: rotary positions leave keys
    in float32."""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


class Prompts(Protocol):
    """Prompts that have been read, to be continued.

    Attributes:
        logits: (rows, vocabulary), what comes next.
        lengths: (rows,), tokens of each prompt, padding not counted.
    """

    logits: Tensor
    lengths: Tensor

    def extend(self, ids: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Logits of more tokens, see :meth:`Prefix.extend`."""


@dataclass(frozen=True)
class Part:
    """Some of a batch's prompts, read in one pass.

    Attributes:
        ids: (rows, length), left-padded.
        mask: (rows, length), 0 where padding is.
        spans: what their tokens look at.
        padded: whether there is padding; without it attention needs no mask.
    """

    ids: Tensor
    mask: Tensor
    spans: Spans
    padded: bool = True


class Prefix:
    """Prompts that have been read, once each.

    Args:
        model: the Flamingo.
        parts: the prompts, in as many passes as bound memory and keep caches warm; each as long as its own longest.
        room: tokens that will be laid out behind each prompt at the same time, at most.
    """

    def __init__(self, model: Flamingo, parts: Sequence[Part], room: int) -> None:
        self._model = model
        self._length = max(part.ids.shape[1] for part in parts)
        rows = sum(len(part.ids) for part in parts)
        self._layers = [_Layer(rows, self._length, room) for _ in range(model.decoder_layers)]
        self._cache = Cache(layers=self._layers)
        logits, done = [], 0
        for part in parts:
            for layer in self._layers:
                layer.reading = slice(done, done + len(part.ids))
            done += len(part.ids)
            with model.attending_to(part.spans):
                output = model.language(
                    input_ids=part.ids, attention_mask=part.mask if part.padded else None,
                    position_ids=(part.mask.cumsum(-1) - 1).clamp(min=0), past_key_values=self._cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
            logits.append(output.logits[:, -1])
        self.logits: Tensor = torch.cat(logits)
        self._mask = torch.cat([F.pad(part.mask, (self._length - part.mask.shape[1], 0)) for part in parts])
        self.lengths: Tensor = self._mask.sum(-1)
        self._after = LastImages.after([part.spans for part in parts])
        self.forget()

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values in all layers."""
        kept = (part for layer in self._layers for part in (layer.keys, layer.values))
        return sum(part.nbytes // (part.shape[0] * part.shape[2]) for part in kept)

    def forget(self) -> None:
        """Back to the prompts alone."""
        for layer in self._layers:
            layer.forget()
        self._depths = torch.empty(0, dtype=torch.long, device=self.logits.device)

    def extend(self, ids: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Logits (rows, tokens, vocabulary) of more tokens.

        Args:
            ids: (rows, tokens).
            depths: (tokens,), how far behind the prompt each stands in its own continuation, from 0.
            visible: (rows, tokens, all tokens behind the prompt so far, these included), what each may attend to.
        """
        model = self._model
        mask = torch.cat((self._mask.bool()[:, None, :].expand(-1, ids.shape[1], -1), visible), dim=-1)
        dtype = next(model.language.parameters()).dtype
        bias = torch.zeros(mask.shape, dtype=dtype, device=ids.device).masked_fill(~mask, torch.finfo(dtype).min)
        self._depths = torch.cat((self._depths, depths))
        keys = torch.cat((torch.arange(self._length, device=ids.device), self._length + self._depths))
        with model.attending_to(self._after), model.with_key_positions(keys):
            logits: Tensor = model.language(
                input_ids=ids, attention_mask=bias.unsqueeze(1), position_ids=self.lengths[:, None] + depths,
                past_key_values=self._cache, use_cache=True,
            ).logits  # fmt: skip
        return logits


@torch.inference_mode()
def check_side_by_side(model: Flamingo) -> None:
    """Finds out whether a language model of an unknown family can be used like this.

    Two continuations side by side behind a prompt must get the logits that each gets alone. (Not so where attention
    goes by a key's place in the cache, as ALiBi does, or sees a window only.)

    Raises:
        CheckpointError: they don't.
    """
    window = getattr(model.language.config, "sliding_window", None)
    name = type(model.language).__name__
    if window is not None:
        raise CheckpointError(f"{name} sees only a window of {window} tokens, which is not supported")
    ids = torch.arange(1, 9)[None]
    alone = torch.tensor([[*range(1, 9), 9, 11], [*range(1, 9), 10, 12]])
    nothing = model.perceiver.latents.new_zeros(1, *model.perceiver.latents.shape)

    def blind(tokens: Tensor) -> Spans:
        return Spans.of(nothing, [[]] * len(tokens), tokens, -1)

    try:
        prefix = Prefix(model, [Part(ids, torch.ones_like(ids), blind(ids), padded=False)], room=4)
        eye = torch.eye(2, dtype=torch.bool)[None]
        prefix.extend(torch.tensor([[9, 10]]), torch.tensor([0, 0]), eye)
        beside = prefix.extend(torch.tensor([[11, 12]]), torch.tensor([1, 1]), torch.cat((eye, eye), dim=-1))
        expected = model(alone, torch.ones_like(alone), blind(alone))[:, -1]
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{name} can't be used as a language model here: {error}") from error
    difference = float((beside[0].float() - expected.float()).abs().max() / expected.float().abs().max())
    if not difference < 0.02:
        raise CheckpointError(
            f"{name} can't be used as a language model here: continuations side by side differ from each alone"
        )
