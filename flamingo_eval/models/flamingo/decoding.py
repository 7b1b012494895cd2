"""Greedy decoding and beam search after prompts that have been read.

The rules of beam search are those of transformers 4.28 (generation/beam_search.py, ``early_stopping=False``), which the
reference uses. A sequence's score is its log-likelihood, divided by the length of the *full* sequence, prompt included,
to the power of the length penalty. (transformers 5 divides by the generated length. With length penalty 0, as in the
reference's last commit, that is the same; with -2.0, as in its older harnesses, it is not.) The prompt's length is
counted without padding, as transformers does for a batch of one, so rows never influence each other.

Ties are broken by order: among tokens the lower id comes first, among sequences the one that was better so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flamingo_eval.core.records import Decoding
from flamingo_eval.devices import exact_type
from flamingo_eval.models.flamingo.prefix import Prompts

_OUT = -1e9
"""Added to the scores of candidates that must not be chosen."""


class Decoded(NamedTuple):
    """Generated text.

    Attributes:
        ids: (rows, max_new_tokens), padded after the end of each text.
        sound: (rows,), whether all logits that a row depends on are finite; if not, its ids are meaningless.
    """

    ids: Tensor
    sound: Tensor


def room_needed(decoding: Decoding) -> int:
    """Number of tokens that decoding appends to a prompt, over all beams."""
    return decoding.num_beams * decoding.max_new_tokens


def decode(prefix: Prompts, decoding: Decoding, *, end_id: int, pad_id: int) -> Decoded:
    """Generates text after prompts that have been read."""
    if decoding.num_beams == 1:
        return _greedy(prefix, decoding, end_id, pad_id)
    return _beam_search(prefix, decoding, end_id, pad_id)


def _barred(logits: Tensor, step: int, decoding: Decoding, end_id: int) -> Tensor:
    """The logits, without the end token while the text is too short (after the softmax, as in transformers)."""
    if step < decoding.min_new_tokens:
        logits = logits.clone()
        logits[..., end_id] = -torch.inf
    return logits


def _greedy(prefix: Prompts, decoding: Decoding, end_id: int, pad_id: int) -> Decoded:
    logits = prefix.logits
    rows, steps, device = logits.shape[0], decoding.max_new_tokens, logits.device
    ids = torch.full((rows, steps), pad_id, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    sound = ~ended
    for step in range(steps):
        chosen = _barred(logits, step, decoding, end_id).argmax(-1)
        sound &= logits.float().logsumexp(-1).isfinite() | ended
        ids[:, step] = torch.where(ended, pad_id, chosen)
        ended |= chosen == end_id
        if step + 1 == steps or bool(ended.all()):
            break
        visible = torch.ones(rows, 1, step + 1, dtype=torch.bool, device=device)
        logits = prefix.extend(chosen[:, None], torch.tensor([step], device=device), visible)[:, 0]
    return Decoded(ids, sound)


@dataclass
class _Beams:
    """Sequences of every row: either the running ones or the best finished ones.

    Attributes:
        scores: (rows, beams), summed log-likelihoods; for finished sequences divided by length ** length_penalty, best
            first.
        ids: (rows, beams, max_new_tokens).
        paths: (rows, beams, max_new_tokens); for running sequences, the index of each token among all tokens after the
            prompt.
    """

    scores: Tensor
    ids: Tensor
    paths: Tensor

    def pick(self, which: Tensor) -> _Beams:
        """Picks sequences by index, (rows, n), in this order."""
        wide = which[..., None].expand(-1, -1, self.ids.shape[-1])
        return _Beams(self.scores.gather(1, which), self.ids.gather(1, wide), self.paths.gather(1, wide))

    def best_with(self, other: _Beams, counts: Tensor, divisor: Tensor) -> _Beams:
        """The best of these and of the others that count, as many as before, best first; divides the others' scores."""
        scores = torch.where(counts, other.scores.to(self.scores.dtype) / divisor, -torch.inf)
        both = _Beams(
            torch.cat((self.scores, scores), dim=1),
            torch.cat((self.ids, other.ids), dim=1),
            torch.cat((self.paths, other.paths), dim=1),
        )
        return both.pick(_best_first(both.scores)[:, : self.scores.shape[1]])


