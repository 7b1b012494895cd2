"""The feature store, and that every image is encoded once, whatever happens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.retrieval import BATCH, encode_images, store_of
from flamingo_eval.models.scripted import ThumbnailEncoder
from flamingo_eval.storage.vectors import FeatureStore
from tests.support.encoders import CountingSource, images_of
from tests.support.helpers import write_coco_root
from tests.support.reference import linked_data

pytestmark = pytest.mark.usefixtures("empty_cache")


def vectors_of(count: int, width: int = 3, start: int = 0) -> NDArray[np.float32]:
    return np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)


def filled(folder: Path, encoder: str = "e1") -> FeatureStore:
    store = FeatureStore(folder, encoder)
    with store.building():
        store.append(["a", "b"], vectors_of(2), {"name": "test"})
        store.append(["c"], vectors_of(1, start=6), {"name": "test"})
    return store


def test_what_was_added_is_read_back_in_any_order(tmp_path: Path) -> None:
    filled(tmp_path)
    store = FeatureStore(tmp_path, "e1")
    assert len(store) == 3
    assert "d" not in store
    assert store.read(["c", "a"]).tolist() == [[6, 7, 8], [0, 1, 2]]
    assert store.read([]).shape[0] == 0


@pytest.mark.parametrize("cut", [1, 2, 9, 18, 19, 20, 25, 39])
def test_whatever_a_kill_leaves_behind_is_overwritten(tmp_path: Path, cut: int) -> None:
    """The index cut anywhere behind its head, and vectors without lines: what is whole is kept, the rest added again."""
    filled(tmp_path)
    index = tmp_path / "index.txt"
    data = index.read_bytes()
    index.write_bytes(data[:-cut])
    with (tmp_path / "vectors.f32").open("ab") as file:
        file.write(b"torn")
    store = FeatureStore(tmp_path, "e1")
    kept = [key for key in "abc" if key in store]
    assert kept == ["a", "b", "c"][: len(kept)]
    assert len(kept) < 3
    with store.building():
        lacking = [key for key in "abc" if key not in store]
        store.append(lacking, np.stack([vectors_of(3)["abc".index(key)] for key in lacking]), {})
    assert FeatureStore(tmp_path, "e1").read(["a", "b", "c"]).tolist() == vectors_of(3).tolist()


def test_vectors_lost_while_the_index_is_complete(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "vectors.f32").write_bytes((tmp_path / "vectors.f32").read_bytes()[:-5])
    store = FeatureStore(tmp_path, "e1")
    assert [key for key in "abc" if key in store] == ["a", "b"]


def test_a_damaged_vector_is_noticed(tmp_path: Path) -> None:
    store = filled(tmp_path)
    data = bytearray((tmp_path / "vectors.f32").read_bytes())
    data[13] ^= 1
    (tmp_path / "vectors.f32").write_bytes(data)
    with pytest.raises(KeyError, match="b"):
        store.read(["a", "b", "c"])


def test_features_of_another_encoder_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, "e1")
    store = FeatureStore(tmp_path, "e2")
    assert "a" not in store
    assert "not used" in caplog.text
    with store.building():
        store.append(["a"], vectors_of(1, width=5), {})
    assert FeatureStore(tmp_path, "e2").read(["a"]).shape == (1, 5)


@pytest.mark.torch
def test_each_distinct_image_is_read_and_encoded_once(tmp_path: Path) -> None:
    """Also where it lies under two names, is asked for twice, or belongs to another benchmark."""
    root = write_coco_root(tmp_path / "data", train=100, test=5)
    folder = root / "coco" / "train2014"
    images = sorted(folder.iterdir())
    images[3].write_bytes(images[2].read_bytes())
    source, encoder = read_source("coco", root), CountingSource()
    encoding = encode_images(source, [*images_of(source), *images_of(source)], encoder, "cpu")
    assert encoder.encoded == 104 == len(encoding.vectors)
    assert max(encoder.reads.values()) == 1
    assert encoding.number[source.data.train[2].image] == encoding.number[source.data.train[3].image]
    np.testing.assert_allclose(np.linalg.norm(encoding.vectors, axis=1), 1, rtol=1e-6)
    again = encode_images(source, images_of(source), encoder, "cpu")
    assert encoder.loads == 1, "with nothing missing the encoder is not even loaded"
    assert (again.vectors == encoding.vectors).all()
    other = encode_images(source, images_of(source)[:3], CountingSource("another encoder"), "cpu")
    assert len(other.vectors) == 3


@pytest.mark.torch
@pytest.mark.goldens
def test_benchmarks_that_show_the_same_images_share_their_features(goldens: Path, tmp_path: Path) -> None:
    """VQAv2's and OK-VQA's images are COCO's."""
    data, encoder = linked_data(goldens, tmp_path / "data"), CountingSource()
    contents: set[bytes] = set()
    for name in ("coco", "vqav2", "okvqa"):
        source = read_source(name, data)
        shown = images_of(source)
        assert len(shown) > len(set(shown)) or name != "vqav2", "many rows per image"
        encode_images(source, shown, encoder, "cpu")
        before = len(contents)
        contents |= {(data / image).read_bytes() for image in shown}
        assert encoder.encoded == len(contents)
        assert name == "coco" or len(contents) - before < len(set(shown)), "some were known from another benchmark"
    assert max(encoder.reads.values()) == 1


