"""The system around a run: odd paths, links, lost journals, streams that are closed, full or of another encoding."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.cli.options import parse_batch_size, parse_numbers, parse_size
from flamingo_eval.engine.folder import RunFolder
from flamingo_eval.engine.journal import Entry, Journal
from flamingo_eval.errors import DataError, StorageError, UserError
from flamingo_eval.features.store import FeatureStore
from flamingo_eval.files import many_objects, open_atomic, user_path
from flamingo_eval.nouns import Prediction
from flamingo_eval.report.gate import as_junit
from flamingo_eval.report.table import render
from tests.helpers import FAST, Cli, read_lines, run_cli, write_coco_root
from tests.test_report import RUN, cell

LONG = "n" * 300


def run(cli: Cli, root: Path, out: str | Path = "run", *more: object) -> Any:
    """A finished run of the scripted model."""
    result = cli(*FAST, "--data-root", root, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    return result


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
    run(cli, root, name)
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


def as_nobody(*command: object, home: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command line as a user without rights, passwd entry or home."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[1])}
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*user, sys.executable, "-m", "flamingo_eval", *map(str, command)], capture_output=True, text=True, check=False,
        env={**environment, **({"HOME": home} if home else {})},
    )  # fmt: skip


def opened(path: Path) -> None:
    """Lets anybody through to a folder of a test."""
    for part in (path, *path.parents):
        if part.stat().st_uid == os.geteuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o555)


def unreachable(path: Path) -> bool:
    """Whether nobody can reach even the interpreter, in which case these tests have nothing to say."""
    return "Permission denied" in as_nobody("--version").stderr or not path


@pytest.mark.slow
def test_without_a_home_a_message_says_what_to_set(root: Path, tmp_path: Path) -> None:
    opened(tmp_path)
    opened(root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    if unreachable(tmp_path):
        pytest.skip("another user can't start the interpreter here")
    result = as_nobody("coco", "--shots", "0", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root,
                       "--out", tmp_path / "out/run")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for command in (("coco", "--shots", "0", "--out", tmp_path / "out/demo"),
                    ("features", "coco", "--data-root", root, "--rices-model", "scripted")):  # fmt: skip
        result = as_nobody(*command)
        assert result.returncode == 2, result.stderr
        assert "set HOME or FLAMINGO_EVAL_CACHE" in result.stderr


@pytest.mark.slow
def test_what_nobody_may_read_is_a_message(root: Path, tmp_path: Path, cli: Cli) -> None:
    run(cli, root, tmp_path / "runs/a")
    run(cli, root, tmp_path / "runs/b")
    opened(tmp_path)
    for path in tmp_path.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    if unreachable(tmp_path):
        pytest.skip("another user can't start the interpreter here")
    (tmp_path / "runs/b").chmod(0)
    listed = as_nobody("runs", tmp_path / "runs")
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"runs/a .*complete", listed.stdout)
    assert "runs/b" in listed.stdout
    assert "Permission denied" in listed.stdout
    (tmp_path / "runs/b").chmod(0o777)
    for name in ("journal.jsonl", "run.json", "scores.jsonl"):
        (tmp_path / "runs/a" / name).chmod(0)
        for command in (("score", tmp_path / "runs/a"), ("samples", tmp_path / "runs/a"), ("runs", tmp_path / "runs")):
            result = as_nobody(*command)
            assert result.returncode in (0, 2), (name, command, result.stderr)
            assert "Traceback" not in result.stderr
        (tmp_path / "runs/a" / name).chmod(0o666)
    (root / "coco/val2014").chmod(0)
    for options in (("--images",), ()):
        result = as_nobody("data", "check", "coco", "--data-root", root, *options)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
    (root / "coco").chmod(0)
    result = as_nobody(*FAST, "--data-root", root, "--out", tmp_path / "runs/c")
    assert result.returncode == 2
    assert "Permission denied" in result.stderr
    assert "Traceback" not in result.stderr
    (root / "coco").chmod(0o777)


@pytest.mark.parametrize("digits", ["9" * 5000, "1" + "0" * 5000])
def test_numbers_of_thousands_of_digits(root: Path, cli: Cli, digits: str) -> None:
    for parse in (lambda: parse_numbers(digits, "--shots", most=9), lambda: parse_batch_size(digits),
                  lambda: parse_size(f"{digits}GB", "--feature-cache")):  # fmt: skip
        with pytest.raises(UserError, match="give"):
            parse()
    for option in ("--num-samples", "--trials", "--query-set-size", "--ensemble", "--process"):
        result = cli(*FAST, "--data-root", root, option, digits)
        assert result.returncode == 2, option
        assert "Traceback" not in result.stderr
    run(cli, root)
    record = Path("run/run.json")
    whole = record.read_text()
    record.write_text(whole.replace('"format": 1', f'"format": {digits}'))
    assert "holds a number that is too long" in cli("report", "run").stderr
    record.write_text(whole)
    journal = Path("run/journal.jsonl")
    journal.write_text(journal.read_text().replace('"shots": 0', f'"shots": {digits}', 1))
    result = cli("score", "run")
    assert result.returncode == 2
    assert "journal.jsonl, line 1" in result.stderr


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", ".claims", "run.json", "scores.json", "scores.jsonl"])
def test_nothing_is_written_through_a_link(root: Path, cli: Cli, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    run(cli, root)
    path = Path("run") / name
    path.unlink()
    path.symlink_to(victim)
    for command in (("score", "run"), (*FAST, "--data-root", root, "--out", "run"), ("runs", "."), ("report", "run")):
        result = cli(*command)
        assert "Traceback" not in result.stderr
        assert victim.read_text() == "years of work", command
        if name == ".lock" and command[0] in ("score", "coco"):
            assert result.returncode == 3
            assert ".lock: it is a link, and nothing is written through links" in result.stderr


@pytest.mark.parametrize("name", [".lock", "journal.jsonl", "run.json", "scores.jsonl", "scores.json", "failures.json"])
def test_a_pipe_in_place_of_one_of_our_files_is_refused(root: Path, cli: Cli, name: str) -> None:
    run(cli, root)
    path = Path("run") / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for command in (("score", "run"), ("samples", "run"), ("show", "run", "--query", "500"), ("runs", "."),
                    (*FAST, "--data-root", root, "--out", "run")):  # fmt: skip
        result = cli(*command)
        assert result.returncode in (0, 2, 3), result.stderr
        assert "Traceback" not in result.stderr


def test_a_store_is_not_written_through_links(tmp_path: Path) -> None:
    import numpy as np

    victim = tmp_path / "thesis.txt"
    for name in (".lock", "index.txt", "vectors.f32"):
        victim.write_text("years of work")
        store = FeatureStore(tmp_path / name, "e")
        (tmp_path / name).mkdir()
        (tmp_path / name / name).symlink_to(victim)
        with pytest.raises(StorageError, match="it is a link"), store.building():
            store.append(["a"], np.ones((1, 3), np.float32), {})
        assert victim.read_text() == "years of work"


def entry(id: int) -> Entry:
    return Entry(("coco", 4, 42, id, 0), Prediction(f"key{id}", f"answer {id}"))


@pytest.mark.parametrize("loss", ["deleted", "replaced", "cut", "folder moved"])
def test_a_journal_lost_while_a_run_answers_is_noticed(tmp_path: Path, loss: str) -> None:
    path = tmp_path / "run/journal.jsonl"
    journal = Journal(path)
    journal.append([entry(1), entry(2)])
    if loss == "deleted":
        path.unlink()
    elif loss == "replaced":
        path.rename(tmp_path / "old")
        path.write_bytes((tmp_path / "old").read_bytes())
    elif loss == "cut":
        os.truncate(path, 10)
    else:
        path.parent.rename(tmp_path / "elsewhere")
    for act in (journal.check, lambda: journal.append([entry(3)])):
        with pytest.raises(StorageError, match="has been deleted, replaced or cut while this run was answering"):
            act()
    assert not path.exists() or b"\0" not in path.read_bytes()


def test_the_next_command_answers_what_a_lost_journal_held(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Journal.append, []

    def append(self: Journal, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            self.path.unlink()
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        result = cli(*FAST, "--data-root", root, "--out", "run", "--batch-size", "1")
    assert result.returncode == 3, result.stderr
    assert "give the same command again" in result.stderr
    run(cli, root)
    assert len(read_lines(Path("run/journal.jsonl"))) == 20


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of shell with ``CLI`` in it."""
    command = line.replace("CLI", f"{sys.executable} -m flamingo_eval")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("CLI check run --baseline nosuch 2>/dev/full", 2),
        ("CLI check run --baseline nosuch 2>&-", 2),
        ("CLI check run --baseline nosuch >/dev/full 2>/dev/full", 2),
        ("CLI check run --baseline run >&- 2>&-", 0),
        ("CLI check worse --baseline run >/dev/full", 1),
        ("CLI check worse --baseline run >&-", 1),
        ("set -o pipefail; CLI check worse --baseline run | true", 1),
        ("CLI report run 2>/dev/full", 0),
        ("CLI report run >/dev/full", 3),
        ("CLI nosuch 2>/dev/full", 2),
        ("CLI report run <&-", 0),
        ("CLI report run --format json 2>&- | python -m json.tool >/dev/null", 0),
    ],
)
def test_streams_change_no_exit_code(two_runs: Path, line: str, code: int) -> None:
    assert two_runs.exists()
    result = shell(line)
    assert result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr + result.stdout


