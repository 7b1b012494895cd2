"""Retrieval: images -> features -> the training rows most similar to each query, before any plan is made."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import msgspec
import numpy as np
from msgspec import UNSET

from flamingo_eval.core import registry
from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import DataError, QueryError, UserError, first_few
from flamingo_eval.core.images import Images
from flamingo_eval.core.paths import cache_folder
from flamingo_eval.core.progress import progress_bar, warn
from flamingo_eval.core.protocols import EncoderSource, ImageEncoder, Nearest, Retrieval
from flamingo_eval.core.reading import read_json
from flamingo_eval.core.records import Example
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.schema import typed
from flamingo_eval.core.source import Source
from flamingo_eval.core.workers import WORKERS
from flamingo_eval.storage.files import write_atomic
from flamingo_eval.storage.run_records import FORMAT, RankingRecord, RetrievalIdentity
from flamingo_eval.storage.vectors import FeatureStore, Vectors

BATCH = 64
"""Images encoded at once."""


@dataclass(frozen=True)
class Encoding:
    """The result of encoding a set of images.

    Attributes:
        vectors: one per distinct image, of length 1.
        number: path of an image -> its row in ``vectors``; paths with the same content have the same row.
        failed: path of an image that can't be read -> why.
    """

    vectors: Vectors
    number: Mapping[str, int]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """The result of encoding a batch of images.

    Attributes:
        keys: keys of the images that could be read.
        vectors: a row for each key, of any length (not normalised); None if there are no keys.
        failed: key of an image that could not be read -> why.
    """

    keys: Sequence[str]
    vectors: Vectors | None
    failed: Mapping[str, str]


@runtime_checkable
class Embeds(Protocol):
    """An encoder source that encodes images in other processes."""

    def embed(self, wanted: Mapping[str, str], rgb: bool) -> Iterator[Encoded]:
        """Encodes images; the results may come in any order.

        Args:
            wanted: key of an image -> its path.
            rgb: convert images to RGB before the transform.
        """


def retrieval_of(spec: RunSpec) -> Retrieval | None:
    """The retrieval rules of a run, or None if its demonstrations are not retrieved."""
    return registry.retrieval(spec.select, spec.selection, "data" in spec.demo_parts)


def encoder_of(retrieval: Retrieval) -> EncoderSource:
    """The image encoder that retrieval uses. Raises UserError, CheckpointError."""
    return registry.image_encoder(retrieval.encoder, retrieval.options)


@dataclass(frozen=True)
class Retriever:
    """A run's retrieval rules and encoder: one object for the full command, so that changed files are noticed."""

    rules: Retrieval
    encoder: EncoderSource

    @staticmethod
    def of(spec: RunSpec) -> Retriever | None:
        """The retriever of a run; None if its demonstrations are not retrieved. Raises UserError, CheckpointError."""
        rules = retrieval_of(spec)
        return None if rules is None else Retriever(rules, encoder_of(rules))

    def identity(self) -> RetrievalIdentity:
        """Everything that decides which demonstrations are nearest."""
        info = self.encoder.info()
        return RetrievalIdentity(
            encoder=info.name,
            encoder_digest=info.digest,
            unique_images=self.rules.unique_images,
            exclude_same_image=self.rules.exclude_same_image,
        )


def store_of(encoder: EncoderSource) -> FeatureStore:
    """Where the features of an encoder are kept, shared by all runs."""
    key = encoder.info().digest
    return FeatureStore(cache_folder() / "features" / key, key)


def find_nearest(source: Source, queries: Sequence[Example], count: int, retriever: Retriever, device: str) -> Nearest:
    """For the image of each query, the training rows most similar to it.

    Args:
        source: benchmark and data.
        queries: the examples that can be asked.
        count: rows wanted for each query.
        retriever: the encoder, and the rules for which rows may be shown.
        device: where images are encoded and similarities computed.

    Raises:
        UserError: there are fewer training examples than wanted.
        DataError: training images can't be read, so the nearest ones are not known; all others are encoded and saved.
    """
    train = [example.image for example in source.data.train]
    encoding = encode_images(source, [*train, *(query.image for query in queries)], retriever.encoder, device)
    broken = list(dict.fromkeys(encoding.failed[image] for image in train if image in encoding.failed))
    if broken:
        raise DataError(f"{source.benchmark.name}: all training images are ranked, and {len(broken)} of them "
                        f"can't be read; the others' features are saved:{first_few(broken)}")  # fmt: skip
    asked = [image for image in dict.fromkeys(query.image for query in queries) if image not in encoding.failed]
    ranked = _rank(encoding, train, asked, count, retriever.rules, device)
    found: dict[str, Sequence[int]] = {query.image: () for query in queries}
    failed = {query.image: encoding.failed[query.image] for query in queries if query.image in encoding.failed}
    for image, rows in zip(asked, ranked, strict=True):
        if len(rows) < count:
            raise UserError(
                f"{source.benchmark.name}: {count} demonstrations asked for, but there are only {len(rows)} to show "
                f"for {image} (training examples: {len(train)})"
            )
        found[image] = tuple(rows)
    return Nearest(found, failed)


