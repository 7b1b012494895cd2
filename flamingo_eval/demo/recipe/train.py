"""Trains the demo checkpoint from nothing: ``python -m flamingo_eval.demo.recipe.train``.

Stages: tokenizer, vision, episodes, export. Each stage saves its state every few hundred steps into the work folder
and goes on from there when the command is given again; losses and seeds are logged to ``log.jsonl`` beside it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from flamingo_eval.core.digests import digest
from flamingo_eval.demo.data import world_digest
from flamingo_eval.demo.recipe import episodes as episodes
from flamingo_eval.demo.recipe import model as recipe_model
from flamingo_eval.demo.recipe import vision as vision
from flamingo_eval.demo.recipe.tokenizer import train_tokenizer
from flamingo_eval.models.flamingo.hosts.gpt_neox import HOST
from flamingo_eval.models.flamingo.model import released_layout
from flamingo_eval.models.flamingo.tokenizer import FlamingoTokenizer

SEEDS = {"weights": 1, "images": 101, "held-out images": 102, "vision steps": 201, "episode steps": 301}
IMAGES, HELD_OUT = 24_000, 1_000
SAVE_EVERY = 200
SHORT_SHARE = 0.4

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

Log = Callable[[dict[str, Any]], None]


class Loop:
    """A resumable optimisation: AdamW with warm-up and cosine decay; step k draws from a generator seeded by k.

    Seeding per step makes a resumed run see the batches that an uninterrupted one would have seen.
    """

    def __init__(
        self, module: torch.nn.Module, *, name: str, steps: int, rate: float, seed: int, work: Path, log: Log
    ) -> None:
        self.module, self.name, self.steps, self.log = module, name, steps, log
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda k: min((k + 1) / 100, 0.5 * (1 + math.cos(math.pi * min(k / steps, 1))))
        )
        self._seed, self._file = seed, work / f"{name}.state"

    def generators(self) -> Iterator[tuple[int, np.random.RandomState]]:
        """(step, its generator) for the steps still to do; saves the state every ``SAVE_EVERY`` steps."""
        start = self._resume()
        for step in range(start, self.steps):
            yield step, np.random.RandomState([self._seed, step])
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
                self._save(step + 1)

    def update(self, loss: torch.Tensor) -> None:
        """One optimiser step."""
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimiser.step()
        self._schedule.step()

    def _resume(self) -> int:
        if not self._file.exists():
            return 0
        state = torch.load(self._file, weights_only=True)
        self.module.load_state_dict(state["module"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self.log({"stage": self.name, "resumed at": state["step"]})
        return int(state["step"])

    def _save(self, step: int) -> None:
        state = {"step": step, "module": self.module.state_dict(), "optimiser": self._optimiser.state_dict(),
                 "schedule": self._schedule.state_dict()}  # fmt: skip
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._file)


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


def claim(work: Path, settings: Any) -> None:
    """States in a folder belong to one world and one recipe: what was trained with another is not gone on with.

    Raises:
        SystemExit: the folder holds something else.
    """
    wanted, file = digest([world_digest(), SEEDS, settings]), work / "identity"
    if file.exists() and file.read_text(encoding="utf-8") != wanted:
        raise SystemExit(f"{work} holds states of another world or other settings: name another folder with --work")
    work.mkdir(parents=True, exist_ok=True)
    file.write_text(wanted, encoding="utf-8")


def check_probe(accuracy: dict[str, float], at_least: float) -> None:
    """No number of episodes can teach what the latents don't tell.

    Raises:
        SystemExit: the probe reads something off less often than that.
    """
    weak = {name: share for name, share in accuracy.items() if share < at_least}
    if weak:
        raise SystemExit(f"the latents don't tell enough for episodes to make sense: {weak}, wanted are {at_least}")


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
        batch = maker.draw(generator, *step_size(step, steps), burst=burst(step, steps))
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


def step_size(step: int, steps: int) -> tuple[int, int]:
    """(episodes, tokens) of a step: short episodes first, then in turn short and long ones."""
    sizes = episodes.SIZES[:2] if step < SHORT_SHARE * steps else episodes.SIZES
    return sizes[step % len(sizes)]


def burst(step: int, steps: int) -> float:
    """Share of episodes with few concepts: all at first, less and less until half of the steps are done."""
    return max(0.15, 1 - 2 * step / steps)


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
    claim(work, [images, vision_steps, episode_steps, vision.CLIP_CONFIG, vision.LATENTS, vision.DEPTH,
                 episodes.SHARES, episodes.SIZES, episodes.FEW, recipe_model.WIDTH, recipe_model.LAYERS])  # fmt: skip
    started = time.monotonic()

    def log(entry: dict[str, Any]) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - started, 1), **entry})
        print(line, file=sys.stderr, flush=True)
        with (work / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

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
