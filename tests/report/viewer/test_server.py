"""The server answers its own page only, shows images of the plan only, and keeps up with a run."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image, ImageCms

from flamingo_eval.report.viewer.images import scaled
from tests.support.helpers import FAST, Cli, run_scripted, write_coco_root
from tests.support.viewing import slow_run, viewing, wait_for

pytestmark = pytest.mark.slow


def ask(
    address: str, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A request as it stands: nothing in its path is tidied."""
    with closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def data(address: str, path: str) -> Any:
    status, _, content = ask(address, path)
    assert status == 200, content
    return json.loads(content)


@pytest.fixture(scope="module")
def served(scripted_run: Path) -> Iterator[str]:
    with viewing(scripted_run) as address:
        yield address


def own(address: str) -> str:
    return urlsplit(address).netloc


MARK = {"benchmark": "coco", "shots": 0, "seed": 42, "query_id": "1", "tag": "odd"}


def a_mark(address: str) -> str:
    """Of the first query."""
    return json.dumps({**MARK, "query_id": data(address, "/data/rows/0/0")["id"][0]})


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        ("/", "GET", {"Host": "evil.example"}),
        ("/data/state", "GET", {"Host": "evil.example:80"}),
        ("/data/state", "GET", {"Origin": "http://evil.example"}),
        ("/data/state", "GET", {"Origin": "null"}),
        (
            "/data/state",
            "GET",
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        ),
        ("/images/0", "GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}),
        ("/", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("/marks/0", "POST", {"Content-Type": "application/json"}),
        ("/marks/0", "POST", {"Content-Type": "application/json", "Origin": "http://evil.example"}),
    ],
)
def test_other_pages_are_refused(
    served: str, scripted_run: Path, path: str, method: str, headers: dict[str, str]
) -> None:
    body = json.dumps(MARK) if method == "POST" else None
    status, answered, content = ask(served, path, method, body, **{n.replace("-", "_"): v for n, v in headers.items()})
    assert status == 403
    assert "scripted-run" not in content.decode()
    assert answered["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert not scripted_run.with_name("scripted-run.marks.jsonl").exists()


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1:2", "[::1]:3", "10.1.2.3:80"])
def test_own_names_are_answered(served: str, host: str) -> None:
    assert ask(served, "/", Host=host)[0] == 200


def test_a_link_elsewhere_may_lead_here(served: str) -> None:
    assert ask(served, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/%2e%2e/dom.js", "/etc/passwd", "//etc/passwd", "/images/../dom.js", "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/images//etc/passwd", "/images/" + "0" * 24, "/images/" + quote("coco/val2014/COCO_val2014_000000017800.png", safe=""),
        "/data/rows/0/99", "/data/rows/0/-1", "/data/rows/7/0", "/data/detail/0/99/0", "/data/detail/0/0/999999", "/data/detail/0/-1/0", "/data/detail/0/0/-1",
        "/payload.py", "/run.json", "/data/../run.json", "/index.html%00", "/DOM.js",
    ],
)  # fmt: skip
def test_nothing_else_is_served(served: str, path: str) -> None:
    status, _, content = ask(served, path)
    assert status in (400, 404, 405), content[:200]
    assert b"root:" not in content
    assert len(content) < 200


def test_images_are_those_of_the_plan(served: str) -> None:
    detail = data(served, "/data/detail/0/2/0")
    assert len(detail["turns"]) == 5
    for turn in detail["turns"]:
        status, headers, content = ask(served, f"/images/{turn['images'][0]['file']}")
        assert (status, headers["content-type"]) == (200, "image/png")
        assert content.startswith(b"\x89PNG")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "status"),
    [("{", 400), ("[]", 400), (json.dumps({**MARK, "tag": ""}), 400), (json.dumps({**MARK, "seed": 7}), 400),
     (json.dumps({**MARK, "benchmark": "../other"}), 400), (json.dumps({**MARK, "tag": "x" * 3000}), 400), ("x" * 30_000, 413)],
)  # fmt: skip
def test_marks_that_are_none(served: str, scripted_run: Path, body: str, status: int) -> None:
    answer = ask(served, "/marks/0", "POST", body, Content_Type="application/json", Origin=f"http://{own(served)}")
    assert answer[0] == status
    assert not scripted_run.with_name("scripted-run.marks.jsonl").exists()


def test_marks_are_not_written_through_a_link(scripted_run: Path, served: str, tmp_path: Path) -> None:
    link = scripted_run.with_name("scripted-run.marks.jsonl")
    link.symlink_to(tmp_path / "elsewhere")
    try:
        status, _, content = ask(
            served,
            "/marks/0",
            "POST",
            a_mark(served),
            Content_Type="application/json",
            Origin=f"http://{own(served)}",
        )
        assert (status, (tmp_path / "elsewhere").exists()) == (400, False)
        assert "nothing is written through links" in content.decode()
    finally:
        link.unlink()


