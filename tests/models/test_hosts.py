"""Every language host: loads, and answers the same fast and plain, cached and uncached, alone and in a batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.records import Decoding, Ranking, Rendering
from tests.support.bundles import load_over
from tests.support.helpers import Kit, LazyModule
from tests.support.small_flamingos import TEXTS, WIDTH, make_language, write_flamingo

pytestmark = pytest.mark.torch
torch: Any = LazyModule("torch")
HOSTS = ("gpt_neox", "llama", "mosaic_gpt", "mpt", "opt")


def load(toml: Path, kit: Kit, plain: bool = False) -> Any:
    return load_over(registry.model_source(str(toml), {"plain": plain}), kit.data)


def prompts_of(kit: Kit) -> list[Rendering]:
    images = kit.images(9)
    return [
        Rendering(t, tuple(images[(3 * i + j) % 9] for j in range(t.count("<image>")))) for i, t in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("host", HOSTS)
def test_answers(kit: Kit, tmp_path: Path, host: str) -> None:
    toml = write_flamingo(tmp_path / host, host)
    fast, plain, prompts = load(toml, kit), load(toml, kit, plain=True), prompts_of(kit)
    for task in (Decoding(12), Decoding(8, num_beams=1), Decoding(10, length_penalty=-2.0)):
        expected = [plain.answer([plain.read(p, task)], task)[0] for p in prompts]
        assert len(set(expected)) > 2, "the texts differ, so that equality means something"
        assert fast.answer([fast.read(p, task) for p in prompts], task) == expected
        assert [fast.answer([fast.read(p, task)], task)[0] for p in prompts] == expected
    names = Ranking(("yes", "no way, never", "a grey wolf in the snow"))
    together = fast.answer([fast.read(p, names) for p in prompts], names)
    for prompt, ours in zip(prompts, together, strict=True):
        theirs = plain.answer([plain.read(prompt, names)], names)[0]
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("host", HOSTS)
def test_embeddings_are_resized_and_outputs_of_added_tokens(kit: Kit, tmp_path: Path, host: str) -> None:
    """The base model has more rows than tokens, or fewer; LLaMA's added output rows are zero, and that is said."""
    for padded in (24, -2):
        toml = write_flamingo(tmp_path / f"{host}{padded}", host, padded=padded)
        model = load(toml, kit)
        tokens = len(model.tokenizer)
        assert model.model.language.get_input_embeddings().weight.shape == (tokens, WIDTH)
        output = model.model.language.get_output_embeddings()
        assert output is None or output.weight.shape == (tokens, WIDTH)
        if host == "llama" and padded < 0:
            assert output.weight[padded:].abs().max() == 0
            assert output.weight[:padded].abs().max() > 0
        notes = registry.model_source(str(toml)).info().notes
        assert any("output layer's rows of the added tokens are zero" in note for note in notes) == (host == "llama")


def rewrite(toml: Path, change: Any) -> None:
    state = torch.load(toml.parent / "checkpoint.pt", weights_only=True)
    torch.save(change(state), toml.parent / "checkpoint.pt")


def with_old_things(host: str, state: dict[str, Any]) -> dict[str, Any]:
    """What files of that family hold besides: buffers, tied copies, OPT's positions, v1's second copies of blocks."""
    from flamingo_eval.models.flamingo.hosts import HOSTS as KNOWN

    path = KNOWN[host].decoder_path
    extra = {f"lang_encoder.{path}.1.decoder_layer.attention.bias": torch.ones(1),
             f"lang_encoder.{path}.0.decoder_layer.self_attn.rotary_emb.inv_freq": torch.ones(2)}  # fmt: skip
    for key, value in state.items():
        if ".gated_cross_attn_layer." in key:
            _, _, rest = key.partition(path + ".")
            number, _, name = rest.partition(".gated_cross_attn_layer.")
            extra[f"lang_encoder.gated_cross_attn_layers.{number}.{name}"] = value.clone()
    if host == "opt":
        extra["lang_encoder.model.decoder.embed_positions.weight"] = torch.zeros(514, WIDTH)
        extra["lang_encoder.lm_head.weight"] = state["lang_encoder.model.decoder.embed_tokens.weight"].clone()
    if host in ("mpt", "mosaic_gpt"):
        extra["lang_encoder.lm_head.weight"] = state["lang_encoder.transformer.wte.weight"].clone()
    return {"model_state_dict": {f"module.{key}": value for key, value in {**state, **extra}.items()}}


