"""Packs a piece of work for a worker: its requests, and its images or where they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from flamingo_eval.core.errors import QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.engine.requests import Request

Reference = Any
"""Stands for the bytes of an image in the object store (``ray.ObjectRef``)."""

KEPT = 2 << 30
"""Bytes of images that stay in the cluster's object store, so that images shown again are not sent again."""


class ShippedImages(Images):
    """Images whose content is in Ray's object store.

    Args:
        root: where they were, for messages.
        formats: Pillow's names of the formats that may be decoded.
        contents: image -> reference to its bytes.
    """

    def __init__(self, root: Path, formats: Sequence[str], contents: Mapping[str, Reference]) -> None:
        super().__init__(root, formats)
        self._contents = contents

    def __getstate__(self) -> Any:
        return super().__getstate__(), dict(self._contents)

    def __setstate__(self, state: Any) -> None:
        base, self._contents = state
        super().__setstate__(base)

    def digest(self, image: str) -> str:
        """See :class:`flamingo_eval.core.images.Images`."""
        if image not in self._digests:
            self.read(image)
        return self._digests[image]

    def _content(self, image: str) -> bytes:
        import ray

        if image not in self._contents:
            raise QueryError(f"{self.root / image} could not be read where the run was started")
        return cast(bytes, ray.get(self._contents[image]))


class Store:
    """Contents of images in the object store; the last ones used stay there, and each is sent to a node once.

    Args:
        images: the images on the disk.
        kept: bytes of images that stay.
    """

    def __init__(self, images: Images, kept: int = KEPT) -> None:
        self._images, self._kept, self._size = images, kept, 0
        self._references: OrderedDict[str, tuple[Reference, int]] = OrderedDict()

    def references(self, wanted: Iterable[str]) -> dict[str, Reference]:
        """References to the contents of images. Those that can't be read are left out; the worker reports them."""
        import ray

        found = {}
        for image in dict.fromkeys(wanted):
            if image not in self._references:
                try:
                    content = self._images.read(image)
                except QueryError:
                    continue
                self._references[image] = (ray.put(content), len(content))
                self._size += len(content)
            self._references.move_to_end(image)
            found[image] = self._references[image][0]
        while self._size > self._kept and len(self._references) > len(found):
            self._size -= self._references.popitem(last=False)[1][1]
        return found


class Packing:
    """Packs requests for workers. All requests of a piece share one ``Images`` object, with the digests known so far.

    Args:
        images: the run's images.
        ship: send the images' contents.
    """

    def __init__(self, images: Images, *, ship: bool) -> None:
        self._images = images
        self._root = images.root.absolute()
        self._store = Store(images) if ship else None

    def __call__(self, requests: Sequence[Request]) -> tuple[list[Request], Images]:
        """The arguments of a worker's ``do``."""
        bare = Images(self._root, self._images.formats)
        shown = sorted(set[str]().union(*(request.own_images for request in requests)))
        return [replace(request, images=bare) for request in requests], self.some(shown)

    def some(self, shown: Sequence[str]) -> Images:
        """Some of the images, for a worker."""
        if self._store is None:
            part = Images(self._root, self._images.formats)
        else:
            part = ShippedImages(self._root, self._images.formats, self._store.references(shown))
        part.learn(self._images.only(shown).seen())
        return part
