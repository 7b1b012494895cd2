"""The Flamingo's parts, and what happens when a checkpoint is not what it should be; on the demo's checkpoint."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.core import registry
from flamingo_eval.core.errors import CheckpointError, QueryError
from flamingo_eval.core.records import Decoding, Rendering
from flamingo_eval.models.flamingo.spec import VisionSpec, read_spec
from tests.support.bundles import load, load_over, rewrite, texts_of
from tests.support.helpers import LazyModule, run_cli

torch: Any = LazyModule("torch")
pytestmark = pytest.mark.torch

State = dict[str, Any]
BLOCK = "lang_encoder.gpt_neox.layers.2.gated_cross_attn_layer."


def test_wrappings_of_the_released_files_all_load_to_the_same(bundle: Path) -> None:
    plain = texts_of(load(bundle), bundle)
    assert plain[0].strip()

    def old_buffers_and_prefix(state: State) -> None:
        for key in list(state):
            state["module." + key] = state.pop(key)
        prefix = "module.lang_encoder.gpt_neox.layers.0.decoder_layer.attention."
        state[prefix + "bias"] = torch.ones(1, 1, 4, 4)
        state[prefix + "masked_bias"] = torch.tensor(-1e9)
        state[prefix + "rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(bundle, old_buffers_and_prefix)
    assert texts_of(load(bundle), bundle) == plain
    rewrite(
        bundle, lambda state: state.update({k.removeprefix("module."): state.pop(k) for k in list(state)}), wrap=False
    )
    assert texts_of(load(bundle), bundle) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("lang_encoder.embed_out.weight"), r"1 missing \(lang_encoder.embed_out.weight\)"),
        (lambda s: s.pop("lang_encoder.gpt_neox.embed_in.weight"), r"missing \(lang_encoder.gpt_neox.embed_in.weight\)"),
        (lambda s: s.pop("perceiver.norm.bias"), r"missing \(perceiver.norm.bias\)"),
        (lambda s: s.pop("perceiver.latents"), "no perceiver.latents"),
        (lambda s: s.pop(BLOCK + "ff_gate"), rf"missing \({BLOCK}ff_gate\)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith(BLOCK)], r"missing \(.*layers.2.gated_cross_attn_layer.\*\)"),
        (lambda s: s.update({BLOCK + "extra": torch.ones(1)}), rf"unexpected \({BLOCK}extra\)"),
        (lambda s: s.update({"lang_encoder.something": torch.ones(1)}), r"unexpected \(lang_encoder.something\)"),
        (lambda s: s.update({BLOCK + "attn.norm.weight": torch.ones(7)}), r"attn.norm.weight has shape \(7,\), expected \(128,\)"),
        (lambda s: s.update({"lang_encoder.embed_out.weight": torch.ones(9, 128)}), "wrong tokenizer or wrong language model"),
    ],
)  # fmt: skip
def test_keys_that_dont_fit_are_named(bundle: Path, change: Callable[[State], object], message: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(CheckpointError, match=message):
        load(bundle)


def test_wrong_interval_of_cross_attention(bundle: Path) -> None:
    toml = bundle / "model.toml"
    toml.write_text(toml.read_text().replace("every_n_layers = 1", "every_n_layers = 2"))
    with pytest.raises(
        CheckpointError, match=r"with cross-attention every 2: \d+ unexpected \(.*layers.0.gated"
    ) as error:
        load(bundle)
    assert str(error.value).endswith("; its blocks fit cross_attn_every_n_layers = 1")


def test_a_language_model_with_weights_missing_is_refused(bundle: Path) -> None:
    """transformers would start them at random and go on."""
    from safetensors.torch import load_file, save_file

    weights = load_file(bundle / "lm" / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layers.1." not in key}
    assert len(kept) < len(weights)
    save_file(kept, bundle / "lm" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has other tensors than it should: 12 missing \(gpt_neox.layers.1"):
        load(bundle)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(bundle: Path) -> None:
    for content in (pickle.dumps(Evil()), pickle.dumps({"model_state_dict": Evil()})):
        (bundle / "checkpoint.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"it is not a file that torch.save wrote"):
            load(bundle)
    torch.save({"model_state_dict": Evil()}, bundle / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        load(bundle)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "clip.pt", "lm/model.safetensors", "lm/config.json", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_and_empty_files(bundle: Path, name: str, keep: float) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError):
        load(bundle)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('checkpoint = "checkpoint.pt"', "", "object missing required field `checkpoint`"),
        ('checkpoint = "checkpoint.pt"', 'checkpoint = "other.pt"', "checkpoint names .*other.pt, which does not exist"),
        ('checkpoint = "checkpoint.pt"', "checkpoint = 7", "checkpoint is 7: expected `str`, got `int`"),
        ("every_n_layers = 1", "every_n_layers = 0", "cross_attn_every_n_layers is 0: expected `int` >= 1"),
        ("[language]", "[languages]", "unknown key 'languages' in the top level; known keys: name, checkpoint"),
        ('pretrained = "clip.pt"', 'pretrained = "clap.pt"', "vision.pretrained names .*clap.pt, which does not exist"),
        ('pretrained = "clip.pt"', 'pretrained = "laion"', "open_clip has no weights 'laion'"),
        ('model = "flamingo-eval-demo-vit"', 'model = "ViT-Z"', "open_clip does not know the vision model 'ViT-Z'"),
        ('model = "lm"', 'model = "no-such-folder"', "neither a folder .* nor a hub name"),
        ('tokenizer = "tokenizer"', 'tokeniser = "tokenizer"', r"unknown key 'tokeniser' in \[language\]; known keys: model, tokenizer"),
        ('name = "demo"', "name = ", "is not a TOML file: .*; a checkpoint is described by a TOML file"),
    ],
)  # fmt: skip
def test_broken_description(bundle: Path, old: str, new: str, message: str) -> None:
    toml = bundle / "model.toml"
    assert old in toml.read_text()
    toml.write_text(toml.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError, match=message):
        load(bundle)


def test_an_unsupported_language_model_is_refused_by_name(bundle: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tiny = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    shutil.rmtree(bundle / "lm")
    tiny.save_pretrained(bundle / "lm")
    with pytest.raises(CheckpointError, match="type 'gpt2' is not supported; supported types: gpt_neox"):
        load(bundle)


def test_a_checkpoint_file_given_instead_of_its_description(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="give a TOML file that names this file"):
        registry.model_source(str(bundle / "checkpoint.pt"))


def test_released_checkpoints_are_known_and_need_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = registry.model_source("OpenFlamingo-4B-vitl-rpj3b")
    assert source == registry.model_source("openflamingo/OpenFlamingo-4B-vitl-rpj3b")
    with pytest.raises(
        CheckpointError, match=r"checkpoint.pt of openflamingo/OpenFlamingo-4B-vitl-rpj3b is not in the local cache"
    ):
        source.info()


def test_the_activation_follows_the_weights() -> None:
    """open_clip 3 builds ViT-L-14 with GELU; the openai weights want QuickGELU, LAION's do not."""
    from flamingo_eval.models.flamingo.vision import _weights

    assert _weights(VisionSpec("ViT-L-14", "openai"), False) == ("openai", True)
    assert _weights(VisionSpec("ViT-L-14", "laion2b_s32b_b82k"), False) == ("laion2b_s32b_b82k", False)
    with pytest.raises(CheckpointError, match="were trained with GELU"):
        _weights(VisionSpec("ViT-L-14", "laion2b_s32b_b82k"), True)


