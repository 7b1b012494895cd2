"""On a GPU that is not there: tensors that have a device, a shape and a type, but no content."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core import registry
from tests.support.helpers import LazyModule
from tests.support.small_flamingos import TEXTS, write_flamingo

pytestmark = pytest.mark.torch
torch: Any = LazyModule("torch")
HOSTS = ("gpt_neox", "llama", "mosaic_gpt", "mpt", "opt")
NAMES = [[5, 6, 7], [8, 9], [10]]


@pytest.fixture
def second_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``cuda:1`` of a machine without any, for tensors that are only described."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr("torch.amp.autocast_mode.is_autocast_available", lambda _: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    with warnings.catch_warnings(), torch.inference_mode(), FakeTensorMode():
        warnings.simplefilter("ignore")
        yield torch.device("cuda:1")


def describe(tensor: Any, device: Any) -> Any:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def move(model: Any, device: Any) -> None:
    """All parameters and buffers, as they would be after ``to(device)``."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(describe(parameter, device), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = describe(buffer, device)


def parts_of(model: Any, *, padded: bool) -> tuple[Any, Any, Any]:
    """Ids, mask and spans of a batch, on the CPU."""
    from flamingo_eval.models.flamingo.cross_attention import Spans

    texts = TEXTS if padded else [TEXTS[1]] * 3
    rows = [model.tokenizer.encode(text) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[model.tokenizer.pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    counts = [text.count("<image>") for text in texts]
    like = model.model.perceiver.latents
    latents = torch.zeros(sum(counts) + 1, *like.shape, dtype=like.dtype)
    numbers = [[sum(counts[:i]) + j for j in range(count)] for i, count in enumerate(counts)]
    return ids, mask, Spans.of(latents, numbers, ids, model.tokenizer.image_id)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp_bf16"])
@pytest.mark.parametrize("host", HOSTS)
def test_everything_is_on_the_models_device_and_nothing_waits_for_it(
    tmp_path: Path, host: str, precision: str, request: pytest.FixtureRequest
) -> None:
    """Reading prompts, padded or not, continuing them and scoring names: a tensor on another device would be refused,
    and so would asking what a tensor holds, for which the processor has to wait. (transformers asks that of a padded
    pass's mask, once; not of tensors without content.)"""
    from flamingo_eval.devices import autocast
    from flamingo_eval.models.flamingo.cross_attention import Spans
    from flamingo_eval.models.flamingo.prefix import Part, Prefix
    from flamingo_eval.models.flamingo.ranking import score_names

    source: Any = registry.model_source(str(write_flamingo(tmp_path / host, host)))
    model = source.load("cpu", precision)
    batches = [(padded, *parts_of(model, padded=padded)) for padded in (True, False)]
    device = request.getfixturevalue("second_gpu")
    move(model.model, device)
    for padded, ids, mask, spans in batches:
        names = ("latents", "image", "tokens", "filled", "last")
        there = {name: describe(getattr(spans, name), device) for name in names}
        part = Part(describe(ids, device), describe(mask, device), Spans(**there, in_order=spans.in_order), padded)
        with autocast(device, precision):
            prefix = Prefix(model.model, [part], room=64)
            logits = prefix.extend(torch.zeros(len(ids), 3, dtype=torch.long, device=device),
                                   torch.zeros(3, dtype=torch.long, device=device),
                                   torch.ones(len(ids), 3, 3, dtype=torch.bool, device=device))  # fmt: skip
            kept = {(layer.keys.dtype, layer.values.dtype, layer.keys.device) for layer in prefix._layers}
            prefix.forget()
            scores = score_names(prefix, NAMES)
        assert {prefix.logits.device, logits.device, scores.device} == {device}
        assert scores.dtype == torch.float32
        narrow = torch.float32 if precision == "fp32" else torch.bfloat16
        assert kept == {(narrow, narrow, device)}, "keys and values as they are multiplied"


def test_a_tensor_on_the_wrong_device_would_be_found(second_gpu: Any) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device=second_gpu) + torch.zeros(2)
    with pytest.raises(Exception, match="local_scalar_dense"):
        bool(torch.zeros(2, device=second_gpu).all())


@pytest.mark.parametrize("host", ["gpt_neox", "llama"])
def test_keys_in_the_type_of_autocast_are_the_same_to_the_bit(
    tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions leave them in float32, and every product would cast them anew."""
    from flamingo_eval.models.flamingo import prefix as module
    from flamingo_eval.models.flamingo.prefix import Part, Prefix

    source: Any = registry.model_source(str(write_flamingo(tmp_path / host, host)))
    model = source.load("cpu", "amp_bf16")
    ids, mask, spans = parts_of(model, padded=True)
    found = []
    for kept in (module._as_multiplied, lambda states: states):
        monkeypatch.setattr(module, "_as_multiplied", kept)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            prefix = Prefix(model.model, [Part(ids, mask, spans)], room=6)
            more = [prefix.extend(torch.full((len(ids), 3), 7), torch.full((3,), step),
                                  torch.eye(3, dtype=torch.bool).repeat(len(ids), 1, step + 1))
                    for step in range(2)]  # fmt: skip
            found.append([prefix.logits, *more])
            types = {layer.keys.dtype for layer in prefix._layers}
        assert types == ({torch.bfloat16} if len(found) == 1 else {torch.float32})
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_mpts_fused_attention_is_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole prompts, padded ones, and continuations side by side, some rows at a time."""
    from transformers.models.mpt.modeling_mpt import MptAttention

    from flamingo_eval.models.flamingo.hosts import mpt
    from tests.support.small_flamingos import make_language

    language = make_language("mpt", 50)
    ids = torch.randint(0, 50, (4, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :10] = 0
    eye = torch.zeros(4, 1, 3, 14).masked_fill(~torch.eye(3, dtype=torch.bool).repeat(1, 1).logical_or(
        torch.zeros(3, 3, dtype=torch.bool)).repeat(4, 1, 1, 1)[:, :, :, [0] * 11 + [0, 1, 2]], -1e9)  # fmt: skip
    eye[..., :11] = 0

    def outputs() -> list[Any]:
        with torch.inference_mode():
            plain = language(ids).logits
            padded = language(ids, attention_mask=mask, use_cache=True)
            seen = mask.bool()[1:2, None, None, :].expand(4, 1, 3, 11)
            bias = torch.cat([torch.zeros(4, 1, 3, 11).masked_fill(~seen, -1e9), eye[..., 11:]], dim=-1)
            more = language(ids[:, :3], attention_mask=bias, past_key_values=padded.past_key_values).logits
        return [plain, padded.logits[mask.bool()], more]

    for module in language.modules():
        if isinstance(module, mpt.FusedAttention):
            module.__class__ = MptAttention
    expected = outputs()
    for module in language.modules():
        if isinstance(module, MptAttention):
            module.__class__ = mpt.FusedAttention
    for at_once in (1 << 27, 700, 1):
        monkeypatch.setattr(mpt, "_BIASES", at_once)
        for ours, theirs in zip(outputs(), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_names_are_scored_within_a_bound_of_logits() -> None:
    """A thousand names behind many prompts have billions of them; no more than asked for are there at once."""
    from flamingo_eval.models.flamingo.ranking import score_names

    generator = torch.Generator().manual_seed(3)
    names = [[int(i) for i in torch.randint(0, 40, (1 + n % 4,), generator=generator)] for n in range(60)]
    sizes: list[int] = []

    class Prompts:
        logits = torch.randn(5, 40, generator=generator)

        def extend(self, ids: Any, depths: Any, visible: Any) -> Any:
            sizes.append(ids.numel() * 40)
            return torch.nn.functional.one_hot(ids, 40).float() * 3 + depths[None, :, None]

        def forget(self) -> None:
            """Nothing is kept."""

    prefix: Any = Prompts()
    expected = score_names(prefix, names, 1 << 20)
    assert len(sizes) == 1
    sizes.clear()
    assert torch.allclose(score_names(prefix, names, 2000), expected, atol=1e-6)
    assert max(sizes) <= 2000
    assert len(sizes) > 5


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_amp_bf16_never_makes_weights_wider_than_they_are_stored(
    tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products' weights go from the file to bfloat16; the logits are those of weights that were float32 in between."""
    from flamingo_eval.models.flamingo import loading, model
    from tests.support.bundles import load_over

    kind = model._STORED[stored]
    toml = write_flamingo(tmp_path / "neox", "gpt_neox")
    folder = toml.parent / "lm"
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=kind).save_pretrained(folder)
    assert model.stored_dtype(folder) == kind
    asked: list[Any] = []
    real = model.load_language

    def load_language(source: Any, dtype: Any, layers: Any) -> Any:
        asked.append(dtype)
        return real(source, dtype, layers)

    monkeypatch.setattr(loading, "load_language", load_language)

    def logits() -> Any:
        loaded = load_over(registry.model_source(str(toml)), tmp_path, "amp_bf16")
        widths = {
            p.dtype for m in loaded.model.language.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()
        }
        assert widths == {torch.bfloat16}
        assert loaded.model.language.get_input_embeddings().weight.dtype == torch.float32
        ids, mask, spans = parts_of(loaded, padded=True)
        from flamingo_eval.models.flamingo.prefix import Part, Prefix

        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            return Prefix(loaded.model, [Part(ids, mask, spans)], room=1).logits

    as_stored = logits()
    monkeypatch.setattr(loading, "stored_dtype", lambda _: None)
    assert torch.equal(as_stored, logits())
    assert asked == [kind, torch.float32]


def test_the_stored_type_is_that_of_the_files_that_are_loaded(tmp_path: Path) -> None:
    """Of transformers' choice, safetensors or not; a stray file beside them says nothing."""
    from safetensors.torch import load_file, save_file

    from flamingo_eval.models.flamingo.model import stored_dtype

    folder = write_flamingo(tmp_path / "neox", "gpt_neox").parent / "lm"
    tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    save_file({"lora.weight": torch.zeros(2, dtype=torch.bfloat16)}, folder / "adapter_model.safetensors")
    assert stored_dtype(folder) == torch.float32
    (folder / "model.safetensors").unlink()
    torch.save({name: value.half() for name, value in tensors.items()}, folder / "pytorch_model.bin")
    assert stored_dtype(folder) == torch.float16
    mixed = {name: value.half() if "norm" in name else value for name, value in tensors.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    assert stored_dtype(folder) is None
    assert stored_dtype("a/name-of-the-hub") is None


def test_plain_is_transformers_own_attention(tmp_path: Path) -> None:
    from transformers.models.mpt.modeling_mpt import MptAttention

    from flamingo_eval.models.flamingo.hosts.mpt import FusedAttention

    toml = str(write_flamingo(tmp_path / "mpt", "mpt"))
    for plain in (False, True):
        source: Any = registry.model_source(toml, {"plain": plain, "keep": False})
        kinds = {type(block.attn) for block in source.load("cpu", "fp32").model.language.transformer.blocks}
        assert kinds == {MptAttention if plain else FusedAttention}
