"""Plug-ins outside the package: planted, run, killed, resumed, scored and compared, without an edit in it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import flamingo_eval
from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import Capabilities, DataSet, ModelBase
from flamingo_eval.core.source import Source, read_source
from tests.support.helpers import read_lines, write_coco_root

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"

SELECTOR = """
from flamingo_eval.core.protocols import NOTHING
from flamingo_eval.core.settings import Setting

class Following:
    about = "those that follow each other in the training set"
    needs = NOTHING
    settings = (Setting("following_from", str, "Number of the first one.", default="0"),)

    def select(self, selection):
        first = int(selection.settings["following_from"])
        return [[[(first + i + j) % len(selection.train) for j in range(selection.count)]]
                for i in range(len(selection.queries))]

SELECTOR = Following()
"""

EXECUTOR = '''
import pickle, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from flamingo_eval.engine.answer import answer_requests
from flamingo_eval.engine.executor import Outcome
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.storage.journal import Entry, Failure


def elsewhere(data):
    """In a process that knows nothing of the run: a model, and pickled requests."""
    from flamingo_eval.core import registry

    checkpoint, requests = pickle.loads(data)
    time.sleep(0.05)
    return answer_requests(registry.model_source(checkpoint).load("cpu", "fp32"), requests)


class Elsewhere(LocalExecutor):
    def run(self, requests, model_source, journal, terms):
        failures = []
        checkpoint = model_source.info().name
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            parts = [requests[i : i + 2] for i in range(0, len(requests), 2)]
            packed = (pickle.dumps((checkpoint, [item.request for item in part])) for part in parts)
            for part, answers in zip(parts, pool.map(elsewhere, packed)):
                failures += [one for one in answers if isinstance(one, Failure)]
                journal.append([Entry(item.slot, one) for item, one in zip(part, answers) if not isinstance(one, Failure)],
                               terms.extra)
        return Outcome(failures, {"answering": 1.0})


EXECUTOR = Elsewhere
'''


def model_of_the_guide() -> str:
    section = GUIDE.read_text(encoding="utf-8").partition("## Add a model")[2]
    found = re.search(r"```python[^\n]*\n(.*?)```", section, flags=re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with a model, a selector and an executor."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name, text in (("nearest", model_of_the_guide()), ("following", SELECTOR), ("elsewhere", EXECUTOR)):
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A small COCO."""
    return write_coco_root(tmp_path / "data", train=12, test=24)


def command(plugins: Path, *arguments: object) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLAMINGO_EVAL_PLUGINS": str(plugins)}
    return [sys.executable, "-m", "flamingo_eval", *map(str, arguments)], environment


