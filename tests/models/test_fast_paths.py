"""Every fast path gives what the plain path gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import WITHHELD, Decoding, Ranking, Rendering
from tests.support.bundles import load_over
from tests.support.helpers import Kit, LazyModule
from tests.support.small_flamingos import TEXTS

pytestmark = pytest.mark.torch
torch: Any = LazyModule("torch")


@pytest.fixture(scope="module", params=["demo", pytest.param("reference", marks=pytest.mark.goldens)])
def model_kit(request: pytest.FixtureRequest) -> Kit:
    """The demo's checkpoint, or the one that the reference's outputs were made with."""
    if request.param == "demo":
        found: Kit = request.getfixturevalue("kit")
        return found
    goldens: Path = request.getfixturevalue("goldens")
    return Kit(goldens / "model/model.toml", goldens / "data")


@pytest.fixture(scope="module")
def models(model_kit: Kit) -> tuple[Any, Any]:
    """The fast and the plain model."""
    fast, plain = (registry.model_source(str(model_kit.toml), options) for options in ({}, {"plain": True}))
    return load_over(fast, model_kit.data), load_over(plain, model_kit.data)


@pytest.fixture(scope="module")
def prompts(model_kit: Kit) -> list[Rendering]:
    images = model_kit.images(9)
    made = []
    for i, text in enumerate(TEXTS):
        count = text.count("<image>")
        made += [Rendering(text, tuple(images[(i + j + k) % 9] for j in range(count))) for k in range(3)]
    return [*made, Rendering(TEXTS[1], (WITHHELD, images[0])), Rendering(TEXTS[1], (images[0], WITHHELD))]


@pytest.mark.parametrize(
    "decoding",
    [Decoding(20), Decoding(5, num_beams=1), Decoding(12, num_beams=5, length_penalty=-2.0), Decoding(9, min_new_tokens=6),
     Decoding(1), Decoding(7, num_beams=2, length_penalty=1.0)],
)  # fmt: skip
def test_texts(models: tuple[Any, Any], prompts: list[Rendering], decoding: Decoding) -> None:
    fast, plain = models
    items = [fast.read(prompt, decoding) for prompt in prompts]
    expected = [plain.answer([plain.read(prompt, decoding)], decoding)[0] for prompt in prompts]
    assert fast.answer(items, decoding) == expected, "all in one batch"
    assert [fast.answer([item], decoding)[0] for item in items] == expected, "alone"
    assert plain.answer([plain.read(p, decoding) for p in prompts], decoding) == expected, "the plain path too"


def test_class_log_likelihoods(models: tuple[Any, Any], prompts: list[Rendering]) -> None:
    fast, plain = models
    task = Ranking(("yes", "no way, never", "a grey wolf in the snow", "x"))
    together = fast.answer([fast.read(prompt, task) for prompt in prompts], task)
    for prompt, ours in zip(prompts, together, strict=True):
        theirs = plain.answer([plain.read(prompt, task)], task)[0]
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_logits_of_prompt_and_continuation(models: tuple[Any, Any], prompts: list[Rendering]) -> None:
    """Beams side by side behind their prompt see what each would see alone."""
    from flamingo_eval.models.flamingo.cross_attention import Media
    from flamingo_eval.models.flamingo.prefix import Prefix

    fast, plain = models
    task = Decoding(20)
    items = [fast.read(prompt, task) for prompt in prompts]
    with torch.inference_mode():
        prefix: Prefix = fast._prefix(items, task, 12)
        paths = [[5, 6, 7], [5, 9, 8], [11, 3, 2]]
        token = torch.tensor([[path[0] for path in paths]] * len(items))
        visible = torch.eye(3, dtype=torch.bool).expand(len(items), -1, -1)
        prefix.extend(token, torch.tensor([0, 0, 0]), visible)
        # the second step continues beams 1, 0, 2 in this order
        order = [1, 0, 2]
        token = torch.tensor([[paths[b][1] for b in order]] * len(items))
        visible = torch.zeros(3, 6, dtype=torch.bool)
        for i, b in enumerate(order):
            visible[i, [b, 3 + i]] = True
        logits = prefix.extend(token, torch.tensor([1, 1, 1]), visible.expand(len(items), -1, -1))
        for row, item in enumerate(items):
            latents = plain._dense_latents([item], task)
            for i, b in enumerate(order):
                ids = torch.tensor([item.ids + paths[b][:2]])
                media = Media.of(latents, torch.tensor([item.ids]), plain.tokenizer.image_id)
                # an image of their own is what plain attention would give generated image tags; none are generated here
                index = torch.cat([media.image_index, media.image_index[:, -1:].expand(-1, 2)], dim=1)
                alone = plain.model(ids, torch.ones_like(ids), Media(latents, index))[0, -1]
                assert (logits[row, i] - alone).abs().max() < 1e-4


def test_many_passes_give_what_one_gives(
    models: tuple[Any, Any], prompts: list[Rendering], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch's prompts are read in passes of their own lengths; their beams go on together."""
    fast, _ = models
    decoding, names = Decoding(12), Ranking(("yes", "no way, never", "x"))
    texts = fast.answer([fast.read(p, decoding) for p in prompts], decoding)
    logprobs = fast.answer([fast.read(p, names) for p in prompts], names)
    longest = max(len(fast.read(p, decoding).ids) for p in prompts)
    for tokens in (1, 2 * longest, 5 * longest):
        monkeypatch.setattr(fast, "_sizes", fast._sizes._replace(pass_tokens=tokens, logits=tokens))
        prefix = fast._prefix([fast.read(p, decoding) for p in prompts], decoding, 36)
        assert len(prefix.logits) == len(prompts)
        assert fast.answer([fast.read(p, decoding) for p in prompts], decoding) == texts
        again = fast.answer([fast.read(p, names) for p in prompts], names)
        for one, other in zip(again, logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_each_image_is_encoded_once(models: tuple[Any, Any], model_kit: Kit, tmp_path: Path) -> None:
    """Whatever the budget: what memory does not hold is on the disk, also for a later run."""
    from flamingo_eval.models.flamingo.adapter import Caching
    from flamingo_eval.models.flamingo.loading import load_model
    from flamingo_eval.models.flamingo.spec import read_spec

    paths = model_kit.images(10)
    task = Decoding(5)
    prompts = [Rendering(TEXTS[1], (paths[i], paths[(i + 3) % 10])) for i in range(10)] * 2
    expected = [models[1].answer([models[1].read(p, task)], task)[0] for p in prompts]
    one = models[0].model.perceiver.latents.nbytes
    for budget, disk, encoded in (
        (1 << 30, "", 10),
        (3 * one, "a", 10),
        (3 * one, "a", 0),
        (1 << 30, "b", 10),
        (1 << 30, "b", 0),
    ):
        caching = Caching(budget, tmp_path / disk if disk else None, "checkpoint")
        model = load_model(read_spec(model_kit.toml), device="cpu", precision="fp32", caching=caching)
        images = Images(model_kit.data)
        output = [model.answer([model.read(p, task, images)], task)[0] for p in prompts]
        assert output == expected
        store = model.stores[False]
        assert store._bytes <= budget
        assert store.encoded == encoded
        model.close()


def test_reading_ahead_while_the_same_images_are_being_encoded(kit: Kit, tmp_path: Path) -> None:
    """Nothing is left over, and nothing is encoded twice."""
    import threading

    from flamingo_eval.models.flamingo.latents import LatentStore

    paths = [kit.data / name for name in kit.images(6)]
    started, go_on = threading.Event(), threading.Event()

    def encode(pixels: Any) -> Any:
        started.set()
        assert go_on.wait(10)
        return pixels.mean(dim=(2, 3))[:, None, :]

    def transform(image: Any) -> Any:
        del image
        return torch.rand(3, 4, 4)

    store = LatentStore(transform, encode, torch.zeros(1, 3), budget=1 << 20, disk=None)
    images = [store.find(path, rgb=False, images=Images(Path())) for path in paths]
    store.read(images[:4])
    worker = threading.Thread(target=store.latents, args=(images[:4],))
    worker.start()
    assert started.wait(10)
    store.read(images)  # four of them are being encoded
    go_on.set()
    worker.join(10)
    assert set(store._pixels) == {image.key for image in images[4:]}
    store.latents(images)
    assert store._pixels == {}
    assert store.encoded == 6
    with pytest.raises(QueryError, match="does not exist"):
        store.find(tmp_path / "none.png", rgb=False, images=Images(Path()))


def test_latents_are_on_the_disk_long_before_the_end(
    kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A killed run loses the last few; a disk that is nearly full is left alone."""
    from flamingo_eval.models.flamingo import latents
    from flamingo_eval.models.flamingo.latents import LatentStore
    from flamingo_eval.storage.vectors import FeatureStore

    monkeypatch.setattr(latents, "SAVED_AT_ONCE", 2)
    paths = [kit.data / name for name in kit.images(7)]

    def store() -> LatentStore:
        return LatentStore(lambda _: torch.rand(3, 4, 4), lambda pixels: pixels.mean(dim=(2, 3))[:, None, :],
                           torch.zeros(1, 3), budget=1 << 20, disk=FeatureStore(tmp_path / "x", "d"))  # fmt: skip

    killed = store()
    first = [killed.latents([killed.find(path, rgb=False, images=Images(Path()))]) for path in paths]
    killed._writer.shutdown()  # what a kill leaves behind: it is never closed
    later = store()
    again = [later.latents([later.find(path, rgb=False, images=Images(Path()))]) for path in paths]
    assert later.encoded == 1
    assert all(torch.equal(a, b) for a, b in zip(first[:6], again[:6], strict=True))
    later.close()
    assert len(FeatureStore(tmp_path / "x", "d")) == 7
    monkeypatch.setattr(latents, "SPARE_DISK", 1 << 60)
    full = store()
    full._disk = FeatureStore(tmp_path / "y", "d")
    full.latents([full.find(path, rgb=False, images=Images(Path())) for path in paths])
    full.close()
    assert "GiB to spare" in caplog.text
    assert len(FeatureStore(tmp_path / "y", "d")) == 0


def test_a_cache_disk_that_fails_costs_nothing_but_time(
    kit: Kit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flamingo_eval.models.flamingo.latents import LatentStore
    from flamingo_eval.storage.vectors import FeatureStore

    (tmp_path / "file").write_text("not a folder")
    store = LatentStore(lambda _: torch.rand(3, 4, 4), lambda pixels: pixels.mean(dim=(2, 3))[:, None, :],
                        torch.zeros(1, 3), budget=12, disk=FeatureStore(tmp_path / "file" / "x", "d"))  # fmt: skip
    images = [
        store.find(path, rgb=False, images=Images(Path())) for path in [kit.data / name for name in kit.images(6)]
    ]
    store.read(images)
    assert store.latents(images).shape == (6, 1, 3)
    store.close()
    assert "not kept on the disk any more" in caplog.text


def test_a_cache_that_is_emptied_meanwhile_costs_nothing_but_time(kit: Kit, tmp_path: Path) -> None:
    import shutil

    from flamingo_eval.models.flamingo.latents import LatentStore
    from flamingo_eval.storage.vectors import FeatureStore

    paths = [kit.data / name for name in kit.images(6)]

    def store() -> LatentStore:
        return LatentStore(lambda _: torch.ones(3, 4, 4), lambda pixels: pixels.mean(dim=(2, 3))[:, None, :],
                           torch.zeros(1, 3), budget=1, disk=FeatureStore(tmp_path / "x", "d"))  # fmt: skip

    first = store()
    first.latents([first.find(path, rgb=False, images=Images(Path())) for path in paths])
    first.close()
    second = store()
    shutil.rmtree(tmp_path / "x")
    assert second.latents([second.find(path, rgb=False, images=Images(Path())) for path in paths]).shape == (6, 1, 3)
    assert second.encoded == 6
    second.close()
