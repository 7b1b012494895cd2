"""RICES: each query is shown the training examples whose images are most similar to its own."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flamingo_eval.core.protocols import IMAGE_EMBEDDINGS, Retrieval, Selection
from flamingo_eval.core.settings import Setting


@dataclass(frozen=True)
class RicesSelector:
    """The most similar examples of the full training set, most similar last, next to the query.

    Source: RICES (Yang et al., arXiv 2109.05014; Flamingo, arXiv 2204.14198, appendix) as in
    open_flamingo/eval/rices.py (``find``), which sorts one query's similarities to all rows in float32.
    """

    about = (
        "those of the entire training set whose images are most similar to the query's, the most similar last; one "
        "trial, unless queries are drawn (--num-samples)"
    )
    needs = IMAGE_EMBEDDINGS
    settings = (
        Setting("rices_model", str, "Image encoder: an open_clip model name, or a checkpoint's TOML file, whose vision "
                "model then serves. Default: ViT-L-14, for the demo its own CLIP.", metavar="NAME|TOML", named=False),
        Setting("rices_pretrained", str, "Its weights: an open_clip tag or a file. Default: openai.",
                metavar="TAG|FILE", named=False),
        Setting("rices_quick_gelu", bool, "The weights of a file were trained with QuickGELU, as OpenAI's were; "
                "--no-rices-quick-gelu: with GELU. Needed where open_clip has both variants of the model.",
                named=False),
        Setting("rices_unique_images", bool, "Show no image twice among a query's demonstrations. (VQA training sets "
                "have many questions per image; the protocol shows them all.)", default=False, named=False),
        Setting("exclude_same_image", bool, "Never show the query's own image, a leak where training and test sets "
                "share images.", default=False, named=False),
    )  # fmt: skip

    def retrieval(self, settings: Mapping[str, Any], demo: bool) -> Retrieval:
        """Retrieval with the named encoder; by default the reference's, or the demo's for the demo's images."""
        return Retrieval(
            encoder=settings["rices_model"] or ("demo" if demo else "ViT-L-14"),
            options={"pretrained": settings["rices_pretrained"], "quick_gelu": settings["rices_quick_gelu"]},
            unique_images=settings["rices_unique_images"],
            exclude_same_image=settings["exclude_same_image"],
        )

    def select(self, selection: Selection) -> list[list[list[int]]]:
        """Numbers of the demonstrations, for each query and order; none for an image that could not be encoded.

        Under prompt ensembling, a query's demonstrations are shuffled once per order, cumulatively, as random ones are.
        """
        if selection.nearest is None:
            raise ValueError("RICES needs image embeddings")
        orders = min(selection.ensemble, math.factorial(min(selection.count, 10)))
        generator = random.Random(selection.seed)
        picked = []
        for query in selection.queries:
            order = [*selection.nearest.rows[query.image][: selection.count]][::-1]
            if orders == 1:
                picked.append([order])
                continue
            shuffled = []
            for _ in range(orders):
                generator.shuffle(order)
                shuffled.append(list(order))
            picked.append(shuffled)
        return picked


SELECTOR = RicesSelector()
