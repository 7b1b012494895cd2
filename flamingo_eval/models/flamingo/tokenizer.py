"""The language model's tokenizer with Flamingo's special tokens, as transformers 4.28 would have built it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from flamingo_eval.core.errors import CheckpointError, QueryError
from flamingo_eval.core.paths import exists
from flamingo_eval.libraries import loading, reason_of
from flamingo_eval.models.flamingo.rendering import END_OF_CHUNK, IMAGE
from flamingo_eval.storage.part_files import model_files, read_object

PAD = "<PAD>"

# What clean_up_tokenization_spaces=True did in transformers 4.28 (tokenization_utils_base.py,
# clean_up_tokenization), in this order; transformers 5 ignores the switch for BPE tokenizers.
_TIDY: tuple[tuple[str, str], ...] = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def tidy_spaces(text: str) -> str:
    """Removes the spaces before punctuation and contractions that transformers 4.28 removed.

    >>> tidy_spaces("a cat , isn 't it ?")
    "a cat, isn 't it?"
    >>> tidy_spaces("it 's a dog .")
    "it's a dog."
    """
    for old, new in _TIDY:
        text = text.replace(old, new)
    return text


class FlamingoTokenizer:
    """Encodes prompts (with ``<image>`` and ``<|endofchunk|>`` as single tokens) and decodes answers.

    Added tokens, in this order: ``<|endofchunk|>``, ``<image>``, then ``<PAD>`` if transformers 4.28 found no pad
    token, that is, if the tokenizer's own files name none. (transformers 5's GPT-NeoX class would add ``<|padding|>``
    by itself, which makes one embedding row too few.) ``tokenizer.json`` is read as it is, also because of that class:
    it rebuilds the normaliser.

    Args:
        source: hub name or folder.
        tidies_spaces: apply :func:`tidy_spaces` after decoding.

    Raises:
        CheckpointError: no usable tokenizer there.
    """

    def __init__(self, source: str | Path, *, tidies_spaces: bool = True) -> None:
        inner = _load(source)
        with loading(f"the tokenizer {source}"):
            special = {"extra_special_tokens": [END_OF_CHUNK, IMAGE]}
            inner.add_special_tokens(special, replace_extra_special_tokens=False)
            if _configured_pad_token(source) is None:
                inner.add_special_tokens({"pad_token": PAD})
            self._take(inner, tidies_spaces)
            self.decode(self.encode(f"{IMAGE}Output:a dog, 1{END_OF_CHUNK}"))
        if not all(type(id) is int for id in (self.image_id, self.end_of_chunk_id, self.pad_id)):
            raise CheckpointError(f"the tokenizer {source} gives {IMAGE}, {END_OF_CHUNK} or its pad token no number")

    @classmethod
    def around(cls, inner: Any, *, tidies_spaces: bool) -> FlamingoTokenizer:
        """Wraps a transformers tokenizer that has the special tokens already.

        Raises:
            CheckpointError: a special token or the pad token is missing.
        """
        lacking = {END_OF_CHUNK, IMAGE} - inner.get_vocab().keys()
        if lacking or inner.pad_token is None:
            raise CheckpointError(f"the tokenizer lacks {', '.join(sorted(lacking)) or 'a pad token'}")
        self = cls.__new__(cls)
        self._take(inner, tidies_spaces)
        return self

    def _take(self, inner: Any, tidies_spaces: bool) -> None:
        self.inner = inner
        self._tidies_spaces = tidies_spaces
        self._special = {id for id, token in inner.added_tokens_decoder.items() if token.special}
        self.image_id, self.end_of_chunk_id = inner.convert_tokens_to_ids([IMAGE, END_OF_CHUNK])
        self.pad_id: int = inner.convert_tokens_to_ids(inner.pad_token)

    def __len__(self) -> int:
        return len(self.inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of one prompt, with the special tokens the tokenizer itself adds (LLaMA's and OPT's BOS)."""
        return self._ids(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text in the middle of another: no special tokens are added."""
        return self._ids(text, special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        """Token ids. Raises QueryError if the text can't be encoded: an unknown character, and no unknown token."""
        try:
            ids: list[int] = self.inner(text, add_special_tokens=special)["input_ids"]
        except Exception as error:  # tokenizers raises a plain Exception
            raise QueryError(f"the tokenizer can't encode {text[-60:]!r}: {reason_of(error)}") from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens."""
        # dropped here: tokenizers keeps special tokens that are marked as normalised, as LLaMA's are
        plain = [id for id in ids if id not in self._special]
        text: str = self.inner.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return tidy_spaces(text) if self._tidies_spaces else text


def _load(source: str | Path) -> Any:
    """Loads the tokenizer from its ``tokenizer.json`` or, without one (OPT), as its class builds it.

    Raises:
        CheckpointError: neither is possible.
    """
    local = source if isinstance(source, Path) else None
    files = model_files(local, weights=False) if local else []
    for file in files:
        if file.name in _OBJECTS:
            read_object(file)
    with loading(f"the tokenizer {source}", files):
        tokenizer_file = cached_file(str(source), "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        if tokenizer_file is not None:
            return PreTrainedTokenizerFast.from_pretrained(str(source))
        if cached_file(str(source), "vocab.json", _raise_exceptions_for_missing_entries=False) is None:
            raise CheckpointError(
                f"the tokenizer {source} has no tokenizer.json (nor vocab.json and merges.txt). One that comes as "
                "tokenizer.model only must be converted once: open it with transformers' AutoTokenizer, with "
                "sentencepiece installed, and save it with save_pretrained"
            )
        inner = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    loaded = {local / str(name) for name in type(inner).vocab_files_names.values()} if local else set()
    undigested = sorted(file for file in loaded - set(files) if exists(file))
    if undigested:
        raise CheckpointError(
            f"the tokenizer {source} is read from {undigested[0]}, which is not among its known files"
        )
    return inner


_OBJECTS = frozenset(
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
)


def _configured_pad_token(source: str | Path) -> str | None:
    """The pad token that the tokenizer's files name, if any."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            file = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise CheckpointError(f"can't tell the pad token of {source}: {error}") from error
        if file is None:
            continue
        token = read_object(Path(file)).get("pad_token")
        if token:
            content = token.get("content") if isinstance(token, dict) else token
            if not isinstance(content, str):
                raise CheckpointError(f"{file}: pad_token is {str(token)[:60]}, expected a text")
            return content
    return None
