"""What a review found about models of transformers: odd tokens, templates, sizes, options of loaded models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flamingo_eval.core.errors import CheckpointError, DeviceMemoryError, QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Prompt, Ranking, Turn
from flamingo_eval.core.registry import model_source
from tests.support.small_vlms import save_vlm

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
TEXT = Decoding(8, num_beams=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    return {name: save_vlm(name, folder / name) for name in ("smolvlm", "qwen2_5_vl", "idefics2")}


@pytest.fixture
def images(tmp_path: Path) -> Images:
    for i, size in enumerate(((40, 30), (60, 40), (900, 3))):
        pixels = np.random.RandomState(i).randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return Images(tmp_path)


def prompt(*names: int, text: str = "what?") -> Prompt:
    *shown, last = names
    return Prompt(tuple(Turn((f"{i}.png",), text, "a dog") for i in shown), Turn((f"{last}.png",), text))


def load(folder: Path, **options: Any) -> Any:
    return model_source(f"hf:{folder}", options, {"keep": False}).load("cpu", "fp32")


def changed(folder: Path, name: str, **values: Any) -> None:
    table = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(table | values))


def test_what_fills_a_batch_up_is_no_answer(saved: dict[str, Path], images: Images, tmp_path: Path) -> None:
    """The pad token may be an ordinary one, or none that there is; texts end early, some before others."""
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    changed(folder, "generation_config.json", pad_token_id=40)
    model = load(folder)
    some = [prompt(0, 1), prompt(1, 0, text="where is it, and why?"), prompt(1)]
    prepared = [model.prepare(one, TEXT, images) for one in some]
    for end in range(3, 250):  # an end that some row comes to
        model.generator._tokens["eos_token_id"] = end
        alone = [model.answer([one], TEXT)[0] for one in prepared]
        if len({len(text) for text in alone}) > 1:
            assert model.answer(prepared, TEXT) == alone
            break
    else:
        pytest.fail("no text ended before another")
    table = json.loads((folder / "generation_config.json").read_text())
    table.pop("pad_token_id")
    (folder / "generation_config.json").write_text(json.dumps(table))
    changed(folder, "config.json", pad_token_id=128002)
    model = load(folder)
    assert model.generator.pad_id == 0, "the tokenizer's: there is no such row of the embedding"
    assert len(model.answer([model.prepare(one, TEXT, images) for one in some], TEXT)) == 3


def test_the_date_in_a_template(saved: dict[str, Path], images: Images, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    own = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}." + own)
    source = model_source(f"hf:{folder}", {})
    assert "the template asks for the date: it is always 2024-07-26" in source.info().notes
    model: Any = source.load("cpu", "fp32")
    shown = model.reader.tokenizer.decode(model.prepare(prompt(0), TEXT, images).tokens.ids)
    assert shown.startswith(("<bos>Today is 26 Jul 2024.", "Today is 26 Jul 2024."))
    (folder / "chat_template.jinja").write_text("{% set f = '%d' %}{{ strftime_now(f) }}" + own)
    with pytest.raises(CheckpointError, match="asks for today's date in a way that can't be fixed"):
        model_source(f"hf:{folder}", {}).load("cpu", "fp32")


def test_templates_of_other_forms(saved: dict[str, Path], images: Images, tmp_path: Path) -> None:
    """transformers' own tag, and messages whose content is a text."""
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    own = (folder / "chat_template.jinja").read_text()
    expected = load(folder).prepare(prompt(0, 1), TEXT, images).tokens.ids
    tagged = own.replace("{{ part.text }}", "{%- generation -%}{{ part.text }}{%- endgeneration -%}")
    plain = own.replace("{% for part", "{% if message.content is string %}{{ message.content }}{% else %}{% for part")
    plain = plain.replace("{% endfor %}<|end|>", "{% endfor %}{% endif %}<|end|>")
    plain = plain.replace("{% for message", "{% for message in messages if message.role == 'assistant' and message.content is not string %}"
                          "{{ raise_exception('texts, please') }}{% endfor %}{% for message")  # fmt: skip
    for template in (tagged, plain):
        (folder / "chat_template.jinja").write_text(template)
        assert load(folder).prepare(prompt(0, 1), TEXT, images).tokens.ids == expected