@pytest.mark.parametrize("host", HOSTS)
def test_layout_v1_and_all_that_old_files_hold(kit: Kit, tmp_path: Path, host: str) -> None:
    toml = write_flamingo(tmp_path / host, host)
    task, prompt = Decoding(8), prompts_of(kit)[1]
    plain_file = load(toml, kit)
    before = plain_file.answer([plain_file.read(prompt, task)], task)
    rewrite(toml, lambda state: with_old_things(host, state))
    model = load(toml, kit)
    if host != "opt":  # the zeroed positions are another model
        assert model.answer([model.read(prompt, task)], task) == before
    else:
        assert model.model.language.model.decoder.embed_positions.weight.abs().max() == 0


def test_copies_that_contradict_each_other_are_refused(kit: Kit, tmp_path: Path) -> None:
    toml = write_flamingo(tmp_path / "m", "mpt")

    def contradict(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "lang_encoder.lm_head.weight": state["lang_encoder.transformer.wte.weight"] + 1}

    rewrite(toml, contradict)
    with pytest.raises(CheckpointError, match=r"twice, and not the same: lm_head\.weight"):
        load(toml, kit)


def test_blocks_of_layout_v1_alone(kit: Kit, tmp_path: Path) -> None:
    """Blocks that are there under their v1 name only are as good, and one of a layer without block is refused."""
    toml = write_flamingo(tmp_path / "m", "llama")
    prefix = "lang_encoder.model.layers."

    def rename(state: dict[str, Any]) -> dict[str, Any]:
        return {
            key.replace(prefix, "lang_encoder.gated_cross_attn_layers.").replace(".gated_cross_attn_layer.", "."): value
            for key, value in state.items()
        }

    rewrite(toml, rename)
    load(toml, kit)
    rewrite(toml, lambda state: {**state, "lang_encoder.gated_cross_attn_layers.0.attn_gate": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 unexpected \(lang_encoder.gated_cross_attn_layers.0.attn_gate\)"):
        load(toml, kit)


def plain_mosaic(state: dict[str, Any], ids: list[int], heads: int) -> Any:
    """The architecture as protocol.md describes it, one sequence, no cache, written another way: loops and einsum."""
    x = state["transformer.wte.weight"][ids].double()

    def norm(t: Any, name: str) -> Any:
        mean, var = t.mean(-1, keepdim=True), t.var(-1, unbiased=False, keepdim=True)
        return (t - mean) / torch.sqrt(var + 1e-5) * state[name].double()

    for layer in range(sum(key.endswith("ln_1.weight") for key in state)):
        p = f"transformer.blocks.{layer}."
        qkv = norm(x, p + "ln_1.weight") @ state[p + "attn.Wqkv.weight"].double().T
        q, k, v = qkv.split(x.shape[-1], dim=-1)
        q, k = norm(q, p + "attn.q_ln.weight"), norm(k, p + "attn.k_ln.weight")
        size = x.shape[-1] // heads
        out = torch.zeros_like(x)
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            slope = 2.0 ** (-8 * (h + 1) / heads)
            for i in range(len(ids)):
                scores = torch.stack(
                    [q[i, part] @ k[j, part] / math.sqrt(size) - slope * (i - j) for j in range(i + 1)]
                ).softmax(0)
                out[i, part] = sum(scores[j] * v[j, part] for j in range(i + 1))
        x = x + out @ state[p + "attn.out_proj.weight"].double().T
        hidden = norm(x, p + "ln_2.weight") @ state[p + "mlp.mlp_up.weight"].double().T
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + hidden @ state[p + "mlp.mlp_down.weight"].double().T
    return norm(x, "transformer.ln_f.weight") @ state["transformer.wte.weight"].double().T


def test_mosaic_gpt_against_a_plain_implementation() -> None:
    torch.manual_seed(3)
    language = make_language("mosaic_gpt", 50)
    with torch.no_grad():
        for name, parameter in language.named_parameters():
            if "ln_" in name or "_ln" in name:
                parameter.uniform_(0.5, 1.5)
    state = language.state_dict()
    assert set(state) == {
        "transformer.wte.weight",
        "transformer.ln_f.weight",
        *(
            f"transformer.blocks.{i}.{name}.weight"
            for i in range(4)
            for name in (
                "ln_1",
                "ln_2",
                "attn.Wqkv",
                "attn.q_ln",
                "attn.k_ln",
                "attn.out_proj",
                "mlp.mlp_up",
                "mlp.mlp_down",
            )
        ),
    }, "the published tensors, no more and no less"
    ids = [3, 14, 15, 9, 2, 6, 5, 35, 8, 9]
    expected = plain_mosaic(state, ids, 4)
    with torch.inference_mode():
        uncached = language(torch.tensor([ids])).logits[0]
        padded = language(torch.tensor([[0, 0, *ids]]), attention_mask=torch.tensor([[0, 0] + [1] * len(ids)])).logits
        first = language(torch.tensor([ids[:4]]), use_cache=True)
        rows, cache = [first.logits[0]], first.past_key_values
        for id in ids[4:]:
            output = language(torch.tensor([[id]]), past_key_values=cache, use_cache=True)
            rows.append(output.logits[0])
    assert (uncached - expected).abs().max() < 1e-4
    assert (padded[0, 2:] - expected).abs().max() < 1e-4
    assert (torch.cat(rows) - expected).abs().max() < 1e-4


def test_alibi_slopes() -> None:
    """By hand for eight heads; for a number that is no power of two as the ALiBi paper's code interleaves them."""
    from flamingo_eval.models.flamingo.hosts.mosaic_gpt import alibi_slopes

    assert alibi_slopes(8, 8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(16, 8)[:2].tolist() == pytest.approx([2**-0.5, 2**-1.0])
    assert alibi_slopes(3, 8).tolist() == pytest.approx([2**-4, 2**-8, 2**-2])


def test_settings_that_a_host_would_ignore_are_refused(kit: Kit, tmp_path: Path) -> None:
    for host, change in (("mosaic_gpt", {"alibi": False}), ("mosaic_gpt", {"attn_qk_ln": False}),
                         ("mpt", {"attn_config": {"qk_ln": True}}), ("mpt", {"attn_config": {"alibi": False}})):  # fmt: skip
        folder = tmp_path / f"{host}{len(list(tmp_path.iterdir()))}"
        toml = write_flamingo(folder, host)
        config = json.loads((folder / "lm" / "config.json").read_text())
        (folder / "lm" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match="MPT-"):
            load(toml, kit)


def test_a_family_that_is_not_known(kit: Kit, tmp_path: Path) -> None:
    """Refused by name with the list of known ones; with its layers' path it works, and a wrong path is refused."""
    from transformers import GPT2Config, GPT2LMHeadModel

    toml = write_flamingo(tmp_path / "m", "gpt_neox")
    state = torch.load(toml.parent / "checkpoint.pt", weights_only=True)
    rows = state["lang_encoder.embed_out.weight"].shape[0]
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config(vocab_size=rows + 3, n_embd=WIDTH, n_layer=4, n_head=4)).save_pretrained(
        toml.parent / "lm"
    )
    with pytest.raises(
        CheckpointError, match="type 'gpt2' is not supported; supported types: gpt_neox, llama, mosaic_gpt"
    ):
        load(toml, kit)
    described = toml.read_text()
    toml.write_text(described + 'decoder_layers = "transformer.layers"\n')
    with pytest.raises(CheckpointError, match=r"GPT2LMHeadModel has no list of layers there; it has: transformer.h"):
        load(toml, kit)
    toml.write_text(described + 'decoder_layers = "transformer.h"\n')
    torch.save(
        {
            **{k.replace("gpt_neox.layers", "transformer.h"): v for k, v in state.items() if "gated" in k},
            **{k: v for k, v in state.items() if k.startswith("perceiver.")},
            "lang_encoder.transformer.wte.weight": torch.randn(rows, WIDTH) * 0.1,
        },
        toml.parent / "checkpoint.pt",
    )
    fast, plain, task = load(toml, kit), load(toml, kit, plain=True), Decoding(8)
    prompts = prompts_of(kit)
    assert fast.answer([fast.read(p, task) for p in prompts], task) == [
        plain.answer([plain.read(p, task)], task)[0] for p in prompts
    ]


def test_a_family_whose_attention_goes_by_the_place_in_the_cache(kit: Kit, tmp_path: Path) -> None:
    """ALiBi by key index, or a sliding window: refused by name, whatever path is given."""
    from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

    toml = write_flamingo(tmp_path / "m", "gpt_neox")
    state = torch.load(toml.parent / "checkpoint.pt", weights_only=True)
    rows = state["lang_encoder.embed_out.weight"].shape[0]
    described = toml.read_text()
    bloom = BloomForCausalLM(BloomConfig(vocab_size=rows, hidden_size=WIDTH, n_layer=4, n_head=4))
    mistral = MistralForCausalLM(
        MistralConfig(vocab_size=rows, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=4,
                      num_attention_heads=4, num_key_value_heads=2, sliding_window=64)
    )  # fmt: skip
    for language, path, name in (
        (bloom, "transformer.h", "transformer.word_embeddings"),
        (mistral, "model.layers", "model.embed_tokens"),
    ):
        language.save_pretrained(toml.parent / "lm")
        toml.write_text(f'{described}decoder_layers = "{path}"\n')
        trained = {k.replace("gpt_neox.layers", path): v for k, v in state.items() if "gated" in k or "perceiver" in k}
        torch.save({**trained, f"lang_encoder.{name}.weight": torch.randn(rows, WIDTH)}, toml.parent / "checkpoint.pt")
        with pytest.raises(CheckpointError, match=r"(Bloom|Mistral)ForCausalLM (can't be used|sees only a window)"):
            load(toml, kit)


@pytest.mark.parametrize("host", ["gpt_neox", "llama", "mosaic_gpt", "mpt"])
@pytest.mark.parametrize("precision", ["bf16", "amp_bf16"])
def test_long_prompts_in_bfloat16(kit: Kit, tmp_path: Path, host: str, precision: str) -> None:
    """Positions are not rounded: behind 400 tokens log-likelihoods differ from float32 no more than behind few."""
    toml = write_flamingo(tmp_path / host, host)
    source: Any = registry.model_source(str(toml))
    task = Ranking(("yes", "a grey wolf in the snow"))
    off = {}
    for words in (4, 380):
        prompt = Rendering("a " * words + "<image>Output:", (prompts_of(kit)[0].images[0],))
        output = []
        for kind in ("fp32", precision):
            model = load_over(source, kit.data, kind)
            output.append(model.answer([model.read(prompt, task)], task)[0])
        off[words] = max(abs(output[0][name] - output[1][name]) for name in task.names)
    assert off[380] < max(0.3, 3 * off[4]), off


def test_rotary_frequencies_stay_float32(kit: Kit, tmp_path: Path) -> None:
    toml = write_flamingo(tmp_path / "m", "gpt_neox")
    for precision in ("bf16", "fp16", "amp_bf16"):
        source: Any = registry.model_source(str(toml))
        model = load_over(source, kit.data, precision)
        buffers = dict(model.model.language.named_buffers())
        assert any("inv_freq" in name for name in buffers)
        assert all(value.dtype == torch.float32 for name, value in buffers.items() if "inv_freq" in name)


def test_code_in_the_language_models_weights_is_not_run(kit: Kit, tmp_path: Path) -> None:
    import pickle

    toml = write_flamingo(tmp_path / "m", "gpt_neox")
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (touched,))

    (toml.parent / "lm" / "model.safetensors").unlink()
    (toml.parent / "lm" / "pytorch_model.bin").write_bytes(
        pickle.dumps({"gpt_neox.embed_in.weight": Evil()}, protocol=2)
    )
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin can't be loaded: it holds more than tensors"):
        load(toml, kit)
    assert not touched.exists()


@pytest.mark.parametrize("host", HOSTS)
def test_casting_ahead_is_what_autocast_does(
    kit: Kit, tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers to the last bit; embeddings, norms, vision tower and resampler stay float32."""
    from flamingo_eval.models.flamingo import loading

    toml = write_flamingo(tmp_path / host, host)
    tasks = (Decoding(8), Ranking(("yes", "no way, never")))
    found: list[Any] = []
    for prefetched in (True, False):
        if not prefetched:
            monkeypatch.setattr(loading, "cast_ahead", lambda _: set())
        source = registry.model_source(str(toml))
        model: Any = load_over(source, kit.data, "amp_bf16")
        prepared = [model.read(prompt, tasks[0]) for prompt in prompts_of(kit)]
        with torch.inference_mode():
            logits = model._prefix(prepared, tasks[0], 36).logits
        found.append((logits, [model.answer([model.read(p, t) for p in prompts_of(kit)], t) for t in tasks]))
        halved = [p for p in model.model.parameters() if p.dtype == torch.bfloat16]
        assert bool(halved) == prefetched
        kept = (model.model.language.get_input_embeddings(), model.model.vision, model.model.perceiver)
        assert all(p.dtype == torch.float32 for part in kept for p in part.parameters())
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
