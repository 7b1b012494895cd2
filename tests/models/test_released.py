"""The released checkpoints: their registry, a folder of copies, and the hub, played by a server on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flamingo_eval.core import registry
from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.models.flamingo.released import find_released, released
from flamingo_eval.storage.part_files import HubFile
from tests.support.helpers import Cli, run_cli
from tests.support.hubs import Hub
from tests.support.small_flamingos import write_flamingo

NAMES = {
    "openflamingo/OpenFlamingo-3B-vitl-mpt1b": ("anas-awadalla/mpt-1b-redpajama-200b", 1),
    "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct": ("anas-awadalla/mpt-1b-redpajama-200b-dolly", 1),
    "openflamingo/OpenFlamingo-4B-vitl-rpj3b": ("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2),
    "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct": ("togethercomputer/RedPajama-INCITE-Instruct-3B-v1", 2),
    "openflamingo/OpenFlamingo-9B-vitl-mpt7b": ("anas-awadalla/mpt-7b", 4),
    "openflamingo/OpenFlamingo-9B-deprecated": ("llama-7b", 4),
}


def test_all_six_are_known() -> None:
    assert {n: (r.language_model, r.cross_attn_every_n_layers) for n, r in released().items()} == NAMES
    for name, one in released().items():
        for known in (name, name.removeprefix("openflamingo/"), *one.aliases):
            assert find_released(known) is one, known
    names = [known for one in released().values() for known in (one.name, *one.aliases)]
    assert len(names) == len(set(names))
    assert [one.status for one in released().values()].count("deprecated") == 1


def test_the_list_says_what_one_must_know(cli: Cli) -> None:
    shown = cli("list", "checkpoints").stdout
    for name, (language, every) in NAMES.items():
        line = next(line for line in shown.splitlines() if line.strip().startswith(f"{name} "))
        for wanted in (language, f"every {every}", "ViT-L-14/openai", "licence", "published numbers: "):
            assert wanted in line, (name, wanted)


def test_the_deprecated_one_needs_the_users_own_llama() -> None:
    with pytest.raises(CheckpointError, match=r"needs your own copy of llama-7b.*--weights DIR"):
        registry.model_source("OpenFlamingo-9B-deprecated")


@pytest.mark.parametrize("layout", ["whole", "last", "hub", "flat"])
def test_a_folder_of_copies(tmp_path: Path, layout: str) -> None:
    name = "openflamingo/OpenFlamingo-4B-vitl-rpj3b"
    language = NAMES[name][0]
    places = {"whole": (name, language), "last": (name.split("/")[1], language.split("/")[1]), "flat": (".", language),
              "hub": (f"models--{name.replace('/', '--')}/snapshots/abc",
                      f"models--{language.replace('/', '--')}/snapshots/def")}[layout]  # fmt: skip
    for place, file in zip(places, ("checkpoint.pt", "config.json"), strict=True):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / file).write_text("{}")
    known = find_released(name)
    assert known is not None
    spec = known.spec(tmp_path)
    assert spec.checkpoint == tmp_path / places[0] / "checkpoint.pt"
    assert spec.language.model == spec.language.tokenizer == tmp_path / places[1]
    assert spec.vision.pretrained == "openai"
    (tmp_path / "ViT-L-14.pt").write_text("")
    assert known.spec(tmp_path).vision.pretrained == tmp_path / "ViT-L-14.pt"
    assert known.spec(tmp_path).vision.quick_gelu
    assert known.spec(None).checkpoint == HubFile(name, "checkpoint.pt")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no OpenFlamingo-9B-vitl-mpt7b/checkpoint.pt"):
        registry.model_source("9B", {"weights": tmp_path})
    (tmp_path / "checkpoint.pt").write_text("")
    with pytest.raises(CheckpointError, match=r"there is no mpt-7b/config.json \(a copy of anas-awadalla/mpt-7b\)"):
        registry.model_source("9B", {"weights": tmp_path})
    with pytest.raises(UserError, match="--weights works only with the name of a released checkpoint, not with demo"):
        registry.model_source("demo", {"weights": tmp_path})
    with pytest.raises(UserError, match=r"unknown checkpoint 'nothing'; known: demo, openflamingo/OpenFlamingo-3B"):
        registry.model_source("nothing")


@pytest.mark.torch
def test_a_file_that_is_not_the_released_one_is_found_out(tmp_path: Path) -> None:
    """Everything fits but for the sizes: parameters are counted and held against the published ones."""
    toml = write_flamingo(tmp_path / "small", "mpt", every=4)
    weights = tmp_path / "weights"
    shutil.copytree(toml.parent / "lm", weights / "mpt-7b")
    for file in (toml.parent / "tokenizer").iterdir():
        shutil.copy(file, weights / "mpt-7b")
    shutil.copy(toml.parent / "checkpoint.pt", weights)
    from dataclasses import replace

    from flamingo_eval.models.flamingo import FlamingoSource
    from flamingo_eval.models.flamingo.spec import read_spec

    known = find_released("9B")
    assert known is not None
    spec = replace(known.spec(weights), vision=read_spec(toml).vision, head_width=32)
    with pytest.raises(CheckpointError, match=r"block 3 has [\d,]+ parameters, published are 139,476,994"):
        FlamingoSource(spec).load("cpu", "fp32")


_FETCH = """
import sys
from flamingo_eval.core.errors import CheckpointError
from flamingo_eval.storage import hub
from flamingo_eval.storage.hub import fetch
from flamingo_eval.storage.part_files import HubFile
hub.WAITS = (0.1, 0.1, 0.1)
try:
    path = fetch(HubFile(sys.argv[1], "checkpoint.pt"))
    print(path.parent.name, path.stat().st_size)