def _rank(
    encoding: Encoding, train: Sequence[str], asked: Sequence[str], count: int, rules: Retrieval, device: str
) -> list[list[int]]:
    """The nearest rows of each query's image; a training image is compared once, even if several rows show it."""
    from flamingo_eval.devices import pick_device
    from flamingo_eval.engine.nearest import Pool, nearest_rows

    rows: dict[int, list[int]] = {}
    for row, image in enumerate(train):
        rows.setdefault(encoding.number[image], []).append(row)
    shown = [members[:1] for members in rows.values()] if rules.unique_images else list(rows.values())
    own = [encoding.number[image] for image in asked]
    excluded = [number if rules.exclude_same_image else None for number in own]
    pool = Pool(encoding.vectors[: len(rows)], shown)  # training images come first, in the order of their first rows
    return nearest_rows(pool, encoding.vectors[own], count, excluded=excluded, device=pick_device(device))


def encode_images(source: Source, images: Iterable[str], encoder: EncoderSource, device: str) -> Encoding:
    """Features of images: from the store, or computed and added to it."""
    rgb = source.benchmark.prompt.rgb
    keys, failed = _keys(source.images, dict.fromkeys(images), rgb)
    store = store_of(encoder)
    wanted = list(dict.fromkeys(keys.values()))
    _drop_damaged(store, wanted)
    if any(key not in store for key in wanted):
        wanted_images = {key: image for image, key in keys.items()}
        reasons = _build(store, encoder, source.images, wanted_images, rgb, device)
        failed |= {image: reasons[key] for image, key in keys.items() if key in reasons}
    wanted = [key for key in wanted if key in store]
    place = {key: i for i, key in enumerate(wanted)}
    return Encoding(store.read(wanted), {i: place[key] for i, key in keys.items() if key in place}, failed)


def _keys(images: Images, wanted: Collection[str], rgb: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Image -> key, by its content and how it is read; and image -> what is wrong, for those that can't be opened."""

    def key(image: str) -> str | QueryError:
        try:
            return images.digest(image) + ("-rgb" if rgb else "")
        except QueryError as error:
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        found = dict(zip(wanted, pool.map(key, wanted), strict=True))
    failed = {image: str(key) for image, key in found.items() if isinstance(key, QueryError)}
    return {image: key for image, key in found.items() if isinstance(key, str)}, failed


def _drop_damaged(store: FeatureStore, keys: Sequence[str]) -> None:
    try:
        store.read([key for key in keys if key in store])
    except KeyError as error:
        warn(f"{len(error.args)} features in {store.folder} are damaged; computed again")
        store.forget(error.args)


def _build(
    store: FeatureStore, source: EncoderSource, images: Images, shown: Mapping[str, str], rgb: bool, device: str
) -> dict[str, str]:
    """Adds the features that the store lacks. Returns why images could not be encoded, by key.

    Args:
        store: where vectors are kept.
        source: the image encoder.
        images: where the images are.
        shown: key of an image -> one of its paths.
        rgb: convert images to RGB before the transform.
        device: where images are encoded.
    """
    lacking = [key for key in shown if key not in store]
    failed: dict[str, str] = {}
    with store.building():
        _drop_damaged(store, [key for key in lacking if key in store])
        missing = [key for key in shown if key not in store]
        if not missing:  # another process was faster
            return failed
        info = source.info()
        about = {"name": info.name, "parts": dict(info.parts)}
        title = f"image features ({info.name})"
        embed = source.embed if isinstance(source, Embeds) else partial(_embed_here, source, images, device)
        with progress_bar(len(missing), "image", title) as bar:
            for part in embed({key: shown[key] for key in missing}, rgb):
                failed |= part.failed
                if part.keys:
                    _check_shape(part, info.name)
                    vectors = _normalised(cast(Vectors, part.vectors), [images.root / shown[key] for key in part.keys])
                    store.append(part.keys, vectors, about)
                bar.update(len(part.keys) + len(part.failed))
    return failed


def _check_shape(part: Encoded, name: str) -> None:
    if getattr(part.vectors, "ndim", 0) != 2 or len(cast(Vectors, part.vectors)) != len(part.keys):
        raise UserError(
            f"the image encoder {name} gave no embedding for each of {len(part.keys)} images, but "
            f"something of shape {getattr(part.vectors, 'shape', None)}"
        )


def _embed_here(
    source: EncoderSource, images: Images, device: str, wanted: Mapping[str, str], rgb: bool
) -> Iterator[Encoded]:
    from flamingo_eval.devices import free_memory, pick_device

    encoder = source.load(pick_device(device))
    for batch, prepared in _prefetched(encoder, wanted, rgb, images):
        yield encoded(encoder, batch, prepared)
    del encoder
    free_memory()  # the language model needs it


def encoded(encoder: ImageEncoder, keys: Sequence[str], prepared: Sequence[Any]) -> Encoded:
    """Encodes what :func:`prepared_image` returned for the images of these keys."""
    good = {key: one for key, one in zip(keys, prepared, strict=True) if not isinstance(one, QueryError)}
    failed = {key: str(one) for key, one in zip(keys, prepared, strict=True) if isinstance(one, QueryError)}
    return Encoded([*good], encoder.encode([*good.values()]) if good else None, failed)


def prepared_image(encoder: ImageEncoder, rgb: bool, images: Images, image: str) -> Any:
    """An image prepared for an encoder, or the QueryError that says why it can't be read."""
    try:
        return encoder.prepare(image, rgb, images)
    except QueryError as error:
        return error


def _prefetched(
    encoder: ImageEncoder, shown: Mapping[str, str], rgb: bool, images: Images
) -> Iterator[tuple[list[str], list[Any]]]:
    """Batches of keys with their images, or an image's error; two batches are read while one is encoded."""
    prepare = partial(prepared_image, encoder, rgb, images)
    keys = list(shown)
    batches = [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)]
    with ThreadPoolExecutor(WORKERS) as pool:
        reading: list[list[Future[Any]]] = []
        try:
            for i, batch in enumerate(batches):
                while len(reading) < min(len(batches), i + 3):
                    reading.append([pool.submit(prepare, shown[key]) for key in batches[len(reading)]])
                yield batch, [future.result() for future in reading[i]]
                reading[i] = []
        finally:
            pool.shutdown(cancel_futures=True)


