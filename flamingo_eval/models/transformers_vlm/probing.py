"""Whether a model may be answered by the fast paths: they must give what the plain one gives, on two odd images.

Architectures come that nobody has seen here. What is told apart at loading is what would otherwise be a wrong number: a
prompt's tokens, and the logits behind it, with images handed over as features and as pixels.
"""

from __future__ import annotations

import torch
from PIL import Image

from flamingo_eval.core.errors import FlamingoEvalError
from flamingo_eval.core.records import Prompt, Turn
from flamingo_eval.devices import autocast, is_out_of_memory
from flamingo_eval.libraries import reason_of
from flamingo_eval.models.transformers_vlm.generation import Batch, Generator
from flamingo_eval.models.transformers_vlm.reading import Reader
from flamingo_eval.models.transformers_vlm.tower import Tower

_SIZES = ((97, 61), (55, 88))
_PROMPT = Prompt((Turn(("a",), "What is it?", "A dog, 1."),), Turn(("b",), "What is it?"))
_TOLERANCE = {"fp32": 1e-3, "amp_bf16": 0.1, "bf16": 0.1, "fp16": 0.05}
"""By how much logits may differ, as a share of their spread; what is missing altogether makes them differ by more."""


@torch.inference_mode()
def check_taken_apart(generator: Generator, reader: Reader, precision: str) -> tuple[Tower | None, str]:
    """The vision tower by itself, if features from it give the same as pixels; else None, and why."""
    gradient = Image.radial_gradient("L").convert("RGB")
    images = [gradient.resize(_SIZES[0]), gradient.rotate(90).resize(_SIZES[1]).crop((10, 10, 55, 88))]
    if reader.most_images == 1:
        return None, "its prompts have one image"
    try:
        tower = Tower(generator.model)
        whole = reader.whole(_PROMPT, images)
        variant = reader.variant(len(images))
        processed = [reader.process(image, variant) for image in images]
        tokens = reader.tokens(_PROMPT, [one.text for one in processed])
        if tokens.ids != whole["input_ids"][0].tolist():
            return None, "its processor writes other tokens for several images than for each"
        device = generator.model.device
        inputs = {name: value.to(device) for name, value in whole.items() if isinstance(value, torch.Tensor)}
        with autocast(device, precision):
            features = tower.encode(processed)
            batch = Batch(
                inputs["input_ids"], inputs["attention_mask"],
                {name: torch.tensor([row], device=device) for name, row in tokens.types.items()},
                {name: torch.cat([one.text.about[name] for one in processed]).to(device) for name in reader.along},
                tower.join(features),
            )  # fmt: skip
            read, expected = generator.read(batch), generator.read_whole(inputs).logits
    except FlamingoEvalError as error:
        return None, str(error)
    except Exception as error:  # whatever an unknown architecture's code raises
        if is_out_of_memory(error):
            raise
        return None, reason_of(error)
    spread = float(expected.float().std()) or 1.0
    if float((read.logits.float() - expected.float()).abs().max()) > _TOLERANCE[precision] * max(1.0, spread):
        return None, "features of its images in place of pixels give other logits"
    tower.encoded, generator.joinable = 0, read.joinable
    return tower, ""
