"""OpenFlamingo-3B or -4B in full size, of random numbers: ``python tests/speed/full_shape.py 3B --folder FOLDER``.

Writes a folder for ``--weights`` with the released files' names, keys, shapes and types (3B: 8.5 GB, 4B: 12.4 GB; kept
for the next call), then loads it in a fresh process and generates captions. Prints seconds and memory of each step.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from flamingo_eval import load_model
from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock
from flamingo_eval.models.flamingo.hosts import HOSTS
from flamingo_eval.models.flamingo.hosts.mosaic_gpt import MosaicGPT, MosaicGPTConfig
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.models.flamingo.released import FILE, VISION, Released, find_released
from flamingo_eval.weights import StateDict

TOKENS, ADDED, MEDIA, GATE, NEW_TOKENS, BEAMS = 50_277, 3, 1024, 0.5, 20, 3
SYLLABLES = ["".join(pair) for pair in product("bcdfghjklmnprstvwz", "aeiou")]
Config = Mapping[str, Any]
CONFIGS: dict[str, Config] = {
    "3B": {"model_type": "mosaic_gpt", "d_model": 2048, "n_layers": 24, "n_heads": 16, "mlp_ratio": 4,
           "max_seq_len": 2048, "vocab_size": 50432, "alibi": True, "alibi_bias_max": 8, "attn_qk_ln": True,
           "attn_clip_qkv": None, "no_bias": True, "logit_scale": None, "torch_dtype": "bfloat16"},
    "4B": {"model_type": "gpt_neox", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
           "intermediate_size": 10240, "vocab_size": 50432, "max_position_embeddings": 2048, "rotary_pct": 1.0,
           "rotary_emb_base": 10000, "use_parallel_residual": False, "tie_word_embeddings": False,
           "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"},
}  # fmt: skip
TRAINED = {"3B": 1_046_992_944, "4B": 1_218_197_536}
"""Parameters of resampler, blocks and embeddings together."""


def random_tensor(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Gates open, LayerNorms plain, the rest normal with deviation 0.02."""
    if name.endswith("_gate"):
        return torch.full(shape, GATE, dtype=dtype)
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
    return torch.randn(shape, dtype=dtype).mul_(1.0 if name.endswith("latents") else 0.02)


def random_state(module: nn.Module, prefix: str, dtype: torch.dtype) -> StateDict:
    """Random numbers for a module that is on the meta device."""
    return {prefix + key: random_tensor(key, value.shape, dtype) for key, value in module.state_dict().items()}


def old_buffers(prefix: str, config: Config) -> Iterator[tuple[str, Tensor]]:
    """What transformers 4.28 also saved of every GPT-NeoX layer; ``prefix`` has a place for its number."""
    positions, heads = config["max_position_embeddings"], config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        layer = prefix.format(i) + "attention."
        yield layer + "bias", torch.ones(1, 1, positions, positions, dtype=torch.bool).tril()
        yield layer + "masked_bias", torch.tensor(-1e9)
        yield layer + "rotary_emb.inv_freq", 1e4 ** -torch.arange(0, 1, 2 * heads / config["hidden_size"])


def meta_language(config: Config) -> Any:
    """The language model on the meta device."""
    with torch.device("meta"):
        if config["model_type"] == "mosaic_gpt":
            return MosaicGPT(MosaicGPTConfig(**config))
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config))