@pytest.fixture
def two_runs(tmp_path: Path, cli: Cli) -> Path:
    """A run, and one that is worse."""
    from tests.test_acting import scored

    root = write_coco_root(tmp_path / "data", train=12, test=40)
    for name, score in (("run", 100.0), ("worse", 20.0)):
        run(cli, root, name)
        scored(Path(name), score, every=1 if name == "run" else 2)
    return root


@pytest.mark.slow
def test_a_run_with_streams_closed_or_full_is_whole(root: Path) -> None:
    command = f"CLI {' '.join(FAST)} --data-root {root}"
    for i, (streams, code) in enumerate({"2>&-": 0, "2>/dev/full": 0, ">&- 2>&-": 0, ">/dev/full": 3}.items()):
        result = shell(f"{command} --out run{i} --format json {streams}")
        assert result.returncode == code, result.stderr
        assert len(read_lines(Path(f"run{i}/journal.jsonl"))) == 20
        assert Path(f"run{i}/scores.json").is_file()
        if streams.startswith("2"):
            assert json.loads(result.stdout)["cells"], "no note has slipped into the output"


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_of_another_encoding(root: Path, encoding: str) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace("thing 5", "ding é 猫 5"), encoding="utf-8")
    line = f"CLI {' '.join(FAST)} --data-root {root} --out run && CLI show run --query 500 && CLI report run"
    command = line.replace("CLI", f"{sys.executable} -m flamingo_eval")
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": encoding})  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding)
    assert ("猫" if encoding == "utf-8" else "\\u732b") in text


