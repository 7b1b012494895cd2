"""Tiny random image-text-to-text models of transformers' own families, with processors, saved as checkpoints are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>"
    "{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template; IMAGE stands for how the family writes an image."""

_MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(special: tuple[str, ...] = (), texts: tuple[str, ...] = (), **named: str) -> Any:
    """A tokenizer of bytes: every text is tokenised, and comes back.

    Args:
        special: further special tokens.
        texts: whose words become tokens, too.
        named: those that the tokenizer knows by a name, such as ``image_token``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    first = ("<pad>", "<bos>", "<eos>")
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*first, *bytes_])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(texts))
    inner.decoder = decoders.ByteLevel()
    if texts:
        trainer = trainers.BpeTrainer(special_tokens=[*first], initial_alphabet=bytes_, show_progress=False)
        inner.train_from_iterator(texts, trainer)
    more = [*_MARKS, *(token for token in special if token not in named.values())]
    words = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left",
        extra_special_tokens=named, model_max_length=100_000,
    )  # fmt: skip
    words.add_special_tokens({"extra_special_tokens": more}, replace_extra_special_tokens=False)
    return words


def _idefics3(kind: str) -> tuple[Any, Any]:
    import transformers as t

    own = {f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)}
    marks = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *sorted(own))
    image_kind = {"idefics3": "Idefics3ImageProcessor", "smolvlm": "SmolVLMImageProcessor"}[kind]
    images = getattr(t, image_kind)(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    words = tokenizer(marks)
    vision = {**_VISION, "image_size": 32, "patch_size": 8}
    template = TEMPLATE.replace("IMAGE", "<image>")
    text = {**_TEXT, "model_type": "llama", "vocab_size": len(words)}
    tied = {"tie_word_embeddings": _TEXT.get("tie_word_embeddings", False)}
    if kind == "idefics3":
        processor = t.Idefics3Processor(images, words, image_seq_len=4, chat_template=template)
        config = t.Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, pad_token_id=0,
                                  image_token_id=words.convert_tokens_to_ids("<image>"))  # fmt: skip
        return t.Idefics3ForConditionalGeneration(config), processor
    videos = t.SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = t.SmolVLMProcessor(images, words, videos, image_seq_len=4, chat_template=template)
    config = t.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, pad_token_id=0,
                             image_token_id=words.convert_tokens_to_ids("<image>"), **tied)  # fmt: skip
    return t.SmolVLMForConditionalGeneration(config), processor


def _idefics2() -> tuple[Any, Any]:
    import transformers as t

    words = tokenizer(("<fake_token_around_image>", "<image>", "<end_of_utterance>"))
    images = t.Idefics2ImageProcessor(size={"longest_edge": 48, "shortest_edge": 24}, do_image_splitting=False)
    processor = t.Idefics2Processor(images, words, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>"))
    config = t.Idefics2Config(
        text_config={**_TEXT, "model_type": "mistral", "vocab_size": len(words)},
        vision_config={**_VISION, "image_size": 48, "patch_size": 8},
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
                          "resampler_head_dim": 16, "num_key_value_heads": 2, "hidden_size": 32},
        image_token_id=words.convert_tokens_to_ids("<image>"), pad_token_id=0,
    )  # fmt: skip
    return t.Idefics2ForConditionalGeneration(config), processor


def _llava(kind: str) -> tuple[Any, Any]:
    import transformers as t

    words = tokenizer(image_token="<image>", video_token="<video>")
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    image_id = words.convert_tokens_to_ids("<image>")
    template = TEMPLATE.replace("IMAGE", "<image>")
    text = {**_TEXT, "vocab_size": len(words)}
    if kind == "llava_onevision":
        vision = {
            **_VISION,
            "model_type": "siglip_vision_model",
            "image_size": 16,
            "patch_size": 8,
            "vision_use_head": False,
        }
        images = t.LlavaOnevisionImageProcessor(size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints)
        videos = t.LlavaOnevisionVideoProcessor(size={"height": 16, "width": 16})
        processor = t.LlavaOnevisionProcessor(
            images, words, videos, num_image_tokens=4, vision_feature_select_strategy="full", chat_template=template,
            vision_aspect_ratio="anyres_max_9",
        )  # fmt: skip
        config = t.LlavaOnevisionConfig(
            text_config={**text, "model_type": "qwen2"}, vision_config=vision, image_grid_pinpoints=pinpoints,
            image_token_id=image_id, video_token_id=words.convert_tokens_to_ids("<video>"),
        )  # fmt: skip
        return t.LlavaOnevisionForConditionalGeneration(config), processor
    vision = {**_VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, "projection_dim": 32}
    images = t.LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=pinpoints
    )
    processor = t.LlavaNextProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    config = t.LlavaNextConfig(
        text_config={**text, "model_type": "llama"}, vision_config=vision, image_grid_pinpoints=pinpoints,
        image_token_id=image_id, vision_feature_layer=-1,
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def _qwen(kind: str) -> tuple[Any, Any]:
    import transformers as t

    words = tokenizer(("<|vision_start|>", "<|vision_end|>"), image_token="<|image_pad|>", video_token="<|video_pad|>")
    ids = {
        "image_token_id": words.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": words.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": words.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": words.convert_tokens_to_ids("<|vision_end|>"),
    }
    patch = 16 if kind == "qwen3_vl" else 14
    images = t.Qwen2VLImageProcessor(size={"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}, patch_size=patch)  # fmt: skip
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    text = {**_TEXT, "vocab_size": len(words)}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    if kind == "qwen3_vl":
        processor = t.Qwen3VLProcessor(images, words, t.Qwen3VLVideoProcessor(), chat_template=template)
        config = t.Qwen3VLConfig(
            text_config={**text, "head_dim": 8, "rope_parameters": {**rope, "mrope_interleaved": True}},
            vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
                           "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            **ids,
        )  # fmt: skip
        return t.Qwen3VLForConditionalGeneration(config), processor
    videos = t.Qwen2VLVideoProcessor()
    if kind == "qwen2_5_vl":
        processor = t.Qwen2_5_VLProcessor(images, words, videos, chat_template=template)
        config = t.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
                           "window_size": 56, "fullatt_block_indexes": [1]},
            **ids,
        )  # fmt: skip
        return t.Qwen2_5_VLForConditionalGeneration(config), processor
    processor = t.Qwen2VLProcessor(images, words, videos, chat_template=template)
    config = t.Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2}, **ids,
    )  # fmt: skip
    return t.Qwen2VLForConditionalGeneration(config), processor


def _internvl() -> tuple[Any, Any]:
    import transformers as t

    words = tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = t.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4)
    processor = t.InternVLProcessor(
        images, words, t.InternVLVideoProcessor(size={"height": 16, "width": 16}), image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = t.InternVLConfig(
        text_config={**_TEXT, "model_type": "qwen2", "vocab_size": len(words)},
        vision_config={**_VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    import torch
    import transformers as t

    words = tokenizer(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = t.Gemma3ImageProcessor(size={"height": 16, "width": 16})
    processor = t.Gemma3Processor(
        images, words, image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>")
    )
    config = t.Gemma3Config(
        text_config={**_TEXT, "vocab_size": len(words), "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8,
                     "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**_VISION, "image_size": 16, "patch_size": 4}, mm_tokens_per_image=4,
        image_token_index=words.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=words.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=words.convert_tokens_to_ids("<end_of_image>"),
    )  # fmt: skip
    model = t.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # it begins at zero
    return model, processor


def _mistral3() -> tuple[Any, Any]:
    import transformers as t

    words = tokenizer(image_token="[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    images = t.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=4)
    processor = t.PixtralProcessor(
        images, words, patch_size=4, spatial_merge_size=2, image_token="[IMG]", image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]", chat_template=TEMPLATE.replace("IMAGE", "[IMG]"),
    )  # fmt: skip
    config = t.Mistral3Config(
        text_config={**_TEXT, "model_type": "mistral", "vocab_size": len(words), "head_dim": 8},
        vision_config={**_VISION, "model_type": "pixtral", "image_size": 32, "patch_size": 4, "head_dim": 16},
        image_token_id=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    return t.Mistral3ForConditionalGeneration(config), processor


def _aya_vision() -> tuple[Any, Any]:
    import transformers as t

    named = {
        "image_token": "<image>", "start_of_img_token": "<|START_OF_IMG|>", "end_of_img_token": "<|END_OF_IMG|>",
        "img_patch_token": "<|IMG_PATCH|>", "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": "TILE", "tile_global_token": "TILE_GLOBAL",
    }  # fmt: skip
    tiles = (*(f"TILE_{i}" for i in range(1, 13)), *named.values())
    words = tokenizer(tiles)
    images = t.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4)
    processor = t.AyaVisionProcessor(
        images, words, patch_size=4, img_size=16, downsample_factor=2, chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    config = t.AyaVisionConfig(
        text_config={**_TEXT, "model_type": "cohere2", "vocab_size": len(words), "sliding_window": 16,
                     "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**_VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4,
                       "vision_use_head": False},
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"), downsample_factor=2,
        adapter_layer_norm_eps=1e-6, alignment_intermediate_size=64,
    )  # fmt: skip
    return t.AyaVisionForConditionalGeneration(config), processor


FAMILIES: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "idefics2": _idefics2,
    "idefics3": lambda: _idefics3("idefics3"),
    "smolvlm": lambda: _idefics3("smolvlm"),
    "llava_onevision": lambda: _llava("llava_onevision"),
    "llava_next": lambda: _llava("llava_next"),
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: _qwen("qwen3_vl"),
    "internvl": _internvl,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "aya_vision": _aya_vision,
}
"""Name of a family -> a tiny model and its processor."""


def small_vlm(family: str, seed: int = 0, text_config: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """A tiny random model of a family, and its processor; large weights, so that what it reads shows in its answers.

    Args:
        family: its name.
        seed: of the weights.
        text_config: what its language model's configuration has otherwise.
    """
    import torch

    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        for key, value in (text_config or {}).items():
            patch.setitem(_TEXT, key, value)
        torch.manual_seed(seed)
        model, processor = FAMILIES[family]()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model.eval(), processor


def save_vlm(family: str, folder: Path, seed: int = 0, text_config: Mapping[str, Any] | None = None) -> Path:
    """The same as a folder, as checkpoints are saved."""
    model, processor = small_vlm(family, seed, text_config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
