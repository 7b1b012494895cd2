"""Stage 1 of the demo's recipe: a byte-level BPE of fewer than 1,000 tokens, in GPT-NeoX's format."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from flamingo_eval.demo import world


def train_tokenizer(folder: Path) -> None:
    """Writes ``tokenizer.json`` and its configuration into ``folder``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=997,  # 1,000 with <|endofchunk|>, <image> and <PAD>
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((f"Output:{text}\n" for text in world.all_texts()), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {**names, "tokenizer_class": "GPTNeoXTokenizer", "model_max_length": 2048}
    for name, table in (("tokenizer_config.json", config), ("special_tokens_map.json", names)):
        (folder / name).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
