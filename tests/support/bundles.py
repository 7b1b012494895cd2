"""Copies of the demo's checkpoint that a test may break: loading them, and changing their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flamingo_eval.core import registry
from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.core.images import Images
from flamingo_eval.core.records import Decoding, Rendering
from tests.support.helpers import LazyModule

torch: Any = LazyModule("torch")
State = dict[str, Any]


def load_over(source: Any, root: Path | Images, precision: str = "fp32") -> Any:
    """A loaded model whose ``read`` knows where images are."""
    model = source.load("cpu", precision)
    read, known = model.read, root if isinstance(root, Images) else Images(root)
    model.read = lambda prompt, task, images=known: read(prompt, task, images)
    return model


def load(folder: Path, data_root: Path | None = None) -> Any:
    source = registry.model_source(str(folder / "model.toml"))
    source.info()
    return load_over(source, data_root or folder)


def rewrite(folder: Path, change: Callable[[State], object], *, wrap: bool = True) -> None:
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model_state_dict"]
    state = {key: value.clone() for key, value in state.items()}
    change(state)
    torch.save({"model_state_dict": state} if wrap else state, folder / "checkpoint.pt")


def texts_of(model: Any, root: Path) -> list[str]:
    Image.new("RGB", (64, 64), "red").save(root / "red.png")
    item = model.read(Rendering("<image>Output:", ("red.png",)), Decoding(8))
    return list(model.answer([item], Decoding(8)))


def digest_of(folder: Path) -> str:
    """Digest of the checkpoint in a folder, as a new command sees it."""
    return registry.model_source(str(folder / "model.toml")).info().digest


def multiply(path: Path, factor: float) -> None:
    """Changes one tensor of a weights file, not its size."""
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = next(name for name in sorted(tensors) if name.endswith("dense_h_to_4h.weight"))
    tensors[name] *= factor
    save_file(tensors, path, metadata={"format": "pt"})


def swapped_around(bundle: Path, monkeypatch: pytest.MonkeyPatch, swap: Any, restore: Any, name: str = "") -> None:
    """Loads with something done between digest and load, and undone afterwards; must be refused."""
    source = registry.model_source(str(bundle / "model.toml"))
    source.info()
    from flamingo_eval.models.flamingo import loading as module

    real = module.load_model

    def load_swapped(*arguments: Any, **settings: Any) -> Any:
        swap()
        try:
            return real(*arguments, **settings)
        finally:
            restore()

    monkeypatch.setattr("flamingo_eval.models.flamingo.loading.load_model", load_swapped)
    with pytest.raises(CheckpointError, match=rf"{name} has changed since this command looked at it first"):
        source.load("cpu", "fp32")