def test_control_characters_reach_no_terminal_and_no_document(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    evil = "a \\u001b]0;pwned\\u0007 thing \\u009b31m \\u202e"
    file.write_text(file.read_text().replace("a thing 1", evil + " 1"))
    run(cli, root)
    for command in (("show", "run", "--query", "500"), ("samples", "run", "--format", "jsonl"),
                    ("plan", "coco", "--shots", "2", "--json", "--data-root", root)):  # fmt: skip
        out = cli(*command).stdout
        assert "thing" in out
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out), command
    name = "evil\x1b[2J\x07\n|</caption>& model"
    run_record = {**RUN, "checkpoint": {"name": name, "digest": "d" * 32}}
    for format in ("table", "markdown", "latex", "html", "csv", "json"):
        text = render([cell(0, 1.0)], run_record, ["a note \x1b[31m"], format)
        assert "\x1b" not in text, format
        assert "\x07" not in text, format


def test_junit_is_xml_whatever_a_benchmark_is_called() -> None:
    from xml.etree import ElementTree

    from flamingo_eval.report.gate import Verdict

    class Row:
        benchmark, shots, metric, run, baseline = "a\x1b\x00b", 4, "m\x07", 1.0, 2.0

    row: Any = Row()
    comparison: Any = type("C", (), {"run": "r\x1b", "baseline": "b", "rows": [row], "warnings": []})
    text = as_junit(comparison, [Verdict(row, "worse\x0b")])
    assert ElementTree.fromstring(text).find(".//failure") is not None  # our own


