"""What the program around us has set does not reach an answer, and is afterwards as it was; devices are told by what
they can do; what fits is worked out from what is free."""

from __future__ import annotations

import contextlib
import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flamingo_eval.core.errors import DeviceMemoryError, QueryError, UserError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Ranking, Rendering
from tests.support.helpers import Kit, LazyModule

pytestmark = pytest.mark.torch
torch: Any = LazyModule("torch")
NAMES = Ranking(("a red ball", "a golden ring"))


@pytest.fixture(scope="module")
def model(kit: Kit) -> Any:
    from flamingo_eval import load_model

    return load_model("demo", device="cpu", data_root=kit.data)


def switches() -> list[Any]:
    """Everything that numerics() sets."""
    b = torch.backends
    parts = (b.cuda.matmul, b.mkldnn.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.conv, b.mkldnn.rnn, b)
    cuda = b.cuda
    kernels = [cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
               cuda.math_sdp_enabled(), cuda.matmul.allow_fp16_accumulation, b.cudnn.benchmark]  # fmt: skip
    return [
        [part.fp32_precision for part in parts], kernels, torch.get_default_dtype(), torch.get_default_device(),
        torch.is_autocast_enabled("cpu"), torch.get_num_threads(), torch.get_rng_state().tolist(),
    ]  # fmt: skip


@contextlib.contextmanager
def a_strange_host() -> Any:
    """A program that has set everything otherwise."""
    b = torch.backends
    b.cuda.enable_flash_sdp(False)
    b.cuda.enable_mem_efficient_sdp(False)
    b.cuda.matmul.allow_fp16_accumulation = b.cudnn.benchmark = True
    b.mkldnn.matmul.fp32_precision = b.cuda.matmul.fp32_precision = "tf32"
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            yield
    finally:
        b.mkldnn.matmul.fp32_precision = b.cuda.matmul.fp32_precision = "none"
        b.cuda.enable_flash_sdp(True)
        b.cuda.enable_mem_efficient_sdp(True)
        b.cuda.matmul.allow_fp16_accumulation = b.cudnn.benchmark = False
        torch.set_default_dtype(torch.float32)


def test_a_callers_settings_do_not_reach_an_answer(kit: Kit, empty_cache: None) -> None:
    """Autocast, default type and device, TensorFloat-32: log-likelihoods are the same to the bit, of images that are
    read and encoded there, and so are an encoder's features."""
    from flamingo_eval import load_model
    from flamingo_eval.core import registry

    del empty_cache
    images = Images(kit.data)
    prompts = [Rendering("<image>Output:", (path,)) for path in kit.images(3)]

    def answers() -> list[Any]:
        source: Any = registry.model_source("demo", {"keep": False})
        fresh = source.load("cpu", "fp32")
        encoder: Any = registry.image_encoder("demo", None).load("cpu")
        features = encoder.encode([encoder.prepare(path, False, images) for path in kit.images(3)])
        assert str(features.dtype) == "float32"
        found = [fresh.answer([fresh.read(p, task, images) for p in prompts], task) for task in (NAMES, Decoding(8))]
        return [*found, features.tolist()]

    expected = answers()
    for kind in (torch.float64, torch.bfloat16):
        with a_strange_host():
            torch.set_default_dtype(kind)
            before = switches()
            assert answers() == expected
            assert switches() == before
    model = load_model("demo", device="cpu", data_root=kit.data)
    with a_strange_host():
        before = switches()
        text = model.generate("<image>Output:", [kit.images(1)[0]])
        assert switches() == before
    assert text == model.generate("<image>Output:", [kit.images(1)[0]])


def test_evaluate_within_autocast(kit: Kit, tmp_path: Path) -> None:
    import json

    from flamingo_eval import evaluate

    def run(name: str) -> list[dict[str, Any]]:
        evaluate("demo", "hateful_memes", shots=[0], seeds=[42], num_samples=6, device="cpu", data_root=kit.data,
                 out=tmp_path / name)  # fmt: skip
        lines = (tmp_path / name / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["class_logprobs"] for line in lines]

    expected = run("alone")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run("within") == expected
    record = json.loads((tmp_path / "within" / "run.json").read_text())
    assert record["sessions"][0]["precision"] == "fp32"
    assert record["sessions"][0]["batches"] == {"hateful_memes 0": {"6": 1}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, DeviceMemoryError])
def test_switches_are_restored_after_an_exception(error: type[BaseException]) -> None:
    from flamingo_eval.devices import numerics

    with a_strange_host():
        before = switches()
        try:
            with numerics("cpu"):
                within = switches()
                raise error("x")
        except error:
            pass
        assert switches() == before
    assert set(within[0][:6]) == {"ieee"}
    assert within[1:3] == [[False, True, True, True, False, False], torch.float32]
    assert before[1] == [True, False, False, True, True, True], "so that each is really switched, and back"
    assert within[4] is False
    assert torch.zeros(1).device.type == "cpu"