@pytest.mark.torch
def test_a_changed_image_gets_features_of_its_own(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=4, test=1)
    source, encoder = read_source("coco", root), CountingSource()
    first = encode_images(source, images_of(source), encoder, "cpu")
    images = sorted((root / "coco" / "train2014").iterdir())
    images[0].write_bytes(sorted((root / "coco" / "val2014").iterdir())[0].read_bytes())
    source = read_source("coco", root)  # another command
    second = encode_images(source, images_of(source), encoder, "cpu")
    image = source.data.train[0].image
    assert (second.vectors[second.number[image]] != first.vectors[first.number[image]]).any()


@pytest.mark.torch
def test_damaged_features_are_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco_root(tmp_path / "data", train=4, test=1)
    source, encoder = read_source("coco", root), CountingSource()
    first = encode_images(source, images_of(source), encoder, "cpu")
    file = store_of(encoder).folder / "vectors.f32"
    data = bytearray(file.read_bytes())
    data[4 * 192 * 2] ^= 1
    file.write_bytes(data)
    for loads in (2, 2):
        again = encode_images(source, images_of(source), encoder, "cpu")
        assert (again.vectors == first.vectors).all()
        assert encoder.loads == loads, "once"
    assert encoder.encoded == 6
    assert "damaged; computed again" in caplog.text


@pytest.mark.torch
def test_unreadable_images_are_named_and_the_others_encoded(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=4, test=2)
    images = sorted((root / "coco" / "train2014").iterdir())
    images[0].unlink()
    images[1].write_bytes(b"no image")
    source = read_source("coco", root)
    encoding = encode_images(source, images_of(source), CountingSource(), "cpu")
    assert len(encoding.vectors) == 4
    reasons = [encoding.failed[source.data.train[i].image] for i in (0, 1)]
    assert "does not exist" in reasons[0]
    assert "is not an image in a known format" in reasons[1]


_SLOW = """
import sys, time
from pathlib import Path
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.retrieval import encode_images
from tests.support.encoders import CountingSource, images_of

class Slow(CountingSource):
    def load(self, device):
        encoder, outer = super().load(device), self
        plain = encoder.encode
        def encode(prepared):
            time.sleep(0.2)
            print(outer.encoded + len(prepared), flush=True)
            return plain(prepared)
        encoder.encode = encode
        return encoder

source = read_source("coco", Path(sys.argv[1]))
encode_images(source, images_of(source), Slow(), "cpu")
"""


def build(root: Path) -> subprocess.Popen[str]:
    checkout = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(root)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=checkout,
    )  # fmt: skip


