"""On a real card: `make test-gpu` prints the tables of tests/speed/README.md. Nothing here runs without being asked.

``FLAMINGO_TEST_DEVICE`` names another device than ``cuda``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Ranking, Rendering
from tests.support.bundles import load_over
from tests.support.helpers import Kit, LazyModule
from tests.support.small_flamingos import TEXTS, write_flamingo

pytestmark = [pytest.mark.gpu, pytest.mark.torch]
torch: Any = LazyModule("torch")
DEVICE = os.environ.get("FLAMINGO_TEST_DEVICE", "cuda")
HOSTS = ("gpt_neox", "llama", "mosaic_gpt", "mpt", "opt")
TASKS = (Decoding(12), Decoding(8, num_beams=1), Ranking(("yes", "no way, never", "a grey wolf in the snow")))
Answers = dict[str, str | dict[str, float]]


@pytest.fixture(autouse=True)
def device() -> Any:
    device = torch.device(DEVICE)
    if device.type != "cpu" and not torch.accelerator.is_available():
        pytest.skip(f"there is no {DEVICE} here")
    return device


def only_on_cuda() -> None:
    if not DEVICE.startswith("cuda"):
        pytest.skip("needs CUDA")


def prompts_of(kit: Kit) -> list[Rendering]:
    images = kit.images(9)
    return [
        Rendering(t, tuple(images[(3 * i + j) % 9] for j in range(t.count("<image>")))) for i, t in enumerate(TEXTS)
    ]


def loaded(source: Any, precision: str, root: Path, where: str = DEVICE) -> Any:
    model = source.load(where, precision)
    read = model.read
    model.read = lambda prompt, task: read(prompt, task, Images(root))
    return model


@pytest.mark.parametrize("host", HOSTS)
def test_float32_is_that_of_a_cpu(kit: Kit, tmp_path: Path, host: str) -> None:
    """Texts are the same, log-likelihoods within 1e-4; in batches, alone, and on the plain path."""
    toml = write_flamingo(tmp_path / host, host)
    source, plain = (registry.model_source(str(toml), {"plain": plain, "keep": False}) for plain in (False, True))
    here, there, slow = load_over(source, kit.data), loaded(source, "fp32", kit.data), loaded(plain, "fp32", kit.data)
    prompts = prompts_of(kit)
    for task in TASKS:
        expected = here.answer([here.read(p, task) for p in prompts], task)
        found = [there.answer([there.read(p, task) for p in prompts], task),
                 [there.answer([there.read(p, task)], task)[0] for p in prompts],
                 [slow.answer([slow.read(p, task)], task)[0] for p in prompts]]  # fmt: skip
        for answers in found:
            for one, other in zip(answers, expected, strict=True):
                assert one == (other if isinstance(other, str) else pytest.approx(other, abs=1e-4))


@pytest.mark.goldens
def test_float32_is_the_references(goldens: Path) -> None:
    """The small random Flamingo of the goldens: tokens, logits, texts."""
    expected = torch.load(goldens / "model_outputs.pt", weights_only=True)
    model = loaded(
        registry.model_source(str(goldens / "model" / "model.toml"), {"keep": False}), "fp32", goldens / "data"
    )
    task = Decoding(max_new_tokens=20)
    for number, single in enumerate(expected["single"]):
        if single is not None:
            prompt = Rendering(expected["prompts"][number], tuple(expected["image_paths"][number]))
            with torch.inference_mode():
                logits = model._prefix([model.read(prompt, task)], task, 60).logits.cpu()
            assert (logits[0] - single["logits"][0, -1]).abs().max() < 1e-4


def test_tensorfloat_does_not_reach_it(device: Any) -> None:
    """cuDNN's convolutions round to ten bits by default; within numerics() nothing does."""
    from flamingo_eval.devices import numerics

    pixels, weights = torch.randn(4, 3, 224, 224), torch.randn(64, 3, 14, 14)
    exact = torch.nn.functional.conv2d(pixels.double(), weights.double(), stride=14)
    a, b = torch.randn(512, 512), torch.randn(512, 512)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with numerics(device):
            found = torch.nn.functional.conv2d(pixels.to(device), weights.to(device), stride=14).cpu()
            product = (a.to(device) @ b.to(device)).cpu()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert (found - exact).abs().max() < 1e-3
    assert (product - a.double() @ b.double()).abs().max() < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp_bf16"])
def test_reading_continuing_and_scoring_wait_for_nothing(kit: Kit, tmp_path: Path, precision: str) -> None:
    """The processor hands out work ahead of the card; waiting would leave the card idle. (Where prompts are padded
    transformers looks once per pass whether its mask is all ones, which waits.)"""
    only_on_cuda()
    from flamingo_eval.devices import numerics
    from flamingo_eval.models.flamingo.ranking import score_names

    source = registry.model_source(str(write_flamingo(tmp_path / "llama", "llama")), {"keep": False})
    model = loaded(source, precision, kit.data)
    images = kit.images(8)
    alike = [Rendering(TEXTS[1], (images[i], images[i + 1])) for i in range(5)]
    prepared = [model.read(prompt, TASKS[0]) for prompt in alike]
    with torch.inference_mode(), numerics(DEVICE), model._autocast():
        parts = [model._part(prepared, TASKS[0])]  # encoding images waits: latents are kept in the processor's memory
        from flamingo_eval.models.flamingo.prefix import Prefix

        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            prefix = Prefix(model.model, parts, 64)
            ids = torch.zeros(len(prepared), 3, dtype=torch.long, device=DEVICE)
            prefix.extend(ids, ids[0], torch.ones(len(prepared), 3, 3, dtype=torch.bool, device=DEVICE))
            prefix.forget()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert score_names(prefix, [[5, 6], [7]]).isfinite().all()