def test_what_was_set_for_all_can_be_set_for_all_again() -> None:
    """A switch that follows the general one goes on following it."""
    from flamingo_eval.devices import numerics

    b = torch.backends
    try:
        b.fp32_precision = "tf32"
        with numerics("cpu"):
            assert b.cuda.matmul.fp32_precision == "ieee"
        assert b.cuda.matmul.fp32_precision == "tf32"
        b.fp32_precision = "ieee"
        assert b.cuda.matmul.fp32_precision == "ieee"
    finally:
        b.fp32_precision = "none"
        b.cudnn.conv.fp32_precision = b.cudnn.rnn.fp32_precision = "tf32"


def test_the_models_card_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """While something is computed there, and while memory is pinned for it; the one before it is current again."""
    from flamingo_eval import devices

    current = [0]

    @contextlib.contextmanager
    def device(chosen: Any) -> Any:
        current.append(chosen.index)
        yield
        current.pop()

    monkeypatch.setattr("torch.cuda.device", device)
    with devices.numerics("cuda:1"):
        assert current == [0, 1]
    assert current == [0]
    seen: list[int] = []

    def pin(tensor: Any) -> Any:
        seen.append(current[-1])
        return tensor

    monkeypatch.setattr("torch.Tensor.pin_memory", pin)
    devices.pinned(torch.zeros(2), torch.device("cuda:1"))
    assert seen == [1]
    devices.pinned(torch.zeros(2), torch.device("cpu"))
    assert seen == [1]


def test_events_are_taken_on_the_models_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event belongs to the card that is current when it is recorded; on another one it would measure nothing."""
    from flamingo_eval.devices import numerics
    from flamingo_eval.measure import Clock

    current, recorded = [0], []

    @contextlib.contextmanager
    def device(chosen: Any) -> Any:
        current.append(chosen.index)
        yield
        current.pop()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            recorded.append(current[-1])

        def synchronize(self) -> None:
            """Done at once."""

        def elapsed_time(self, _: Event) -> float:
            return 1500.0

    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.cuda.Event", Event)
    clock = Clock(torch.device("cuda:1"))
    with numerics("cuda:1"), clock.section("prefill"):
        pass
    assert recorded == [1, 1]
    assert clock.seconds() == {"prefill": 1.5}


@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_other_devices_are_waited_for_and_copied_to_safely(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Where there are no events that measure: a clock that does not wait would measure nothing. A copy that nobody
    waits for must not be taken from memory that is used for something else next."""
    from flamingo_eval import devices
    from flamingo_eval.measure import Clock

    waited: list[Any] = []
    monkeypatch.setattr("torch.accelerator.synchronize", waited.append)
    device = torch.device(kind)
    clock = Clock(device)
    with clock.section("vision"):
        pass
    assert waited == [device]
    copies: list[dict[str, Any]] = []

    def copy(tensor: Any, *_: Any, **settings: Any) -> Any:
        copies.append(settings)
        return tensor

    monkeypatch.setattr("torch.Tensor.to", copy)
    devices.to_device(torch.zeros(2), device)
    assert copies == [{}]


def test_auto_precision_is_what_the_card_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """V100 and T4 only emulate bfloat16."""
    from flamingo_eval.devices import pick_precision

    monkeypatch.setattr("torch.cuda.device", lambda _: contextlib.nullcontext())
    for native, expected in ((True, "amp_bf16"), (False, "fp32")):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda native=native, **_: native)
        assert pick_precision("cuda:1", "auto") == expected
    assert pick_precision("cpu", "auto") == pick_precision("mps", "auto") == "fp32"
    assert pick_precision("cpu", "fp16") == "fp16"
    with pytest.raises(UserError, match="unknown precision 'int8'"):
        pick_precision("cpu", "int8")


def test_two_threads_get_their_own_texts(model: Any, kit: Kit) -> None:
    """A model answers one at a time, whoever asks."""
    paths = kit.images(6)
    prompts = [("<image>Output:", [path]) for path in paths]
    prompts += [("<image>Output:a cat<|endofchunk|>\n<image>Output:", [a, b]) for a, b in itertools.pairwise(paths)]
    alone = [model.generate(*prompt) for prompt in prompts]
    found: dict[int, list[str]] = {}

    def work(number: int) -> None:
        found[number] = [model.generate(*prompt) for prompt in prompts]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [alone] * 3


