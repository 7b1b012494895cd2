"""Runs of a model of transformers by the command line: all benchmarks, killed and resumed, compared, refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import Cli, read_lines
from tests.support.small_vlms import save_vlm

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
ALL = ("run", "all", "--data-root", "demo", "--shots", "0,2", "--num-samples", "5", "--trials", "2", "--device", "cpu")
BENCHMARKS = ("coco", "flickr30k", "hateful_memes", "imagenet", "okvqa", "textvqa", "vizwiz", "vqav2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm("qwen2_5_vl", tmp_path_factory.mktemp("saved") / "qwen")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def rows_of(cli: Cli, run: Path) -> list[dict[str, Any]]:
    result = cli("samples", run)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.slow
def test_all_benchmarks_killed_and_resumed(saved: Path, tmp_path: Path, cli: Cli) -> None:
    full = cli(*ALL, "--checkpoint", f"hf:{saved}", "--out", tmp_path / "whole")
    assert full.returncode == 0, full.stderr
    assert all(name in full.stdout for name in BENCHMARKS)
    assert "rendering chat; no demonstrations at 0 shots" in full.stdout
    asked = len(BENCHMARKS) * 2 * 2 * 5
    run = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "flamingo_eval",
        *ALL,
        "--checkpoint",
        f"hf:{saved}",
        "--out",
        str(run),
        "--batch-size",
        "2",
    ]
    seen = 0
    for _ in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
            if len(list(run.glob("journal*"))) and len(read_lines(next(run.glob("journal*.jsonl")))) > seen + 20:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = len(read_lines(next(run.glob("journal*.jsonl"))))
        assert now > seen
        seen = now
    done = cli(*ALL, "--checkpoint", f"hf:{saved}", "--out", run, "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    rows = rows_of(cli, run)
    assert len(rows) == asked
    assert_alike(rows, rows_of(cli, tmp_path / "whole"))
    assert done.stdout.split("\n\n")[0] == full.stdout.split("\n\n")[0], "the same table"
    baseline = tmp_path / "baseline.json"
    assert cli("check", tmp_path / "whole", "--baseline", baseline, "--update").returncode == 0
    gate = cli("check", run, "--baseline", baseline)
    assert gate.returncode == 0, gate.stderr
    compared = cli("compare", run, tmp_path / "whole", "--format", "json")
    assert {row["benchmark"] for row in json.loads(compared.stdout)["cells"]} == set(BENCHMARKS)


@pytest.mark.slow
def test_all_benchmarks_by_rices_and_their_controls(saved: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "rices"
    few = tuple("4" if part == "5" else part for part in ALL)
    result = cli(*few, "--checkpoint", f"hf:{saved}", "--select", "rices", "--out", run)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in BENCHMARKS)
    controls = cli("controls", run, "--device", "cpu", "--shots", "2", "--format", "json")
    assert controls.returncode == 0, controls.stderr
    assert all(f'"{name}"' in controls.stdout for name in BENCHMARKS)


def assert_alike(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Samples agree, but for rounding in log-likelihoods."""
    for one, other in zip(some, others, strict=True):
        for key, digits in (("class_logprobs", 1e-4), ("score", 1e-6)):
            assert one.pop(key, None) == pytest.approx(other.pop(key, None), abs=digits)
        assert one == other