def test_which_files_a_model_is(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        model_source(f"hf:{folder}", {}).info()
    (folder / "adapter_config.json").unlink()
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    changed(folder, "config.json", transformers_weights="other.safetensors")
    before = model_source(f"hf:{folder}", {}).info()
    assert any(name.endswith("other.safetensors") for name in before.parts)
    shutil.copy(saved["qwen2_5_vl"] / "model.safetensors", folder / "other.safetensors")
    assert model_source(f"hf:{folder}", {}).info().digest != before.digest


def test_the_type_that_weights_are_stored_in(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    for table, precision in (
        ({"dtype": "float32"}, "fp32"),
        ({"dtype": "bfloat16"}, "bf16"),
        ({"dtype": None}, "fp32"),
    ):
        changed(folder, "config.json", **table)
        assert model_source(f"hf:{folder}", {}).files.precision == precision  # type: ignore[attr-defined]


def test_pixels_and_tokens_of_an_image(saved: dict[str, Path], images: Images) -> None:
    """Qwen's processor repeats a still image; Idefics2's writes its tokens without being given the image."""
    with pytest.raises(UserError, match=r"--max-pixels 10: an image has 784 pixels at least, one token"):
        load(saved["qwen2_5_vl"], max_pixels=10)
    few = load(saved["qwen2_5_vl"], max_pixels=784).prepare(prompt(1, 1), TEXT, images)
    many = load(saved["qwen2_5_vl"], max_pixels=3136).prepare(prompt(1, 1), TEXT, images)
    assert len(few.tokens.ids) < len(many.tokens.ids)
    assert load(saved["idefics2"], image_tokens=6).why_plain == ""
    with pytest.raises(UserError, match="--image-tokens 3: Idefics2ImageProcessor can't be set so low"):
        load(saved["idefics2"], image_tokens=3)


def test_images_that_a_processor_does_not_take(saved: dict[str, Path], images: Images) -> None:
    for options in ({}, {"plain": True}):
        model = load(saved["qwen2_5_vl"], **options)
        odd = prompt(0, 2)
        model.prefetch([odd], TEXT, images)
        if not options:
            assert model.length(odd, images) > 0
        with pytest.raises(QueryError, match="can't be prepared"):
            model.prepare(odd, TEXT, images)
        with pytest.raises(QueryError, match=r"can't be|stands for an image"):
            model.prepare(prompt(0, 1, text="<|image_pad|>"), TEXT, images)
        assert model.answer([model.prepare(prompt(0, 1), TEXT, images)], TEXT)


def test_nothing_waits_for_a_prompt_that_is_refused(saved: dict[str, Path], images: Images) -> None:
    model = load(saved["smolvlm"])
    long = prompt(0, 1, text="x" * 9000)
    model.prefetch([long], TEXT, images)
    with pytest.raises(QueryError, match="the limit is 8184"):
        model.prepare(long, TEXT, images)
    assert len(model._pixels) == 0, "refused before an image is processed"
    model.prepare(prompt(0, 1), TEXT, images)
    assert len(model._pixels) == 2


def test_a_batch_that_does_not_fit(saved: dict[str, Path], images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tower in smaller parts, the prompts in fewer; names that have no tokens are told."""
    import torch

    model = load(saved["smolvlm"])
    asked = [model.prepare(prompt(0, 1), TEXT, images)]
    run, sizes = model._tower.run, []

    def small(some: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(some)

    monkeypatch.setattr(model._tower, "run", small)
    pixels = [model.reader.process(Image.new("RGB", (40, 30), colour), "") for colour in ("red", "blue", "green")]
    assert len(model._tower.encode(pixels)) == 3
    assert sizes == [3, 1, 1, 1]
    monkeypatch.setattr(model.generator, "text", lambda *_: small([0, 0]))
    with pytest.raises(DeviceMemoryError, match="a prompt of"):
        model.answer(asked, TEXT)
    with pytest.raises(UserError, match="has no token"):
        model.prepare(prompt(0), Ranking(("a", "")), images)


def test_options_of_a_loaded_model_are_part_of_its_runs(saved: dict[str, Path], tmp_path: Path) -> None:
    from flamingo_eval import evaluate, load_model

    how: dict[str, Any] = {"shots": [0], "num_samples": 2, "seeds": [42], "data_root": "demo", "out": tmp_path / "run"}
    model = load_model(f"hf:{saved['smolvlm']}", device="cpu", system="Be brief.")
    evaluate(model, "coco", **how)
    assert json.loads((tmp_path / "run/run.json").read_text())["identity"]["system"] == "Be brief."
    with pytest.raises(UserError, match="system"):
        evaluate(load_model(f"hf:{saved['smolvlm']}", device="cpu"), "coco", **how)
    again = evaluate(model, "coco", **{**how, "out": tmp_path / "other"}, rendering="chat")
    assert json.loads((tmp_path / "other/run.json").read_text())["identity"]["system"] == "Be brief.", "one by one"
    assert again


def test_one_image_architectures_run_without_shots(tmp_path: Path, images: Images) -> None:
    """By the plain path, as their processors stand: GIT's has no token for an image."""
    import transformers as t

    from tests.support.small_vlms import tokenizer

    words = tokenizer()
    config = t.GitConfig(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8},
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    t.GitForCausalLM(config).save_pretrained(tmp_path / "git")
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    t.GitProcessor(t.CLIPImageProcessor(**sizes), words).save_pretrained(tmp_path / "git")
    source = model_source(f"hf:{tmp_path / 'git'}", {})
    assert source.capabilities.images == 1
    model: Any = source.load("cpu", "fp32")
    assert model.why_plain
    assert isinstance(model.answer([model.prepare(prompt(0), TEXT, images)], TEXT)[0], str)
    with pytest.raises(UserError, match="takes 1"):
        model.generate("what?", ["0.png"], demonstrations=[(["1.png"], "what?", "a dog")])


def test_marks_are_the_same_by_name_loaded_and_live(saved: dict[str, Path]) -> None:
    """Idefics2's processor gives its tokenizer tokens that are no part of ``all_special_tokens``."""
    named = set(model_source(f"hf:{saved['idefics2']}", {}).renderer.marks)
    loaded = set(load(saved["idefics2"]).source.renderer.marks)
    assert {"<image>", "<|end|>", "<|assistant|>"} <= named
    assert named == loaded


@pytest.mark.parametrize("plain", [False, True])
def test_an_image_token_that_is_not_marked_special(
    plain: bool, saved: dict[str, Path], images: Images, tmp_path: Path
) -> None:
    """A text that holds it fails by itself; so does what the model refuses once it has been prepared."""
    folder = Path(shutil.copytree(saved["idefics2"], tmp_path / "model"))
    table = json.loads((folder / "tokenizer.json").read_text())
    for one in table["added_tokens"]:
        one["special"] = one["special"] and one["content"] != "<image>"
    (folder / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="--system holds <image>, which stands for an image"):
        load(folder, plain=plain, system="an <image>")
    model = load(folder, plain=plain)
    with pytest.raises(QueryError, match="holds <image>, which stands for an image"):
        model.prepare(prompt(0, 1, text="what <image> is it?"), TEXT, images)
    with pytest.raises(UserError, match=r"holds <image>.*demonstrations="):
        model.generate("what <image> is it?")
    model._words._image_marks = ()
    if not plain:
        model.reader._image_marks = ()
    with pytest.raises(QueryError, match=r"the model refuses a prompt|can't be"):
        model.answer([model.prepare(prompt(0, 1, text="what <image> is it?"), TEXT, images)], TEXT)
    assert isinstance(model.answer([model.prepare(prompt(0, 1), TEXT, images)], TEXT)[0], str)


@pytest.mark.parametrize(
    "asks", ["{% set now = strftime_now %}{{ now('%Y') }}", "{{ (strftime_now)(f) }}", "{{ strftime_now\t(f) }}"]
)
def test_today_by_another_name_is_refused(asks: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    own = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(asks + own)
    with pytest.raises(CheckpointError, match="asks for today's date in a way that can't be fixed"):
        load(folder)
    (folder / "chat_template.jinja").write_text(
        "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + own
    )
    assert load(folder)


def test_a_system_message_that_a_template_trims(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "model"))
    own = (folder / "chat_template.jinja").read_text()
    trimmed = own.replace("part.text", "part.text | trim").replace("part['text']", "part['text'] | trim")
    assert trimmed != own
    (folder / "chat_template.jinja").write_text(trimmed)
    assert load(folder, system=" say 'type': a ")
    (folder / "chat_template.jinja").write_text(trimmed.replace("| trim", "[:40]"))
    with pytest.raises(UserError, match="it leaves out"):
        load(folder)


def test_files_that_hold_something_else(saved: dict[str, Path], tmp_path: Path) -> None:
    for number, listed in enumerate((5, [{"special": True}])):
        folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / str(number)))
        changed(folder, "tokenizer.json", added_tokens=listed)
        with pytest.raises(CheckpointError, match=r"the processor of hf:.* can't be loaded"):
            load(folder)
    folder = Path(shutil.copytree(saved["smolvlm"], tmp_path / "no dtype"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    source = model_source(f"hf:{folder}", {})
    assert source.resolve("cpu", "auto") == ("cpu", "fp32")
    with pytest.raises(CheckpointError):
        source.load("cpu", "fp32")


def test_what_python_may_hand_over(saved: dict[str, Path]) -> None:
    from transformers import AutoModelForImageTextToText

    from flamingo_eval import evaluate

    model = load(saved["smolvlm"])
    for arguments in ({"max_new_tokens": 0}, {"num_beams": 0}, {"images": "0.png"}):
        with pytest.raises(UserError, match="give images as a list"):
            model.generate("what?", **arguments)
    with pytest.raises(UserError, match="not ndarray"):
        model.generate("what?", [np.zeros((4, 4, 3))])
    network = AutoModelForImageTextToText.from_pretrained(saved["smolvlm"])
    with pytest.raises(CheckpointError, match="prepares no images and texts together"):
        evaluate(network, "coco", processor=model.source.processor.tokenizer, shots=[0], data_root="demo")
    with pytest.raises(CheckpointError, match="name a folder or a repository"):
        model_source("hf:", {})
    with pytest.raises(CheckpointError, match="a folder has no revisions"):
        model_source(f"hf:{saved['smolvlm']}@main", {})