def test_half_a_mark_and_bad_lines(scripted_run: Path, served: str) -> None:
    """What can't be read is said, and costs nothing else: no mark, and no answer."""
    kept = scripted_run.with_name("scripted-run.marks.jsonl")
    kept.write_text('garbage\n{"run": "scripted-run", "benchm')
    try:
        answer = ask(
            served, "/marks/0", "POST", a_mark(served), Content_Type="application/json", Origin=f"http://{own(served)}"
        )
        assert answer[0] == 200
        state = data(served, "/data/state")
        assert [mark["tag"] for mark in state["marks"][0]] == ["odd"]
        assert "no marks can be read from line 1, 2" in state["problems"][0]
        kept.unlink()
        os.mkfifo(kept)
        state = data(served, "/data/state")
        assert state["marks"] == [[]]
        assert "can't be read" in state["problems"][0]
    finally:
        kept.unlink()


@pytest.mark.parametrize("path", ["/data/rows/0/" + "9" * 5000, "/" + "x" * 400])
def test_long_paths(served: str, path: str) -> None:
    assert ask(served, path)[0] == 404


@pytest.mark.parametrize("host", ["127.0.0.1:9101@evil.com", "evil.com:80#127.0.0.1", "", "127.0.0.1:x"])
def test_hosts_that_are_none(served: str, host: str) -> None:
    assert ask(served, "/", Host=host)[0] == 403