def _normalised(vectors: Vectors, images: Sequence[Path]) -> Vectors:
    """Vectors of length 1, in float32 like the reference's."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    bad = [str(image) for image, length in zip(images, lengths[:, 0], strict=True) if not 0 < length < np.inf]
    if bad:
        raise DataError(f"the image encoder gives no usable features for {', '.join(bad[:5])}")
    unit: Vectors = vectors / lengths
    return unit


@dataclass(frozen=True)
class Seen:
    """The current state of the images that a ranking uses: the digest of each, and those that can't be read."""

    digests: Mapping[str, str]
    failed: frozenset[str]

    @staticmethod
    def of(source: Source, asked: Sequence[Example]) -> Seen:
        """The state of the images of all training examples and of the queried examples."""
        images = [example.image for example in (*source.data.train, *asked)]
        keys, failed = _keys(source.images, dict.fromkeys(images), source.benchmark.prompt.rgb)
        return Seen(keys, frozenset(failed))

    @property
    def digest_of_all(self) -> str:
        """One digest of the full state."""
        return digest([dict(self.digests), sorted(self.failed)])

    def matches(self, record: RankingRecord) -> bool:
        """Whether a saved ranking was made from these images.

        Each image that can be read must have its old digest; each that can't be read must be known to the ranking.
        An image that can be read now but could not be read then does not match.
        """
        if record.digests is UNSET:
            return record.images_digest == self.digest_of_all or not self.digests
        then = record.digests
        same = all(then.get(image) == key for image, key in self.digests.items())
        return same and all(image in then or image in record.failed for image in self.failed)


def write_nearest(path: Path, nearest: Nearest, seen: Seen) -> None:
    """Saves the ranking in the run folder, so that the run can be scored and shown without images or encoder.

    Args:
        path: the file.
        nearest: the ranking.
        seen: the images it was made from.
    """
    rows = {image: [*rows] for image, rows in nearest.rows.items()}
    record = RankingRecord(format=FORMAT, images_digest=seen.digest_of_all, nearest=rows, failed=dict(nearest.failed),
                           digests=dict(seen.digests))  # fmt: skip
    write_atomic(path, json.dumps(msgspec.to_builtins(record)))


def read_nearest(path: Path, source: Source, asked: Iterable[Example], count: int) -> tuple[Nearest, RankingRecord]:
    """The saved ranking of a run, and its record as it is in the file.

    Raises:
        DataError: the file is not a ranking, or it has too few queries or demonstrations for the run.
    """
    table = read_json(path)
    damaged = DataError(f"{path} is damaged; the command that made the run writes it anew")
    try:
        record = typed(table, RankingRecord, str(path))
    except UserError as error:
        raise DataError(f"{damaged} ({error})") from error
    rows = {**record.nearest, **dict.fromkeys(record.failed, ())}
    nearest, last = Nearest(rows, record.failed), len(source.data.train) - 1
    for image in {example.image for example in asked} - nearest.failed.keys():
        found = nearest.rows.get(image, ())
        if len(found) < count or not 0 <= min(found) <= max(found) <= last:
            raise damaged
    return nearest, record