def test_quick_gelu_reaches_the_tower(bundle: Path) -> None:
    from flamingo_eval.models.flamingo.vision import load_clip

    toml = bundle / "model.toml"
    assert not any("QuickGELU" in type(m).__name__ for m in load_clip(read_spec(toml).vision)[0].modules())
    toml.write_text(toml.read_text().replace("[language]", "quick_gelu = true\n\n[language]"))
    assert any("QuickGELU" in type(m).__name__ for m in load_clip(read_spec(toml).vision)[0].modules())


def test_a_generated_image_tag_moves_no_media_position() -> None:
    from flamingo_eval.models.flamingo.cross_attention import Media

    latents = torch.arange(2 * 3 * 1 * 1.0).reshape(2, 3, 1, 1)  # row 0: 0, 1, 2; row 1: 3, 4, 5
    ids = torch.tensor([[9, 5, 9, 5], [0, 0, 5, 5]])
    media = Media.of(latents, ids, image_token_id=9)
    assert media.image_index.tolist() == [[1, 1, 2, 2], [0, 0, 0, 0]]
    after = media.after_prompt()
    assert after.latents[0].flatten().tolist() == [1.0], "the prompt's last image, not the third"
    assert after.image_index.tolist() == [[1], [0]], "a row without images sees none"


