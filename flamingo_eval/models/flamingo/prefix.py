"""One prompt, many continuations: the prompt's keys and values are computed once and never copied.

Beams, and class names, are placed side by side after their prompt, as one sequence of tokens. Each token attends only
to the prompt and to its own ancestors, and has the position that it would have alone. Choosing beams then changes a
mask, not the cache.
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
    """Keys and values of one decoder layer, with room for all tokens after the prompts.

    Args:
        rows: number of prompts.
        length: tokens of the longest prompt.
        room: tokens after each prompt.
    """

    def __init__(self, rows: int, length: int, room: int) -> None:
        super().__init__()
        self.rows, self.prompt, self.room = rows, length, room
        self.length = 0
        self.reading: slice | None = slice(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the memory."""
        size = self.prompt + self.room
        heads, key_width, value_width = key_states.shape[1], key_states.shape[3], value_states.shape[3]
        self.keys = key_states.new_empty(self.rows, heads, size, key_width)
        self.values = value_states.new_empty(self.rows, heads, size, value_width)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of prompts being read, or appends in place; never copies stored ones."""
        key_states, value_states = _as_multiplied(key_states), _as_multiplied(value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.reading is not None:
            start = self.prompt - key_states.shape[2]
            for mine, new in ((self.keys, key_states), (self.values, value_states)):
                mine[self.reading, :, :start] = 0  # masked, but it must be finite
                mine[self.reading, :, start : self.prompt] = new
            return key_states, value_states
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def forget(self) -> None:
        """Ends the reading of prompts, and drops all tokens after them."""
        self.reading, self.length = None, self.prompt

    def get_seq_length(self) -> int:
        """Number of tokens so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(number of tokens including the next ones, offset)."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no maximum."""
        return -1


def _as_multiplied(states: Tensor) -> Tensor:
    """Casts keys or values once to the type that autocast would cast them to for every product, at every step.
    (Rotary positions leave keys in float32.)"""
    kind = states.device.type
    return states.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else states


class Prompts(Protocol):
    """Prompts that have been read and can be continued.

    Attributes:
        logits: (rows, vocabulary), logits of the next token.
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
        mask: (rows, length), 0 at padding.
        spans: what their tokens attend to.
        padded: whether there is padding; without padding, attention needs no mask.
    """

    ids: Tensor
    mask: Tensor
    spans: Spans
    padded: bool = True


class Prefix:
    """Prompts that have been read, once each.

    Args:
        model: the Flamingo.
        parts: the prompts, divided into passes, which bounds memory and keeps processor caches warm. Each part is as
            long as its longest prompt.
        room: maximum number of tokens that will be after each prompt at the same time.
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
        """Bytes of keys and values per token, in all layers."""
        kept = (part for layer in self._layers for part in (layer.keys, layer.values))
        return sum(part.nbytes // (part.shape[0] * part.shape[2]) for part in kept)

    def forget(self) -> None:
        """Drops all tokens after the prompts."""
        for layer in self._layers:
            layer.forget()
        self._depths = torch.empty(0, dtype=torch.long, device=self.logits.device)

    def extend(self, ids: Tensor, depths: Tensor, visible: Tensor) -> Tensor:
        """Appends tokens, and returns their logits (rows, tokens, vocabulary).

        Args:
            ids: (rows, tokens).
            depths: (tokens,), position of each token in its own continuation, from 0.
            visible: (rows, tokens, all tokens after the prompt so far, these included), what each may attend to.
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
    """Checks that a language model of an unknown family works with continuations side by side.

    Two continuations side by side after a prompt must get the logits that each gets alone. (They don't if attention
    depends on a key's index in the cache, as with ALiBi, or is limited to a window.)

    Raises:
        CheckpointError: the logits differ, the model has a sliding window, or it can't be run like this.
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
