# mypy: ignore-errors
"""A random Flamingo for the benchmark against the reference: ``python tests/speed/peer_model.py --out DIR``.

In the old environment (tests/parity/README.md). The parts are made by the parity scripts at another size: ViT-B-32, a
GPT-NeoX of Pythia-160M's shape with a tokenizer of as many tokens, cross-attention before every second layer.
``--small`` makes a model of a few megabytes instead, to try the benchmark out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))

import numpy as np
import open_clip
import reference
import small_hosts
import torch
import transformers
from peer_data import WORDS, caption

EVERY = 2
CLIP = "ViT-B-32"
TOKENS = 50_274  # with three runs of spaces as many as GPT-NeoX has
ROWS = 50_304
SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL_SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}


def corpus() -> list[str]:
    """Captions, whose words become one token each, and 60,000 made-up words that fill the vocabulary."""
    draw = np.random.default_rng(1)
    captions = [f"Output:{caption(draw)}\n" for _ in range(4000)] + [" " + " ".join(WORDS)] * 10
    letters = np.array([*"etaoinshrdlcumwfgypbvk"])
    return captions + [" " + "".join(draw.choice(letters, size=draw.integers(4, 10))) for _ in range(60_000)]


def set_sizes(small: bool) -> None:
    """Makes the parity scripts build models of the benchmark's size."""
    shape = SMALL_SHAPE if small else SHAPE
    if not small:
        reference.CLIP, reference.CLIP_CONFIG = CLIP, open_clip.get_model_config(CLIP)
    small_hosts.BPE_WORDS, small_hosts.corpus = TOKENS, corpus
    small_hosts._config = lambda *_: transformers.GPTNeoXConfig(
        vocab_size=ROWS, max_position_embeddings=2048, rotary_pct=0.25, bos_token_id=0, eos_token_id=0, **shape
    )


def write_model(folder: Path) -> None:
    """All files of the model, and model.toml that names them."""
    tokens = small_hosts.write_tokenizer("gpt_neox", folder / "tokenizer")
    small_hosts.write_language_model("gpt_neox", folder / "lm", tokens, EVERY)
    reference.write_clip(folder)
    model, _, tokenizer = reference.build(folder, EVERY)
    reference.train_at_random(model)
    reference.save_trained_part(model, folder / "checkpoint.pt", EVERY)
    (folder / "model.toml").write_text(
        f'name = "peer"\ncheckpoint = "checkpoint.pt"\ncross_attn_every_n_layers = {EVERY}\n\n'
        f'[vision]\nmodel = "{reference.CLIP}"\npretrained = "clip.pt"\nconfigs = "open_clip_configs"\n\n'
        '[language]\nmodel = "lm"\ntokenizer = "tokenizer"\n',
        encoding="utf-8",
    )
    draw = np.random.default_rng(2)
    lengths = [len(tokenizer(caption(draw))["input_ids"]) for _ in range(200)]
    print(f"{folder}: {len(tokenizer)} tokens, {np.mean(lengths):.1f} a caption")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(options.seed)
    set_sizes(options.small)
    write_model(options.out)


if __name__ == "__main__":
    main()
