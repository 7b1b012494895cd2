# mypy: ignore-errors
"""Small random language models and hand-made tokenizers of the classes that OpenFlamingo checkpoints use.

Runs in the old environments only (see README.md): everything is written by the old libraries themselves.
"""

from __future__ import annotations

import random
from pathlib import Path

import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HOSTS = ("gpt_neox", "opt", "llama", "mpt")
WIDTH, LAYERS, HEADS, POSITIONS = 128, 4, 4, 1024
BPE_WORDS = 600
BYTES = 260  # in all the vocabularies here, the first tokens are special ones and single bytes


def corpus() -> list[str]:
    """Sentences about everyday scenes: what the tokenizers are trained on."""
    draw = random.Random(0)
    colours = ["red", "blue", "green", "white", "brown", "yellow", "black", "orange", "purple", "grey"]
    things = [
        "cat",
        "dog",
        "horse",
        "kite",
        "bus",
        "bench",
        "table",
        "bicycle",
        "boat",
        "clock",
        "pizza",
        "giraffe",
        "umbrella",
        "train",
    ]
    places = ["park", "street", "kitchen", "field", "harbour", "station", "garden", "room"]
    verbs = ["sitting", "standing", "running", "waiting", "sleeping", "flying", "resting", "parked"]
    patterns = [
        "Output:A {c} {t} is {v} in the {p}, isn't it?",
        "Question:What color is the {t}? Short answer:{c}",
        "Question:How many {t}s are there in the {p}? Short answer:{n}",
        "Two people don't see the {c} {t} .",
        "Question:Is the {t} {v}? Short answer:yes",
        "It's a {c} {t} , {v} near a {p} , they've said they're happy !",
        "Question:Where is the {t}? Short answer:no {p}",
    ]
    return [
        draw.choice(patterns).format(
            c=draw.choice(colours),
            t=draw.choice(things),
            p=draw.choice(places),
            v=draw.choice(verbs),
            n=draw.randint(0, 40),
        )
        for _ in range(4000)
    ]


def _byte_level(specials: list[str]) -> Tokenizer:
    """A byte-level BPE of the GPT-2 kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_WORDS, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _gpt_neox_tokenizer(folder: Path) -> None:
    """GPT-NeoX: a tokenizer.json, no BOS, no pad token, and runs of spaces as added tokens that are not special."""
    tokenizer = _byte_level(["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    end = "<|endoftext|>"
    transformers.GPTNeoXTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end
    ).save_pretrained(folder)


def _opt_tokenizer(folder: Path) -> None:
    """OPT: vocab.json and merges.txt only, as its repositories have it; </s> is BOS, and is added."""
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.model.save(str(folder))
    transformers.GPT2Tokenizer(
        folder / "vocab.json", folder / "merges.txt", bos_token="</s>", eos_token="</s>", unk_token="</s>",
        pad_token="<pad>", add_bos_token=True,
    ).save_pretrained(folder)  # fmt: skip


def _llama_tokenizer(folder: Path) -> None:
    """LLaMA: a SentencePiece BPE with byte fallback, saved by the fast class (so tokenizer.json is there too)."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "tokenizer"), model_type="bpe",
        vocab_size=700, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, unk_surface=" \u2047 ", minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    transformers.LlamaTokenizerFast(str(folder / "tokenizer.model")).save_pretrained(folder)


def write_tokenizer(host: str, folder: Path) -> int:
    """Writes the host's kind of tokenizer; returns how many tokens it has."""
    folder.mkdir(parents=True)
    {"opt": _opt_tokenizer, "llama": _llama_tokenizer}.get(host, _gpt_neox_tokenizer)(folder)
    return len(transformers.AutoTokenizer.from_pretrained(str(folder)))


def _config(host: str, tokens: int, every: int) -> transformers.PretrainedConfig:
    """Tables are padded as in the released models: GPT-NeoX's, MPT's and OPT's have more rows than there are tokens."""
    common = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    if host == "gpt_neox":  # every 1: as Pythia; else as RedPajama-INCITE
        return transformers.GPTNeoXConfig(
            vocab_size=tokens + 41, intermediate_size=256, max_position_embeddings=POSITIONS, bos_token_id=0,
            eos_token_id=0, rotary_pct=0.25 if every == 1 else 1.0, use_parallel_residual=every == 1, **common,
        )  # fmt: skip
    if host == "opt":
        return transformers.OPTConfig(
            vocab_size=tokens + 7, ffn_dim=256, max_position_embeddings=POSITIONS, word_embed_proj_dim=WIDTH,
            pad_token_id=1, bos_token_id=2, eos_token_id=2, **common,
        )  # fmt: skip
    if host == "llama":
        return transformers.LlamaConfig(
            vocab_size=tokens, intermediate_size=256, max_position_embeddings=POSITIONS, **common
        )
    return transformers.MptConfig(
        vocab_size=tokens + 41, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, expansion_ratio=2, max_seq_len=POSITIONS
    )


def write_language_model(host: str, folder: Path, tokens: int, every: int) -> None:
    """Writes a random model whose layers matter and whose logits spread by a few units.

    Tied models are saved as pytorch_model.bin, the others as safetensors, so both kinds of file are met.
    """
    model = transformers.AutoModelForCausalLM.from_config(_config(host, tokens, every)).float()
    output = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter is output:
                parameter.normal_(0, 0.4)
            elif "embed" in name or "wte" in name:
                parameter.normal_(0, 1)
            elif parameter.ndim > 1:
                parameter.normal_(0, 1.3 * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(1, 0.1)
        output[:BYTES].mul_(0.3)  # else most of what it says would be broken UTF-8
    model.save_pretrained(folder, safe_serialization=host in {"gpt_neox", "llama"})
