"""The number of tokens that an answer needs, and class names' token ids: alike for all models in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.records import Decoding, Ranking, Task


class TaskTokens:
    """Tokens of answers.

    Args:
        encode: returns the token ids of a class name alone, without leading space or special tokens.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self._names: dict[Ranking, Sequence[Sequence[int]]] = {}

    def room(self, task: Task) -> int:
        """Number of tokens that must fit after the prompt. Raises UserError for a class name without tokens."""
        if isinstance(task, Decoding):
            return task.max_new_tokens
        return max(len(name) for name in self.names(task))

    def names(self, task: Ranking) -> Sequence[Sequence[int]]:
        """Token ids of class names. Raises UserError for a name without tokens."""
        if task not in self._names:
            ids = [self._encode(name) for name in task.names]
            if not all(ids):
                raise UserError(f"the class name {task.names[ids.index([])]!r} has no token")
            self._names[task] = ids
        return self._names[task]