def call(plugins: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    words, environment = command(plugins, *arguments)
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_the_guides_model_takes_thirty_lines() -> None:
    lines = [line for line in model_of_the_guide().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.slow
def test_a_model_a_selector_and_an_executor_from_outside(plugins: Path, captions: Path) -> None:
    run = ("coco", "--checkpoint", "nearest", "--data-root", captions, "--shots", "0,2", "--seeds", "42,43",
           "--select", "following", "--following-from", "1", "--executor", "elsewhere")  # fmt: skip
    words, environment = command(plugins, *run, "--out", "killed")
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = Path("killed/journal.jsonl")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= journal.read_bytes().count(b"\n") < 96
    for out in ("killed", "whole"):
        result = call(plugins, *run, "--out", out)
        assert result.returncode == 0, result.stderr
    rows = [{(row["shots"], row["seed"], row["query_id"]): row["raw"] for row in read_lines(Path(out, "journal.jsonl"))}
            for out in ("killed", "whole")]  # fmt: skip
    assert rows[0] == rows[1]
    assert len(rows[0]) == 96
    assert (
        json.loads(Path("killed/scores.json").read_text())["cells"]
        == json.loads(Path("whole/scores.json").read_text())["cells"]
    )
    for more in (("score", "killed"), ("report", "killed"), ("samples", "killed"), ("compare", "killed", "whole"),
                 ("check", "killed", "--baseline", "whole"), ("runs", ".")):  # fmt: skip
        result = call(plugins, *more)
        assert result.returncode == 0, (more, result.stderr)
    listed = call(plugins, "list", "checkpoints")
    assert "nearest" in listed.stdout
    assert "--following-from" in call(plugins, "coco", "--help").stdout
    other = call(plugins, *run[:-3], "2", *run[-2:], "--out", "killed")
    assert other.returncode == 2, "another setting of the selector is another run"
    assert "selection is {'following_from': '2'} here, {'following_from': '1'} in that run" in other.stderr
    without = subprocess.run([sys.executable, "-m", "flamingo_eval", "samples", "killed"], capture_output=True,
                             text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert without.returncode == 2
    assert "unknown selector 'following'" in without.stderr
    local = call(plugins, *run[:-2], "--out", "local")
    assert local.returncode == 0, local.stderr
    assert rows[0] == {(row["shots"], row["seed"], row["query_id"]): row["raw"]
                       for row in read_lines(Path("local/journal.jsonl"))}  # fmt: skip


@pytest.mark.slow
def test_an_installed_packages_plugin_is_found_by_its_entry_point(tmp_path: Path, captions: Path) -> None:
    site = tmp_path / "site"
    (site / "theirs-1.0.dist-info").mkdir(parents=True)
    (site / "theirs.py").write_text(model_of_the_guide())
    (site / "theirs-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (site / "theirs-1.0.dist-info/entry_points.txt").write_text("[flamingo_eval.models]\nnearest = theirs\n")
    run = [sys.executable, "-m", "flamingo_eval", "coco", "--checkpoint", "nearest", "--data-root", str(captions),
           "--shots", "2", "--seeds", "42", "--out", "run"]  # fmt: skip
    result = subprocess.run(run, env={**os.environ, "PYTHONPATH": f"{ROOT}:{site}"}, capture_output=True, text=True,
                            check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(read_lines(Path("run/journal.jsonl"))) == 24
    with (site / "theirs-1.0.dist-info/entry_points.txt").open("a") as file:
        file.write("[flamingo_eval.selectors]\nbroken = theirs_no_more\n")
    for more, code in ((["report", "run"], 0), (["coco", "--select", "broken", *run[4:]], 2)):
        result = subprocess.run([*run[:3], *more], env={**os.environ, "PYTHONPATH": f"{ROOT}:{site}"}, check=False,
                                capture_output=True, text=True)  # fmt: skip
        assert result.returncode == code, result.stderr
        assert "the plug-in broken (theirs_no_more) can't be loaded: ModuleNotFoundError" in result.stderr


@pytest.mark.slow
def test_any_object_that_fulfils_the_port_is_evaluated(captions: Path, caplog: pytest.LogCaptureFixture) -> None:
    names: dict[str, Any] = {}
    exec(compile(model_of_the_guide(), "CONTRIBUTING.md", "exec"), names)
    model = names["Nearest"]()
    model.capabilities = Capabilities(reproducible=False)
    cells = flamingo_eval.evaluate(model, "coco", shots=[0, 2], seeds=[42], data_root=captions, out="run", name="mine")
    assert [cell.shots for cell in cells] == [0, 2]
    assert "mine is not deterministic" in caplog.text
    with pytest.raises(flamingo_eval.core.errors.UserError, match="it has no prepare, answer, prefetch"):
        flamingo_eval.evaluate(object(), "coco", data_root=captions)
    with pytest.raises(
        flamingo_eval.core.errors.UserError, match=r"there is no setting 'rices_model'; .*; random has no settings"
    ):
        flamingo_eval.evaluate(names["Nearest"](), "coco", data_root=captions, rices_model="x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no')", "can't be loaded: RuntimeError: no"),
        ("def", "can't be loaded: SyntaxError"),
        ("raise SystemExit(0)", "can't be loaded: SystemExit: 0"),
        ("from flamingo_eval.models.scripted import MODEL", "there is a model 'scripted' already"),
        ("MODEL = 5", "there is a model 'scripted' already"),
    ],
)
def test_a_broken_plugin_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scripted.py"
    path.write_text(text)
    for arguments in (("list", "checkpoints"), ("coco", "--help")):
        result = call(path, *arguments)
        assert result.returncode == 0, "it has nothing to do with the command"
        assert "Traceback" not in result.stderr
    result = call(path, "coco", "--checkpoint", "own", "--data-root", ".")
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert "is neither a Python file nor a folder" in call(tmp_path / "none", "list", "checkpoints").stderr


@pytest.mark.parametrize(
    ("capabilities", "benchmark", "message"),
    [
        (Capabilities(images=2), "coco", "takes at most 2 images per prompt, and 4 shots need 5: --shots up to 1"),
        (Capabilities(beams=False), "coco", "is answered by beam search .3 beams., and m generates greedily only"),
        (Capabilities(ranking=False), "hateful_memes", "ranks class names by their log-likelihoods, which m does not"),
    ],
)
def test_what_a_model_cant_do_is_refused_before_anything_is_planned(
    captions: Path, capabilities: Capabilities, benchmark: str, message: str
) -> None:
    from flamingo_eval.core.run_settings import RunSpec
    from flamingo_eval.engine.prepare import check_capabilities

    if benchmark == "coco":
        source = read_source("coco", captions)
    else:
        table = load_benchmark(benchmark)
        source = Source(table, Images(captions), DataSet([], [], ()))
    spec = RunSpec(benchmarks=(benchmark,), shots=(0, 4), seeds=(42,), checkpoint="m")
    check_capabilities(Capabilities(), spec, {benchmark: source})
    with pytest.raises(flamingo_eval.core.errors.UserError, match=message):
        check_capabilities(capabilities, spec, {benchmark: source})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda n: ["x"] * (n - 1), "the model gave 1 answers to 2 prompts"),
        (lambda n: ["x"] * (n + 1), "the model gave 3 answers to 2 prompts"),
        (lambda n: [None] * n, "the model's answer is None; what was asked for is a text"),
        (lambda n: [b"x"] * n, "the model's answer is b'x'; what was asked for is a text"),
        (lambda n: [{"yes": 0.0}] * n, "what was asked for is a text"),
    ],
)
def test_answers_that_are_none_are_refused(captions: Path, output: Any, message: str) -> None:
    class Odd(ModelBase):
        def prepare(self, prompt: Any, task: Any, images: Any) -> Any:
            return prompt

        def answer(self, prepared: Any, task: Any) -> Any:
            return output(len(prepared))

    with pytest.raises(flamingo_eval.core.errors.UserError, match=message):
        flamingo_eval.evaluate(Odd(), "coco", shots=[1], seeds=[42], data_root=captions, batch_size=2, out="run")
    assert not Path("run/journal.jsonl").exists()