def _beam_search(prefix: Prompts, decoding: Decoding, end_id: int, pad_id: int) -> Decoded:
    logits, beams, steps = prefix.logits[:, None], decoding.num_beams, decoding.max_new_tokens
    rows, device = logits.shape[0], logits.device
    exact = exact_type(device)  # transformers 4.28 computes these scores as Python floats
    lengths = prefix.lengths[:, None].to(exact)
    blank = torch.full((rows, beams, steps), pad_id, device=device)
    running = _Beams(torch.zeros(rows, 1, device=device), blank[:, :1], torch.zeros_like(blank[:, :1]))
    finished = _Beams(torch.full((rows, beams), -torch.inf, dtype=exact, device=device), blank, torch.zeros_like(blank))
    done = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    sound = torch.ones(rows, dtype=torch.bool, device=device)
    side_by_side = torch.arange(beams, device=device)
    for step in range(steps):
        logits = logits.float()
        log_total = logits.logsumexp(-1, keepdim=True)
        sound &= (log_total.isfinite().flatten(1) | done).all(-1)
        likely = _likeliest(_barred(logits, step, decoding, end_id), log_total, 2 * beams)
        candidates = _continuations(running, *likely, step)
        ends = candidates.ids[..., step] == end_id
        running = candidates.pick(_best_first(candidates.scores + ends * _OUT)[:, :beams])
        counts = ends & (torch.arange(2 * beams, device=device) < beams) & ~done
        finished = finished.best_with(candidates, counts, (lengths + step) ** decoding.length_penalty)
        attainable = candidates.scores[:, :1].to(exact) / (lengths + step + 1) ** decoding.length_penalty
        done |= finished.scores[:, -1:] >= attainable  # -inf there until ``beams`` sequences have finished
        if step + 1 == steps:
            divisor = (lengths + steps) ** decoding.length_penalty
            finished = finished.best_with(running, (~done).expand(-1, beams), divisor)
        if step + 1 == steps or bool(done.all()):
            break
        running.paths[..., step] = step * beams + side_by_side
        visible = torch.zeros(rows, beams, (step + 1) * beams, dtype=torch.bool, device=device)
        visible.scatter_(2, running.paths[..., : step + 1], True)
        depths = torch.full((beams,), step, device=device)
        logits = prefix.extend(running.ids[..., step], depths, visible)
    return Decoded(finished.ids[:, 0], sound)


def _likeliest(logits: Tensor, log_total: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log-likelihoods and ids of the ``count`` likeliest tokens, (rows, beams, count): no beam needs more.

    ``log_total`` is the log-sum-exp of all tokens' logits, (rows, beams, 1).
    """
    values, ids = highest(logits, count)
    return values - log_total, ids


def _best_first(scores: Tensor) -> Tensor:
    """Indices that sort a few scores, (rows, n), highest first; equal scores keep their order."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def highest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest float32 values of the last dimension, and their indices; among equal values the lower index first.

    (``topk`` does not specify which of several equal values it takes. In bfloat16, half of all rows have equal values
    among the first few.)
    """
    count = min(count, values.shape[-1])
    if values.device.type == "mps":  # its topk does not take 64-bit integers
        found = values.sort(dim=-1, descending=True, stable=True)
        return found.values[..., :count], found.indices[..., :count]
    if values.device.type != "cpu":  # there, looking at the result would mean waiting for it
        return _highest_by_key(values, count)
    best = values.topk(min(count + 1, values.shape[-1]))
    places = best.indices[..., :count].clone()
    tied = (best.values[..., 1:] == best.values[..., :-1]).any(-1)
    if bool(tied.any()):
        places[tied] = _highest_by_key(values[tied], count)[1]
    return values.gather(-1, places), places


def _highest_by_key(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Like :func:`highest`, by integer keys that sort the same way: a float's bits, then the index from the end."""
    last = values.shape[-1] - 1
    bits = (values + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # for negative floats, larger bits mean a lower value
    key = (ordered.long() << 32) | (last - torch.arange(last + 1, device=values.device))
    places = last - (key.topk(count).values & 0xFFFFFFFF)
    return values.gather(-1, places), places


def _continuations(running: _Beams, scores: Tensor, ids: Tensor, step: int) -> _Beams:
    """The best sequences that are one token longer, from each beam's likeliest tokens (rows, beams, count)."""
    count = scores.shape[-1]
    totals = (scores + running.scores[..., None]).flatten(1)
    best = _best_first(totals)[:, :count]
    longer = running.pick(best // count)
    longer.scores = totals.gather(1, best)
    longer.ids[..., step] = ids.flatten(1).gather(1, best)
    return longer
