# mypy: ignore-errors
"""Makes a small random Flamingo with the open-flamingo package and writes down what it answers.

``python tests/parity/reference.py --out DIR --host gpt_neox --every 2 --seed 1``, in an old environment (README.md).
DIR then holds the model as a user would have it (model.toml and the files it names), images, and outputs.pt.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path

sys.modules["wandb"] = types.ModuleType("wandb")  # the training code imports it; nothing here logs

import open_clip  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from open_flamingo import create_model_and_transforms  # noqa: E402
from open_flamingo.train.train_utils import filter_state_dict_to_trainable  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from small_hosts import HOSTS, write_language_model, write_tokenizer  # noqa: E402

CLIP = "ViT-small-parity"
CLIP_CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 64, "head_width": 32, "patch_size": 56},
    "text_cfg": {"context_length": 77, "vocab_size": 512, "width": 64, "heads": 2, "layers": 1},
}
IMAGES = {
    "tall.jpg": (231, 400),
    "wide.png": (500, 243),
    "square.jpg": (224, 224),
    "palette.png": (333, 301),
    "grey.jpg": (190, 260),
}
END, MEDIA = "<|endofchunk|>", "<image>"
PROMPTS = [
    ("<image>Output:", (0,)),
    ("<image>Output:A red cat sitting on a table.<|endofchunk|>\n<image>Output:", (1, 2)),
    (
        "<image>Question:What color is the bus? Short answer:blue<|endofchunk|>\n"
        "<image>Question:How many dogs are there? Short answer:2<|endofchunk|>\n"
        "<image>Question:Isn't the kite in the park , flying ? Short answer:",
        (3, 4, 0),
    ),
    (
        "".join(
            f"<image>Output:a {thing} near  a caf\u00e9<|endofchunk|>\n" for thing in ("dog", "bench", "boat", "clock")
        )
        + "<image>Output:",
        (4, 3, 2, 1, 0),
    ),
    (
        "Question:Is the dog running? Short answer:yes<|endofchunk|>\n"
        "Question:What is the cat doing? Short answer:resting<|endofchunk|>\n"
        "<image>Question:Where is the bench? Short answer:",
        (2,),
    ),
]
NAMES = ["yes", "no", "giraffe", "red umbrella", "black-footed ferret", "caf\u00e9"]
PROBES = [
    "a cat , isn 't it ?",
    " leading space",
    "trailing space ",
    "two  spaces and\na newline",
    "<image>",
    "<image>Output:a<|endofchunk|>b",
    "<image> Output: a <|endofchunk|> b",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f408",
    "they 've said we 're late , do n't worry . it 's fine !",
]


def write_clip(folder: Path) -> None:
    """A random CLIP with a strong eye: clip.pt and its open_clip configuration."""
    configs = folder / "open_clip_configs"
    configs.mkdir()
    (configs / f"{CLIP}.json").write_text(json.dumps(CLIP_CONFIG, indent=4) + "\n", encoding="utf-8")
    open_clip.add_model_config(configs)
    model = open_clip.create_model(CLIP)
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2 if "conv1" in name else 1.2 * parameter.shape[-1] ** -0.5)
    torch.save(model.state_dict(), folder / "clip.pt")


def write_images(folder: Path) -> None:
    """Five images of odd sizes and modes, each with shapes of its own."""
    folder.mkdir()
    for number, (name, size) in enumerate(IMAGES.items()):
        draw = torch.Generator().manual_seed(number)
        image = Image.new("RGB", size, tuple(torch.randint(256, (3,), generator=draw).tolist()))
        for _ in range(12):
            x, y = (int(torch.randint(side, (1,), generator=draw)) for side in size)
            colour = tuple(torch.randint(256, (3,), generator=draw).tolist())
            ImageDraw.Draw(image).ellipse((x - 60, y - 40, x + 60, y + 40), fill=colour)
        mode = {"palette.png": "P", "grey.jpg": "L"}.get(name, "RGB")
        image.convert(mode).save(folder / name)


def build(folder: Path, every: int):
    """(Flamingo, image transform, tokenizer) as the package assembles them."""
    model, transform, tokenizer = create_model_and_transforms(
        CLIP, str(folder / "clip.pt"), str(folder / "lm"), str(folder / "tokenizer"), cross_attn_every_n_layers=every
    )
    tokenizer.padding_side = "left"
    return model.eval(), transform, tokenizer


@torch.no_grad()
def train_at_random(model) -> None:
    """What training would do: opens the gates and fills the new rows of the embeddings."""
    for block in filter(None, model.lang_encoder.gated_cross_attn_layers):
        block.attn_gate.uniform_(0.6, 1.6).mul_(torch.randn(1).sign())
        block.ff_gate.uniform_(0.3, 0.9).mul_(torch.randn(1).sign())
        block.attn.to_kv.weight.mul_(2)
        block.attn.to_out.weight.mul_(2)
    language = model.lang_encoder
    rows, outputs = language.get_input_embeddings().weight, language.get_output_embeddings().weight
    rows[model.eoc_token_id :].normal_(0, 0.4)
    if outputs is not rows:
        outputs[model.eoc_token_id :].normal_(0, 0.4)
    outputs[model.eoc_token_id].mul_(1.7)  # so that some answers end early
    outputs[model.media_token_id].mul_(0.1)  # so that none holds an <image>: see README.md


def save_trained_part(model, path: Path, every: int) -> None:
    """The checkpoint file as the package's training script filters it; wrapped as DDP or FSDP runs had it, or bare."""
    wrapper = torch.nn.Module()
    wrapper.module = model
    source = wrapper if every == 1 else model
    state = filter_state_dict_to_trainable(source, source.state_dict())
    torch.save(state if every == 2 else {"epoch": 0, "model_state_dict": state}, path)