def test_images_of_prompts_that_fail_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be read, a prompt too long, a device that is full: no pixels stay in memory."""
    from flamingo_eval import load_model

    model = load_model("demo", device="cpu", data_root=tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "red" if name == "a.png" else "blue").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    store = model.stores[False]
    with pytest.raises(QueryError):
        model.read(Rendering("<image>x<image>Output:", ("a.png", "broken.png")), Decoding(4), Images(tmp_path))
    assert store._pixels == {}
    long = Rendering("<image>Output:" + "word " * 3000, ("b.png",))
    model.prefetch([], Decoding(4), Images(tmp_path))
    store.read(model._found(store, long, Images(tmp_path)))
    assert len(store._pixels) == 1
    with pytest.raises(QueryError, match="tokens, the limit is"):
        model.read(long, Decoding(4), Images(tmp_path))
    assert store._pixels == {}

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "_generate", full)
    with pytest.raises(DeviceMemoryError, match=r"a prompt of \d+ tokens does not fit into the memory of cpu"):
        model.generate("<image>Output:", [Image.new("RGB", (64, 64), "green")])
    assert store._pixels == {}


def test_room_is_what_is_free_and_what_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    from flamingo_eval.devices import room

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (3 << 30, 80 << 30))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 5 << 30)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 4 << 30)
    assert room(torch.device("cuda:1")) == 4 << 30
    assert room(torch.device("cpu")) is None


def test_batches_fit_what_is_free() -> None:
    """A LLaMA-7B with its blocks: 0.5 MiB of keys and values per token in bfloat16."""
    from flamingo_eval.models.flamingo.batching import Footprint, sizes_for, suggested

    sizes = sizes_for(torch.device("cuda"))
    large = Footprint(token=2 * 32 * 4096 * 2, row=8 * 2 * 64 * 512 * 2, logit=38, vocabulary=32002, reading=3 << 30)
    captions, few = Decoding(20, 3), Ranking(("yes", "no"))
    gib = 1 << 30

    def prompts(task: Any, tokens: int, room: int, free: int | None) -> int:
        return suggested(sizes, None if free is None else large, task, tokens, room, free or 0)

    assert prompts(captions, 1000, 60, None) == 65536 // 1020, "on a card that never fills"
    assert prompts(captions, 1000, 60, 60 * gib) == 65536 // 1020
    tight = prompts(captions, 1000, 60, 24 * gib)
    assert 16 < tight < 65536 // 1020
    assert tight * (1060 * large.token) < 0.85 * 24 * gib - large.reading
    assert prompts(captions, 1900, 60, 24 * gib) < tight, "fewer long ones"
    assert prompts(captions, 1000, 60, 4 * gib) == 1, "at least one, whatever there is"
    thousand = Ranking(tuple(str(i) for i in range(1000)))
    assert prompts(thousand, 500, 512, 24 * gib) <= prompts(few, 500, 0, 24 * gib)
    assert prompts(few, 500, 0, 8 * gib) > 8, "names of one token need no logits but the prompt's"


def test_a_tokens_bytes_are_those_of_the_cache(tmp_path: Path) -> None:
    """Grouped keys, and keys under autocast, are smaller; measured, not worked out from a configuration."""
    from flamingo_eval.core import registry
    from tests.support.small_flamingos import LAYERS, WIDTH, write_flamingo

    for host, share in (("gpt_neox", 1.0), ("llama", 0.5), ("mpt", 1.0), ("mosaic_gpt", 1.0)):
        source: Any = registry.model_source(str(write_flamingo(tmp_path / host, host)), {"keep": False})
        for precision, size in (("fp32", 4), ("amp_bf16", 2)):
            found = source.load("cpu", precision)._measured()
            assert found.token == 2 * LAYERS * WIDTH * share * size, (host, precision)


@given(st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.5, -1.5, 2.0, -float("inf"), 3e38, 1e-42]), min_size=9, max_size=9),
                min_size=1, max_size=4), st.integers(1, 9))  # fmt: skip
def test_equal_values_are_taken_in_order(rows: list[list[float]], count: int) -> None:
    """By value, then by the lower id, on whatever device."""
    from flamingo_eval.models.flamingo.decoding import _highest_by_key, highest

    values = torch.tensor(rows)
    expected = [sorted(range(9), key=lambda i: (-row[i], i))[:count] for row in rows]
    for function in (highest, _highest_by_key):
        found, places = function(values, count)
        assert places.tolist() == expected
        assert torch.equal(found, values.gather(-1, places))


def test_a_live_model_in_another_precision(kit: Kit) -> None:
    """Float32 weights can be multiplied under autocast; others would have to be copied."""
    from flamingo_eval import evaluate, load_model

    model = load_model("demo", device="cpu")
    words: dict[str, Any] = {"shots": [0], "seeds": [42], "num_samples": 4, "data_root": kit.data}
    assert evaluate(model, "hateful_memes", precision="amp_bf16", **words)[0].trials
    with pytest.raises(UserError, match=r"weights are fp32.*evaluated in fp32 or amp_bf16"):
        evaluate(model, "hateful_memes", precision="bf16", **words)
