"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flamingo_eval.cli.main import main
from flamingo_eval.core.paths import cache_folder
from flamingo_eval.core.workers import bound_spinning
from flamingo_eval.demo.data import demo_data_root
from flamingo_eval.models.flamingo import DEMO_SPEC
from tests.support.helpers import Cli, Kit, write_coco_root
from tests.support.hubs import Hub
from tests.support.serving import serve
from tests.support.viewing import Proxy, need_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

bound_spinning()  # tests start commands that compute too, beside this process
GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes many minutes or needs a card runs only where ``-m`` asks for it by name."""
    for marker in ("fuzz", "gpu", "simulation", "cluster", "pages", "long"):
        if marker not in str(config.getoption("markexpr")):
            asked = [item for item in items if item.get_closest_marker(marker) is None]
            config.hook.pytest_deselected(items=[item for item in items if item not in asked])
            items[:] = asked


@pytest.fixture(scope="session")
def golden() -> Path:
    """The extracts of the reference's outputs that are kept here."""
    return GOLDEN


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The reference's outputs in full, with a small model; skipped, or failed if they are required, where absent."""
    default = Path(__file__).parents[2] / "shared" / "goldens"
    folder = Path(os.environ.get("FLAMINGO_GOLDENS", default))
    if not folder.is_dir():
        message = f"the reference's outputs are not at {folder}; set FLAMINGO_GOLDENS"
        if os.environ.get("FLAMINGO_REQUIRE_GOLDENS"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def kit() -> Kit:
    """The demo's checkpoint and data, which every clone has."""
    return Kit(DEMO_SPEC, demo_data_root())


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache without what models computed: that of an older version of the code must not serve here."""
    folder = tmp_path_factory.mktemp("cache")
    for entry in cache_folder().glob("*"):
        if entry.name not in ("latents", "features", "features-vlm"):
            (folder / entry.name).symlink_to(entry.absolute())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAMINGO_EVAL_CACHE", str(folder))
        yield


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A cache folder of the test's own, with nothing in it."""
    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def proxy() -> Iterator[Proxy]:
    """Sees what the browser asks for."""
    one = Proxy()
    yield one
    one.close()


@pytest.fixture(scope="session")
def browser(proxy: Proxy) -> Iterator[Browser]:
    """Chromium without a window, all of whose requests go through the proxy; Playwright allows one at a time in a process."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(
            executable_path=need_chromium(),
            args=["--no-sandbox", "--proxy-bypass-list=<-loopback>"],
            proxy={"server": proxy.url},
        )
        yield one
        one.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts in an empty folder, without options from the environment."""
    for name in list(os.environ):
        if name.startswith("FLAMINGO_EVAL_") and name != "FLAMINGO_EVAL_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a small COCO of twelve training and five test images."""
    return write_coco_root(tmp_path / "data", train=12, test=5)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line inside this process: much faster than a process of its own, which a few tests use."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["flamingo-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return subprocess.CompletedProcess(list(arguments), stop.value.code, out, err)

    return call


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the demo's checkpoint that a test may break."""
    shutil.copytree(DEMO_SPEC.parent, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def call(cli: Cli) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, output, messages."""

    def called(*arguments: object) -> tuple[int, str, str]:
        result = cli(*arguments)
        return result.returncode, result.stdout, result.stderr

    return called


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, and an empty cache."""
    handler = type("OwnHub", (Hub,), {"folder": tmp_path / "hub", "asked": [], "broken": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    serve(server)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield handler
    server.shutdown()
    server.server_close()
