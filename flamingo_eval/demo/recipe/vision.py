"""Stage 2 of the demo's recipe: a tiny CLIP and its resampler, trained until every concept can be read off.

The labels (colours, shapes, count, place, printed word) are read off the resampler's latents, because those are what
the language model gets. The contrastive loss makes the pooled image embedding useful too, because retrieval (RICES)
compares those. The stage ends with a probe, since no number of episodes can teach what the latents don't show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.nn import functional as F

from flamingo_eval.demo import words, world
from flamingo_eval.demo.recipe.tokenizer import SIZE
from flamingo_eval.models.flamingo.perceiver import PerceiverResampler
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer
from flamingo_eval.models.flamingo.vision import PatchTokens

MODEL_NAME = "flamingo-eval-demo-vit"
TEXT_LENGTH, WIDTH = 24, 96
LATENTS, DEPTH, HEAD_WIDTH, HEADS = 12, 2, 64, 2
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": world.SIDE, "layers": 4, "width": WIDTH, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": TEXT_LENGTH, "vocab_size": SIZE, "width": 64, "heads": 2, "layers": 2},
}
_COLOURS, _PLACES = list(world.COLOURS), (*world.SIDES, *world.RELATIONS, "")
LABELS = {
    "colour": len(_COLOURS),
    "shape": len(world.SHAPES),
    "second colour": len(_COLOURS),
    "second shape": len(world.SHAPES),
    "count": 4,
    "place": len(_PLACES),
    "printed": 1 + len(world.PRINTED),
}
"""Label that is read off the latents -> the number of its values; the second thing's labels are for pairs only."""
IGNORED = -100


@dataclass(frozen=True)
class Images:
    """Training images and their scenes; ``pixels`` (n, 64, 64, 3) bytes, ``labels`` (n,) by name."""

    scenes: tuple[world.Scene, ...]
    pixels: Tensor
    labels: Mapping[str, Tensor]


def make_images(count: int, seed: int) -> Images:
    """Draws images from a generator of their own."""
    generator = np.random.RandomState(seed)
    scenes, pixels = [], np.empty((count, world.SIDE, world.SIDE, 3), dtype=np.uint8)
    for i in range(count):
        scene = world.draw_scene(generator)
        scenes.append(scene)
        pixels[i] = np.asarray(world.render(scene, generator))
    rows = [_labels(scene) for scene in scenes]
    return Images(tuple(scenes), torch.from_numpy(pixels), {k: torch.tensor([r[k] for r in rows]) for k in LABELS})


def _labels(scene: world.Scene) -> dict[str, int]:
    main, second = scene.main, scene.things[-1]
    return {
        "colour": _COLOURS.index(main.colour),
        "shape": world.SHAPES.index(main.shape),
        "second colour": _COLOURS.index(second.colour) if scene.is_pair else IGNORED,
        "second shape": world.SHAPES.index(second.shape) if scene.is_pair else IGNORED,
        "count": len(scene.things) - 1,
        "place": _PLACES.index(scene.place),
        "printed": ("", *world.PRINTED).index(scene.printed),
    }


def normalise(pixels: Tensor) -> Tensor:
    """Bytes (n, 64, 64, 3) -> what open_clip's transform gives for an image that needs no resizing."""
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


class Probe(nn.Module):
    """Reads every label off the latents like a cross-attention head: a query each, keys, one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(LABELS), 32))
        self.keys = nn.Linear(WIDTH, 32)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, count) for count in LABELS.values())

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """latents (n, latents, width) -> for each label its logits (n, values)."""
        weights = (self.queries @ self.keys(latents).transpose(1, 2) / 32**0.5).softmax(dim=-1)
        seen = weights @ latents  # (n, labels, width)
        return {name: head(seen[:, i]) for i, (name, head) in enumerate(zip(LABELS, self.heads, strict=True))}


class VisionTask(nn.Module):
    """The CLIP, the resampler and the probe; its forward is the training loss."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip: Any = clip
        self.tokens = PatchTokens(clip.get_submodule("visual"))
        self.perceiver = PerceiverResampler(
            width=WIDTH, n_latents=LATENTS, depth=DEPTH, inner=HEADS * HEAD_WIDTH, head_width=HEAD_WIDTH,
            hidden=4 * WIDTH,
        )  # fmt: skip
        self.probe = Probe()

    def forward(self, pixels: Tensor, text: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        tower = self.clip.visual
        seen = tower.transformer(tower._embeds(pixels))  # one pass for both losses
        predicted = self.probe(self.perceiver(seen[:, 1:]))
        image = F.normalize(tower._pool(seen)[0] @ tower.proj, dim=-1)
        loss: Tensor = sum(
            (F.cross_entropy(predicted[name], labels[name], ignore_index=IGNORED, reduction="sum") for name in LABELS),
            torch.zeros(()),
        )
        return loss / len(pixels) + self._contrastive(image, text, labels)

    def _contrastive(self, image: Tensor, text: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        words_of_them = F.normalize(self.clip.encode_text(text), dim=-1)
        similarity = self.clip.logit_scale.exp().clamp(max=100) * image @ words_of_them.T
        # images of the same concepts are each other's positives, not negatives
        concepts = torch.stack([labels[k] for k in ("colour", "shape", "second colour", "second shape")], dim=-1)
        positive = (concepts[:, None] == concepts[None, :]).all(dim=-1).float()
        target = positive / positive.sum(dim=-1, keepdim=True)
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def encode_texts(tokenizer: FlamingoTokenizer, texts: list[str]) -> Tensor:
    """Captions for the CLIP's text tower: ids, then the highest id (open_clip pools there), then zeros."""
    end = CLIP_CONFIG["text_cfg"]["vocab_size"] - 1
    rows = [[*tokenizer.encode(text)[: TEXT_LENGTH - 1], end] for text in texts]
    return torch.tensor([row + [0] * (TEXT_LENGTH - len(row)) for row in rows])


def plain_texts(scenes: list[world.Scene], generator: np.random.RandomState) -> list[str]:
    """A caption of each scene in a dialect of its own, without loan words, which alone mean nothing."""
    own = [{c: pair[generator.randint(2)] for c, pair in words.OWN_WORDS.items()} for _ in scenes]
    return [words.describe(scene, dialect) for scene, dialect in zip(scenes, own, strict=True)]


@torch.inference_mode()
def probe_accuracy(task: VisionTask, images: Images) -> dict[str, float]:
    """For each label, the share of images whose latents show it correctly."""
    task.eval()
    chunks = [task.probe(task.perceiver(task.tokens(normalise(chunk)))) for chunk in images.pixels.split(500)]
    accuracy = {}
    for name in LABELS:
        predicted = torch.cat([chunk[name] for chunk in chunks]).argmax(-1)
        asked = images.labels[name] != IGNORED
        accuracy[name] = round((predicted == images.labels[name])[asked].float().mean().item(), 4)
    task.train()
    return accuracy


@torch.inference_mode()
def latents_of(task: VisionTask, images: Images) -> Tensor:
    """The latents of all images, (n, latents, width): computed once, used in every episode."""
    chunks = [task.perceiver(task.tokens(normalise(chunk))) for chunk in images.pixels.split(500)]
    return torch.cat(chunks).clone()
