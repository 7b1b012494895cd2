"""Paths that are odd: too long, not readable, of another user, not UTF-8; and numbers of thousands of digits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import user_path
from flamingo_eval.core.run_settings import SETTINGS
from tests.support.helpers import FAST, Cli, run_cli, run_scripted, write_coco_root

LONG = "n" * 300


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("report", LONG), 2),
        (("show", LONG), 2),
        (("score", LONG), 2),
        (("check", LONG, "--baseline", "b.json"), 2),
        (("compare", LONG, LONG), 2),
        (("runs", LONG), 2),
        (("controls", LONG), 2),
        (("data", "check", "coco", "--data-root", LONG), 2),
        (("coco", "--shots", "0", "--checkpoint", "scripted", "--data-root", LONG), 2),
        (("coco", "--shots", "0", "--checkpoint", f"{LONG}.toml", "--data-root", "data"), 2),
        (("coco", "--shots", "0", "--checkpoint", LONG, "--data-root", "data"), 2),
        (("features", "coco", "--data-root", "data", "--rices-pretrained", LONG), 2),
        (("coco", "--shots", "0", "--checkpoint", "scripted", "--data-root", "data", "--out", LONG), 3),
        (("--config", LONG, "list"), 2),
    ],
)
def test_names_that_are_too_long(tmp_path: Path, cli: Cli, command: tuple[str, ...], code: int) -> None:
    write_coco_root(tmp_path / "data", train=4, test=2)
    result = cli(*command)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "name too long" in result.stderr or "unknown checkpoint" in result.stderr
    assert result.stderr.count("error:") + result.stderr.count("Error") == 1


def test_fresh_over_a_name_that_leaves_no_room_for_another(root: Path, cli: Cli) -> None:
    name = "r" * 245
    run_scripted(cli, root, name)
    result = cli(*FAST, "--data-root", root, "--out", name, "--fresh")
    assert result.returncode == 3, result.stderr
    assert "too long" in result.stderr
    assert Path(name, "journal.jsonl").exists(), "what was there is still there"


@pytest.mark.parametrize("option", ["--out", "--data-root", "--checkpoint", "--weights", "--config"])
def test_the_home_of_nobody(root: Path, cli: Cli, option: str) -> None:
    options = {"--data-root": str(root), "--checkpoint": "scripted", option: "~nosuchuser/x.toml"}
    front = ("--config", options.pop("--config")) if option == "--config" else ()
    result = cli(*front, "coco", "--shots", "0", *(word for pair in options.items() for word in pair))
    assert result.returncode == 2, result.stderr
    assert "no such user" in result.stderr
    assert option in result.stderr or option == "--weights"


@pytest.mark.slow
def test_tilde_everywhere(root: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert root == tmp_path / "data"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLAMINGO_EVAL_OUT", "~/r")
    result = cli(*FAST, "--data-root", "~/data")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "r/run.json").is_file()
    assert not Path("~").exists()
    for command in (("report", "~/r"), ("samples", "~/r", "--out", "~/s.jsonl"), ("runs", "~"),
                    ("check", "~/r", "--baseline", "~/b.json", "--update"), ("plot", "~/r", "--out", "~/p.svg")):  # fmt: skip
        assert cli(*command).returncode == 0, command
    assert {"s.jsonl", "b.json", "p.svg"} <= {path.name for path in tmp_path.iterdir()}
    Path("flamingo-eval.toml").write_text('out = "~/t"\n')
    monkeypatch.delenv("FLAMINGO_EVAL_OUT")
    assert cli(*FAST, "--data-root", "~/data").returncode == 0
    assert (tmp_path / "t/run.json").is_file()


@pytest.mark.slow
def test_a_path_that_is_not_utf8_is_named(root: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (root.parent / odd).symlink_to(root)
    for option in ("--data-root", "--out"):
        paths = {"--data-root": str(root), "--out": "run", option: str(root.parent / odd)}
        result = run_cli("coco", "--checkpoint", "scripted", "--shots", "0",
                         *(word for pair in paths.items() for word in pair))  # fmt: skip
        assert result.returncode == 2
        assert "caf\\udce9" in result.stderr
        assert "is not UTF-8 text" in result.stderr


ROOT = os.geteuid() == 0
STRANGER = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search")  # fmt: skip
"""A user without a passwd entry, who may read anything: the interpreter may lie in a home folder."""
POWERLESS = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if ROOT else ()
"""Root without what lets root read and write anything; any other user as they are."""


def under(prefix: Sequence[str], *command: object) -> subprocess.CompletedProcess[str]:
    """The command line behind another program that changes its rights, with an almost empty environment."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([*prefix, sys.executable, "-m", "flamingo_eval", *map(str, command)], capture_output=True,
                          text=True, check=False, env=environment)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="only root may become another user")