except CheckpointError as error:
    print(error)
"""


def fetch(repo: str, **environment: str) -> str:
    import os
    import subprocess
    import sys

    result = subprocess.run([sys.executable, "-c", _FETCH, repo], capture_output=True, text=True, check=True,
                            env={**os.environ, **environment})  # fmt: skip
    return result.stdout.strip()


@pytest.mark.slow
def test_downloads(hub: type[Hub], tmp_path: Path) -> None:
    """Once; then without asking the hub for the content again, and offline without asking at all."""
    (tmp_path / "hub" / "repo").mkdir(parents=True)
    (tmp_path / "hub" / "repo" / "checkpoint.pt").write_bytes(b"x" * 1000)
    assert "is not in the local cache" in fetch("org/repo", HF_HUB_OFFLINE="1")
    assert hub.asked == []
    assert fetch("org/repo") == f"{'a' * 40} 1000"
    assert sum(line.startswith("GET") and "resolve" in line for line in hub.asked) == 1
    hub.asked.clear()
    assert fetch("org/repo") == f"{'a' * 40} 1000"
    assert not any(line.startswith("GET") and "resolve" in line for line in hub.asked)
    hub.asked.clear()
    assert fetch("org/repo", HF_HUB_OFFLINE="1") == f"{'a' * 40} 1000"
    assert hub.asked == []


@pytest.mark.slow
def test_a_hub_that_is_out_of_order_for_a_while(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "hub" / "repo").mkdir(parents=True)
    (tmp_path / "hub" / "repo" / "checkpoint.pt").write_bytes(b"x" * 1000)
    hub.broken = 3
    assert fetch("org/repo") == f"{'a' * 40} 1000"
    assert hub.broken == 0


@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_that_stays_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offline: bool
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    from flamingo_eval.storage import hub

    tries: list[str] = []
    waits: list[float] = []

    def download(repo: str, file: str, **_: object) -> str:
        tries.append(f"{repo}/{file}")
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError, match="is not in the local cache and the hub can't be reached"):
        hub.fetch(HubFile("org/repo", "checkpoint.pt"))
    assert len(tries) == (1 if offline else 4)
    assert waits == ([] if offline else [1.0, 4.0, 15.0])
    assert ("again in 4 s" in caplog.text) != offline


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_refusals_are_explained(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    assert "accept its terms at http" in fetch("org/gated")
    assert "no such repository, or it is private" in fetch("org/none")


@pytest.mark.torch
def test_offline_on_the_command_line(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    result = run_cli("coco", "--shots", "0", "--checkpoint", "4B", "--data-root", "demo", "--offline")
    assert result.returncode == 2
    assert "checkpoint.pt of openflamingo/OpenFlamingo-4B-vitl-rpj3b is not in the local cache" in result.stderr
    assert hub.asked == []


def test_weights_are_remembered_by_the_run() -> None:
    from flamingo_eval.engine.identity import _findable

    assert _findable("demo") == "demo"
    assert _findable("openflamingo/OpenFlamingo-4B-vitl-rpj3b") == "openflamingo/OpenFlamingo-4B-vitl-rpj3b"
    assert Path(_findable("my.toml")).is_absolute()


_SNAPSHOT = """
import time
from flamingo_eval.storage.hub import snapshot
waits = []
time.sleep = waits.append
folder = snapshot("me/tiny")
print(folder.name if folder else None, sum(waits) < 15)
"""


@pytest.mark.slow
def test_a_cached_model_is_loaded_from_its_folder_without_asking_again(hub: type[Hub], tmp_path: Path) -> None:
    """With a hub: what is lacking is fetched once. Without one: seconds, and the folder as it is; not whole: none."""
    import os
    import subprocess
    import sys

    def snapshot(**environment: str) -> list[str]:
        result = subprocess.run([sys.executable, "-c", _SNAPSHOT], capture_output=True, text=True, check=False,
                                env={**os.environ, **environment})  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    commit = "a" * 40
    cache = tmp_path / "hf/hub/models--me--tiny"
    folder = cache / "snapshots" / commit
    folder.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    (tmp_path / "hub/tiny").mkdir(parents=True)
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / "hub/tiny" / name).write_text("{}")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    assert snapshot() == ["None", "True"], "no weights yet"
    (folder / "model.safetensors").write_bytes(b"stand-in")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert snapshot(**nowhere) == [commit, "True"]
    assert not (folder / "tokenizer_config.json").exists()
    assert snapshot() == [commit, "True"]
    assert any("tokenizer_config.json" in line for line in hub.asked)
    assert (folder / "tokenizer_config.json").exists(), "a hub that can be reached is asked for it"
