"""A model of transformers, of SmolVLM-256M's shape with random weights, answered by this harness and by a plain loop.

    python tests/speed/vlm.py FOLDER [--shots 0,4,16] [--plain-queries 0=125,4=25,16=10]

FOLDER is made: model, images, annotations. Both sides answer the same prompts (a query's demonstrations come from a pool
of 51) with 20 new tokens each, greedily, in float32; images are 640 x 480 JPEG files, not split (64 tokens an image). The
plain loop is what transformers' own documentation shows: ``processor.apply_chat_template`` on a batch of conversations,
``generate``; its batch size is the best of some. Nothing is cached before either begins; reading and preparing images
counts, loading the model does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from flamingo_eval.core import registry  # noqa: E402
from flamingo_eval.core.records import Prompt  # noqa: E402
from flamingo_eval.core.run_settings import RunSpec  # noqa: E402
from flamingo_eval.core.source import read_source  # noqa: E402
from flamingo_eval.engine.answer import answer  # noqa: E402
from flamingo_eval.engine.plan import TrialPlan, plan_trial  # noqa: E402
from flamingo_eval.engine.requests import find_pending  # noqa: E402
from flamingo_eval.storage.journal import Journal  # noqa: E402
from tests.support.small_vlms import TEMPLATE, tokenizer  # noqa: E402

QUERIES, POOL, NEW_TOKENS = 125, 51, 20
BATCHES = (1, 2, 4, 8, 16)
WORDS = ["a", "red", "dog", "on", "the", "table", "near", "two", "men"]
INSTRUCTION = "Provide a one-sentence caption for the provided image."


def make_model(folder: Path) -> None:
    """SmolVLM-256M's configuration (HuggingFaceTB/SmolVLM-256M-Instruct, config.json), with random weights."""
    import transformers as t

    own = {f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)}
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *sorted(own))
    words = tokenizer(marks, texts=(INSTRUCTION, " ".join(WORDS)))
    sizes = {"size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 512}}
    processor = t.SmolVLMProcessor(
        t.SmolVLMImageProcessor(**sizes, do_image_splitting=False), words, t.SmolVLMVideoProcessor(**sizes),
        image_seq_len=64, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    text = {"model_type": "llama", "vocab_size": 49280, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
            "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": False,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "image_size": 512, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    config = t.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4, pad_token_id=0,
                             image_token_id=words.convert_tokens_to_ids("<image>"))  # fmt: skip
    model = t.SmolVLMForConditionalGeneration(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_data(root: Path) -> None:
    """COCO's layout, with images that are noise at several scales, as hard to decode as photographs."""
    rng = np.random.default_rng(0)
    rows = []
    (root / "coco/val2014").mkdir(parents=True)
    (root / "coco/annotations").mkdir()
    for i in range(POOL + QUERIES):
        noise: Any = sum(
            np.kron(rng.integers(0, 256, (480 // k, 640 // k, 3)), np.ones((k, k, 1))) for k in (4, 16, 80)
        )
        name = f"COCO_val2014_{i:012d}.jpg"
        Image.fromarray((noise / 3).astype(np.uint8)).save(root / "coco/val2014" / name, quality=90)
        words = " ".join(rng.choice(WORDS, 10))
        rows.append({"filepath": "val2014", "filename": name, "cocoid": i, "split": "train" if i < POOL else "test",
                     "sentences": [{"raw": words}]})  # fmt: skip
    (root / "coco/dataset_coco.json").write_text(json.dumps({"images": rows}))


def make_benchmark(folder: Path) -> None:
    """COCO under another name, all texts of one length."""
    folder.mkdir()
    text = (ROOT / "benchmarks/coco.toml").read_text().replace('name = "coco"', 'name = "speed"')
    text = text.replace("max_new_tokens = 30", f"max_new_tokens = {NEW_TOKENS}\nmin_new_tokens = {NEW_TOKENS}")
    (folder / "speed.toml").write_text(text)


def ours(folder: Path, trial: TrialPlan) -> tuple[list[str], float, dict[str, float]]:
    """Answers, seconds, and where the time went."""
    source = registry.model_source(f"hf:{folder / 'model'}", {})
    with closing(source.load("cpu", "fp32")) as model, tempfile.TemporaryDirectory() as scratch:
        journal = Journal(Path(scratch) / "journal.jsonl")
        pending = list(find_pending([trial], journal, "model"))
        began = time.perf_counter()
        answer(pending, model, journal, batch_size=None, extra={})
        seconds = time.perf_counter() - began
        texts = [str(prediction.answer) for slot in trial.slots if (prediction := journal.get((*trial.key, *slot)))]
        return texts, seconds, dict(model.timings())


def plain(folder: Path, root: Path, prompts: Sequence[Prompt], batch: int) -> tuple[list[str], float]:
    """The same by a plain loop."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32).eval()
    texts: list[str] = []
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(prompts), batch):
            some = [conversation(prompt, root) for prompt in prompts[start : start + batch]]
            inputs = processor.apply_chat_template(
                some, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True},
            )  # fmt: skip
            ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
            texts += processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return texts, time.perf_counter() - began


def conversation(prompt: Prompt, root: Path) -> list[dict[str, Any]]:
    """A prompt as transformers' documentation writes conversations."""
    messages: list[dict[str, Any]] = []
    for turn in (*prompt.demonstrations, prompt.query):
        shown = [{"type": "image", "image": Image.open(root / image).convert("RGB")} for image in turn.images]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": turn.text}]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", default="0,4,16")
    parser.add_argument("--plain-queries", default="0=125,4=25,16=10")
    parser.add_argument("--only", choices=("ours", "plain"))
    given = parser.parse_args()
    folder, root = given.folder, given.folder / "data"
    if not (folder / "model").exists():
        make_model(folder / "model")
        make_data(root)
        make_benchmark(folder / "benchmarks")
    os.environ["FLAMINGO_EVAL_BENCHMARKS"] = str(folder / "benchmarks")
    os.environ["FLAMINGO_EVAL_CACHE"] = str(folder / "cache")
    counts = {int(pair.partition("=")[0]): int(pair.partition("=")[2]) for pair in given.plain_queries.split(",")}
    renderer = registry.model_source(f"hf:{folder / 'model'}", {}).renderer
    source = read_source("speed", root, chat=True)
    for shots in map(int, given.shots.split(",")):
        trial = plan_trial(source, renderer, RunSpec(pool_size=POOL), shots=shots, seed=42)
        prompts = [query.prompt for query in trial]
        line = f"{shots} shots:"
        if given.only != "plain":
            shutil.rmtree(folder / "cache", ignore_errors=True)
            texts, seconds, parts = ours(folder, trial)
            mine = seconds / len(prompts)
            shares = ", ".join(f"{name} {value:.1f} s" for name, value in parts.items())
            line += f" ours {mine:.3f} s a query ({len(prompts)} queries in {seconds:.1f} s; {shares});"
        if given.only != "ours":
            sizes = {
                b: plain(folder, root, prompts[: max(b, 4)], b)[1] / max(b, 4) for b in BATCHES if shots < 16 or b < 8
            }
            best = min(sizes, key=lambda b: sizes[b])
            theirs, seconds = plain(folder, root, prompts[: counts[shots]], best)
            rate = seconds / len(theirs)
            line += f" plain {rate:.3f} s a query (batches of {best}, {len(theirs)} queries)"
            if given.only is None:
                same = sum(a == b for a, b in zip(texts, theirs, strict=False))
                line += f": {rate / mine:.2f} times as fast; {same} of {len(theirs)} texts the same"
        print(line, flush=True)


if __name__ == "__main__":
    main()