def test_without_a_home_a_message_says_what_to_set(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    for part in (root, *root.parents):
        if part != Path("/"):
            part.chmod(part.stat().st_mode | 0o555)
    result = under(STRANGER, *FAST, "--data-root", root, "--out", tmp_path / "out/run")
    assert result.returncode == 0, result.stderr
    for command in (("coco", "--shots", "0", "--out", tmp_path / "out/demo"),
                    ("features", "coco", "--data-root", root, "--rices-model", "scripted")):  # fmt: skip
        result = under(STRANGER, *command)
        assert result.returncode == 2, result.stderr
        assert "set HOME or FLAMINGO_EVAL_CACHE" in result.stderr


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(not ROOT, reason="only root may become another user")
def test_without_a_home_a_model_keeps_nothing_on_disk_and_says_so(root: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    for part in (root, *root.parents):
        if part != Path("/"):
            part.chmod(part.stat().st_mode | 0o555)
    result = under(STRANGER, "coco", "--shots", "0", "--seeds", "42", "--checkpoint", bundle / "model.toml",
                   "--data-root", root, "--device", "cpu", "--out", tmp_path / "out/run")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("note: encoded images are not kept") == 1
    assert "FLAMINGO_EVAL_CACHE" in result.stderr


@pytest.mark.slow
def test_what_may_not_be_read_is_a_message(root: Path, tmp_path: Path, cli: Cli) -> None:
    for name in ("a", "b"):
        run_scripted(cli, root, tmp_path / "runs" / name)
    (tmp_path / "runs/b").chmod(0)
    listed = under(POWERLESS, "runs", tmp_path / "runs")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"runs/a .*complete", listed.stdout)
    assert "runs/b" in listed.stdout
    assert "Permission denied" in listed.stdout
    (tmp_path / "runs/b").chmod(0o755)
    for name, refused in (("journal.jsonl", "score"), ("run.json", "score"), ("scores.jsonl", "")):
        (tmp_path / "runs/a" / name).chmod(0)
        for command in (("score", tmp_path / "runs/a"), ("samples", tmp_path / "runs/a"), ("runs", tmp_path / "runs")):
            result = under(POWERLESS, *command)
            assert result.returncode in ((2, 3) if command[0] == refused else (0, 2)), (name, command, result.stderr)
            assert "Traceback" not in result.stderr
            assert result.returncode == 0 or "Permission denied" in result.stderr
        (tmp_path / "runs/a" / name).chmod(0o644)
    (root / "coco/val2014").chmod(0)
    for options in (("--images",), ()):
        result = under(POWERLESS, "data", "check", "coco", "--data-root", root, *options)
        assert result.returncode == 2
        assert "Permission denied" in result.stdout  # one of the problems that it lists
        assert "Traceback" not in result.stderr
    (root / "coco").chmod(0)
    result = under(POWERLESS, *FAST, "--data-root", root, "--out", tmp_path / "runs/c")
    assert result.returncode == 2
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr
    for folder in (root / "coco", root / "coco/val2014"):
        folder.chmod(0o755)


@pytest.mark.slow
def test_where_nothing_may_be_written_is_a_storage_error(root: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    result = under(POWERLESS, *FAST, "--data-root", root, "--out", tmp_path / "locked/run")
    assert result.returncode == 3, result.stderr
    assert "ermission denied" in result.stderr
    run_scripted(cli, root, "run")
    Path("run").chmod(0o500)
    for command in (("score", "run"), (*FAST, "--data-root", root, "--out", "run", "--shots", "1")):
        result = under(POWERLESS, *command)
        assert result.returncode == 3, (command, result.stderr)
        assert "Traceback" not in result.stderr
    Path("run").chmod(0o755)


@pytest.mark.parametrize("digits", ["9" * 5000, "1" + "0" * 5000])
def test_numbers_of_thousands_of_digits(root: Path, cli: Cli, digits: str) -> None:
    for name, value in (("shots", digits), ("batch_size", digits), ("feature_cache", f"{digits}GB")):
        with pytest.raises(UserError, match=f"{name} .*: give"):
            SETTINGS[name].read(value, name)
    for option in ("--num-samples", "--trials", "--pool-size", "--query-set-size", "--ensemble", "--process"):
        result = cli(*FAST, "--data-root", root, option, digits)
        assert result.returncode == 2, option
        assert "Traceback" not in result.stderr
    run_scripted(cli, root)
    record = Path("run/run.json")
    full = record.read_text()
    record.write_text(full.replace('"format": 1', f'"format": {digits}'))
    assert "holds a number that is too long" in cli("report", "run").stderr
    record.write_text(full)
    journal = Path("run/journal.jsonl")
    journal.write_text(journal.read_text().replace('"shots": 0', f'"shots": {digits}', 1))
    result = cli("score", "run")
    assert result.returncode == 2
    assert "journal.jsonl, line 1" in result.stderr


def test_paths_as_users_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/a", "--out") == Path("/somewhere/a")
    with pytest.raises(UserError, match="--out '~nosuchuser'"):
        user_path("~nosuchuser", "--out")
