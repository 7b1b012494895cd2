"""Stage 1 of the demo's recipe: a byte-level BPE in GPT-NeoX's format; every word of the world is one token."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from flamingo_eval.demo import words

SIZE = 1000
"""Maximum number of rows of the embeddings; the words need fewer."""


def train_tokenizer(folder: Path) -> None:
    """Writes ``tokenizer.json`` and its configuration into ``folder``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 3,  # <|endofchunk|>, <image> and <PAD> are added
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # each word once with a space before it and once without: answers and class names follow a colon
    tokenizer.train_from_iterator((f"{word}\n {word}\n" for word in words.spoken()), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {**names, "tokenizer_class": "GPTNeoXTokenizer", "model_max_length": 2048}
    for name, table in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
