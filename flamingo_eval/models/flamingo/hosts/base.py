"""Everything that may differ between language hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Host:
    """One family of causal language models that gated cross-attention can be hooked into.

    Attributes:
        model_type: ``config.model_type`` of the family.
        decoder_path: where the list of decoder layers is, in the module and in checkpoint keys alike.
        embeddings: checkpoint key (without ``lang_encoder.``) -> parameter of the class, for the embeddings that the
            checkpoint must hold (the added special tokens are in them).
        optional: the same for tensors that may occur: tied copies of the output layer, OPT's position embeddings.
        tidies_spaces: whether transformers 4.28 decoded this family's tokenizer with
            ``clean_up_tokenization_spaces=True`` (protocol: all but LLaMA).
        model_class: our class, where transformers has none or ours replaces it.
        check: raises CheckpointError for a configuration that the class would silently ignore.
        place_keys: for models whose attention depends on a key's index in the cache (ALiBi): sets the position of each
            key in its own sequence, (keys,), or None for the order in the cache.
        make_plain: for models with our own attention: gives a model the attention of transformers back.
    """

    model_type: str
    decoder_path: str
    embeddings: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    tidies_spaces: bool = True
    model_class: Any = None
    check: Callable[[Any], None] | None = None
    place_keys: Callable[[Any, Tensor | None], None] | None = None
    make_plain: Callable[[Any], None] | None = None


def max_positions(config: Any) -> int:
    """Maximum number of tokens in a sequence."""
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 2**31
