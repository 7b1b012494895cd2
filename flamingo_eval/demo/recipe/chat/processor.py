"""Stage 1: tokenizer, chat template and image processor. Every word of the world and every instruction is a token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.demo import words, world

SIZE = 1000
"""Maximum number of rows of the embeddings; the words need fewer."""
IMAGE_TOKENS = 16
"""Tokens of an image: it has 8 x 8 patches, and the connector joins each 2 x 2 of them."""

PAD, END, USER, ASSISTANT = "<pad>", "<end_of_utterance>", "<user>", "<assistant>"
FAKE, IMAGE, GLOBAL = "<fake_token_around_image>", "<image>", "<global-img>"
SPECIAL = (PAD, END, USER, ASSISTANT, FAKE, IMAGE, GLOBAL)

_PART = f"{{% if part.type == 'image' %}}{IMAGE}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
_PARTS = f"{{% for part in message.content %}}{_PART}{{% endfor %}}"
_ROLE = f"{{% if message.role == 'assistant' %}}{ASSISTANT}{{% else %}}{USER}{{% endif %}}"
_BEGINNING = f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
TEMPLATE = f"{{% for message in messages %}}{_ROLE}{_PARTS}{END}{{% endfor %}}{_BEGINNING}"
"""A conversation as the model reads it; a system message is read as one of the user's."""


def instructions() -> list[str]:
    """The fixed texts of the benchmarks' conversations, without an example's own words; each is one token."""
    texts = [load_benchmark(name, chat=True).prompt.text for name in benchmark_names()]
    pieces = [piece for text in texts for piece in re.split(r"\{\w+(?:\|strip)?\}", text) if piece]
    return sorted(dict.fromkeys(pieces), key=lambda piece: -len(piece))


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE of the instructions and of the world's words, with and without a space before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    own = len(instructions())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - own, special_tokens=[*SPECIAL], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator((f"{word}\n {word}\n" for word in words.spoken()), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in instructions()])
    return tokenizer


def make_processor() -> Any:
    """The processor, a class of transformers, that comes with the demo."""
    from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

    inner = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), pad_token=PAD, eos_token=END, padding_side="left", model_max_length=4096,
        additional_special_tokens=[USER, ASSISTANT, FAKE, IMAGE, GLOBAL],
    )  # fmt: skip
    edge = {"longest_edge": world.SIDE}
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(images, inner, image_seq_len=IMAGE_TOKENS, chat_template=TEMPLATE)


def save_processor(folder: Path) -> Any:
    """Writes the processor, and returns it as read back from the folder."""
    from transformers import AutoProcessor

    make_processor().save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)