def test_tokens_see_their_own_image_only_and_none_before_the_first() -> None:
    from flamingo_eval.models.flamingo.cross_attention import GatedCrossAttentionBlock, Media

    torch.manual_seed(0)
    block = GatedCrossAttentionBlock(width=8, media_width=6, inner=8, head_width=4, hidden=16)
    torch.nn.init.ones_(block.attn_gate)
    x, latents = torch.randn(1, 5, 8), torch.randn(1, 2, 3, 6)
    ids = torch.tensor([[1, 9, 1, 9, 1]])
    with torch.no_grad():
        full = Media.of(latents, ids, 9).attend(block.attn, x)
        assert full[0, 0].abs().max() == 0
        for token, image in ((1, 0), (2, 0), (3, 1), (4, 1)):
            alone = Media(latents[:, image : image + 1], torch.tensor([[1]])).attend(
                block.attn, x[:, token : token + 1]
            )
            assert torch.allclose(full[:, token], alone[:, 0], atol=1e-6)
        torch.nn.init.zeros_(block.attn_gate)
        assert torch.equal(block(x, Media.of(latents, ids, 9)), x), "closed gates leave the language model alone"


def test_unreadable_images(bundle: Path) -> None:
    model = load(bundle)
    Image.new("RGB", (200, 100), "blue").save(bundle / "whole.jpg")
    content = (bundle / "whole.jpg").read_bytes()
    (bundle / "half.jpg").write_bytes(content[: len(content) // 2])
    (bundle / "empty.png").write_bytes(b"")
    (bundle / "text.jpg").write_text("not an image")
    for name, message in (
        ("half.jpg", "half.jpg can't be read: .*[Tt]runcated"),
        ("empty.png", "empty.png is empty"),
        ("text.jpg", "text.jpg is not an image in a known format"),
        ("gone.jpg", "gone.jpg does not exist"),
    ):
        with pytest.raises(QueryError, match=message):
            model.read(Rendering("<image>Output:", (name,)), Decoding(5))


def test_a_prompt_too_long_is_refused_never_cut(bundle: Path) -> None:
    Image.new("RGB", (8, 8)).save(bundle / "a.png")
    with pytest.raises(QueryError, match=r"a prompt has \d+ tokens, the limit is 2000: use fewer shots"):
        load(bundle).read(Rendering("Output:a ball\n" * 800 + "<image>Output:", ("a.png",)), Decoding(5))


def test_a_truncated_image_costs_its_own_queries_only(tmp_path: Path) -> None:
    from tests.support.helpers import write_coco_root

    root = write_coco_root(tmp_path / "data", train=6, test=4)
    broken = root / "coco/val2014/COCO_val2014_000000000502.png"
    Image.effect_noise((90, 90), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    arguments = ("coco", "--shots", "1", "--seeds", "42", "--checkpoint", "demo", "--data-root", root, "--out", "run")
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert "1 queries could not be answered" in result.stderr
    assert "COCO_val2014_000000000502.png can't be read" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(Path("run/journal.jsonl").read_text().splitlines()) == 3


def test_an_unusable_device_and_precision_are_refused() -> None:
    from flamingo_eval.core.errors import UserError

    source = registry.model_source("demo")
    with pytest.raises(UserError, match="unknown precision 'int4'; known: fp32, bf16, fp16, amp_bf16"):
        source.resolve("cpu", "int4")
    with pytest.raises(UserError, match="device 'tpu' can't be used; known devices: auto, cpu, cuda"):
        source.resolve("tpu", "auto")


@pytest.mark.parametrize("precision", ["bf16", "amp_bf16", "fp16"])
def test_other_precisions_speak_too(precision: str) -> None:
    from flamingo_eval.demo.data import demo_data_root

    root = demo_data_root()
    source: Any = registry.model_source("demo")
    prompt = Rendering("<image>Output:", ("coco/val2014/COCO_val2014_000000017800.png",))
    texts = []
    for name in ("fp32", precision):
        model = load_over(source, root, name)
        texts.append(model.answer([model.read(prompt, Decoding(20))], Decoding(20))[0])
    assert texts[0] == texts[1], "a clear image is described alike"