def load_trained_part(model, path: Path, tokens_before: int) -> None:
    """Loads a checkpoint file as the package's evaluation does.

    An output layer that the file lacks (LLaMA's) has random rows for added tokens: these become zero, our rule.
    """
    state = torch.load(path, map_location="cpu")
    if "model_state_dict" in state:
        state = {key.replace("module.", ""): value for key, value in state["model_state_dict"].items()}
    missing, _ = model.load_state_dict(state, strict=False)
    if "lang_encoder.lm_head.weight" in missing:
        with torch.no_grad():
            model.lang_encoder.lm_head.weight[tokens_before:] = 0


class Answers:
    """What a model says to prompts, computed with the package's own forward pass and generation."""

    def __init__(self, model, tokenizer, pixels: list[torch.Tensor]) -> None:
        self.model, self.tokenizer, self.pixels = model, tokenizer, pixels
        model.lang_encoder.register_forward_pre_hook(self._refuse_generated_media, with_kwargs=True)

    def _refuse_generated_media(self, _, args, kwargs) -> None:
        """A generated <image> moves the reference's media positions, which is not to be compared."""
        ids = kwargs["input_ids"]
        if ids.shape[1] == 1 and (ids == self.model.media_token_id).any():
            raise SystemExit(f"this model generates {MEDIA}: choose another --seed")

    def encode(self, texts: list[str]):
        """Ids and mask, padded on the left."""
        return self.tokenizer(texts, padding="longest", truncation=True, return_tensors="pt", max_length=2000)

    def look(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        """Images (rows, most images of a row, 1, 3, height, width), zeros where a row has fewer."""
        out = torch.zeros(len(rows), max(map(len, rows)), 1, *self.pixels[0].shape)
        for i, row in enumerate(rows):
            for j, image in enumerate(row):
                out[i, j, 0] = self.pixels[image]
        return out

    @torch.inference_mode()
    def to(self, prompts: list[tuple[str, tuple[int, ...]]]) -> dict:
        """Logits and generated ids and texts for one batch."""
        batch, vision = self.encode([text for text, _ in prompts]), self.look([images for _, images in prompts])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        out = {"input_ids": ids, "attention_mask": mask}
        out["logits"] = self.model(vision_x=vision, lang_x=ids, attention_mask=mask).logits.clone()
        for name, beams, penalty in (("beam3", 3, 0.0), ("beam3_short", 3, -2.0), ("greedy", 1, 0.0)):
            new = self.model.generate(
                vision, ids, attention_mask=mask, min_new_tokens=0, max_new_tokens=20, num_beams=beams,
                length_penalty=penalty,
            )[:, ids.shape[1] :].clone()  # fmt: skip
            out[f"{name}_ids"] = new
            out[f"{name}_text"] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return out

    @torch.inference_mode()
    def image_effect(self) -> float:
        """How far another image moves the logits of the first prompt: to show that images matter at all."""
        text = PROMPTS[0][0]
        ids = self.encode([text])["input_ids"]
        one, other = (
            self.model(vision_x=self.look([(image,)]), lang_x=ids, attention_mask=torch.ones_like(ids)).logits.clone()
            for image in (0, 1)
        )
        return float((one - other).abs().max())

    @torch.inference_mode()
    def rank(self, text: str, images: tuple[int, ...]) -> torch.Tensor:
        """Mean log-likelihood of each name's tokens, each name in a pass of its own."""
        context, scores = self.encode([text])["input_ids"], []
        for name in NAMES:
            ids = self.tokenizer(name, add_special_tokens=False, return_tensors="pt")["input_ids"]
            full = torch.cat((context, ids), dim=1)
            logits = self.model(vision_x=self.look([images]), lang_x=full, attention_mask=torch.ones_like(full)).logits
            spoken = logits[0, context.shape[1] - 1 : -1].log_softmax(-1)
            scores.append(spoken.gather(1, ids[0, :, None]).mean())
        return torch.stack(scores)


def probe(tokenizer) -> list[dict]:
    """How texts are encoded and their ids decoded."""
    rows = []
    for text in PROBES:
        ids, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append({"text": text, "ids": ids, "plain_ids": plain, "tokens": tokenizer.convert_ids_to_tokens(ids),
                     "decoded": tokenizer.decode(ids, skip_special_tokens=True)})  # fmt: skip
    return rows


def main() -> None:
    """Writes one case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--host", choices=HOSTS, required=True)
    parser.add_argument("--every", type=int, choices=(1, 2, 4), required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, every = options.out, options.every
    folder.mkdir(parents=True)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(options.seed)
    tokens = write_tokenizer(options.host, folder / "tokenizer")
    write_language_model(options.host, folder / "lm", tokens, every)
    write_clip(folder)
    write_images(folder / "pictures")
    (folder / "model.toml").write_text(
        f'name = "{options.host}-{every}"\ncheckpoint = "checkpoint.pt"\ncross_attn_every_n_layers = {every}\n\n'
        f'[vision]\nmodel = "{CLIP}"\npretrained = "clip.pt"\nconfigs = "open_clip_configs"\n\n'
        '[language]\nmodel = "lm"\ntokenizer = "tokenizer"\n',
        encoding="utf-8",
    )
    model, _, _ = build(folder, every)
    train_at_random(model)
    save_trained_part(model, folder / "checkpoint.pt", every)
    model, transform, tokenizer = build(folder, every)
    load_trained_part(model, folder / "checkpoint.pt", tokens)
    answers = Answers(model, tokenizer, [transform(Image.open(folder / "pictures" / name)) for name in IMAGES])
    outputs = {
        "versions": {m.__name__: str(m.__version__) for m in (torch, torchvision, transformers)},
        "tokenizer": {"class": type(tokenizer).__name__, "length": len(tokenizer), "pad_id": tokenizer.pad_token_id},
        "prompts": [{"text": text, "pictures": [list(IMAGES)[p] for p in images]} for text, images in PROMPTS],
        "names": NAMES,
        "probes": probe(tokenizer),
        "picture_effect": answers.image_effect(),
        "single": [answers.to([prompt]) | {"rank": answers.rank(*prompt)} for prompt in PROMPTS],
        "batched": answers.to(PROMPTS),
    }
    torch.save(outputs, folder / "outputs.pt")
    ends = sum(model.eoc_token_id in one["beam3_ids"][0].tolist() for one in outputs["single"])
    print(f"{folder}: {len(set(outputs['batched']['beam3_text']))} different texts, {ends} of {len(PROMPTS)} end early")


if __name__ == "__main__":
    main()
