"""Greedy decoding and beam search over a :class:`Prefix`.

The rules of beam search are those of transformers (``GenerationMixin._beam_search`` with ``early_stopping=False``),
whose texts equal the reference's; rows never influence each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flamingo_eval.models.flamingo.prefix import Prefix
from flamingo_eval.nouns import Decoding

_OUT = -1e9
"""Added to the score of what must not be chosen; transformers' number."""


def room_needed(decoding: Decoding) -> int:
    """Tokens that decoding lays out behind a prompt."""
    return decoding.num_beams * decoding.max_new_tokens


def decode(prefix: Prefix, decoding: Decoding, *, end_id: int, pad_id: int) -> Tensor:
    """Generated ids, (rows, max_new_tokens), ``pad_id`` behind each one's end."""
    if decoding.num_beams == 1:
        return _greedy(prefix, decoding, end_id, pad_id)
    return _beam_search(prefix, decoding, end_id, pad_id)


def _log_probabilities(logits: Tensor, step: int, decoding: Decoding, end_id: int) -> Tensor:
    scores = logits.float().log_softmax(-1)
    if step < decoding.min_new_tokens:
        scores[..., end_id] = -torch.inf
    return scores


def _greedy(prefix: Prefix, decoding: Decoding, end_id: int, pad_id: int) -> Tensor:
    logits = prefix.logits
    rows, steps, device = logits.shape[0], decoding.max_new_tokens, logits.device
    ids = torch.full((rows, steps), pad_id, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(steps):
        chosen = _log_probabilities(logits, step, decoding, end_id).argmax(-1)
        ids[:, step] = torch.where(ended, pad_id, chosen)
        ended |= chosen == end_id
        if step + 1 == steps or bool(ended.all()):
            break
        visible = torch.ones(rows, 1, step + 1, dtype=torch.bool, device=device)
        logits = prefix.extend(chosen[:, None], torch.tensor([step], device=device), visible)[:, 0]
    return ids


@dataclass
class _Beams:
    """Sequences of every row: those running, or the best finished ones.

    Attributes:
        scores: (rows, beams), summed log-likelihoods; of finished ones divided by length ** length_penalty.
        ids: (rows, beams, max_new_tokens).
        paths: (rows, beams, max_new_tokens), for running ones where each token stands behind the prompt.
    """

    scores: Tensor
    ids: Tensor
    paths: Tensor

    def pick(self, which: Tensor) -> _Beams:
        """(rows, n) -> these sequences, in this order."""
        wide = which[..., None].expand(-1, -1, self.ids.shape[-1])
        return _Beams(self.scores.gather(1, which), self.ids.gather(1, wide), self.paths.gather(1, wide))

    def with_also(self, other: _Beams) -> _Beams:
        """Both, side by side."""
        pairs = ((self.scores, other.scores), (self.ids, other.ids), (self.paths, other.paths))
        return _Beams(*(torch.cat(pair, dim=1) for pair in pairs))


def _beam_search(prefix: Prefix, decoding: Decoding, end_id: int, pad_id: int) -> Tensor:
    logits, beams, steps = prefix.logits[:, None], decoding.num_beams, decoding.max_new_tokens
    rows, device = logits.shape[0], logits.device
    blank = torch.full((rows, beams, steps), pad_id, device=device)
    running = _Beams(torch.zeros(rows, 1, device=device), blank[:, :1], torch.zeros_like(blank[:, :1]))
    finished = _Beams(torch.full((rows, beams), _OUT, device=device), blank, torch.zeros_like(blank))
    is_finished = torch.zeros(rows, beams, dtype=torch.bool, device=device)
    improvable = torch.ones(rows, 1, dtype=torch.bool, device=device)
    among_first = torch.arange(2 * beams, device=device) < beams
    side_by_side = torch.arange(beams, device=device)
    for step in range(steps):
        candidates = _continuations(running, _log_probabilities(logits, step, decoding, end_id), step, 2 * beams)
        ends = candidates.ids[..., step] == end_id
        if step + 1 == steps:
            ends = torch.ones_like(ends)
        running = candidates.pick((candidates.scores + ends * _OUT).topk(beams).indices)
        done = ends & among_first
        candidates.scores = candidates.scores / (step + 1) ** decoding.length_penalty + (~improvable | ~done) * _OUT
        merged = finished.with_also(candidates)
        best = merged.scores.topk(beams).indices
        finished, is_finished = merged.pick(best), torch.cat((is_finished, done), dim=1).gather(1, best)
        attainable = running.scores[:, :1] / (step + 1) ** decoding.length_penalty
        worst = torch.where(is_finished, finished.scores.min(dim=1, keepdim=True).values, _OUT)
        improvable &= (attainable > worst).any(dim=-1, keepdim=True)
        if step + 1 == steps or not bool(improvable.any()):
            break
        running.paths[..., step] = step * beams + side_by_side
        visible = torch.zeros(rows, beams, (step + 1) * beams, dtype=torch.bool, device=device)
        visible.scatter_(2, running.paths[..., : step + 1], True)
        depths = torch.full((beams,), step, device=device)
        logits = prefix.extend(running.ids[..., step], depths, visible)
    return finished.ids[:, 0]


def _continuations(running: _Beams, scores: Tensor, step: int, count: int) -> _Beams:
    """The ``count`` best sequences that are one token longer."""
    vocabulary = scores.shape[-1]
    best = (scores + running.scores[..., None]).flatten(1).topk(count)
    longer = running.pick(best.indices // vocabulary)
    longer.scores = best.values
    longer.ids[..., step] = best.indices % vocabulary
    return longer