def test_cells_like_formulas_are_neutralised_on_request(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(re.sub(r'"a thing 1', '"=HYPERLINK(1) 1', file.read_text()))
    run(cli, root)
    plain, safe = (
        cli("samples", "run", "--format", "csv", *more).stdout for more in ((), ("--escape-formulas",))
    )  # fmt: skip
    assert ",=HYPERLINK" in plain
    assert ",=HYPERLINK" not in safe
    assert ",'=HYPERLINK" in safe
    assert cli("report", "run", "--format", "csv", "--escape-formulas").returncode == 0
    result = cli("samples", "run", "--escape-formulas")
    assert result.returncode == 2
    assert "--escape-formulas goes with --format csv" in result.stderr


def test_a_store_without_locks_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(StorageError, match=r"can't be locked .*FLAMINGO_EVAL_CACHE"),
        FeatureStore(tmp_path, "e").building(),
    ):
        pytest.fail("it was held")


def test_a_host_keeps_its_garbage_collector_and_its_logging() -> None:
    before = gc.get_freeze_count(), gc.isenabled()
    with many_objects():
        assert not gc.isenabled()
    assert (gc.get_freeze_count(), gc.isenabled()) == before
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.torch
def test_loading_leaves_transformers_as_it_was() -> None:
    from transformers.utils import logging as theirs

    import flamingo_eval

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    flamingo_eval.load_model("demo", device="cpu")
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("command", ["run", "controls", "bench"])
def test_the_model_is_closed_whatever_ends_a_command(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from flamingo_eval.models.scripted import ScriptedModel

    run(cli, root)
    closed = []

    def answer(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedModel, "answer", answer)
    monkeypatch.setattr(ScriptedModel, "close", lambda _: closed.append(1))
    arguments = {"run": (*FAST, "--data-root", root, "--out", "other"), "controls": ("controls", "run", "--only", "blind"),
                 "bench": ("bench", "coco", "--shots", "0", "--checkpoint", "scripted", "--data-root", root)}[command]  # fmt: skip
    assert cli(*arguments).returncode == 130
    assert closed == [1]


def test_what_a_killed_writer_left_is_cleared_away(root: Path, cli: Cli, tmp_path: Path) -> None:
    run(cli, root)
    script = ("import os, sys\nfrom pathlib import Path\nfrom flamingo_eval.files import open_atomic\n"
              "with open_atomic(Path(sys.argv[1])) as file:\n    file.write(b'half')\n    file.flush()\n    os._exit(9)\n")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script, "run/scores.json"], check=False, env=environment)
    assert len(list(Path("run").glob(".*.partial"))) == 1
    assert cli("score", "run").returncode == 0
    assert not list(Path("run").glob(".*.partial"))
    with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "x") as file:
        file.write(bytes(1 // 0))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_commands_into_one_folder(root: Path, cli: Cli) -> None:
    """The second is refused while the first holds it, and afterwards where its settings differ."""
    with RunFolder(Path("run")).lock():
        result = cli(*FAST, "--data-root", root, "--out", "run")
        assert result.returncode == 2
        assert "is in use by another run" in result.stderr
    run(cli, root)
    result = cli(*FAST, "--data-root", root, "--out", "run", "--num-samples", "3")
    assert result.returncode == 2
    assert "holds a run with other settings" in result.stderr


def test_a_run_moved_or_copied_is_the_same_run(root: Path, cli: Cli) -> None:
    import shutil

    first = run(cli, root, "run", "--format", "json").stdout
    shutil.copytree("run", "copy")
    Path("run").rename("moved")
    for name in ("copy", "moved"):
        again = run(cli, root, name, "--format", "json").stdout
        assert json.loads(again)["cells"] == json.loads(first)["cells"]
        assert len(read_lines(Path(name, "journal.jsonl"))) == 20, "nothing is asked again"


def test_clocks_that_jump_change_nothing(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import flamingo_eval.engine.folder as folder

    first = run(cli, root, "run", "--format", "json").stdout
    for path in Path("run").iterdir():
        os.utime(path, (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: 1.0)
    monkeypatch.setattr(folder, "now", lambda: "1970-01-01T00:00:00+00:00")
    again = run(cli, root, "run", "--format", "json").stdout
    assert json.loads(again)["cells"] == json.loads(first)["cells"]
    listed = cli("runs", ".")
    assert listed.returncode == 0
    assert "complete" in listed.stdout


def test_paths_as_users_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert user_path("~/a", "--out") == Path("/somewhere/a")
    with pytest.raises(UserError, match="--out '~nosuchuser'"):
        user_path("~nosuchuser", "--out")


def test_a_broken_journal_under_a_finished_run_is_named(root: Path, cli: Cli) -> None:
    run(cli, root)
    Path("run/journal.jsonl").write_bytes(b"\0" * 100 + b"\n")
    with pytest.raises(DataError, match="line 1: not a line of a journal"):
        Journal(Path("run/journal.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "result"),
    [
        (("score", "run"), "run/scores.json"),
        (("samples", "run", "--out", "s.jsonl"), "s.jsonl"),
        (("check", "run", "--baseline", "b.json", "--update"), "b.json"),
        (("controls", "run", "--only", "blind"), "run/controls/blind.jsonl"),
        (("report", "run"), "run/scores.json"),
    ],
)
def test_commands_killed_anywhere_give_the_same_afterwards(
    root: Path, cli: Cli, command: tuple[str, ...], result: str
) -> None:
    """Killed at ten moments; what is there then is the old file or the new one, and the command given again is whole."""
    import random
    import signal
    import time

    def content(path: Path) -> object:
        text = path.read_text()
        return sorted(text.splitlines()) if path.suffix == ".jsonl" else {**json.loads(text), "written": None}

    run(cli, root)
    began = time.monotonic()
    assert run_cli(*command).returncode == 0
    whole, seconds = content(Path(result)), time.monotonic() - began
    draw = random.Random(0)
    for _ in range(10):
        if result.startswith(("s.", "b.", "run/controls")) and draw.random() < 0.5:
            Path(result).unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-m", "flamingo_eval", *command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL,
                                   env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
        time.sleep(draw.uniform(0.3, 1.1) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not result.endswith("blind.jsonl"):
            assert not Path(result).exists() or content(Path(result)) == whole
    assert run_cli(*command).returncode == 0
    assert content(Path(result)) == whole
    assert cli("report", "run").returncode == 0
    assert not list(Path("run").glob(".*.partial")) or command[0] in ("samples", "check", "report")


@pytest.mark.slow
def test_demo_data_killed_while_it_is_written_is_whole_afterwards(tmp_path: Path) -> None:
    import signal
    import time

    cache = tmp_path / "cache"
    command = [sys.executable, "-c", "from flamingo_eval.demo.data import demo_data_root; print(demo_data_root())"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "FLAMINGO_EVAL_CACHE": str(cache)}
    for seconds in (0.5, 1.5, 3.0):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert (folder / "imagenet/class_names.json").is_file()
    assert run_cli("coco", "--checkpoint", "scripted", "--data-root", folder, "--shots", "0", "--seeds", "42",
                   "--num-samples", "5", "--out", tmp_path / "run").returncode == 0  # fmt: skip


def test_hundred_megabytes_in_one_string(root: Path, cli: Cli) -> None:
    file = root / "coco/dataset_coco.json"
    file.write_text(file.read_text().replace('"a thing 500"', json.dumps("x" * 100_000_000)))
    result = cli("data", "check", "coco", "--data-root", root)
    assert result.returncode == 2
    assert "published are" in result.stderr + result.stdout
    assert len(result.stderr) < 10_000


@pytest.mark.slow
@pytest.mark.torch
def test_little_memory_is_a_message_and_no_loop(root: Path) -> None:
    """Under an address space that the weights do not fit into."""
    command = (
        f"ulimit -v 1500000; CLI coco --checkpoint demo --data-root {root} --shots 0 --seeds 42 --device cpu --out r"
    )
    result = subprocess.run(["bash", "-c", command.replace("CLI", f"{sys.executable} -m flamingo_eval")],
                            capture_output=True, text=True, check=False, timeout=200,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert re.search("error: (there is not enough memory|a library can't be loaded): ", result.stderr)
    assert "Traceback" not in result.stderr


def test_another_precision_or_device_on_resume(root: Path, cli: Cli) -> None:
    """The precision is part of what a run is, the device is not."""
    run(cli, root)
    record = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**record, "identity": {**record["identity"], "precision": "bf16"}}))
    result = cli(*FAST, "--data-root", root, "--out", "run")
    assert result.returncode == 2
    assert "precision is fp32, there bf16" in result.stderr
