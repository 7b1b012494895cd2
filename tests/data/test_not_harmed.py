"""What ``data prepare`` must never do to a user's files, secrets or patience; each was done once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flamingo_eval.data import prepare
from flamingo_eval.data import unpack as unpacking
from tests.data.conftest import BY_HAND, use_files
from tests.support import owners
from tests.support.owners import Shelf
from tests.support.preparing import BIG, is_right, part_of, process, unpacked

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_of_a_refused_archive_is_used_later(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    images = {f"flickr30k-images/{n}.jpg": owners.jpeg(n) for n in (1, 2)}
    have = tmp_path / "have"
    have.mkdir()
    (have / BY_HAND[0]).write_bytes(owners.tarred({**images, "flickr30k-images/../../x": b"x"}))
    arguments = ("data", "prepare", "flickr30k", "--data-root", tmp_path / "d", "--from", have)
    assert call(*arguments)[0] == 2
    (have / BY_HAND[0]).write_bytes(shelf.files[BY_HAND[0]])
    assert call(*arguments)[0] == 0
    assert not (tmp_path / "d/flickr30k/flickr30k-images/1.jpg").exists()


@pytest.mark.parametrize("path", ["../../outer/{image_id}", "/tmp/{image_id}"])
def test_settings_that_lead_out_of_the_root(call: Call, tmp_path: Path, path: str) -> None:
    (tmp_path / "flamingo-eval.toml").write_text(f'[vizwiz.data.splits.val]\nimages = "{path}"\n')
    for command in ("where", "prepare"):
        code, _, err = call("data", command, "vizwiz", "--data-root", tmp_path / "d")
        assert code == 2
        assert "is not a path inside the benchmark's folder" in err


def test_images_beside_the_annotations(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """A template without a folder: nobody but the user can put images there, and nothing is written elsewhere."""
    (tmp_path / "flamingo-eval.toml").write_text('[vqav2.data.splits.val]\nimages = "{image_id}.jpg"\n')
    code, _, err = call("data", "prepare", "vqav2", "--data-root", tmp_path / "d")
    assert code in (0, 2), err
    assert shelf.asked
    assert not (tmp_path / ".prepare").exists()


def test_a_manifest_writes_over_nothing(call: Call, tmp_path: Path) -> None:
    from tests.support.helpers import write_coco_root

    root = write_coco_root(tmp_path / "old", train=4, test=2)
    assert call("plan", "coco", "--data-root", root, "--shots", "0", "--seeds", "1", "--manifest", "m.json")[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dataset_coco.json").write_text("mine")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/coco").symlink_to(tmp_path / "mine")
    copied = ("data", "prepare", "--from-manifest", "m.json", "--from", root, "--data-root", tmp_path / "new")
    assert call(*copied, "--dry-run")[0] == 0
    assert not (tmp_path / "mine/val2014").exists(), "only said"
    code, _, err = call(*copied)
    assert code == 2
    assert "is another file; nothing is written over it" in err
    assert (tmp_path / "mine/dataset_coco.json").read_text() == "mine"


def test_a_manifest_of_what_is_no_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "old/folder").mkdir(parents=True)
    entry = {"size": 1, "sha256": "0" * 64}
    files = [{"path": path, **entry} for path in ("folder", "folder/x/y", "a" * 300)]
    (tmp_path / "m.json").write_text(json.dumps({"format": 1, "files": files}))
    code, _, err = call(
        "data", "prepare", "--from-manifest", "m.json", "--from", tmp_path / "old", "--data-root", "new"
    )
    assert code == 2
    assert "3 files could not be copied" in err


# --- servers ------------------------------------------------------------------------------------------------------


def test_a_page_that_stands_for_a_file(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Of a file whose digest nobody states: it is not noted as the right one."""
    right = shelf.files["Annotations.zip"]
    shelf.files["Annotations.zip"] = b"<!-- x --><html>log in</html>"
    code, _, err = call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d")
    assert code == 2
    assert "Annotations.zip" in err
    shelf.files["Annotations.zip"] = right
    assert call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d")[0] == 0


