"""The vision tower: an open_clip model that returns its patch tokens."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, ToTensor
from torchvision.transforms.functional import pil_to_tensor

from flamingo_eval.core.errors import CheckpointError, QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.devices import on_the_cpu
from flamingo_eval.libraries import loading
from flamingo_eval.models.flamingo.spec import VisionSpec
from flamingo_eval.storage.part_files import read_object
from flamingo_eval.weights import WRAPPED_MODULES, check_file, check_sizes, check_values

Transform = Callable[[Any], Tensor]
"""open_clip's inference transform: a Pillow image, *as opened*, to a (3, height, width) float tensor."""


MOST_ELONGATED = 3000
"""Maximum ratio of an image's longer side to its shorter one. The transform makes the shorter side 224 *before* it
crops. At this ratio the image then has 150 megapixels; Pillow refuses to open one of 179 (a decompression bomb)."""


def load_clip(spec: VisionSpec) -> tuple[nn.Module, Transform]:
    """Builds the open_clip model a checkpoint names, in float32 on the CPU, and its inference transform.

    The activation follows the weights: open_clip 3 builds ``ViT-L-14`` with GELU, loads the ``openai`` weights,
    which were trained with QuickGELU, and merely warns. Here the tag's own configuration decides.

    Raises:
        CheckpointError: unknown model or tag, missing or unreadable weights, or an activation that contradicts them.
    """
    file = spec.pretrained if isinstance(spec.pretrained, Path) else None
    spec.check()
    config_file = spec.config_file
    if config_file is None:
        raise CheckpointError(
            f"open_clip does not know the vision model {spec.model!r}"
            + (f" (configs read from {spec.configs})" if spec.configs else _similar_names(spec.model))
        )
    config = read_object(config_file)
    with loading(f"vision model {spec.model} ({config_file})", [config_file]):
        open_clip.add_model_config(config_file)  # the last one added under a name counts: not another checkpoint's
        if open_clip.get_model_config(spec.model) != config:
            raise CheckpointError(f"{config_file} is no configuration of an open_clip model")
    pretrained, quick_gelu = _weights(spec, bool(config.get("quick_gelu", False)))
    if file is not None:
        _check_weights(file, config_file, config)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="QuickGELU mismatch")
        where = f"vision model {spec.model} ({config_file}) with weights {pretrained}"
        with loading(where, [file] if file else ()):
            model, _, transform = open_clip.create_model_and_transforms(
                spec.model, pretrained=pretrained, precision="fp32", force_quick_gelu=quick_gelu
            )
    check_values(model.named_parameters(), f"vision weights {pretrained}")
    return model.eval(), _in_float32(transform)


def _in_float32(transform: Any) -> Transform:
    """The transform with float32 pixels, whatever torch's default type is, which torchvision would use."""
    steps = transform.transforms
    if not any(isinstance(step, ToTensor) for step in steps):
        raise CheckpointError(f"open_clip's transform has no step that makes a tensor: {transform}")
    in_float32: Transform = Compose([_as_float32 if isinstance(step, ToTensor) else step for step in steps])
    return in_float32


def _as_float32(opened: Image.Image) -> Tensor:
    pixels: Tensor = pil_to_tensor(opened)
    return pixels.to(torch.float32).div(255)


def _check_weights(file: Path, config_file: Path, config: dict[str, Any]) -> None:
    """Raises CheckpointError for weights of another kind, and for a configuration far too large for them."""
    names = check_file(file)
    wrapped = sorted({name.partition(".")[0] for name in names} & {*WRAPPED_MODULES})
    if wrapped:
        raise CheckpointError(
            f"vision weights {file}: the names begin with {wrapped[0]}; save the model inside that wrapper"
        )
    check_sizes(config_file, config)
    parameters, size = _parameters(config), file.stat().st_size
    if parameters > _MOST_PER_BYTE * size:
        raise CheckpointError(
            f"{config_file} describes some {parameters:,} parameters; the weights {file} have {size:,} bytes"
        )


_MOST_PER_BYTE = 4
"""Maximum parameters per byte of a weights file. A configuration with more is refused: building it could take hours.
A real file has at least one byte per parameter, but the estimate may be too high."""

_SQUARES = 12
"""A transformer's layer has 12 width² parameters: 4 of attention, 8 of a four times wider MLP."""


def _parameters(config: dict[str, Any]) -> int:
    """Roughly how many parameters a configuration's transformers have."""
    total = 0
    for name in ("vision_cfg", "text_cfg"):
        part = config.get(name)
        numbers = {k: v for k, v in part.items() if type(v) is int} if isinstance(part, dict) else {}
        width = numbers.get("width", 0)
        tokens = numbers.get("context_length", 0) + numbers.get("vocab_size", 0)
        tokens += (numbers.get("image_size", 0) // max(1, numbers.get("patch_size", 16))) ** 2
        total += _SQUARES * numbers.get("layers", 0) * width * width + tokens * width
    return total


def _similar_names(name: str) -> str:
    similar = difflib.get_close_matches(name, open_clip.list_models(), n=5, cutoff=0.4)
    return f"; it knows {', '.join(similar)}, ..." if similar else "; a checkpoint's TOML file can bring `configs`"


def _weights(spec: VisionSpec, config_quick_gelu: bool) -> tuple[str, bool]:
    """(what to pass to open_clip as ``pretrained``, whether the weights need QuickGELU)."""
    if isinstance(spec.pretrained, Path):
        if config_quick_gelu and spec.quick_gelu is False:
            raise CheckpointError(f"vision model {spec.model} has QuickGELU, and quick_gelu = false says GELU")
        return str(spec.pretrained), config_quick_gelu or bool(spec.quick_gelu)
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


def read_image(images: Images, image: str, transform: Transform, *, rgb: bool) -> Tensor:
    """Reads one image for the transform, as Pillow opened it: the transform resizes and crops *before* it converts.

    Args:
        images: where the image is.
        image: its path there.
        transform: the vision model's transform.
        rgb: convert the image to RGB before the transform, as ImageNet's loader in the reference does.

    Raises:
        QueryError: the image can't be read, or is too long and narrow; the message names it.
    """

    def pixels(opened: Image.Image) -> Tensor:
        if max(opened.size) > MOST_ELONGATED * min(opened.size):
            size = f"{opened.width} x {opened.height} pixels"
            raise QueryError(f"{images.root / image} is too long and narrow to be resized: {size}")
        with on_the_cpu():
            return transform(opened.convert("RGB") if rgb else opened)

    return images.decode(image, pixels)


class PatchTokens(nn.Module):
    """(images, 3, height, width) -> (images, tokens, width): the patch tokens *before* ``ln_post``, no class token.

    open_clip 2.16, which the released checkpoints were trained with, applied ``ln_post`` to the pooled token
    only; open_clip 3's ``output_tokens`` returns tokens after ``ln_post``.
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
