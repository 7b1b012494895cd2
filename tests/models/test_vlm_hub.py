"""A model of transformers from a hub: what is fetched when, what is said before, and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.helpers import run_cli
from tests.support.hubs import Hub
from tests.support.small_vlms import save_vlm

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.mark.slow
def test_from_a_hub(hub: type[Hub]) -> None:
    """Downloaded once, with its size; then offline; a gated repository and one that is not there say what to do."""
    save_vlm("qwen2_5_vl", hub.folder / "qwen")
    (hub.folder / "qwen" / "pytorch_model.bin").write_bytes(b"never fetched")
    small = ("coco", "--data-root", "demo", "--shots", "0", "--num-samples", "2", "--trials", "1", "--device", "cpu")
    counted = run_cli("plan", *small[:-2], "--checkpoint", "hf:owner/qwen", "--tokens")
    assert counted.returncode == 0, counted.stderr
    assert not any("model.safetensors" in asked for asked in hub.asked), "no weights are fetched to count tokens"
    first = run_cli(*small, "--checkpoint", "hf:owner/qwen", "--out", "first")
    assert first.returncode == 0, first.stderr
    assert "GB of owner/qwen into" in first.stderr
    assert "GB free" in first.stderr
    assert not any("pytorch_model" in asked for asked in hub.asked)
    assert json.loads(Path("first/run.json").read_text())["settings"]["checkpoint"] == f"hf:owner/qwen@{'a' * 40}"
    hub.asked.clear()
    second = run_cli(*small, "--checkpoint", "hf:owner/qwen", "--out", "second", "--offline")
    assert second.returncode == 0, second.stderr
    assert hub.asked == []
    assert "downloading" not in second.stderr
    gated = run_cli(*small, "--checkpoint", "hf:owner/gated")
    assert gated.returncode == 2
    assert "the repository is gated; accept its terms at http" in gated.stderr
    missing = run_cli(*small, "--checkpoint", "hf:owner/nothing")
    assert missing.returncode == 2
    assert "no such repository" in missing.stderr
    assert all("Traceback" not in result.stderr for result in (gated, missing))


def test_too_little_room_for_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from collections import namedtuple

    from flamingo_eval.core.errors import StorageError
    from flamingo_eval.storage import hub as client

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(client, "fetch", lambda file: tmp_path / file.filename)
    monkeypatch.setattr(client, "listing", lambda *_: {"model.safetensors": 5 * 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**9))
    with pytest.raises(
        StorageError, match=r"5\.00 GB of owner/name are to be downloaded into .*, which has 1\.00 GB free"
    ):
        client.download("owner/name", "a" * 40, ["model.safetensors"])


def test_an_index_of_weights_without_names(tmp_path: Path) -> None:
    from flamingo_eval.core.errors import CheckpointError
    from flamingo_eval.models.transformers_vlm.checkpoint import Files, Place, weights_of

    index = "model.safetensors.index.json"
    files = Files(Place("owner/name", None, "owner/name"), tmp_path)
    (tmp_path / index).write_text('{"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}')
    assert weights_of({index: 1}, files) == ["one.safetensors", "two.safetensors"]
    (tmp_path / index).write_text('{"weights": {}}')
    with pytest.raises(CheckpointError, match=r"owner/name: model\.safetensors\.index\.json has no weight_map"):
        weights_of({index: 1}, files)