def test_a_password_is_written_nowhere(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    shelf.cut = lambda name: 100 if name == BIG else None
    address = shelf.url.replace("://", "://me:topsecret@")
    _, out, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--from", address)
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "d").rglob("*") if path.is_file())
    assert "topsecret" not in out + err + written
    for bad in (f"{address}?x=1", "ftp://me:topsecret@host/x"):
        assert "topsecret" not in call("data", "prepare", "coco", "--data-root", "d", "--from", bad)[2]


def test_a_token_that_is_none(call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = shelf.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret\vx")
    code, out, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--reference-files")
    assert code == 2
    assert "hf_secret" not in out + err


@pytest.mark.parametrize("tag", ['"\xe9"', '"a\tb"'])
def test_tags_that_no_header_can_hold(call: Call, shelf: Shelf, tmp_path: Path, tag: str) -> None:
    shelf.tags[BIG] = tag
    shelf.cut = lambda name: 3000 if name == BIG and len(shelf.asked) < 4 else None
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")[0] == 0
    assert is_right(tmp_path / "d")


@pytest.mark.parametrize("noted", ['{"address": "x", "tag": "", "total": 1e999}', "[", '{"address": 1}'])
def test_a_note_that_is_damaged(call: Call, shelf: Shelf, tmp_path: Path, noted: str) -> None:
    part = part_of(tmp_path / "d", shelf)
    part.write_bytes(b"x" * 50)
    part.with_name(f"{part.name}.json").write_text(noted)
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")[0] == 0
    assert shelf.asked
    assert is_right(tmp_path / "d")


def test_a_damaged_record(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "d/vizwiz").mkdir(parents=True)
    (tmp_path / "d/vizwiz/prepared.json").write_text("{")
    code, _, err = call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d")
    assert code == 2
    assert "prepared.json, which says what was downloaded, is damaged" in err
    assert shelf.asked


@pytest.mark.usefixtures("shelf")
def test_certificates_that_are_none(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.pem").write_text("?")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no.pem"))
    code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")
    assert code == 2
    assert "the proxy or the certificates that the environment names can't be used" in err


@pytest.mark.slow
def test_a_silent_server_does_not_hold_ctrl_c_up(shelf: Shelf, tmp_path: Path) -> None:
    stalled = threading.Event()
    shelf.cut = lambda name: stalled.wait(60) and None if name == BIG else None
    one = process(tmp_path, pause=0)
    while BIG not in {name for name, _ in shelf.asked}:
        time.sleep(0.05)
    time.sleep(0.3)
    began = time.monotonic()
    one.send_signal(signal.SIGINT)
    _, err = one.communicate(timeout=40)
    stalled.set()
    assert one.returncode == 130, err
    assert time.monotonic() - began < 20


# --- folders ------------------------------------------------------------------------------------------------------


