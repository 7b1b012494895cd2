"""The vision tower: an open_clip model asked for its patch tokens."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
from safetensors import SafetensorError
from torch import Tensor, nn

from flamingo_eval.errors import CheckpointError
from flamingo_eval.models.flamingo.spec import VisionSpec

Transform = Callable[[Any], Tensor]
"""open_clip's inference transform: a Pillow image, *as opened*, to a (3, height, width) float tensor."""


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
            + (f" (configs read from {spec.configs})" if spec.configs else "; set `configs` in [vision]?")
        )
    pretrained, quick_gelu = _weights(spec, bool(config.get("quick_gelu", False)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                spec.model, pretrained=pretrained, precision="fp32", force_quick_gelu=quick_gelu
            )
        except (RuntimeError, OSError, UserWarning, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise CheckpointError(f"vision weights {pretrained!r} do not load into {spec.model}: {error}") from error
    return model.eval(), transform


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