def test_a_second_card_leaves_the_first_alone(kit: Kit) -> None:
    """Same texts; times are taken; not a byte on the first card."""
    only_on_cuda()
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one card")
    source = registry.model_source("demo", {"keep": False})
    prompts, task = [Rendering("<image>Output:", (path,)) for path in kit.images(8)], Decoding(12)
    first = loaded(source, "fp32", kit.data, "cuda:0")
    expected = first.answer([first.read(p, task) for p in prompts], task)
    before = torch.cuda.memory_allocated(0)
    second = loaded(source, "fp32", kit.data, "cuda:1")
    assert second.answer([second.read(p, task) for p in prompts], task) == expected
    assert torch.cuda.memory_allocated(0) == before
    assert all(second.timings()[part] > 0 for part in ("vision", "prefill", "decode"))


def test_what_does_not_fit_is_halved_and_then_fails_alone(kit: Kit) -> None:
    """With most of the card taken by somebody else."""
    only_on_cuda()
    from flamingo_eval.core.errors import DeviceMemoryError
    from flamingo_eval.devices import room

    model = loaded(registry.model_source("demo", {"keep": False}), "fp32", kit.data)
    prompt, task = Rendering("<image>Output:", (kit.images(1)[0],)), Decoding(12)
    prepared = [model.read(prompt, task)] * 4096
    expected = model.answer(prepared[:1], task)
    torch.cuda.empty_cache()
    taken = torch.empty(int(room(torch.device(DEVICE)) or 0) - (200 << 20), dtype=torch.uint8, device=DEVICE)
    with pytest.raises(DeviceMemoryError, match="4096 prompts of"):
        model.answer(prepared, task)
    assert model.answer(prepared[:1], task) == expected
    del taken
    assert model.answer(prepared[:64], task) == expected * 64


def answers_of(precision: str, batch_size: int | None, device: str) -> tuple[Answers, Mapping[str, float]]:
    """Every answer of a run of the demo, and its scores."""
    from flamingo_eval.core.run_settings import RunSpec
    from flamingo_eval.demo.root import data_folder
    from flamingo_eval.engine.reopen import reopen
    from flamingo_eval.engine.run import execute
    from flamingo_eval.storage.journal import Journal

    spec = RunSpec(benchmarks=("vqav2", "hateful_memes"), shots=(0, 4, 16), seeds=(42,), num_samples=100, device=device,
                   precision=precision, batch_size=batch_size)  # fmt: skip
    with TemporaryDirectory() as scratch:
        result = execute(spec, data_folder, Path(scratch) / "run")
        journal, answers = Journal(result.folder.journal_file), Answers()
        for trial in reopen(result.folder, data_folder)[1]:
            for slot in trial.slots:
                prediction = journal.get((*trial.key, *slot))
                assert prediction is not None
                answer = prediction.answer
                answers["/".join(map(str, (*trial.key, *slot)))] = answer if isinstance(answer, str) else dict(answer)
    return answers, {f"{cell.benchmark} {cell.shots}": round(cell.mean, 2) for cell in result.cells}


def test_precisions_beside_float32_of_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo: float32 gives a CPU's texts whatever the batch; how many are others in narrower types is printed."""
    expected, _ = answers_of("fp32", None, "cpu")
    lines = ["| precision | batch | texts that differ | log-likelihoods off by at most | seconds | peak MiB |",
             "|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for precision, size in (("fp32", None), ("fp32", 1), ("fp32", 7), ("amp_bf16", None), ("amp_bf16", 7), ("bf16", None),
                            ("fp16", None)):  # fmt: skip
        if DEVICE.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        found, _ = answers_of(precision, size, DEVICE)
        seconds = time.perf_counter() - began
        texts = [key for key, answer in expected.items() if isinstance(answer, str)]
        other = sum(found[key] != expected[key] for key in texts)
        off = max(abs(mine[name] - theirs[name]) for key, theirs in expected.items() if not isinstance(theirs, str)
                  if not isinstance(mine := found[key], str) for name in theirs)  # fmt: skip
        peak = torch.cuda.max_memory_allocated() / 2**20 if DEVICE.startswith("cuda") else float("nan")
        lines.append(
            f"| {precision} | {size or 'auto'} | {other} of {len(texts)} | {off:.1e} | {seconds:.1f} | {peak:.0f} |"
        )
        if precision == "fp32":
            assert other == 0
            assert off < 1e-4
    with capsys.disabled():
        name = torch.cuda.get_device_name() if DEVICE.startswith("cuda") else DEVICE
        print(f"\n{name}, torch {torch.__version__}\n" + "\n".join(lines))