def test_what_does_as_well_lies_elsewhere(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """COCO 2017's folders in a folder of the user's serve COCO and VQAv2; Hateful Memes of the first release."""
    for year, other in (("train2014", "train2017"), ("val2014", "val2017")):
        unpacked(shelf, tmp_path / "x", f"{year}.zip")
        (tmp_path / "have" / other).mkdir(parents=True)
        for file in (tmp_path / "x" / year).iterdir():
            file.rename(tmp_path / "have" / other / file.name.rpartition("_")[2])
    (tmp_path / "have/memes.zip").write_bytes(owners.hateful_memes(first_release=True)["hateful_memes.zip"])
    subprocess.run([sys.executable, "-m", "zipfile", "-e", "memes.zip", "."], cwd=tmp_path / "have", check=True)
    (tmp_path / "have/memes.zip").unlink()
    names = ("coco", "vqav2", "hateful-memes")
    code, _, err = call("data", "prepare", *names, "--data-root", tmp_path / "d", "--from", tmp_path / "have")
    assert code == 0, err
    assert not {"train2014.zip", "val2014.zip"} & {name for name, _ in shelf.asked}
    assert (tmp_path / "d/vqav2/train2017").resolve() == tmp_path / "have/train2017"
    assert (tmp_path / "d/hateful_memes/dev.jsonl").is_file()


def test_one_folder_of_2017_serves_the_others(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    for year, other in (("train2014", "train2017"), ("val2014", "val2017")):
        unpacked(shelf, tmp_path / "x", f"{year}.zip")
        (tmp_path / "d/coco" / other).mkdir(parents=True)
        for file in (tmp_path / "x" / year).iterdir():
            file.rename(tmp_path / "d/coco" / other / file.name.rpartition("_")[2])
    code, _, err = call("data", "prepare", "vqav2", "--data-root", tmp_path / "d")
    assert code == 0, err
    assert str((tmp_path / "d/vqav2/val2017").readlink()) == "../coco/val2017"


def test_folders_that_are_links(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """A benchmark's folder on another disk, linked into the data root."""
    (tmp_path / "other/vqa").mkdir(parents=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/vqav2").symlink_to(tmp_path / "other/vqa")
    code, _, err = call("data", "prepare", "vqav2", "--data-root", tmp_path / "d")
    assert code == 0, err
    assert (tmp_path / "d/vqav2/train2014").resolve() == tmp_path / "d/coco/train2014"
    assert shelf.asked


@pytest.mark.usefixtures("shelf")
def test_folders_that_nobody_can_search(call: Call, tmp_path: Path) -> None:
    """Links in a circle, files that may not be read, and what is called as data but is none."""
    have = tmp_path / "have"
    have.mkdir()
    (have / "circle").symlink_to(have / "circle")
    (have / "again").symlink_to(have)
    (have / "train.json").mkdir()
    (have / "val").write_text("no folder")
    for command in (("where", "vizwiz"), ("prepare", "vizwiz", "--from", have)):
        code, _, err = call("data", *command, "--data-root", tmp_path / "d")
        assert code in (0, 2)
        assert "Traceback" not in err


@pytest.mark.parametrize("way", ["file", "dangling link", "junk"])
def test_what_is_in_the_way_stays(call: Call, shelf: Shelf, tmp_path: Path, way: str) -> None:
    target = tmp_path / "d/textvqa/train_images"
    target.parent.mkdir(parents=True)
    match way:
        case "file":
            target.write_text("mine")
        case "dangling link":
            target.symlink_to(tmp_path / "disk")
        case _:
            target.mkdir()
            (target / ".DS_Store").write_text("?")
    code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")
    assert code == 2
    assert "in the way" in err or "which is not there" in err
    assert os.path.lexists(target)
    assert BIG not in {name for name, _ in shelf.asked}, "not downloaded for nothing"


def test_an_empty_folder_is_not_in_the_way(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "d/textvqa/train_images").mkdir(parents=True)
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")[0] == 0
    assert shelf.asked


def test_half_an_archive_is_downloaded_instead(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """With a stated size it is not even taken for the archive; without one it turns out."""
    have = tmp_path / "have"
    have.mkdir()
    (have / BIG).write_bytes(shelf.files[BIG][:5000])
    (have / "train.zip").write_bytes(shelf.files["train.zip"][:3000])
    names = ("textvqa", "vizwiz")
    code, _, err = call("data", "prepare", *names, "--data-root", tmp_path / "d", "--from", have)
    assert code == 0, err
    assert {BIG, "train.zip"} <= {name for name, _ in shelf.asked}
    assert (have / BIG).stat().st_size == 5000


@pytest.mark.parametrize("names", [("train_images/a", "train_images/a/b.jpg"), ("train_images/" + "a" * 300 + ".jpg",)])
def test_names_that_no_folder_can_hold(
    call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    shelf.files[BIG] = owners.packed(dict.fromkeys(names, b"x"))
    use_files(tmp_path, monkeypatch, shelf)
    code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")
    assert code == 2
    assert "can't be written" in err
    assert (tmp_path / "d/textvqa/TextVQA_0.5.1_val.json").is_file(), "what else there is"


def test_a_disk_that_fills_up_keeps_the_archive(
    call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is downloaded and verified: it is not fetched again."""
    import errno

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "open_own", full)
        code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")
    assert code == 3
    assert "the disk is full" in err
    shelf.asked.clear()
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d")[0] == 0
    assert BIG not in {name for name, _ in shelf.asked}


def test_a_users_own_archive_is_not_written_over(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "d/textvqa").mkdir(parents=True)
    (tmp_path / "d/textvqa" / BIG).write_bytes(b"mine")
    assert call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--keep-archives")[0] == 0
    assert (tmp_path / "d/textvqa" / BIG).read_bytes() == b"mine"
    assert shelf.asked


def test_a_data_root_that_is_the_benchmarks_folder(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """Nothing is shared outside of it."""
    (tmp_path / "flamingo-eval.toml").write_text('[vqav2.data]\nfolder = "."\n')
    code, _, err = call("data", "prepare", "vqav2", "--data-root", tmp_path / "in/d")
    assert code == 0, err
    assert shelf.asked
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["d"]


def test_offline_holds_for_damaged_archives_too(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    have = tmp_path / "have"
    have.mkdir()
    for name in ("train.zip", "val.zip", "Annotations.zip"):
        (have / name).write_bytes(shelf.files[name])
    (have / "train.zip").write_bytes(shelf.files["train.zip"][:3000])
    code, _, err = call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d", "--from", have, "--offline")
    assert code == 2
    assert "train.zip can't be unpacked" in err
    assert not shelf.asked


def test_what_is_in_the_way_does_not_cost_the_archive(
    call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("data", "prepare", "textvqa", "--data-root", tmp_path / "d")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "unpack", killed)
        assert call(*arguments)[0] == 130
    (tmp_path / "d/textvqa/train_images").mkdir(exist_ok=True)
    (tmp_path / "d/textvqa/train_images/.DS_Store").write_text("?")
    assert call(*arguments)[0] == 2
    (tmp_path / "d/textvqa/train_images/.DS_Store").unlink()
    shelf.asked.clear()
    assert call(*arguments)[0] == 0
    assert BIG not in {name for name, _ in shelf.asked}
    assert is_right(tmp_path / "d")


def test_copies_of_what_does_as_well(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    for year, other in (("train2014", "train2017"), ("val2014", "val2017")):
        unpacked(shelf, tmp_path / "x", f"{year}.zip")
        (tmp_path / "have" / other).mkdir(parents=True)
        for file in (tmp_path / "x" / year).iterdir():
            file.rename(tmp_path / "have" / other / file.name.rpartition("_")[2])
    code, _, err = call("data", "prepare", "coco", "--data-root", tmp_path / "d", "--from", tmp_path / "have", "--copy")
    assert code == 0, err


def test_all_of_a_protocol(call: Call, shelf: Shelf, tmp_path: Path, by_hand: Path) -> None:
    """What it does not have is named, and left out."""
    how = ("--protocol", "openflamingo-2023-03", "--data-root", tmp_path / "d")
    code, out, err = call("data", "prepare", "all", *how, "--from", by_hand, "--dry-run")
    assert code == 0, err
    assert "textvqa is not run under openflamingo-2023-03" in out
    assert not shelf.asked
    assert "textvqa is not run under" in call("data", "check", "all", *how)[1]


@pytest.mark.usefixtures("shelf")
def test_the_command_that_gets_the_rest(call: Call, tmp_path: Path) -> None:
    (tmp_path / "my data").mkdir()
    out = call("data", "where", "vizwiz", "--split", "test", "--data-root", "my data")[1]
    assert "flamingo-eval data prepare vizwiz --data-root 'my data' --split test" in out


def test_numbers_without_end(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """A manifest's size, a name of a folder."""
    (tmp_path / "m.json").write_text(
        '{"format": 1, "files": [{"path": "x", "size": 1' + "0" * 400 + ', "sha256": "' + "0" * 64 + '"}]}'
    )
    assert call("data", "prepare", "--from-manifest", "m.json", "--from", tmp_path, "--data-root", "new")[0] == 2
    (tmp_path / "flamingo-eval.toml").write_text(f'[vizwiz.data.splits.val]\nimages = "{"y" * 300}/{{image_id}}"\n')
    assert call("data", "prepare", "vizwiz", "--data-root", tmp_path / "d")[0] == 2
    assert shelf.asked
