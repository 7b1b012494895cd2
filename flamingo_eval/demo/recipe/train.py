"""Trains the demo checkpoint from scratch: ``python -m flamingo_eval.demo.recipe.train``.

Stages: tokenizer, vision, episodes, export. Vision and episodes save their state every few hundred steps into the work
folder, and the same command continues from there. Losses and seeds are logged to ``log.jsonl`` beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from flamingo_eval.demo.recipe import episodes as episodes
from flamingo_eval.demo.recipe import model as recipe_model
from flamingo_eval.demo.recipe import vision as vision
from flamingo_eval.demo.recipe.loop import Log, Loop, burst, check_probe, claim, logger, step_size
from flamingo_eval.demo.recipe.tokenizer import train_tokenizer
from flamingo_eval.models.flamingo.hosts.gpt_neox import HOST
from flamingo_eval.models.flamingo.model import released_layout
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

SEEDS = {"weights": 1, "images": 101, "held-out images": 102, "vision steps": 201, "episode steps": 301}
IMAGES, HELD_OUT = 24_000, 1_000

MODEL_TOML = f"""\
# The demo's checkpoint, in the released layout; trained by flamingo_eval/demo/recipe/train.py.
name = "demo"
checkpoint = "checkpoint.pt"
cross_attn_every_n_layers = 1

[vision]
model = "{vision.MODEL_NAME}"
pretrained = "clip.pt"
configs = "open_clip_configs"

[language]
model = "lm"
tokenizer = "tokenizer"
"""


def train_vision(work: Path, images: vision.Images, held_out: vision.Images, steps: int, log: Log) -> Any:
    """Stage 2; returns the trained CLIP with its resampler and probe."""
    tokenizer = FlamingoTokenizer(work / "bundle" / "tokenizer")
    vision.write_clip_config(work / "bundle" / "open_clip_configs")
    torch.manual_seed(SEEDS["weights"])
    task = vision.VisionTask(vision.build_clip(work / "bundle" / "open_clip_configs"))
    loop = Loop(task, name="vision", steps=steps, rate=1e-3, seed=SEEDS["vision steps"], work=work, log=log)
    for step, generator in loop.generators():
        rows = torch.from_numpy(generator.randint(len(images.scenes), size=64))
        texts = vision.plain_texts([images.scenes[i] for i in rows.tolist()], generator)
        labels = {name: column[rows] for name, column in images.labels.items()}
        loss = task(vision.normalise(images.pixels[rows]), vision.encode_texts(tokenizer, texts), labels)
        loop.update(loss)
        if (step + 1) % 250 == 0:
            log({"stage": "vision", "step": step + 1, "loss": round(loss.item(), 4),
                 "told right": vision.probe_accuracy(task, held_out)})  # fmt: skip
    return task


def train_episodes(work: Path, task: Any, images: vision.Images, held_out: vision.Images, steps: int, log: Log) -> Any:
    """Stage 3; returns the trained Flamingo, whose vision tower and resampler stay as stage 2 left them."""
    tokenizer = FlamingoTokenizer(work / "bundle" / "tokenizer")
    latents, held_out_latents = vision.latents_of(task, images), vision.latents_of(task, held_out)
    maker = episodes.EpisodeMaker(images.scenes, tokenizer)
    held_out_maker = episodes.EpisodeMaker(held_out.scenes, tokenizer)
    torch.manual_seed(SEEDS["weights"])
    model = recipe_model.build_flamingo(task.tokens, task.perceiver, len(tokenizer))
    model.vision.requires_grad_(False)
    model.perceiver.requires_grad_(False)
    log({"stage": "episodes", "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)})
    loop = Loop(model, name="episodes", steps=steps, rate=1e-3, seed=SEEDS["episode steps"], work=work, log=log)
    for step, generator in loop.generators():
        batch = maker.draw(generator, *step_size(step, steps, episodes.SIZES), burst=burst(step, steps))
        loss = recipe_model.answer_loss(recipe_model.forward(model, latents, batch, tokenizer), batch)
        loop.update(loss)
        if (step + 1) % 100 == 0:
            accuracy: dict[str, Any] = {}
            with torch.inference_mode():
                for number, name in enumerate(episodes.TASKS):
                    test = held_out_maker.draw(np.random.RandomState([step, number]), 16, 256, task=name)
                    accuracy |= recipe_model.telling_accuracy(
                        recipe_model.forward(model, held_out_latents, test, tokenizer), test
                    )
            log({"stage": "episodes", "step": step + 1, "loss": round(loss.item(), 4), "right (new, shown)": accuracy})
    return model


def export(work: Path, task: Any, model: Any) -> None:
    """Stage 4: writes the bundle in the layout of the released checkpoints, weights rounded to float16."""
    bundle = work / "bundle"
    model.half()
    torch.save(task.clip.half().state_dict(), bundle / "clip.pt")
    model.language.save_pretrained(bundle / "lm")
    torch.save({"model_state_dict": released_layout(model, HOST)}, bundle / "checkpoint.pt")
    (bundle / "model.toml").write_text(MODEL_TOML, encoding="utf-8")
    shutil.copy(work / "log.jsonl", bundle / "training.jsonl")


def main(
    work: Annotated[Path, typer.Option(help="Folder for states, log and the finished bundle.")] = Path(
        "results/demo-training"
    ),
    vision_steps: Annotated[int, typer.Option(help="Steps of 64 images for tower and resampler.")] = 2500,
    images: Annotated[int, typer.Option(help="Training images.")] = IMAGES,
    probe: Annotated[float, typer.Option(help="Share that latents must tell right before episodes begin.")] = 0.95,
    episode_steps: Annotated[int, typer.Option(help="Steps of episodes for everything else.")] = 4500,
    install: Annotated[bool, typer.Option(help="Copy the finished bundle into the package.")] = False,
) -> None:
    """Train the demo checkpoint from nothing; the same command again resumes."""
    claim(work, SEEDS, [images, vision_steps, episode_steps, vision.CLIP_CONFIG, vision.LATENTS, vision.DEPTH,
                 episodes.SHARES, episodes.SIZES, episodes.FEW, recipe_model.WIDTH, recipe_model.LAYERS])  # fmt: skip
    log = logger(work)
    log({"stage": "start", "seeds": SEEDS, "torch": torch.__version__, "threads": torch.get_num_threads()})
    train_tokenizer(work / "bundle" / "tokenizer")
    seen = vision.make_images(images, SEEDS["images"])
    held_out = vision.make_images(HELD_OUT, SEEDS["held-out images"])
    task = train_vision(work, seen, held_out, vision_steps, log)
    accuracy = vision.probe_accuracy(task, held_out)
    log({"stage": "probe", "told right": accuracy})
    check_probe(accuracy, probe)
    model = train_episodes(work, task, seen, held_out, episode_steps, log)
    export(work, task, model)
    log({"stage": "done", "bytes": sum(f.stat().st_size for f in (work / "bundle").rglob("*") if f.is_file())})
    if install:
        shutil.copytree(work / "bundle", Path(__file__).parents[1] / "bundle", dirs_exist_ok=True)
    print(work / "bundle")


if __name__ == "__main__":
    typer.run(main)
