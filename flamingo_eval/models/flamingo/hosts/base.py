"""What may differ between language hosts, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """One family of Hugging Face decoders that gated cross-attention can be hooked into.

    Attributes:
        model_type: ``config.model_type`` of the family.
        decoder_path: where the list of decoder layers is, in the module and in checkpoint keys alike.
        embeddings: checkpoint key (without ``lang_encoder.``) -> parameter of the transformers class, for the
            embeddings that the checkpoint must hold (the added special tokens live there).
        tidies_spaces: whether transformers 4.28 decoded this family's tokenizer with
            ``clean_up_tokenization_spaces=True`` (protocol: all but LLaMA).
    """

    model_type: str
    decoder_path: str
    embeddings: Mapping[str, str]
    tidies_spaces: bool = True
