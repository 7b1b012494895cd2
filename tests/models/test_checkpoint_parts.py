"""A checkpoint's parts are what they claim to be, or are refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.models.flamingo import FlamingoSource
from flamingo_eval.models.flamingo.spec import VisionSpec, read_spec
from tests.support.bundles import digest_of, load, load_over, rewrite, texts_of
from tests.support.helpers import Cli, LazyModule, read_lines, write_coco_root

torch: Any = LazyModule("torch")
loading: Any = LazyModule("flamingo_eval.models.flamingo.loading")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("given", [None, True, False])
def test_the_activation_of_weights_from_a_file_is_never_guessed(tmp_path: Path, given: bool | None) -> None:
    """OpenAI's ViT-L-14 as a file: open_clip has the model with GELU and with QuickGELU."""
    file = tmp_path / "ViT-L-14.safetensors"
    file.write_bytes(b"stand-in")

    def spec() -> VisionSpec:
        source: Any = registry.image_encoder("ViT-L-14", {"pretrained": str(file), "quick_gelu": given})
        found: VisionSpec = source.spec
        assert found.activation is not None
        assert source.info().notes == (
            f"vision weights from a file (ViT-L-14.safetensors), used with {found.activation}",
        )
        assert source.info().parts["activation"] == found.activation
        return found

    if given is None:
        with pytest.raises(
            CheckpointError, match=r"ViT-L-14.safetensors: .*--rices-quick-gelu or --no-rices-quick-gelu"
        ):
            spec()
    else:
        assert spec().activation == ("QuickGELU" if given else "GELU")
    assert VisionSpec("ViT-L-14-quickgelu", file).activation == "QuickGELU"
    VisionSpec("ViT-L-14-quickgelu", file).check()
    with pytest.raises(UserError, match="--rices-quick-gelu works only with weights from a file"):
        registry.image_encoder("ViT-L-14", {"pretrained": "openai", "quick_gelu": True})


def test_a_checkpoint_description_must_say_the_activation_too(bundle: Path) -> None:
    toml = bundle / "model.toml"
    text = toml.read_text().replace('model = "flamingo-eval-demo-vit"', 'model = "ViT-B-32"')
    toml.write_text("\n".join(line for line in text.splitlines() if not line.startswith("configs")))
    with pytest.raises(CheckpointError, match=r"clip.pt: open_clip has ViT-B-32 with GELU and"):
        read_spec(toml)
    toml.write_text(toml.read_text().replace("[language]", "quick_gelu = false\n[language]"))
    assert read_spec(toml).vision.activation == "GELU"


def test_the_activation_used_is_reported_and_recorded(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    root = write_coco_root(tmp_path / "data", train=4, test=2)
    toml = bundle / "model.toml"
    for line, activation in (("", "GELU"), ("quick_gelu = true\n", "QuickGELU")):
        toml.write_text(toml.read_text().replace("[language]", f"{line}[language]"))
        out = tmp_path / activation
        result = cli("coco", "--checkpoint", toml, "--data-root", root, "--shots", "1", "--device", "cpu", "--select",
                     "rices", "--rices-model", toml, "--out", out, "--notes")  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert f"vision weights from a file (clip.pt), used with {activation}" in result.stdout
        record = json.loads((out / "run.json").read_text())
        assert record["checkpoint"]["parts"]["activation"] == activation
        assert record["encoder"]["parts"]["activation"] == activation
        assert f"rices: vision weights from a file (clip.pt), used with {activation}" in result.stdout


Change = Callable[[dict[str, Any]], object]
EMBEDDING = "lang_encoder.gpt_neox.embed_in.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({EMBEDDING: s[EMBEDDING].to(torch.complex64)}), f"{EMBEDDING} is of type torch.complex64"),
        (lambda s: s.update({EMBEDDING: s[EMBEDDING].to(torch.int8)}), f"{EMBEDDING} is of type torch.int8"),
        (lambda s: s[EMBEDDING].fill_(float("nan")), f"{EMBEDDING} holds values that are no numbers"),
        (lambda s: s[EMBEDDING].view(-1)[7:8].fill_(float("inf")), f"{EMBEDDING} holds values that are no numbers"),
        (lambda s: s.update({"perceiver.latents": torch.tensor(1.0)}), r"perceiver.latents has shape \(\)"),
        (lambda s: s.update({EMBEDDING: torch.ones(1).expand(10**6, 10**6)}), "has 1,000,000,000,000 values, more than"),
        (lambda s: s.update({"perceiver.layers.9999999.0.to_q.weight": torch.ones(1, 1)}), "must count from 0"),
    ],
)  # fmt: skip
def test_tensors_that_would_be_misread_are_refused_by_name(bundle: Path, change: Change, message: str) -> None:
    rewrite(bundle, change)
    with pytest.raises(CheckpointError, match=message) as error:
        load(bundle)
    assert "checkpoint" in str(error.value)