@pytest.mark.torch
@pytest.mark.slow
def test_killed_half_way_nothing_but_the_batch_in_flight_is_encoded_twice(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=6 * BATCH - 5, test=5)
    make_distinct(root)
    first = build(root)
    assert first.stdout is not None
    for _ in range(3):  # the third batch is being encoded, two are saved
        first.stdout.readline()
    first.kill()
    first.communicate()
    saved = len(store_of(CountingSource()))
    assert saved in (2 * BATCH, 3 * BATCH)
    second = build(root)
    output = second.communicate()[0].split()
    assert second.returncode == 0
    assert int(output[-1]) == 6 * BATCH - saved, "what was saved is not encoded again"
    assert len(store_of(CountingSource())) == 6 * BATCH


@pytest.mark.torch
@pytest.mark.slow
def test_two_that_build_at_once_share_the_work(tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "data", train=4 * BATCH - 5, test=5)
    make_distinct(root)
    both = [build(root), build(root)]
    outputs = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    encoded = [int(output[-1]) if output else 0 for output in outputs]
    assert sorted(encoded) == [0, 4 * BATCH], "the second waits, and finds everything done"
    store = store_of(CountingSource())
    assert len(store.read(sorted(store._rows))) == 4 * BATCH


def make_distinct(root: Path) -> None:
    """The test images have one of 256 colours; a size of its own makes every one different."""
    from PIL import Image

    for i, path in enumerate(sorted((root / "coco").rglob("*.png"))):
        Image.new("RGB", (8, 8 + i), (i % 256, 80, i // 256)).save(path)


def test_an_image_error_is_a_query_error(tmp_path: Path) -> None:
    with pytest.raises(QueryError):
        ThumbnailEncoder().prepare("none.png", rgb=False, images=Images(tmp_path))


def test_part_of_a_vector_behind_the_last_complete_one(tmp_path: Path) -> None:
    """A disk that filled up, or a kill within a write: what is whole is read, and the next one overwrites the rest."""
    store = filled(tmp_path)
    with (tmp_path / "vectors.f32").open("ab") as file:
        file.write(b"abc")
    store = FeatureStore(tmp_path, "e1")
    assert store.read(["c"]).tolist() == [[6, 7, 8]]
    with store.building():
        store.append(["d"], vectors_of(1, start=9), {})
    assert FeatureStore(tmp_path, "e1").read(["d", "a"]).tolist() == [[9, 10, 11], [0, 1, 2]]


def test_a_byte_of_the_index_flipped(tmp_path: Path) -> None:
    """Whatever it becomes, the other lines still stand for the rows they stood for."""
    for value in (0x0B, 0x0C, 0x85, 0xFF, 0x20):
        folder = tmp_path / str(value)
        filled(folder)
        data = bytearray((folder / "index.txt").read_bytes())
        data[data.index(b"\na ") + 1] = value
        (folder / "index.txt").write_bytes(data)
        store = FeatureStore(folder, "e1")
        with store.building():
            store.append(["a"], vectors_of(1), {})
        assert FeatureStore(folder, "e1").read(["a", "b", "c"]).tolist() == vectors_of(3).tolist()


@pytest.mark.torch
@pytest.mark.parametrize("api", ["none", "old", "old, high", "new"])
def test_a_hosts_switches_of_float32_are_left_as_they_were(api: str) -> None:
    """In a process of its own: torch minds if both ways to switch them are used."""
    switching = {
        "none": "",
        "old": "torch.backends.cuda.matmul.allow_tf32 = True",
        "old, high": "torch.set_float32_matmul_precision('high')",
        "new": "torch.backends.fp32_precision = 'tf32'",
    }[api]
    reading = (
        "torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32"
    )
    script = f"""
import torch
{switching}
def state():
    b = torch.backends
    parts = (b.cuda.matmul, b.mkldnn.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.conv, b.mkldnn.rnn, b)
    return [part.fp32_precision for part in parts]
before = state()
from flamingo_eval.devices import numerics
try:
    with numerics("cpu"):
        assert state()[0] == "ieee"
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert state() == before, (before, state())
if {api != "new"}:
    print({reading})
"""
    checkout = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=checkout)
    assert result.returncode == 0, result.stderr
