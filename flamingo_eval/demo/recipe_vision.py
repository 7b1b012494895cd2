"""Stage 2 of the demo's recipe: a tiny CLIP, trained on direct labels and contrastively.

Labels of colour and shape are read off the patch tokens, because those are what the resampler gets; the contrastive
loss makes the pooled image embedding useful too, because retrieval (RICES) compares those.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.nn import functional as F

from flamingo_eval.demo import world
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import PatchTokens

MODEL_NAME = "flamingo-eval-demo-vit"
TEXT_LENGTH = 24
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": world.SIDE, "layers": 3, "width": 96, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": TEXT_LENGTH, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 2},
}


@dataclass(frozen=True)
class Pictures:
    """Training pictures and their scenes; ``pixels`` (n, 64, 64, 3) bytes, labels (n,)."""

    scenes: tuple[world.Scene, ...]
    pixels: Tensor
    colours: Tensor
    shapes: Tensor


def make_pictures(count: int, seed: int) -> Pictures:
    """Draws pictures from a generator of their own."""
    generator = np.random.RandomState(seed)
    scenes, pixels = [], np.empty((count, world.SIDE, world.SIDE, 3), dtype=np.uint8)
    for i in range(count):
        scene = world.draw_scene(generator)
        scenes.append(scene)
        pixels[i] = np.asarray(world.render(scene, generator))
    colours = torch.tensor([list(world.COLOURS).index(s.colour) for s in scenes])
    shapes = torch.tensor([world.SHAPES.index(s.shape) for s in scenes])
    return Pictures(tuple(scenes), torch.from_numpy(pixels), colours, shapes)


def normalise(pixels: Tensor) -> Tensor:
    """Bytes (n, 64, 64, 3) -> what open_clip's transform gives for a picture that needs no resizing."""
    mean, std = torch.tensor(OPENAI_DATASET_MEAN), torch.tensor(OPENAI_DATASET_STD)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def write_clip_config(folder: Path) -> None:
    """Writes the open_clip model configuration that the checkpoint's TOML points at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{MODEL_NAME}.json").write_text(json.dumps(CLIP_CONFIG, indent=1) + "\n", encoding="utf-8")


def build_clip(config_folder: Path) -> nn.Module:
    """An untrained CLIP of the demo's size."""
    open_clip.add_model_config(config_folder)
    clip: nn.Module = open_clip.create_model(MODEL_NAME, precision="fp32")
    return clip


class VisionTask(nn.Module):
    """The CLIP with two label heads; its forward is the training loss."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip: Any = clip
        self.tokens = PatchTokens(clip.get_submodule("visual"))
        width = CLIP_CONFIG["vision_cfg"]["width"]
        self.norm = nn.LayerNorm(width)
        self.colour_head = nn.Linear(width, len(world.COLOURS))
        self.shape_head = nn.Linear(width, len(world.SHAPES))

    def label_logits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Colour and shape logits from the mean patch token."""
        pooled = self.norm(self.tokens(pixels).mean(dim=1))
        return self.colour_head(pooled), self.shape_head(pooled)

    def forward(self, pixels: Tensor, text: Tensor, colours: Tensor, shapes: Tensor) -> Tensor:
        colour_logits, shape_logits = self.label_logits(pixels)
        image = F.normalize(self.clip.encode_image(pixels), dim=-1)
        similarity = (
            self.clip.logit_scale.exp().clamp(max=100) * image @ F.normalize(self.clip.encode_text(text), dim=-1).T
        )
        # pictures of the same concepts are each other's positives, not negatives
        concepts = colours * len(world.SHAPES) + shapes
        positive = (concepts[:, None] == concepts[None, :]).float()
        target = positive / positive.sum(dim=-1, keepdim=True)
        contrastive = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        return F.cross_entropy(colour_logits, colours) + F.cross_entropy(shape_logits, shapes) + contrastive


def encode_texts(tokenizer: FlamingoTokenizer, texts: list[str]) -> Tensor:
    """Captions for the CLIP's text tower: ids, then the highest id (open_clip pools there), then zeros."""
    end = CLIP_CONFIG["text_cfg"]["vocab_size"] - 1
    rows = [[*tokenizer.encode(text)[: TEXT_LENGTH - 1], end] for text in texts]
    return torch.tensor([row + [0] * (TEXT_LENGTH - len(row)) for row in rows])


@torch.inference_mode()
def label_accuracy(task: VisionTask, pictures: Pictures) -> tuple[float, float]:
    """Shares of pictures whose colour and whose shape are told right."""
    logits = [task.label_logits(normalise(chunk)) for chunk in pictures.pixels.split(500)]
    colour = torch.cat([c for c, _ in logits]).argmax(-1) == pictures.colours
    shape = torch.cat([s for _, s in logits]).argmax(-1) == pictures.shapes
    return colour.float().mean().item(), shape.float().mean().item()


@torch.inference_mode()
def patch_tokens(clip: Any, pictures: Pictures) -> Tensor:
    """The frozen tower's tokens of all pictures, (n, 64, 96): computed once, used in every episode."""
    tower = PatchTokens(clip.visual)
    return torch.cat([tower(normalise(chunk)) for chunk in pictures.pixels.split(500)])