def write_checkpoint(file: Path, config: Config, every: int) -> None:
    """The trained part, float32, in the released layout."""
    host, language = HOSTS[config["model_type"]], meta_language(config)
    width, layers = language.config.hidden_size, language.config.num_hidden_layers
    with torch.device("meta"):
        perceiver = PerceiverResampler(width=MEDIA, n_latents=64, depth=6, inner=512, head_width=64, hidden=4 * MEDIA)
        block = GatedCrossAttentionBlock(width=width, media_width=MEDIA, inner=512, head_width=64, hidden=4 * width)
    state = random_state(perceiver, "perceiver.", torch.float32)
    for i in range(every - 1, layers, every):
        state |= random_state(block, f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer.", torch.float32)
    for key in host.embeddings:
        state[f"lang_encoder.{key}"] = random_tensor(key, torch.Size((TOKENS + ADDED, width)), torch.float32)
    if config["model_type"] == "gpt_neox":
        state |= old_buffers(f"lang_encoder.{host.decoder_path}.{{}}.decoder_layer.", config)
    torch.save(state, file)


def write_language_weights(file: Path, config: Config) -> None:
    """The language model, bfloat16, under the names that its repository has."""
    state = random_state(meta_language(config), "", torch.bfloat16)
    if config["model_type"] == "gpt_neox":
        state["embed_out.weight"] = state.pop("lm_head.weight")
        state |= old_buffers("gpt_neox.layers.{}.", config)
    save_file(state, file, metadata={"format": "pt"})


def write_tokenizer(file: Path) -> None:
    """A byte-level BPE of as many tokens as GPT-NeoX's; made-up words of two syllables are one token."""
    pairs = [*product(SYLLABLES, SYLLABLES)]
    merges = [(one[0], one[1]) for one in SYLLABLES]
    merges += [("Ġ", one) for one in SYLLABLES]
    merges += [(f"Ġ{one}", two) for one, two in pairs]
    merges += [(f"Ġ{one}{two}", three) for (one, two), three in product(pairs, SYLLABLES)]
    special = ["<|endoftext|>", "<|padding|>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [*islice(merges, TOKENS - len(letters))]
    vocabulary = {token: i for i, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(file))


def write_vision(file: Path) -> None:
    """A CLIP as open_clip starts it, float32."""
    clip = open_clip.create_model(VISION.model, precision="fp32", force_quick_gelu=True)
    save_file(clip.state_dict(), file)


def write_weights(folder: Path, row: Released, config: Config) -> None:
    """Whatever of the ``--weights`` folder is not there yet."""
    torch.manual_seed(0)
    language, trained = folder / row.language_model.split("/")[-1], folder / row.name.split("/")[-1] / FILE
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tables = {"config.json": config, "tokenizer_config.json": names}
    files: dict[Path, Callable[[Path], object]] = {
        trained: partial(write_checkpoint, config=config, every=row.cross_attn_every_n_layers),
        language / "model.safetensors": partial(write_language_weights, config=config),
        **{language / name: partial(Path.write_text, data=json.dumps(table)) for name, table in tables.items()},
        language / "tokenizer.json": write_tokenizer,
        folder / f"{VISION.model}.safetensors": write_vision,
    }
    for file, write in files.items():
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write(unfinished := file.with_suffix(".partial"))
            unfinished.rename(file)
    assert f"{trained.stat().st_size / 1e9:.2f} GB" == row.size, f"published are {row.size}"


class Memory:
    """This process's memory in GiB, looked at every 10 ms: all that is resident, and what of it is no mapped file."""

    def __init__(self) -> None:
        self.peaks = self.status("VmRSS", "RssAnon")
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def status(*names: str) -> list[float]:
        """Fields of ``/proc/self/status``. (``ru_maxrss`` would begin with what the parent process had.)"""
        found = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
        return [int(found[name]) / 2**20 for name in names]

    def _watch(self) -> None:
        while True:
            self.peaks = [*map(max, self.peaks, self.status("VmRSS", "RssAnon"))]
            time.sleep(0.01)

    def report(self, step: str, seconds: float) -> None:
        """Prints a line of the table; peaks are those since the line before."""
        figures = [*self.status("VmRSS", "RssAnon"), *self.peaks]
        print(f"{step:32}{seconds:8.1f}", *(f"{figure:9.2f}" for figure in figures), flush=True)
        self.peaks = figures[:2]


def demonstrations(shots: int) -> tuple[str, list[Image.Image]]:
    """A prompt with made-up captions of ten words, and noise for images."""
    random = np.random.default_rng(shots)
    texts = [" ".join("".join(word) for word in random.choice(SYLLABLES, (10, 2))) for _ in range(shots)]
    sizes = random.integers(224, 501, (shots + 1, 2))
    images = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]
    return "".join(f"<image>Output:{text}<|endofchunk|>" for text in texts) + "<image>Output:", images


def check(loaded: Any, row: Released, trained: int) -> None:
    """Published numbers of parameters (loading has checked each block), and the checkpoint's values."""
    model = loaded.model
    embeddings = [model.language.get_parameter(name) for name in model.host.embeddings.values()]
    parts = {"perceiver": [*model.perceiver.parameters()], "blocks": [*model.blocks.parameters()], "emb.": embeddings}
    counts = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in parts.items()}
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()), f"= trained {sum(counts.values()):,}")
    gates = torch.cat([gate for name, gate in model.blocks.named_parameters() if name.endswith("_gate")])
    assert sum(counts.values()) == trained, f"published are {trained:,}"
    assert counts["blocks"] == row.block_parameters * len(model.blocks)
    assert gates.tolist() == [GATE] * 2 * len(model.blocks)


def measure(row: Released, trained: int, folder: Path, shots: list[int], precision: str) -> None:
    """Loads, checks and generates, in this process."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    print(f"{cpu[1] if cpu else platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__}, open_clip {open_clip.__version__}")  # fmt: skip
    print(f"{row.name}, {precision}, random weights; GiB of memory: now and highest during the step")
    print(f"{'step':32}{'seconds':>8}{'resident':>10}{'anonymous':>10}{'resident':>10}{'anonymous':>10}")
    memory = Memory()
    memory.report("imports (processor time)", time.process_time())
    start = time.perf_counter()
    loaded = load_model(row.name, weights=folder, device="cpu", precision=precision)
    memory.report("load", time.perf_counter() - start)
    output = []
    for count in shots:
        prompt, images = demonstrations(count)
        start = time.perf_counter()
        output.append(loaded.generate(prompt, images, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS))
        seconds = time.perf_counter() - start
        memory.report(f"{count} shots, {len(loaded.tokenizer.encode(prompt))} tokens, {BEAMS} beams", seconds)
    print(f"highest of all {memory.status('VmHWM')[0]:.2f} GiB resident", *map(repr, output), sep="\n")
    check(loaded, row, trained)


def main() -> None:
    """Writes the files here, measures in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("--folder", type=Path, required=True, help="for the files; what is there already is used")
    parser.add_argument("--shots", default="4,32")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--measure", action="store_true", help="in this process, without writing")
    asked = parser.parse_args()
    row = find_released(asked.model)
    assert row is not None
    if asked.measure:
        measure(row, TRAINED[asked.model], asked.folder, [*map(int, asked.shots.split(","))], asked.precision)
        return
    write_weights(asked.folder, row, CONFIGS[asked.model])
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure"], check=True)


if __name__ == "__main__":
    main()
