"""Whatever a server, a connection or an archive does: the right files, or one message and nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flamingo_eval.core.errors import DataError
from flamingo_eval.data.download import _check_way
from flamingo_eval.data.origins import Address
from tests.data.conftest import use_files
from tests.support import owners
from tests.support.owners import Shelf
from tests.support.preparing import BIG, is_right, part_of, process

pytestmark = pytest.mark.slow

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prepare(call: Call, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Prepares TextVQA; returns the exit code and the messages."""

    def prepared(*more: object) -> tuple[int, str]:
        code, _, err = call("data", "prepare", "textvqa", "--data-root", tmp_path / "d", *more)
        return code, err

    return prepared


Prepare = Callable[..., tuple[int, str]]


def half_done(root: Path) -> list[Path]:
    """What stands under its final name though it is not all there."""
    return [path for path in (root / "textvqa").glob("*") if path.name not in (".prepare", "prepared.json")]


def test_interrupted_at_random_bytes(prepare: Prepare, shelf: Shelf, tmp_path: Path) -> None:
    """Twenty lost connections in one command; each goes on where the last one stopped."""
    choose, cuts = random.Random(1), [0]

    def cut(name: str) -> int | None:
        if name != BIG or cuts[0] == 20:
            return None
        cuts[0] += 1
        return choose.randint(1, 500)

    shelf.cut = cut
    code, err = prepare()
    assert code == 0, err
    assert is_right(tmp_path / "d")
    begins = [int(asked.removeprefix("bytes=").rstrip("-") or 0) for name, asked in shelf.asked if name == BIG]
    assert len(begins) == 21
    assert begins == sorted(begins), "never from the beginning again"


def test_a_server_that_only_breaks(prepare: Prepare, shelf: Shelf, tmp_path: Path) -> None:
    """No byte comes, again and again: given up with a message; the other files are there, and the same command ends it."""
    shelf.cut = lambda name: 0 if name == BIG else None
    code, err = prepare()
    assert code == 2
    assert f"{shelf.url}/{BIG} can't be downloaded: the connection broke" in err
    assert {path.name for path in half_done(tmp_path / "d")} == {"TextVQA_0.5.1_train.json", "TextVQA_0.5.1_val.json"}
    shelf.cut = lambda _: None
    assert prepare()[0] == 0
    assert is_right(tmp_path / "d")


@pytest.mark.parametrize("cut_first", [False, True])
@pytest.mark.parametrize("fault", ["no ranges", "no lengths", "moved", "no tag", "weak tag", "busy"])
def test_servers_that_are_otherwise(
    prepare: Prepare, shelf: Shelf, tmp_path: Path, fault: str, cut_first: bool
) -> None:
    """Without ranges, lengths or versions, by another way, or busy for a while; and interrupted as well."""
    first = [True]

    def cut(name: str) -> int | None:
        if name != BIG or not first[0]:
            return None
        first[0] = False
        shelf.status.pop(BIG, None)
        return 4000 if cut_first else None

    shelf.cut = cut
    match fault:
        case "no ranges":
            shelf.ranges = False
        case "no lengths":
            shelf.lengths = False
        case "moved":
            shelf.moved = True
        case "no tag":
            shelf.tags[BIG] = ""
        case "weak tag":
            shelf.tags[BIG] = 'W/"1"'
        case "busy":
            shelf.status[BIG] = 503
            threading.Timer(0.005, lambda: shelf.status.pop(BIG, None)).start()
    code, err = prepare()
    if (
        code and fault == "no lengths" and cut_first
    ):  # the end of a file without a length can't be told from a lost line
        assert "should have" in err or "is not all there" in err
        code, err = prepare()
    assert code == 0, err
    assert is_right(tmp_path / "d")


