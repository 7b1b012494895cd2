"""The vision tower: an open_clip model asked for its patch tokens."""

from __future__ import annotations

import difflib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from flamingo_eval.errors import CheckpointError, QueryError
from flamingo_eval.images import Images
from flamingo_eval.models.flamingo.spec import VisionSpec

Transform = Callable[[Any], Tensor]
"""open_clip's inference transform: a Pillow image, *as opened*, to a (3, height, width) float tensor."""


MOST_ELONGATED = 3000
"""Longer side by shorter side of a picture. The transform makes the shorter one 224 *before* it crops: at this ratio
the picture has 150 megapixels then, and Pillow refuses to open one of 179 (a decompression bomb)."""

_LOADING_ERRORS = (RuntimeError, OSError, UserWarning, EOFError, pickle.UnpicklingError, SafetensorError,
                   AssertionError, KeyError, ValueError, TypeError, AttributeError)  # fmt: skip
"""What open_clip raises for weights that are none, or another model's."""


def load_clip(spec: VisionSpec) -> tuple[nn.Module, Transform]:
    """Builds the open_clip model a checkpoint names, in float32 on the CPU, and its inference transform.

    The activation follows the weights: open_clip 3 builds ``ViT-L-14`` with GELU, loads the ``openai`` weights,
    which were trained with QuickGELU, and merely warns. Here the tag's own configuration decides.

    Raises:
        CheckpointError: unknown model or tag, missing or unreadable weights, or an activation that contradicts them.
    """
    if spec.configs is not None:
        open_clip.add_model_config(spec.configs)
    config = open_clip.get_model_config(spec.model)
    if config is None:
        raise CheckpointError(
            f"open_clip does not know the vision model {spec.model!r}"
            + (f" (configs read from {spec.configs})" if spec.configs else _similar_names(spec.model))
        )
    pretrained, quick_gelu = _weights(spec, bool(config.get("quick_gelu", False)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                spec.model, pretrained=pretrained, precision="fp32", force_quick_gelu=quick_gelu
            )
        except _LOADING_ERRORS as error:
            raise CheckpointError(f"vision weights {pretrained!r} do not load into {spec.model}: {error}") from error
    return model.eval(), transform


def _similar_names(name: str) -> str:
    similar = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.4)
    return f"; it knows {', '.join(similar)}, ..." if similar else "; a checkpoint's TOML file can bring `configs`"


def _weights(spec: VisionSpec, config_quick_gelu: bool) -> tuple[str, bool]:
    """(what to hand to open_clip as ``pretrained``, whether the weights want QuickGELU)."""
    if isinstance(spec.pretrained, Path):
        return str(spec.pretrained), config_quick_gelu or spec.quick_gelu
    tags = open_clip.list_pretrained_tags_by_model(spec.model)
    if spec.pretrained not in tags:
        raise CheckpointError(
            f"open_clip has no weights {spec.pretrained!r} for {spec.model}; it has: {', '.join(tags) or 'none'}"
        )
    wanted = bool(open_clip.get_pretrained_cfg(spec.model, spec.pretrained).get("quick_gelu", False))
    if config_quick_gelu and not wanted:
        raise CheckpointError(
            f"vision model {spec.model} has QuickGELU but its weights {spec.pretrained!r} were trained with GELU"
        )
    return spec.pretrained, wanted


def read_picture(images: Images, image: str, transform: Transform, *, rgb: bool) -> Tensor:
    """One picture, handed to the transform as Pillow opened it: that resizes and crops *before* it converts.

    Args:
        images: where it is.
        image: its path there.
        transform: the vision model's.
        rgb: convert before the transform, as ImageNet's loader in the reference does.

    Raises:
        QueryError: it can't be read; the message names it.
    """

    def pixels(picture: Image.Image) -> Tensor:
        if max(picture.size) > MOST_ELONGATED * min(picture.size):
            size = f"{picture.width} x {picture.height} pixels"
            raise QueryError(f"{images.root / image} is too long and narrow to be resized: {size}")
        return transform(picture.convert("RGB") if rgb else picture)

    return images.decode(image, pixels)


class PatchTokens(nn.Module):
    """(images, 3, height, width) -> (images, tokens, width): the patch tokens *before* ``ln_post``, no class token.

    open_clip 2.16, which the released checkpoints were trained with, applied ``ln_post`` to the pooled token
    only; open_clip 3's ``output_tokens`` gives tokens after it.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        if not all(hasattr(tower, name) for name in ("_embeds", "transformer", "ln_post")):
            raise CheckpointError(f"the vision tower must be open_clip's VisionTransformer, not {type(tower).__name__}")
        self.tower = tower

    def forward(self, pixels: Tensor) -> Tensor:
        tower: Any = self.tower
        tokens: Tensor = tower.transformer(tower._embeds(pixels))
        return tokens[:, 1:]