def test_a_run_with_all_that_belongs_to_it(
    saved: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plan, RICES, controls, show, compare with another rendering, gate; the checkpoint named from another folder."""
    monkeypatch.chdir(saved.parent)
    small = ("coco", "--checkpoint", f"hf:{saved.name}", "--data-root", "demo", "--shots", "0,2", "--num-samples", "6",
             "--trials", "2", "--device", "cpu")  # fmt: skip
    planned = cli("plan", *small[:-2], "--json", "--system", "Be brief.")
    assert planned.returncode == 0, planned.stderr
    row = json.loads(planned.stdout.splitlines()[-1])
    assert (row["rendering"], row["system"], len(row["images"])) == ("chat", "Be brief.", 3)
    assert [message["role"] for message in row["prompt"]] == ["system", *["user", "assistant"] * 2, "user"]
    assert row["prompt"][1]["content"][0] == {"type": "image_url", "image_url": {"url": row["images"][0]}}
    asked = row["prompt"][-1]["content"][1]["text"]
    assert asked == "Provide a one-sentence caption for the provided image."
    chat, text = tmp_path / "chat", tmp_path / "text"
    shown = cli(*small, "--out", chat, "--max-pixels", "3136", "--template-arg", "unused=1")
    assert shown.returncode == 2
    assert "has no such switch" in shown.stderr
    shown = cli(*small, "--out", chat, "--max-pixels", "3136")
    assert shown.returncode == 0, shown.stderr
    assert "rendering chat; no demonstrations at 0 shots; max pixels 3136" in shown.stdout
    assert cli(*small, "--out", text, "--rendering", "interleaved", "--max-pixels", "3136").returncode == 0
    assert "text-only demonstrations at 0 shots" in cli("report", text).stdout
    other = cli(*small, "--out", chat)
    assert other.returncode == 2, "without --max-pixels it is another run"
    monkeypatch.chdir(tmp_path)
    assert cli("score", chat).returncode == 0
    details = cli("show", chat, "--query", str(row["query_id"]), "--shots", "2")
    assert "user: [" in details.stdout
    assert cli("samples", chat, "--format", "csv").returncode == 0
    assert cli("samples", chat, "--format", "parquet", "--out", "samples.parquet").returncode == 0
    controls = cli("controls", chat, "--device", "cpu", "--shots", "2")
    assert controls.returncode == 0, controls.stderr
    assert "blind" in controls.stdout
    majority = cli("controls", chat, "--only", "majority", "--format", "json")
    assert [cell["shots"] for cell in json.loads(majority.stdout)["controls"]["majority"]] == [2], (
        "nothing is shown at 0 shots"
    )
    compared = cli("compare", chat, text, "--format", "json")
    assert [one.partition(" (")[0] for one in json.loads(compared.stdout)["checkpoints"]] == [f"hf:{saved.name}"] * 2
    assert compared.returncode == 0, compared.stderr
    assert (
        "the rendering of prompts differs: chat in the run, interleaved in the baseline, and with it" in compared.stdout
    )
    baseline = tmp_path / "baseline.json"
    assert cli("check", chat, "--baseline", baseline, "--update").returncode == 0
    assert cli("check", chat, "--baseline", baseline).returncode == 0
    gated = cli("check", text, "--baseline", baseline)
    assert "rendering" in gated.stderr
    monkeypatch.chdir(saved.parent)
    rices = cli(*small, "--select", "rices", "--out", tmp_path / "rices")
    assert rices.returncode == 0, rices.stderr
    measured = cli("bench", *small, "--queries", "4")
    assert measured.returncode == 0, measured.stderr


def test_tokens_without_weights(folder: Path, cli: Cli) -> None:
    (folder / "model.safetensors").write_bytes(b"not read")
    how = ("plan", "coco", "--data-root", "demo", "--num-samples", "4", "--shots", "0,2", "--trials", "1", "--tokens")
    few = cli(*how, "--checkpoint", f"hf:{folder}", "--max-pixels", "784")
    many = cli(*how, "--checkpoint", f"hf:{folder}")
    text = cli(*how, "--checkpoint", f"hf:{folder}", "--rendering", "interleaved")
    assert all(result.returncode == 0 for result in (few, many, text)), (few.stderr, many.stderr, text.stderr)
    lines = [result.stdout.splitlines()[1] for result in (few, many)]
    least, most = (int(line.split("least ")[1].split(",")[0]) for line in lines)
    assert least < most
    assert "limit 8162 (besides the answer)" in lines[0], "8,192 positions less 30 new tokens"
    assert "too long" not in few.stdout
    flamingo = cli(*how, "--checkpoint", "demo")
    assert "limit" in flamingo.stdout, flamingo.stderr


def edited(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), ("--rendering", "chat"), "has no chat template"),
    "one image": (
        lambda f: edited(f / "config.json", lambda c: c.update(model_type="mllama")),
        (),
        "takes at most 1 images per prompt, and 2 shots need 3: --shots up to 0. transformers' attention over several images",
    ),
    "too long": (
        lambda f: edited(f / "config.json", lambda c: c["text_config"].update(max_position_embeddings=60)),
        (),
        "tokens, the limit is 30: use fewer shots",
    ),
    "no processor": (
        lambda f: shutil.move(f / "processor_config.json", f.parent), (), "has no processor",
    ),
    "pickles": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), (), "pickles only (pytorch_model.bin)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), (), "holds no weights"),
    "code": (
        lambda f: edited(f / "config.json", lambda c: c.update(model_type="mine", auto_map={"AutoConfig": "mine.Config"})),
        (),
        "needs code from its repository (auto_map), which is never run",
    ),
    "architecture": (
        lambda f: edited(f / "config.json", lambda c: c.update(model_type="mine")),
        (),
        "no image-text-to-text model for the architecture 'mine'; those that it has: https://",
    ),
    "text only": (
        lambda f: edited(f / "config.json", lambda c: c.update(model_type="llama")),
        (),
        "no image-text-to-text model for the architecture 'llama'",
    ),
    "damaged weights": (lambda f: (f / "model.safetensors").write_bytes(b"x"), (), "can't be loaded"),
    "damaged configuration": (lambda f: (f / "config.json").write_text("{"), (), "is not valid JSON"),
    "damaged template": (lambda f: (f / "chat_template.jinja").write_text("{% for %}"), (), "can't be read"),
    "no system": (
        lambda f: (f / "chat_template.jinja").write_text(
            "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            + (f / "chat_template.jinja").read_text()
        ),
        ("--system", "Be brief."),
        "can't write this conversation: System role not supported",
    ),
    "no switch": (lambda _: None, ("--template-arg", "enable_thinking=true"), "has no such switch; it has none"),
    "mark in --system": (lambda _: None, ("--system", "a <|image_pad|> b"), "--system holds <|image_pad|>"),
    "not key=value": (lambda _: None, ("--template-arg", "enable_thinking"), "give key=value"),
    "system without conversation": (
        lambda _: None, ("--system", "Be brief.", "--rendering", "interleaved"), "--system is for conversations",
    ),
    "few pixels": (lambda _: None, ("--max-pixels", "10"), "at least, one token"),
    "weights folder": (lambda _: None, ("--weights", "."), "--weights does not apply to it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, folder: Path, cli: Cli) -> None:
    spoil, options, message = REFUSED[name]
    spoil(folder)
    result = cli("coco", "--checkpoint", f"hf:{folder}", "--data-root", "demo", "--shots", "0,2", "--num-samples", "2",
                 "--trials", "1", "--device", "cpu", "--out", "run", *options)  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sum(line.startswith("error:") for line in result.stderr.splitlines()) == 1


def test_names_that_are_nothing(cli: Cli, tmp_path: Path) -> None:
    for name, message in (("./nowhere", "there is no such folder"), ("a/b/c", "there is no such folder"),
                          (str(tmp_path), "holds no config.json")):  # fmt: skip
        result = cli("coco", "--checkpoint", f"hf:{name}", "--data-root", "demo")
        assert result.returncode == 2
        assert message in result.stderr
    result = cli("coco", "--checkpoint", tmp_path, "--data-root", "demo")
    assert f"is a folder; if it holds a model of transformers, write hf:{tmp_path}" in result.stderr
    result = cli("coco", "--checkpoint", "a/b", "--data-root", "demo")
    assert "hf:NAME_OR_FOLDER for a model of transformers" in result.stderr
    result = cli("coco", "--checkpoint", "demo", "--rendering", "chat")
    assert "--rendering does not apply to it" in result.stderr


def test_odd_but_good(folder: Path, cli: Cli) -> None:
    """A template in the tokenizer's file or in JSON, no pad token, tied heads: each is handled."""
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    small = ("coco", "--checkpoint", f"hf:{folder}", "--data-root", "demo", "--shots", "2", "--num-samples", "4", "--trials", "1",
             "--device", "cpu")  # fmt: skip
    edited(folder / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    first = cli(*small, "--out", "first")
    assert "rendering chat" in first.stdout, first.stderr
    edited(folder / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    second = cli(*small, "--out", "second")
    assert "rendering chat" in second.stdout, second.stderr
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            edited(folder / name, lambda c: c.pop("pad_token", None))
    for name in ("config.json", "generation_config.json"):
        edited(
            folder / name, lambda c: (c.pop("pad_token_id", None), c.get("text_config", {}).pop("pad_token_id", None))
        )
    third = cli(*small, "--out", "third")
    assert third.returncode == 0, third.stderr
    assert first.stdout.split("\n\n")[0] == second.stdout.split("\n\n")[0] == third.stdout.split("\n\n")[0]


def test_tied_heads_and_thinking(tmp_path: Path, cli: Cli) -> None:
    from safetensors import safe_open

    folder = save_vlm("smolvlm", tmp_path / "tied", text_config={"tie_word_embeddings": True})
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert not any("lm_head" in name for name in file.keys())  # noqa: SIM118
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template + "{% if enable_thinking %}THINK{% endif %}")
    small = ("coco", "--checkpoint", f"hf:{folder}", "--data-root", "demo", "--shots", "2", "--num-samples", "4", "--trials", "1",
             "--device", "cpu")  # fmt: skip
    quiet = cli(*small, "--out", "quiet", "--notes")
    assert "the template's enable_thinking is off" in quiet.stdout, quiet.stderr
    loud = cli(*small, "--out", "loud", "--template-arg", "enable_thinking=true")
    assert 'template arg {"enable_thinking": true}' in loud.stdout, loud.stderr
    assert rows_of(cli, Path("quiet")) != rows_of(cli, Path("loud"))
    compared = cli("compare", "quiet", "loud")
    assert "template_arg differs" in compared.stdout


def test_in_python(saved: Path, tmp_path: Path, cli: Cli) -> None:
    """A model in memory, in training: the same answers as its checkpoint's, and it is left as it was."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from flamingo_eval import evaluate, load_model
    from flamingo_eval.core.errors import UserError
    from flamingo_eval.core.registry import model_source
    from flamingo_eval.demo.data import demo_data_root

    how: dict[str, Any] = {"shots": [2], "num_samples": 6, "seeds": [42], "data_root": "demo", "max_pixels": 3136}
    named = evaluate(f"hf:{saved}", ["coco", "hateful-memes"], device="cpu", out=tmp_path / "named", **how)
    network = AutoModelForImageTextToText.from_pretrained(saved, dtype=torch.float32).train()
    network.generation_config.repetition_penalty = 3.0
    processor = AutoProcessor.from_pretrained(saved)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    live = evaluate(network, ["coco", "hateful-memes"], processor=processor, out=tmp_path / "run", **how)
    assert [cell.mean for cell in live] == pytest.approx([cell.mean for cell in named], abs=1e-3)
    assert_alike(rows_of(cli, tmp_path / "run"), rows_of(cli, tmp_path / "named"))
    assert network.training
    assert network.generation_config.repetition_penalty == 3.0
    assert "_process_images" not in vars(processor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert evaluate(network, "coco", processor=processor, out=tmp_path / "run", **how)[0].mean == live[0].mean, (
        "continued"
    )
    with pytest.raises(UserError, match="needs its processor beside it"):
        evaluate(network, "coco", **how)
    with pytest.raises(UserError, match="weights is for a checkpoint that is named"):
        evaluate(network, "coco", processor=processor, weights="x", **how)
    loaded = load_model(f"hf:{saved}", device="cpu", max_pixels=3136)
    images = sorted((demo_data_root() / "coco/val2014").iterdir())[:2]
    shown = [([images[0]], "What is it?", "a thing")]
    answer = loaded.generate("What is it?", [images[1]], demonstrations=shown, max_new_tokens=8)
    slow: Any = model_source(f"hf:{saved}", {"plain": True, "max_pixels": 3136}).load("cpu", "fp32")
    assert slow.generate("What is it?", [images[1]], demonstrations=shown, max_new_tokens=8) == answer
    with pytest.raises(UserError, match=r"holds <image>.*demonstrations="):
        loaded.generate("<image>What is it?", [images[1]])
    with pytest.raises(UserError, match="there is no option 'colour'"):
        load_model(f"hf:{saved}", colour="red")
    assert evaluate(loaded, "coco", device="cpu", **{**how, "max_pixels": None})[0].mean == pytest.approx(
        named[0].mean, abs=1e-3
    )