def test_a_file_that_changes_between_two_parts(
    prepare: Prepare, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first part is thrown away: never half of one version and half of another."""
    old = shelf.files[BIG]
    new = owners.packed({f"train_images/{n:016x}.jpg": owners.jpeg(n + 100) for n in range(owners.TRAIN + owners.TEST)})
    shelf.files[BIG] = new
    use_files(tmp_path, monkeypatch, shelf)  # so that the new one's digest is stated
    shelf.files[BIG] = old + b"?" * (len(new) - len(old))

    def cut(name: str) -> int | None:
        if name == BIG and shelf.files[BIG] is not new:
            shelf.files[BIG] = new
            return 5000
        return None

    shelf.cut = cut
    code, err = prepare()
    assert code == 0, err
    assert (tmp_path / "d/textvqa/train_images" / f"{3:016x}.jpg").read_bytes() == owners.jpeg(103)


def test_a_part_of_another_version_that_a_server_sends_all_the_same(
    prepare: Prepare, shelf: Shelf, tmp_path: Path
) -> None:
    """A server that does not know If-Range, but names the version that it sends."""
    part = part_of(tmp_path / "d", shelf)
    part.write_bytes(b"x" * 100)
    noted = {"address": f"{shelf.url}/{BIG}", "tag": '"older"', "total": len(shelf.files[BIG])}
    part.with_name(f"{part.name}.json").write_text(json.dumps(noted))
    code, err = prepare()
    assert code == 0, err
    assert is_right(tmp_path / "d")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "has 11,741 bytes, and should have 11,742 (as in huggingface/datasets"),
        (lambda content: content + b"?", "has 11,743 bytes, and should have 11,742"),
        (lambda content: content[:500] + b"?" + content[501:], "has the digest sha256:"),
        (
            lambda content: (b"<!DOCTYPE html>log in" + b" " * len(content))[: len(content)],
            "is a web page, not the file",
        ),
    ],
)
def test_another_file(
    prepare: Prepare, shelf: Shelf, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    """Another size or digest than stated: deleted, said, and right the next time."""
    right = shelf.files[BIG]
    assert len(right) == 11742
    shelf.files[BIG] = damage(right)
    code, err = prepare()
    assert code == 2
    assert message in err
    assert not (tmp_path / "d/textvqa/train_images").exists()
    assert not list((tmp_path / "d/textvqa/.prepare").glob("*.part"))
    shelf.files[BIG] = right
    assert prepare()[0] == 0
    assert is_right(tmp_path / "d")


@pytest.mark.parametrize(
    ("status", "message"), [(404, "there is no such file any more"), (403, "may not be had"), (410, "gone")]
)
def test_no_such_file(prepare: Prepare, shelf: Shelf, status: int, message: str) -> None:
    shelf.status[BIG] = status
    code, err = prepare()
    assert code == 2
    assert f"{shelf.url}/{BIG} answers {status}" in err
    assert message in err
    assert "--from" in err


def test_redirects_without_end(prepare: Prepare, shelf: Shelf) -> None:
    shelf.loop = True
    code, err = prepare()
    assert code == 2
    assert "redirects more than 10 times" in err


def test_no_way_from_encryption_to_none() -> None:
    class Response:
        class url:
            scheme, host = "http", "elsewhere.example"

    class Before(Response):
        class url:
            scheme, host = "https", "owner.example"

    Response.history = [Before()]  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"redirects to elsewhere\.example without encryption"):
        _check_way(Address("https://owner.example/x"), Response())  # type: ignore[arg-type]


def test_a_digest_that_nobody_states(call: Call, shelf: Shelf, tmp_path: Path) -> None:
    """It is noted when the file is first downloaded; another one later is not taken in silence."""
    root = tmp_path / "d"
    assert call("data", "prepare", "vizwiz", "--data-root", root)[0] == 0
    noted = json.loads((root / "vizwiz/prepared.json").read_text())["files"]["train.zip"]
    assert noted["digest"] == "sha256:" + hashlib.sha256(shelf.files["train.zip"]).hexdigest()
    assert noted["stated"] is False
    for file in (root / "vizwiz/train").iterdir():
        file.unlink()
    (root / "vizwiz/train").rmdir()
    shelf.files["train.zip"] = owners.packed({"train/VizWiz_train_00000000.jpg": owners.jpeg(77)})
    code, _, err = call("data", "prepare", "vizwiz", "--data-root", root)
    assert code == 2
    assert "when it was first downloaded here: its owner has changed it" in err
    assert not (root / "vizwiz/train").exists()


def test_a_gated_repository(call: Call, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do is said; a token goes to the hub, and not to where the hub sends us on."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", shelf.url)
    template = shelf.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    arguments = ("data", "prepare", "textvqa", "--data-root", tmp_path / "d", "--reference-files")
    shelf.files |= owners.textvqa()
    use_files(tmp_path, monkeypatch, shelf)
    shelf.status["val_questions_vqa_format.json"] = 401
    code, _, err = call(*arguments)
    assert code == 2
    assert "accept its terms at" in err
    assert "HF_TOKEN" in err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    code, _, err = call(*arguments)
    assert "a token is sent already" in err
    assert "hf_secret" not in err
    assert shelf.headers.get("Authorization") == "Bearer hf_secret"
    assert not any(
        "hf_secret" in path.read_text(errors="replace") for path in (tmp_path / "d").rglob("*") if path.is_file()
    )


def test_too_little_room(prepare: Prepare, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is downloaded."""
    usage = os.statvfs(tmp_path)
    assert usage.f_bavail > 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000})())
    code, err = prepare()
    assert code == 3
    assert "GB are needed in" in err
    assert not shelf.asked


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
@pytest.mark.slow
@pytest.mark.usefixtures("shelf")
def test_a_full_disk(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills up meanwhile: exit code 3; with room again, the same command ends it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        for module in ("planning", "unpack", "download"):
            monkeypatch.setattr(f"flamingo_eval.data.{module}.check_free", lambda *_: None)
        code, _, err = call("data", "prepare", "textvqa", "--data-root", disk)
        assert code == 3
        assert "the disk is full" in err
        assert not (disk / "textvqa/train_images").exists()
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert call("data", "prepare", "textvqa", "--data-root", disk)[0] == 0
        assert is_right(disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"{what} did not happen")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_again_and_again(shelf: Shelf, tmp_path: Path, how: signal.Signals) -> None:
    """Killed at random moments: nothing half done has its final name, and the last command goes on with what is there."""
    choose = random.Random(int(how))
    for _ in range(10):
        one = process(tmp_path)
        asked = len(shelf.asked)
        wait_for(lambda asked=asked: len(shelf.asked) > asked or one.poll() is not None, "a request")  # type: ignore[misc]  # noqa: B023
        time.sleep(choose.random() * 0.5)
        one.send_signal(how)
        _, err = one.communicate(timeout=30)
        if how == signal.SIGINT and one.returncode != 0:
            # -SIGINT: all was done, and the signal met an interpreter that was already closing.
            assert one.returncode in (130, -signal.SIGINT), err
            assert "Traceback" not in err
        for path in half_done(tmp_path / "d") if (tmp_path / "d").exists() else []:
            right = owners.textvqa().get(path.name)
            assert path.is_dir() or path.read_bytes() == right
    last = process(tmp_path, pause=0)
    _, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert is_right(tmp_path / "d")


@pytest.mark.slow
def test_two_at_once_wait_for_each_other(shelf: Shelf, tmp_path: Path) -> None:
    """The second one waits, says so, and then finds everything there."""
    first = process(tmp_path, pause=0.1)
    wait_for(lambda: bool(shelf.asked), "a request")
    second = process(tmp_path, pause=0)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "another command prepares data in" in err
    first.communicate(timeout=30)
    assert first.returncode == 0
    names = [name for name, _ in shelf.asked]
    assert len(names) == len(set(names)), "nothing is downloaded twice"
    assert is_right(tmp_path / "d")


# --- archives ---------------------------------------------------------------------------------------------------
