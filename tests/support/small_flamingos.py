"""Small random Flamingos of every language host, in the released layout, around the demo's CLIP and tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flamingo_eval.models.flamingo import DEMO_SPEC

LAYERS, WIDTH = 4, 64


def language_config(host: str, vocabulary: int) -> Any:
    """A small configuration of a host."""
    from transformers import GPTNeoXConfig, LlamaConfig, MptConfig, OPTConfig

    from flamingo_eval.models.flamingo.hosts.mosaic_gpt import MosaicGPTConfig

    if host == "gpt_neox":
        return GPTNeoXConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
                             intermediate_size=128, max_position_embeddings=512)  # fmt: skip
    if host == "llama":
        return LlamaConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
                           num_key_value_heads=2, intermediate_size=128, max_position_embeddings=512)  # fmt: skip
    if host == "opt":
        return OPTConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
                         ffn_dim=128, max_position_embeddings=512, word_embed_proj_dim=WIDTH)  # fmt: skip
    if host == "mpt":
        return MptConfig(vocab_size=vocabulary, d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=512)
    return MosaicGPTConfig(vocab_size=vocabulary, d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=512)


def make_language(host: str, vocabulary: int) -> Any:
    """A random language model whose outputs vary."""
    import torch
    from transformers import AutoModelForCausalLM

    from flamingo_eval.models.flamingo.hosts import HOSTS

    config = language_config(host, vocabulary)
    known = HOSTS[host].model_class
    language = known(config) if known else AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15 if "emb" in name or "wte" in name or "head" in name else 0.12)
    return language.eval()


def write_flamingo(folder: Path, host: str, *, every: int = 2, padded: int = 24) -> Path:
    """A Flamingo in files; returns its TOML. The language model's embeddings have ``padded`` rows more than tokens."""
    import torch
    from safetensors.torch import save_file  # noqa: F401  # save_pretrained wants it

    from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock
    from flamingo_eval.models.flamingo.hosts import HOSTS
    from flamingo_eval.models.flamingo.model import Flamingo, released_layout
    from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
    from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

    torch.manual_seed(7)
    folder.mkdir(parents=True)
    for part in ("clip.pt", "open_clip_configs", "tokenizer"):
        source = DEMO_SPEC.parent / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)
    tokens = len(FlamingoTokenizer(folder / "tokenizer"))
    language = make_language(host, tokens + padded)
    language.save_pretrained(folder / "lm")
    language.resize_token_embeddings(tokens, mean_resizing=False)
    width = vision_width()
    perceiver = PerceiverResampler(width=width, n_latents=8, depth=2, inner=64, head_width=32, hidden=4 * width)
    blocks = {
        i: GatedCrossAttentionBlock(width=WIDTH, media_width=width, inner=64, head_width=32, hidden=4 * WIDTH)
        for i in range(LAYERS)
        if (i + 1) % every == 0
    }
    for block in blocks.values():
        torch.nn.init.constant_(block.attn_gate, 1.5)
        torch.nn.init.constant_(block.ff_gate, 0.5)
    model = Flamingo(
        vision=torch.nn.Identity(), perceiver=perceiver, blocks=blocks, language=language, host=HOSTS[host]
    )
    torch.save(released_layout(model, HOSTS[host]), folder / "checkpoint.pt")
    (folder / "model.toml").write_text(
        f'name = "small-{host}"\ncheckpoint = "checkpoint.pt"\ncross_attn_every_n_layers = {every}\nhead_width = 32\n'
        '[vision]\nmodel = "flamingo-eval-demo-vit"\npretrained = "clip.pt"\nconfigs = "open_clip_configs"\n'
        '[language]\nmodel = "lm"\ntokenizer = "tokenizer"\n'
    )
    return folder / "model.toml"


def vision_width() -> int:
    """Width of the demo's vision tower."""
    [file] = (DEMO_SPEC.parent / "open_clip_configs").iterdir()
    return int(json.loads(file.read_text())["vision_cfg"]["width"])


TEXTS = (
    "<image>Output:",
    "<image>Output:a giraffe and a green wall<|endofchunk|>\n<image>Output:",
    "Output:two dogs<|endofchunk|>\nOutput:a cat<|endofchunk|>\n<image>Output:",
    "<image>Output:a<|endofchunk|>\n<image>Output:a long caption of many words, so that lengths differ"
    "<|endofchunk|>\n<image>Question: what is <image>?<|endofchunk|>\n<image>Output:",
    "Output:",
)