@pytest.mark.parametrize("kind", ["complex64", "int8", "nan"])
@pytest.mark.parametrize("part", ["lm/model.safetensors", "clip.pt"])
def test_the_other_parts_tensors_are_looked_at_too(bundle: Path, part: str, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    path = bundle / part
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    name = next(name for name in sorted(tensors) if name.endswith("mlp.c_fc.weight") or "dense_h_to_4h.weight" in name)
    changed = tensors[name] * float("nan") if kind == "nan" else tensors[name].to(getattr(torch, kind))
    tensors = {**{k: v.clone() for k, v in tensors.items()}, name: changed}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    where = "lm" if kind == "nan" and part.startswith("lm") else part
    with pytest.raises(CheckpointError, match=rf"{where}: tensor {name} (is of type|holds values that are no numbers)"):
        load(bundle)


CONTENTS = {
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "empty": b"",
    "page": b"<!DOCTYPE html><html><body>404</body></html>",
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "twice": b'{"model_type": "gpt_neox", "model_type": "llama"}',
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(
    "part",
    ["model.toml", "checkpoint.pt", "clip.pt", "lm/config.json", "lm/model.safetensors", "lm/generation_config.json",
     "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "open_clip_configs/flamingo-eval-demo-vit.json"],
)  # fmt: skip
def test_a_part_that_is_something_else_is_named(bundle: Path, part: str, content: str) -> None:
    (bundle / part).write_bytes(CONTENTS[content])
    with pytest.raises(CheckpointError) as error:
        load(bundle)
    message = str(error.value)
    assert str(bundle / part) in message
    for kind, words in {"pointer": "is a Git LFS pointer", "empty": "is empty", "page": "is a web page"}.items():
        assert content != kind or words in message or part == "model.toml"
    assert "weights_only" not in message
    assert len(message) < 900


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("lm/config.json", "hidden_size", "wide"),
        ("lm/config.json", "hidden_size", 129),
        ("lm/config.json", "num_attention_heads", 7),
        ("lm/config.json", "num_hidden_layers", 10**9),
        ("lm/config.json", "num_hidden_layers", -1),
        ("lm/config.json", "model_type", None),
        ("lm/config.json", "model_type", ["gpt_neox"]),
        ("lm/config.json", "hidden_act", "no such"),
        ("lm/config.json", "rope_parameters", 5),
        ("open_clip_configs/flamingo-eval-demo-vit.json", "vision_cfg", {"layers": 10**9, "width": 64}),
        ("open_clip_configs/flamingo-eval-demo-vit.json", "vision_cfg", {"layers": 2, "width": 60_000}),
        ("open_clip_configs/flamingo-eval-demo-vit.json", "vision_cfg", None),
        ("open_clip_configs/flamingo-eval-demo-vit.json", "vision_cfg", {"patch_size": 0}),
        ("tokenizer/tokenizer.json", "model", {"type": "BPE"}),
        ("tokenizer/tokenizer.json", "added_tokens", [{"id": "x"}]),
        ("tokenizer/tokenizer.json", "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}}),
    ],
)
def test_wrong_settings_are_a_checkpoints_mistake(bundle: Path, part: str, key: str, value: object) -> None:
    table = json.loads((bundle / part).read_text())
    (bundle / part).write_text(json.dumps({**table, key: value}))
    with pytest.raises(CheckpointError) as error:
        load(bundle)
    assert str((bundle / part).parent) in str(error.value)


def compiled(state: dict[str, Any]) -> dict[str, Any]:
    return {f"_orig_mod.{key}".replace("perceiver.", "perceiver._orig_mod."): value for key, value in state.items()}


def doubled(state: dict[str, Any]) -> dict[str, Any]:
    return {f"module.module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "model", "old pickle", ""])
@pytest.mark.parametrize("rename", [compiled, doubled])
def test_wrappers_that_training_leaves_are_taken_off(bundle: Path, rename: Any, wrap: str) -> None:
    plain = texts_of(load(bundle), bundle)
    state = torch.load(bundle / "checkpoint.pt", weights_only=True)["model_state_dict"]
    state = rename({key: value.clone() for key, value in state.items()})
    full = {wrap: state, "epoch": 3} if wrap not in ("", "old pickle") else state
    torch.save(full, bundle / "checkpoint.pt", _use_new_zipfile_serialization=wrap != "old pickle")
    assert texts_of(load(bundle), bundle) == plain


def test_names_that_wrappers_alone_tell_apart_are_refused(bundle: Path) -> None:
    rewrite(bundle, lambda state: state.update({"module." + EMBEDDING: state[EMBEDDING] * 2}))
    with pytest.raises(CheckpointError, match="holds tensors under names that differ only by their wrappers"):
        load(bundle)


def test_embeddings_padded_to_a_multiple_of_64_are_read_as_trained() -> None:
    """As many rows as pad_to_multiple_of=64 makes stay, logits included; any other number is refused."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from flamingo_eval.models.flamingo.checkpoint import TrainedPart
    from flamingo_eval.models.flamingo.model import resize_embeddings

    names = ("gpt_neox.embed_in.weight", "lm_head.weight")

    def language_with(rows: int, tokens: int) -> Any:
        config = GPTNeoXConfig(vocab_size=90, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=16)  # fmt: skip
        language = GPTNeoXForCausalLM(config).eval()
        trained = {name: torch.arange(rows * 16.0).reshape(rows, 16) for name in names}
        resize_embeddings(language, TrainedPart({}, {}, trained), tokens)
        return language

    for rows, tokens in ((128, 70), (128, 127), (128, 128), (70, 70)):
        assert language_with(rows, tokens)(torch.tensor([[0]])).logits.shape[-1] == rows
    for rows, tokens in ((192, 70), (71, 70), (64, 70), (72, 70)):
        with pytest.raises(CheckpointError, match="wrong tokenizer or wrong language model"):
            language_with(rows, tokens)


def test_a_token_that_is_only_padding_has_no_text(bundle: Path) -> None:
    tokenizer = load(bundle).tokenizer
    output = tokenizer.encode("a dog")
    assert tokenizer.decode([*output, len(tokenizer) + 5]) == tokenizer.decode(output)


def test_a_language_model_saved_inside_a_wrapper_is_reported_precisely(bundle: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = bundle / "lm/model.safetensors"
    save_file({f"_orig_mod.{k}": v.clone() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"has other tensors than it should: .*the names begin with _orig_mod: save the model inside",
    ):
        load(bundle)


def test_a_pipe_among_the_parts_does_not_hang(bundle: Path) -> None:
    (bundle / "lm/generation_config.json").unlink()
    os.mkfifo(bundle / "lm/generation_config.json")
    with pytest.raises(CheckpointError, match=r"generation_config.json can't be read: it is not a regular file"):
        load(bundle)


def test_a_text_that_the_tokenizer_cant_encode_fails_alone(bundle: Path, tmp_path: Path) -> None:
    """A tokenizer without an unknown token raises a bare Exception."""
    root = write_coco_root(tmp_path / "data", train=6, test=4)
    source = FlamingoSource(read_spec(bundle / "model.toml"))
    model: Any = load_over(source, root)
    inner = model.tokenizer.inner

    class Failing:
        def __call__(self, text: str, **settings: Any) -> Any:
            if "thing 101" in text:
                raise Exception("WordLevel error: Missing [UNK] token")
            return inner(text, **settings)

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    model.tokenizer.inner = Failing()
    from flamingo_eval import evaluate

    with pytest.raises(
        UserError, match=r"could not be answered.*\n.*the tokenizer can't encode .*Missing \[UNK\] token"
    ):
        evaluate(model, "coco", shots=[2], seeds=[42], data_root=root, out=tmp_path / "run")
    assert read_lines(tmp_path / "run/journal.jsonl")


def test_what_training_leaves_beside_a_model_is_no_obstacle(bundle: Path) -> None:
    """Indexes of weights that are not loaded, an adapter beside a tokenizer, optimizer states."""
    lm, tokenizer = bundle / "lm", bundle / "tokenizer"
    plain = texts_of(load(bundle), bundle)
    for index in (lm / "pytorch_model.bin.index.json", lm / "flax_model.msgpack.index.json",
                  tokenizer / "model.safetensors.index.json"):  # fmt: skip
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "not-downloaded.bin"}}))
    (tokenizer / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.9.9.9.json"]})
    )
    for name in ("training_args.bin", "optimizer.pt", "README.md", ".gitattributes", "trainer_state.json"):
        (lm / name).write_bytes(b"{}")
    assert texts_of(load(bundle), bundle) == plain


@pytest.mark.parametrize("name", ["local-dir:/tmp/x", "hf-hub:org/name", "org/name"])
def test_vision_models_that_bring_weights_of_their_own_are_refused(bundle: Path, name: str) -> None:
    toml = bundle / "model.toml"
    toml.write_text(toml.read_text().replace('model = "flamingo-eval-demo-vit"', f'model = "{name}"'))
    with pytest.raises(CheckpointError, match="give the name of an open_clip model configuration"):
        digest_of(bundle)


def test_configurations_of_another_checkpoint_do_not_serve(bundle: Path) -> None:
    load(bundle)
    toml = bundle / "model.toml"
    os.mkfifo(bundle / "open_clip_configs/other.json")
    load(bundle)
    (bundle / "open_clip_configs/flamingo-eval-demo-vit.json").unlink()
    with pytest.raises(CheckpointError, match="open_clip does not know the vision model 'flamingo-eval-demo-vit'"):
        load(bundle)
    toml.write_text(toml.read_text().replace('configs = "open_clip_configs"', 'configs = "clip.pt"'))
    with pytest.raises(CheckpointError, match=r"vision.configs: .*clip.pt is not a folder"):
        load(bundle)


@pytest.mark.parametrize(("key", "value"), [("num_labels", 20_000_000), ("num_hidden_layers", 9999)])
def test_numbers_that_would_take_hours_are_refused(bundle: Path, key: str, value: int) -> None:
    table = json.loads((bundle / "lm/config.json").read_text())
    (bundle / "lm/config.1.0.0.json").write_text(json.dumps({**table, key: value}))
    with pytest.raises(CheckpointError, match=rf"config.1.0.0.json: {key} is {value}"):
        load(bundle)


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(bundle: Path) -> None:
    """A pickle of megabytes of zeros, packed: torch would unpack it into memory."""
    import zipfile

    path, packed = bundle / "checkpoint.pt", bundle / "packed.pt"
    with zipfile.ZipFile(path) as full, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for name in full.namelist():
            out.writestr(name, b"\0" * 10**7 if name.endswith("data.pkl") else full.read(name))
    packed.replace(path)
    with pytest.raises(CheckpointError, match=r"checkpoint.pt is compressed; torch.save compresses nothing"):
        load(bundle)
