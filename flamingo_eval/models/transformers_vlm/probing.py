"""Checks whether a model may use the fast path: on two images of unusual sizes it must match the plain path.

The fast path could give wrong results for an architecture that we have not tested. So two things are compared when a
model is loaded: a prompt's tokens, and the logits after it, with images passed as features and as pixels.
"""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import FlamingoEvalError
from flamingo_eval.core.records import Prompt, Turn
from flamingo_eval.devices import autocast, is_out_of_memory
from flamingo_eval.libraries import reason_of
from flamingo_eval.models.transformers_vlm.generation import Batch, Generator
from flamingo_eval.models.transformers_vlm.reading import Reader
from flamingo_eval.models.transformers_vlm.tower import Tower

_SMALL, _LARGE = ((97, 61), (55, 88)), ((1100, 700), (500, 900))
"""Sizes of images, (width, height) in pixels; with the larger ones, only tokens are compared."""
_PROMPT = Prompt((Turn(("a",), "What is it?", "A dog, 1."),), Turn(("b",), "What is it?"))
_TOLERANCE = {"fp32": 1e-3, "amp_bf16": 0.15, "bf16": 0.15, "fp16": 0.1}
"""How much logits may differ: root mean square error as a share of their standard deviation. Rounding causes less,
and a missing input causes more."""


@torch.inference_mode()
def check_taken_apart(generator: Generator, reader: Reader, precision: str) -> tuple[Tower | None, str]:
    """The vision tower, if its features give the same results as pixels; else None and the reason.

    Raises:
        RuntimeError: the device's memory is too small.
    """
    if reader.most_images == 1:
        return None, "its prompts have one image"
    try:
        tower = Tower(generator.model)
        if not all(_same_tokens(reader, sizes) for sizes in (_SMALL, _LARGE)):
            return None, "its processor writes other tokens for several images than for each"
        difference = _difference(generator, reader, tower, precision)
    except FlamingoEvalError as error:
        return None, str(error)
    except Exception as error:  # an unknown architecture's code may raise anything
        if is_out_of_memory(error):
            raise
        return None, reason_of(error)
    if not difference <= _TOLERANCE[precision]:  # "not <=" also rejects NaN
        return None, "features of its images in place of pixels give other logits"
    tower.encoded = 0
    return tower, ""


def _images(sizes: tuple[tuple[int, int], ...]) -> list[Image.Image]:
    gradient = Image.radial_gradient("L").convert("RGB")
    return [gradient.rotate(90 * i).resize((w + 10, h + 10)).crop((10, 10, w + 10, h + 10))
            for i, (w, h) in enumerate(sizes)]  # fmt: skip


def _same_tokens(reader: Reader, sizes: tuple[tuple[int, int], ...]) -> bool:
    """Whether a prompt gets the processor's own tokens, also if only the sizes of its images are known."""
    images, variant = _images(sizes), reader.variant(len(sizes))
    expected = reader.together(_PROMPT, images)["input_ids"][0].tolist()
    made = [reader.process(image, variant).text for image in images]
    by_size = [reader.text_of_size(size, variant) for size in sizes]
    return all(reader.tokens(_PROMPT, texts).ids == expected for texts in (made, by_size))


def _difference(generator: Generator, reader: Reader, tower: Tower, precision: str) -> float:
    """Difference between the logits after a prompt by features and by pixels, as a share of their standard deviation.

    Also sets ``generator.joinable``.
    """
    images, device = _images(_SMALL), generator.model.device
    inputs = {n: v.to(device) for n, v in reader.together(_PROMPT, images).items() if isinstance(v, Tensor)}
    processed = [reader.process(image, reader.variant(len(images))) for image in images]
    tokens = reader.tokens(_PROMPT, [one.text for one in processed])
    with autocast(device, precision):
        features = tower.encode(processed)
        batch = Batch(
            inputs["input_ids"], inputs["attention_mask"],
            {name: torch.tensor([row], device=device) for name, row in tokens.types.items()},
            {name: torch.cat([one.text.about[name] for one in processed]).to(device) for name in reader.along},
            tower.join(features),
        )  # fmt: skip
        read, expected = generator.read(batch), generator.read_inputs(inputs).logits.float()
    generator.joinable = read.joinable
    spread = float(expected.std())
    error = float((read.logits.float() - expected).square().mean().sqrt())
    return error / spread if spread else math.nan
