"""Trains the second demo's checkpoint from scratch: ``python -m flamingo_eval.demo.recipe.chat.train``.

Stages: processor, vision, episodes, export. Vision and episodes save their state every few hundred steps into the work
folder, and the same command continues from there. Losses and seeds are logged to ``log.jsonl`` beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from flamingo_eval.demo.recipe.chat import episodes, model
from flamingo_eval.demo.recipe.chat.processor import IMAGE, save_processor
from flamingo_eval.demo.recipe.episodes import FEW, TASKS
from flamingo_eval.demo.recipe.loop import Log, Loop, check_probe, claim, logger, step_size
from flamingo_eval.demo.recipe.vision import Images, make_images
from flamingo_eval.models.transformers_vlm import DEMO_BUNDLE

SEEDS = {"weights": 1, "images": 111, "held-out images": 112, "vision steps": 211, "episode steps": 311}
IMAGES, HELD_OUT = 24_000, 1_000
OWN_WEIGHT = 0.5
"""Weight of the :class:`flamingo_eval.demo.recipe.chat.model.OwnImageProbe`'s loss in the loss of the episodes."""


def train_vision(network: Any, work: Path, images: Images, held_out: Images, steps: int, log: Log) -> model.VisionTask:
    """Stage 2; returns the vision model with its probe."""
    task = model.VisionTask(network)
    loop = Loop(task, name="vision", steps=steps, rate=1e-3, seed=SEEDS["vision steps"], work=work, log=log)
    for step, generator in loop.generators():
        rows = torch.from_numpy(generator.randint(len(images.scenes), size=64))
        loss = task(
            model.normalise(images.pixels[rows]), {name: column[rows] for name, column in images.labels.items()}
        )
        loop.update(loss)
        if (step + 1) % 250 == 0:
            accuracy = model.probe_accuracy(task, held_out)
            log({"stage": "vision", "step": step + 1, "loss": round(loss.item(), 4), "told right": accuracy})
    return task


def train_episodes(
    network: Any, words: Any, work: Path, images: Images, held_out: Images, steps: int, log: Log
) -> None:
    """Stage 3; vision model and connector stay as stage 2 left them."""
    tokens, held_out_tokens = model.tokens_of(network, images), model.tokens_of(network, held_out)
    maker = episodes.ConversationMaker(images.scenes, words)
    held_out_maker = episodes.ConversationMaker(held_out.scenes, words)
    image_id = int(words.convert_tokens_to_ids(IMAGE))
    network.model.vision_model.requires_grad_(False)
    network.model.connector.requires_grad_(False)
    log({"stage": "episodes", "trained parameters": sum(p.numel() for p in network.parameters() if p.requires_grad)})
    own = model.OwnImageProbe()
    both = torch.nn.ModuleDict({"network": network, "own": own})
    loop = Loop(both, name="episodes", steps=steps, rate=2e-3, seed=SEEDS["episode steps"], work=work, log=log)
    for step, generator in loop.generators():
        size = step_size(step, steps, episodes.SIZES)
        batch = maker.draw_conversations(generator, *size, burst=bursts(step, steps))
        logits, states = model.forward(network, tokens, batch, image_id)
        loss = model.answer_loss(logits, batch)
        bound = own(states, batch, images)
        loop.update(loss + OWN_WEIGHT * bound)
        if (step + 1) % 100 == 0:
            accuracy: dict[str, tuple[float, float]] = {}
            with torch.inference_mode():
                for number, name in enumerate(TASKS):
                    test = held_out_maker.draw_conversations(np.random.RandomState([step, number]), 16, 512, task=name)
                    logits, _ = model.forward(network, held_out_tokens, test, image_id)
                    accuracy |= model.telling_accuracy(logits, test)
            losses = {"loss": round(loss.item(), 4), "own image's loss": round(bound.item(), 4)}
            log({"stage": "episodes", "step": step + 1, **losses, "right (new, shown)": accuracy})


def bursts(step: int, steps: int) -> float:
    """Share of episodes with few concepts: all until 30% of the steps are done, falling to 15% at 72.5%.

    With as many tokens, a conversation has half as many images as a prompt of the first demo. If it has many concepts,
    hardly any of them occurs twice.
    """
    return max(0.15, min(1.0, 1.6 - 2 * step / steps))


def export(network: Any, bundle: Path, work: Path) -> None:
    """Stage 4: writes the bundle as transformers does, weights rounded to float16."""
    network.half().save_pretrained(bundle)
    shutil.copy(work / "log.jsonl", bundle / "training.jsonl")


def main(
    work: Annotated[Path, typer.Option(help="Folder for states, log and the finished bundle.")] = Path(
        "results/demo-chat-training"
    ),
    vision_steps: Annotated[int, typer.Option(help="Steps of 64 images for vision model and connector.")] = 2500,
    images: Annotated[int, typer.Option(help="Training images.")] = IMAGES,
    probe: Annotated[float, typer.Option(help="Share that image tokens must tell right before episodes begin.")] = 0.95,
    episode_steps: Annotated[int, typer.Option(help="Steps of episodes for the language model.")] = 3000,
    install: Annotated[bool, typer.Option(help="Copy the finished bundle into the package.")] = False,
) -> None:
    """Train the second demo's checkpoint from nothing; the same command again resumes."""
    sizes = [model.WIDTH, model.LAYERS, model.VISION_WIDTH, model.VISION_LAYERS, episodes.SIZES, episodes.SHARES, FEW]
    sizes.append([sorted(rule) for rule in episodes.ConversationMaker.rules_left_out])
    claim(work, SEEDS, [images, vision_steps, episode_steps, sizes])
    log = logger(work)
    log({"stage": "start", "seeds": SEEDS, "torch": torch.__version__, "threads": torch.get_num_threads()})
    processor = save_processor(work / "bundle")
    words = processor.tokenizer
    torch.manual_seed(SEEDS["weights"])
    ids = {"image": words.convert_tokens_to_ids(IMAGE), "end": words.eos_token_id, "pad": words.pad_token_id}
    network = model.build(len(words), ids)
    seen, held_out = make_images(images, SEEDS["images"]), make_images(HELD_OUT, SEEDS["held-out images"])
    task = train_vision(network, work, seen, held_out, vision_steps, log)
    accuracy = model.probe_accuracy(task, held_out)
    log({"stage": "probe", "told right": accuracy})
    check_probe(accuracy, probe)
    model.scale_connector(network, held_out)
    train_episodes(network, words, work, seen, held_out, episode_steps, log)
    export(network, work / "bundle", work)
    size = sum(file.stat().st_size for file in (work / "bundle").rglob("*") if file.is_file())
    log({"stage": "done", "bytes": size})
    if install:
        shutil.copytree(work / "bundle", DEMO_BUNDLE, dirs_exist_ok=True)
    print(work / "bundle")


if __name__ == "__main__":
    typer.run(main)
