"""A checkpoint's parts: all that is loaded is digested, and stays what was digested."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.engine.identity import run_identity
from flamingo_eval.storage.part_files import DigestedFiles, model_files
from tests.support.bundles import digest_of, load, multiply, rewrite, swapped_around, texts_of
from tests.support.helpers import FAST, Cli, LazyModule, write_coco_root

torch: Any = LazyModule("torch")
loading: Any = LazyModule("flamingo_eval.models.flamingo.loading")
pytestmark = pytest.mark.torch


def in_subfolder(folder: Path, place: str = "sub/w.safetensors") -> Path:
    """Moves the language model's weights to a subfolder that an index names."""
    lm = folder / "lm"
    target = lm / place
    target.parent.mkdir(exist_ok=True)
    (lm / "model.safetensors").rename(target)
    from safetensors import safe_open

    with safe_open(target, framework="pt") as file:
        names = list(file.keys())
    (lm / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)})
    )
    return target


def test_a_shard_in_a_subfolder_is_digested(bundle: Path, tmp_path: Path, cli: Cli) -> None:
    plain = texts_of(load(bundle), bundle)
    shard = in_subfolder(bundle)
    assert texts_of(load(bundle), bundle) == plain
    root = write_coco_root(tmp_path / "data", train=4, test=2)
    run = ("coco", "--checkpoint", bundle / "model.toml", "--data-root", root, "--shots", "0", "--seeds", "42",
           "--device", "cpu", "--out", "run")  # fmt: skip
    assert cli(*run).returncode == 0
    before = digest_of(bundle)
    multiply(shard, 2)
    assert digest_of(bundle) != before
    refused = cli(*run)
    assert refused.returncode == 2
    assert "run holds a run with other settings: checkpoint is" in refused.stderr


def test_weights_that_the_configuration_names_are_digested(bundle: Path) -> None:
    (bundle / "lm" / "sub").mkdir()
    (bundle / "lm" / "model.safetensors").rename(bundle / "lm/sub/w.safetensors")
    config = json.loads((bundle / "lm/config.json").read_text())
    (bundle / "lm/config.json").write_text(json.dumps({**config, "transformers_weights": "sub/w.safetensors"}))
    load(bundle)
    before = digest_of(bundle)
    multiply(bundle / "lm/sub/w.safetensors", 2)
    assert digest_of(bundle) != before


@pytest.mark.parametrize(
    "name", ["../w.safetensors", "/tmp/w.safetensors", "sub/../../w.safetensors", "none.safetensors"]
)
def test_a_shard_outside_the_folder_is_refused(bundle: Path, name: str) -> None:
    in_subfolder(bundle)
    index = bundle / "lm/model.safetensors.index.json"
    index.write_text(index.read_text().replace("sub/w.safetensors", name))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors.index.json.*(not a path inside|names none.safetensors)"
    ):
        digest_of(bundle)


def test_layouts_that_reach_elsewhere_are_refused(bundle: Path) -> None:
    tokenizer = bundle / "tokenizer"
    (tokenizer / "tokenizer_config.json").write_text('{"fast_tokenizer_files": ["../x/tokenizer.4.0.0.json"]}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json.*not a path inside"):
        model_files(tokenizer, weights=False)
    (tokenizer / "tokenizer_config.json").unlink()
    (bundle / "lm/adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_config.json\) of another model"):
        digest_of(bundle)


def swaps(folder: Path, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Puts another content at a path, and the first one back; both are sound."""
    path, true = folder / name, (folder / name).read_bytes()
    other = folder.with_name("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    if name == "checkpoint.pt":
        rewrite(other, lambda state: state.update({k: v * 0.5 for k, v in state.items() if k.endswith("to_q.weight")}))
    elif name.endswith("safetensors"):
        multiply(other / name, 3)
    else:
        state = torch.load(other / name, weights_only=True)
        torch.save({key: value * 0.9 for key, value in state.items()}, other / name)
    false = (other / name).read_bytes()
    assert false != true
    return lambda: path.write_bytes(false), lambda: path.write_bytes(true)


@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("name", ["checkpoint.pt", "lm/model.safetensors", "clip.pt"])
def test_weights_swapped_between_digest_and_read_are_never_used(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, restored: bool
) -> None:
    swap, restore = swaps(bundle, name)
    swapped_around(bundle, monkeypatch, swap, restore if restored else lambda: None, name)


def test_an_encoder_swapped_after_its_digest_went_into_the_run_is_never_used(
    root: Path, bundle: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap, _ = swaps(bundle, "clip.pt")

    def swapped(*arguments: Any) -> Any:
        identity = run_identity(*arguments)
        swap()
        return identity

    monkeypatch.setattr("flamingo_eval.engine.prepare.run_identity", swapped)
    result = cli(*FAST, "--data-root", root, "--select", "rices", "--rices-model", bundle / "model.toml",
                 "--device", "cpu", "--out", "run")  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "clip.pt has changed since this command looked at it first" in result.stderr
    assert not Path("run/journal.jsonl").exists()


def test_a_link_led_astray_and_back_is_noticed(bundle: Path) -> None:
    """Neither file changes at all."""
    for number in ("1", "2"):
        shutil.copy(bundle / "checkpoint.pt", bundle / f"{number}.pt")
    link = bundle / "checkpoint.pt"
    link.unlink()
    link.symlink_to("1.pt")
    files = DigestedFiles.of([link])
    files.check()
    for target in ("2.pt", "1.pt"):
        link.unlink()
        link.symlink_to(target)
    with pytest.raises(CheckpointError, match="has changed"):
        files.check()


def test_files_overwritten_while_a_run_answers_change_nothing(bundle: Path) -> None:
    """In float32 on a CPU weights were once mapped to their files."""
    model = load(bundle)
    before = texts_of(model, bundle)
    for name in ("checkpoint.pt", "lm/model.safetensors"):
        with (bundle / name).open("r+b") as file:
            file.seek(0)
            file.write(b"\0" * (bundle / name).stat().st_size)
    assert texts_of(model, bundle) == before


@pytest.mark.parametrize("folder", ["lm", "."])
def test_a_folder_moved_away_and_back_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    place = (bundle / folder).resolve()
    other, aside = place.with_name("other"), place.with_name("aside")
    shutil.copytree(place, other)
    multiply(other / ("model.safetensors" if folder == "lm" else "lm/model.safetensors"), 3)
    swapped_around(
        bundle,
        monkeypatch,
        lambda: (place.rename(aside), other.rename(place)),
        lambda: (place.rename(other), aside.rename(place)),
    )


def test_a_file_that_comes_after_the_digest_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take model.safetensors before pytorch_model.bin."""
    from safetensors.torch import load_file

    file = bundle / "lm/model.safetensors"
    torch.save(load_file(file), bundle / "lm/pytorch_model.bin")
    content = file.read_bytes()
    file.unlink()
    swapped_around(bundle, monkeypatch, lambda: file.write_bytes(content), lambda: None)
