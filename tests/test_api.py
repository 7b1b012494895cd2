"""The Python API: a checkpoint that speaks, and models evaluated in the user's own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import flamingo_eval
from flamingo_eval.core.errors import CheckpointError, QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.support.helpers import LazyModule, run_cli
from tests.support.small_flamingos import write_flamingo

pytestmark = pytest.mark.torch
torch: Any = LazyModule("torch")


@pytest.fixture(scope="module")
def demo() -> Any:
    return flamingo_eval.load_model("demo", device="cpu")


def test_the_names_are_there_without_importing_torch() -> None:
    import subprocess
    import sys

    code = "import sys, flamingo_eval; print(flamingo_eval.__version__, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [flamingo_eval.__version__, "False"]
    with pytest.raises(AttributeError):
        _ = flamingo_eval.nothing


def test_the_interleaved_example(demo: Any, tmp_path: Path) -> None:
    """Two demonstrations and a query, from Pillow images and from files, equal to what the engine's path says."""
    from flamingo_eval.core.records import Decoding, Rendering
    from flamingo_eval.demo.data import demo_data_root

    root = demo_data_root() / "coco" / "val2014"
    paths = sorted(root.iterdir())[:3]
    prompt = "<image>Output:a picture of a red ball<|endofchunk|>\n<image>Output:here is a ball<|endofchunk|>\n<image>Output:"
    output = demo.generate(prompt, [Image.open(path) for path in paths])
    assert len(output.split()) > 3
    assert demo.generate(prompt, paths) == output
    task = Decoding(20)
    prepared = demo.read(Rendering(prompt, tuple(map(str, paths))), task, Images(Path()))
    assert demo.answer([prepared], task) == [output]
    assert demo.generate("Output:", max_new_tokens=3, num_beams=1) is not None
    with pytest.raises(UserError, match=r"the prompt has 3 <image> tags, and there are 1 images"):
        demo.generate(prompt, paths[:1])
    with pytest.raises(QueryError, match="does not exist"):
        demo.generate("<image>Output:", [tmp_path / "none.png"])


def test_a_loaded_model_is_evaluated_as_on_the_command_line(demo: Any, tmp_path: Path) -> None:
    cells = flamingo_eval.evaluate(demo, "coco", shots=[0, 2], seeds=[42], num_samples=12, data_root="demo")
    result = run_cli("coco", "--shots", "0,2", "--seeds", "42", "--num-samples", "12", "--device", "cpu", "--out", "run",
                     "--format", "json")  # fmt: skip
    theirs = json.loads(result.stdout)["cells"]
    assert [(cell.shots, cell.mean) for cell in cells] == [(cell["shots"], cell["mean"]) for cell in theirs]
    by_name = flamingo_eval.evaluate("demo", ["coco"], shots=[2], seeds=[42], num_samples=12, out=tmp_path / "kept")
    assert by_name[0].mean == cells[1].mean
    assert (tmp_path / "kept" / "journal.jsonl").is_file()
    assert {cell.data for cell in cells} == {"demo"}, "what they were measured on"
    with pytest.raises(UserError, match="scripted is evaluated, but no data is named: add data_root"):
        flamingo_eval.evaluate("scripted", "coco")
    with pytest.raises(UserError, match="unknown benchmark 'cocoa'"):
        flamingo_eval.evaluate(demo, "cocoa", data_root="demo")
    with pytest.raises(UserError, match="give a name, or some"):
        flamingo_eval.evaluate(demo, [], data_root="demo")
    with pytest.raises(UserError, match="dict is no model"):
        flamingo_eval.evaluate({}, "coco", data_root="demo")


def released_module(toml: Path) -> tuple[Any, Any, Any]:
    """A module as people in training have it: perceiver, vision_encoder, and a language model with wrapped layers."""
    from torch import nn

    from flamingo_eval.models.flamingo.loading import load_model
    from flamingo_eval.models.flamingo.spec import read_spec

    loaded = load_model(read_spec(toml), device="cpu", precision="fp32")
    ours = loaded.model

    class Wrapped(nn.Module):
        """A decoder layer with the cross-attention block before it."""

        def __init__(self, block: Any, layer: Any) -> None:
            super().__init__()
            self.gated_cross_attn_layer, self.decoder_layer = block, layer

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.perceiver, self.vision_encoder = ours.perceiver, ours.vision.tower
            self.lang_encoder = ours.language
            path, _, last = ours.host.decoder_path.rpartition(".")
            layers = [
                Wrapped(dict(ours.blocks.items()).get(str(i)), layer)
                for i, layer in enumerate(self.lang_encoder.get_submodule(ours.host.decoder_path))
            ]
            setattr(self.lang_encoder.get_submodule(path), last, nn.ModuleList(layers))

    return Module().train(), loaded.tokenizer.inner, loaded.transform


@pytest.mark.parametrize("host", ["demo", "gpt_neox", "llama", "mosaic_gpt", "mpt", "opt"])
def test_a_live_module_in_training(tmp_path: Path, host: str) -> None:
    """The same cells as from its files; its tensors shared, so that another step of training gives other answers."""
    toml = DEMO_SPEC if host == "demo" else write_flamingo(tmp_path / host, host)
    module, tokenizer, transform = released_module(toml)
    options: dict[str, Any] = {"shots": [2], "seeds": [42], "num_samples": 8, "data_root": "demo"}
    live: dict[str, Any] = {"tokenizer": tokenizer, "transform": transform, **options}
    keys = set(module.state_dict())
    first = flamingo_eval.evaluate(module, "coco", **live, out=tmp_path / "live")
    from_files = flamingo_eval.evaluate(str(toml), "coco", **options, out=tmp_path / "files")
    assert first == from_files
    lines = [(tmp_path / name / "journal.jsonl").read_text().splitlines() for name in ("live", "files")]
    assert [json.loads(line)["raw"] for line in lines[0]] == [json.loads(line)["raw"] for line in lines[1]]
    assert module.training
    assert module.vision_encoder.training
    assert set(module.state_dict()) == keys, "nothing was added to it"
    with torch.no_grad():
        for parameter in module.perceiver.parameters():
            parameter.mul_(-1.5)
    flamingo_eval.evaluate(module, "coco", **live, out=tmp_path / "after")
    after = [json.loads(line)["raw"] for line in (tmp_path / "after" / "journal.jsonl").read_text().splitlines()]
    assert after != [json.loads(line)["raw"] for line in lines[0]]
    with pytest.raises(UserError, match="holds a run with other settings: checkpoint"):
        flamingo_eval.evaluate(module, "coco", **live, out=tmp_path / "live")


def test_live_modules_that_wont_do() -> None:
    from torch import nn

    module, tokenizer, transform = released_module(DEMO_SPEC)
    with pytest.raises(CheckpointError, match="needs its tokenizer and its image transform"):
        flamingo_eval.evaluate(module, "coco", shots=[1], num_samples=2, data_root="demo")
    with pytest.raises(CheckpointError, match="Linear has no perceiver"):
        flamingo_eval.evaluate(
            nn.Linear(2, 2),
            "coco",
            shots=[1],
            num_samples=2,
            tokenizer=tokenizer,
            transform=transform,
            data_root="demo",
        )
