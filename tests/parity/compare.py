"""Compares our Flamingo with what reference.py wrote: ``python tests/parity/compare.py DIR ...``.

One line a folder; exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flamingo_eval.core.errors import FlamingoEvalError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Ranking, Rendering, Task
from flamingo_eval.models.flamingo import FlamingoSource
from flamingo_eval.models.flamingo.cross_attention import Media
from flamingo_eval.models.flamingo.spec import read_spec
from flamingo_eval.models.flamingo.vision import load_clip

TOLERANCE = 1e-4
TOKENS = 20
DECODINGS = {
    "beam3": Decoding(TOKENS, num_beams=3, length_penalty=0.0),
    "beam3_short": Decoding(TOKENS, num_beams=3, length_penalty=-2.0),
    "greedy": Decoding(TOKENS, num_beams=1),
}


class Comparison:
    """One folder: counts what was compared and keeps what differed."""

    def __init__(self, folder: Path) -> None:
        self.theirs: dict[str, Any] = torch.load(folder / "outputs.pt", weights_only=True)
        spec = read_spec(folder / "model.toml")
        self.image_folder, (_, self.transform) = folder / "pictures", load_clip(spec.vision)
        self.ours = FlamingoSource(spec).load("cpu", "fp32")
        self.images = Images(self.image_folder)
        self.prompts = [Rendering(p["text"], tuple(p["pictures"])) for p in self.theirs["prompts"]]
        self.differences: list[str] = []
        self.largest = {"logits": 0.0, "log-likelihoods": 0.0}
        self.counts = {"texts": 0, "ranks": 0}
        self.recorded: list[list[int]] = []
        self.decode = self.ours.tokenizer.decode
        self.ours.tokenizer.decode = self._record  # type: ignore[method-assign]  # the ids behind the texts

    def _record(self, ids: Sequence[int]) -> str:
        self.recorded.append(list(ids))
        return self.decode(ids)

    def run(self) -> None:
        """Everything, alone and as one left-padded batch."""
        self._tokenizer()
        for item, theirs in enumerate(self.theirs["single"]):
            self._batch([item], theirs, "alone")
        self._batch(range(len(self.prompts)), self.theirs["batched"], "batch")
        self._ranks()

    def _check(self, what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            self.differences.append(f"{what}: {ours!r} instead of {theirs!r}")

    def _close(self, kind: str, what: str, ours: Tensor, theirs: Tensor) -> None:
        off = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
        self.largest[kind] = max(self.largest[kind], off)
        if not off < TOLERANCE:  # NaN too
            self.differences.append(f"{what}: {kind} differ by {off:.2e}")

    def _tokenizer(self) -> None:
        tokenizer = self.ours.tokenizer
        self._check("number of tokens", len(tokenizer), self.theirs["tokenizer"]["length"])
        for probe in self.theirs["probes"]:
            where = f"probe {probe['text']!r}"
            self._check(f"{where} ids", tokenizer.encode(probe["text"]), probe["ids"])
            self._check(f"{where} ids in the middle", tokenizer.encode_plain(probe["text"]), probe["plain_ids"])
            self._check(f"{where} decoded", tokenizer.decode(probe["ids"]), probe["decoded"])

    def _batch(self, items: Sequence[int], theirs: dict[str, Any], where: str) -> None:
        """Some of the prompts in one batch; ``theirs`` is what the reference answered to the same batch."""
        mask = theirs["attention_mask"].bool()
        expected = [row[seen].tolist() for row, seen in zip(theirs["input_ids"], mask, strict=True)]
        encoded = [self.ours.tokenizer.encode(self.prompts[item].text) for item in items]
        self._check(f"{where} input ids", encoded, expected)
        if encoded != expected:
            return
        self._close("logits", where, self._logits(items, encoded)[mask], theirs["logits"][mask])
        for name, decoding in DECODINGS.items():
            self.recorded.clear()
            texts = self._answer(items, decoding)
            wanted = theirs
            if decoding.length_penalty:  # there the reference's answers depend on padding: ours must be those without
                single = [self.theirs["single"][item] for item in items]
                wanted = {key: [one[key][0] for one in single] for key in (f"{name}_ids", f"{name}_text")}
            for item, new, ids in zip(items, self.recorded, wanted[f"{name}_ids"], strict=True):
                self._check(f"{where} {item} {name} ids", self._until_end(new), self._until_end(ids.tolist()))
            self._check(f"{where} {name} text", texts, wanted[f"{name}_text"])
            self.counts["texts"] += len(texts)

    def _answer(self, items: Sequence[int], task: Task) -> list[Any]:
        return [*self.ours.answer([self.ours.read(self.prompts[item], task, self.images) for item in items], task)]

    def _logits(self, items: Sequence[int], encoded: Sequence[list[int]]) -> Tensor:
        """Of the left-padded prompts; padding, images and media are put together here and not by the adapter."""
        longest = max(len(ids) for ids in encoded)
        ids = torch.tensor([[self.ours.tokenizer.pad_id] * (longest - len(row)) + row for row in encoded])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded])
        most = max(len(self.prompts[item].images) for item in items)
        latents = torch.zeros(len(items), most, *self.ours.model.perceiver.latents.shape)
        with torch.inference_mode():
            for row, item in enumerate(items):
                images = [self.transform(Image.open(self.image_folder / name)) for name in self.prompts[item].images]
                latents[row, : len(images)] = self.ours.model.encode(torch.stack(images))
            logits: Tensor = self.ours.model(ids, mask, Media.of(latents, ids, self.ours.tokenizer.image_id))
        return logits

    def _until_end(self, ids: list[int]) -> list[int]:
        """Without the padding behind the end, for which the two use different tokens."""
        end = self.ours.tokenizer.end_of_chunk_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _ranks(self) -> None:
        names, everything = tuple(self.theirs["names"]), range(len(self.prompts))
        for batch in [*([item] for item in everything), everything]:
            where = "alone" if len(batch) == 1 else "batch"
            for item, answer in zip(batch, self._answer(batch, Ranking(names)), strict=True):
                scores = torch.tensor([answer[name] for name in names])
                self._close("log-likelihoods", f"{where} {item}", scores, self.theirs["single"][item]["rank"])
                self.counts["ranks"] += 1


def compare(folder: Path) -> bool:
    """Prints a line (and up to five differences); whether all is equal."""
    try:
        comparison = Comparison(folder)
        comparison.run()
    except FlamingoEvalError as error:
        print(f"FAIL {folder.name}: {error}")
        return False
    theirs, differences = comparison.theirs, comparison.differences
    largest, counts = comparison.largest, comparison.counts
    print(
        f"{'FAIL' if differences else 'same'} {folder.name}: transformers {theirs['versions']['transformers']}, "
        f"{counts['texts']} texts, {counts['ranks']} rankings, {len(theirs['probes'])} probes; "
        f"pictures move logits by {theirs['picture_effect']:.1f}; "
        f"logits within {largest['logits']:.1e}, log-likelihoods within {largest['log-likelihoods']:.1e}"
        + (f"; {len(differences)} differences" if differences else "")
    )
    for difference in differences[:5]:
        print(f"     {difference}")
    return not differences


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    results = [compare(folder) for folder in parser.parse_args().folders]
    print(f"{sum(results)} of {len(results)} folders are the same")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