def test_begun_anew_while_it_is_looked_at(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A run that is replaced, by the same settings or others; and one whose data is away for a while."""
    run_scripted(cli, root, tmp_path / "run")
    with viewing(tmp_path / "run") as address:
        before = data(address, "/data/state")["runs"][0]
        done = subprocess.run([sys.executable, "-m", "flamingo_eval", *FAST, "--data-root", str(root), "--out", str(tmp_path / "run"), "--fresh"],
                              capture_output=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        after = data(address, "/data/state")["runs"][0]
        assert after["version"] > before["version"]
        assert after["rows"] == before["rows"] == 20
        shutil.rmtree(tmp_path / "run")
        shutil.move(root, tmp_path / "away")
        write_coco_root(root, train=12, test=7)
        run_scripted(cli, root, tmp_path / "run")
        shutil.move(root, tmp_path / "also-away")
        status, _, content = ask(address, "/data/state")
        assert status == 409
        assert "is not a folder" in content.decode()
        shutil.move(tmp_path / "also-away", root)
        again = data(address, "/data/state")["runs"][0]
        assert (again["rows"], len(data(address, "/data/rows/0/0")["id"])) == (28, 28)
        assert {trial["planned"] for trial in again["trials"]} == {7}


def test_an_image_that_has_changed_is_reported(cli: Cli, root: Path, tmp_path: Path) -> None:
    run_scripted(cli, root, tmp_path / "run")
    changed = next((root / "coco/val2014").iterdir())
    with viewing(tmp_path / "run") as address:
        assert [data(address, f"/data/detail/0/0/{i}")["remarks"] for i in range(5)] == [[]] * 5
        Image.new("RGB", (8, 8), (1, 2, 3)).save(changed)
        found = [data(address, f"/data/detail/0/0/{i}") for i in range(5)]
        reported = [one["turns"][-1]["images"][0]["path"].endswith(changed.name) for one in found if one["remarks"]]
        assert reported == [True]
        assert "the model saw another one" in next(one["remarks"][0] for one in found if one["remarks"])


def test_an_image_that_is_gone_or_none(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A sentence for each; a link to what is no image shows nothing of it."""
    run_scripted(cli, root, tmp_path / "run")
    images = sorted((root / "coco/val2014").iterdir())
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    images[0].unlink()
    images[0].symlink_to(secret)
    images[1].unlink()
    images[2].unlink()
    os.mkfifo(images[2])
    with viewing(tmp_path / "run", "--data-root", root) as address:
        problems = {}
        for position in range(5):
            turn = data(address, f"/data/detail/0/0/{position}")["turns"][-1]
            status, _, content = ask(address, f"/images/{turn['images'][0]['file']}")
            problems[turn["images"][0]["path"].rpartition("/")[2]] = (status, content.decode("latin-1"))
    assert [problems[image.name][0] for image in images] == [409, 409, 409, 200, 200]
    assert "is not an image in a known format" in problems[images[0].name][1]
    assert "root:x" not in problems[images[0].name][1]
    assert "does not exist" in problems[images[1].name][1]
    assert "can't be read" in problems[images[2].name][1]


def test_a_run_that_is_killed_and_goes_on(tmp_path: Path) -> None:
    """New answers appear, in their place behind those that were there; then the scores."""
    command, plugins = slow_run(tmp_path)
    environment = {**os.environ, **plugins, "PYTHONPATH": str(Path(__file__).parents[3])}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    journal = tmp_path / "run/journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 4)
    with viewing(tmp_path / "run", environment=plugins) as address:
        state = data(address, "/data/state")["runs"][0]
        assert state["live"]
        assert 4 <= state["rows"] < 120
        assert state["cells"] == []
        wait_for(lambda: data(address, "/data/state")["runs"][0]["rows"] > state["rows"])
        first.send_signal(signal.SIGKILL)
        first.communicate()
        with journal.open("ab") as file:
            file.write(b'{"benchmark": "coco", "shots"')  # what a kill in the middle of a line leaves
        stopped = data(address, "/data/state")["runs"][0]
        assert (stopped["live"], stopped["version"]) == (False, state["version"])
        before = data(address, "/data/rows/0/0")
        done = subprocess.run([*command, "--batch-size", "40"], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        now = data(address, "/data/state")["runs"][0]
        after = data(address, "/data/rows/0/0")
    assert now["rows"] == 120
    assert len(now["cells"]) == 2
    assert all(score is not None for score in after["score"])
    assert sorted(zip(after["trial"], after["position"], strict=True)) == [(t, p) for t in range(2) for p in range(60)]
    seen = dict(zip(zip(after["trial"], after["position"], strict=True), after["answer"], strict=True))
    assert all(seen[t, p] == a for t, p, a in zip(before["trial"], before["position"], before["answer"], strict=True))


def test_what_can_be_wrong(cli: Cli, root: Path, tmp_path: Path) -> None:
    """A sentence each."""
    run_scripted(cli, root, tmp_path / "run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = cli("view", tmp_path / "run", "--no-browser", "--port", port)
        assert result.returncode == 2
        assert f"port {port} of 127.0.0.1 can't be used: Address already in use; choose another --port" in result.stderr
    for arguments, message in (
        ((tmp_path,), "is not a run folder"),
        ((tmp_path / "run" / "scores.json",), "is not a run folder"),
        ((tmp_path / "run", tmp_path / "run"), "is given twice"),
        ((tmp_path / "run", "a", "b"), "view takes one run, or two to compare"),
        ((tmp_path / "run", "--limit", 3), "--limit and --filter go with --bundle"),
        ((tmp_path / "run", "--host", "no.such.host.invalid"), "there is no such address"),
        ((tmp_path / "run", "--bundle", tmp_path / "data"), "is there already, and is no bundle"),
    ):
        result = cli("view", *arguments)
        assert result.returncode == 2, arguments
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    shutil.move(root, tmp_path / "moved")
    result = cli("view", tmp_path / "run", "--no-browser")
    assert result.returncode == 2
    assert "--data-root" in result.stderr
    with viewing(tmp_path / "run", "--data-root", tmp_path / "moved") as address:
        assert len(data(address, "/data/rows/0/0")["id"]) == 20


def test_through_ssh(scripted_run: Path) -> None:
    command = [sys.executable, "-m", "flamingo_eval", "view", str(scripted_run), "--port", "0"]
    environment = {**os.environ, "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()  # Ctrl-C may be ignored, where the tests run in the background
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    port = line.split()[0].rstrip("/").rpartition(":")[2]
    assert f"ssh -L {port}:127.0.0.1:{port}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("side", "kind", "ending"), [(30, "PNG", "png"), (900, "JPEG", "jpg")])
def test_no_metadata_of_an_image_is_shown(side: int, kind: str, ending: str) -> None:
    """What a camera or an editor wrote into a file is nobody's concern who gets the page."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a secret"
    comment = {"comment": b"a secret"} if kind == "JPEG" else {}
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind, icc_profile=profile, exif=exif, **comment)
    assert b"a secret" in file.getvalue()
    with Image.open(file) as image:
        found, content = scaled(image)
    assert found == ending
    assert b"a secret" not in content
    with Image.open(io.BytesIO(content)) as shown:
        assert not shown.info.keys() & {"icc_profile", "comment", "exif"}


def test_a_large_image_is_scaled(cli: Cli, root: Path, tmp_path: Path) -> None:
    image = next((root / "coco/val2014").iterdir())
    Image.effect_noise((2000, 1000), 50).convert("CMYK").save(image.with_suffix(".jpg"))
    image.with_suffix(".jpg").rename(image)
    run_scripted(cli, root, tmp_path / "run")
    with viewing(tmp_path / "run") as address:
        for position in range(5):
            turn = data(address, f"/data/detail/0/0/{position}")["turns"][-1]
            if turn["images"][0]["path"].endswith(image.name):
                status, headers, content = ask(address, f"/images/{turn['images'][0]['file']}")
                assert (status, headers["content-type"]) == (200, "image/jpeg")
                assert len(content) < 200_000
                return
    raise AssertionError("the image was not asked for")