def test_rankings_are_of_the_names_that_were_asked() -> None:
    from flamingo_eval.core.records import NoAnswer, Ranking
    from flamingo_eval.engine.asking import ensembled

    class Ranks(ModelBase):
        output: Any = None

        def prepare(self, prompt: Any, task: Any, images: Any) -> Any:
            return prompt

        def answer(self, prepared: Any, task: Any) -> Any:
            return [self.output] * len(prepared)

    model, task = Ranks(), Ranking(("no", "yes"))
    model.output = {"no": float("nan"), "yes": 0.0}
    assert all(isinstance(one, NoAnswer) for one in ensembled(model, [["a"], ["b", "c"]], task))
    for odd in ({"no": 0.0}, {"no": 0.0, "yes": 0.0, "maybe": 0.0}, "no"):
        model.output = odd
        with pytest.raises(flamingo_eval.core.errors.UserError, match="a number for each of the 2 class names"):
            ensembled(model, [["a"]], task)


def test_requests_of_several_tasks_are_answered_each_by_its_own() -> None:
    from flamingo_eval.core.records import Decoding, Prediction, Prompt, Turn
    from flamingo_eval.engine.answer import answer_requests
    from flamingo_eval.engine.requests import Request

    class Echo(ModelBase):
        def prepare(self, prompt: Any, task: Any, images: Any) -> Any:
            return prompt

        def answer(self, prepared: Any, task: Any) -> Any:
            return [f"{prompt.query.text} {task.max_new_tokens}" for prompt in prepared]

    requests = [Request(("b", 0, 0, i, 0), (Prompt((), Turn((), f"q{i}")),), Decoding(5 + i % 2), Images(Path()), (), "k")
                for i in range(4)]  # fmt: skip
    answers = [one.answer for one in answer_requests(Echo(), requests) if isinstance(one, Prediction)]
    assert answers == ["q0 5", "q1 6", "q2 5", "q3 6"]
    assert answer_requests(Echo(), []) == []


@pytest.mark.slow
def test_an_executor_for_one_process_is_refused_among_several(captions: Path) -> None:
    words, environment = command(Path(__file__).parents[1], "coco", "--checkpoint", "scripted", "--data-root", captions,
                                 "--shots", "0", "--process", "0/2", "--executor", "local", "--out", "run")  # fmt: skip
    environment.pop("FLAMINGO_EVAL_PLUGINS")
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--executor local works in one process alone, and this is one of 2" in result.stderr
