"""Plug-ins that do other things than the protocols say: each is named, and no answer of theirs counts that should not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import flamingo_eval
from flamingo_eval.core import registry
from flamingo_eval.core.errors import DataError, QueryError
from flamingo_eval.core.images import Images
from flamingo_eval.core.protocols import ModelInfo
from flamingo_eval.core.records import Decoding, Prediction, Prompt, Turn
from flamingo_eval.engine.executor import Outcome
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.requests import Request
from flamingo_eval.storage.journal import Entry, Failure, Journal
from tests.support.helpers import FAST, Cli, read_lines, run_scripted
from tests.support.small_models import Says

pytestmark = pytest.mark.slow


def test_an_answer_to_an_image_that_has_changed_does_not_count(root: Path, cli: Cli) -> None:
    def run(model: Says) -> Any:
        return flamingo_eval.evaluate(model, "coco", shots=[0], seeds=[42], data_root=root, out="run")

    run(Says())
    changed = next((root / "coco").rglob("*501.png"))
    before = changed.read_bytes()
    other = next((root / "coco").rglob("*502.png")).read_bytes()
    changed.write_bytes(other)
    with pytest.raises(DataError, match="1 queries could not be answered"):
        run(Says(fails=["501.png"]))
    for command in (("report", "run"), ("score", "run")):
        result = cli(*command)
        assert result.returncode == 2, "the answer that was given to the image of before is none to this one"
        assert "answers are missing in 1 trial (coco, 0 shots, seed 42)" in result.stderr
    changed.write_bytes(before)
    assert run(Says())[0].trials[0].queries == 5, "to the image of before it still is one"
    assert len(read_lines(Path("run/journal.jsonl"))) == 5
    assert cli("score", "run").returncode == 0


class Misplacing(LocalExecutor):
    """Journals one answer under another request's key."""

    def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
        outcome = super().run(requests, model_source, journal, terms)
        self.extra(journal).append([Entry(requests[1].slot, Prediction(requests[3].key, "a thing 501", ""))])
        return outcome

    def extra(self, journal: Any) -> Any:
        return journal


class MisplacingElsewhere(Misplacing):
    """The same in a file of its own, as another process would have it."""

    def extra(self, journal: Any) -> Any:
        other = Journal(journal.path, 1)
        append = other.append

        def appended(entries: Any) -> None:
            append(entries)
            journal.refresh()

        other.append = appended  # type: ignore[method-assign, assignment]
        return other


class Retrying(LocalExecutor):
    """Reports a failure although the request was answered at the second try."""

    def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
        outcome = super().run(requests, model_source, journal, terms)
        return Outcome([*outcome.failures, Failure(requests[0].slot, "not at first")], outcome.seconds)


class Foreign(LocalExecutor):
    def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
        return Outcome([Failure(("coco", 0, 42, "nobody", 0), "no reason")], {})


def giving(outcome: Any) -> type[LocalExecutor]:
    class Gives(LocalExecutor):
        def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
            return outcome

    return Gives


class Unmeasured(LocalExecutor):
    def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
        super().run(requests, model_source, journal, terms)
        return Outcome([], {})


class Idle(LocalExecutor):
    def run(self, requests: Any, model_source: Any, journal: Any, terms: Any) -> Any:
        return Outcome([], {"answering": 0.0})


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (Misplacing, "was brought that is to another request than was asked; none is kept"),
        (MisplacingElsewhere, "the executor MisplacingElsewhere brought an answer to another request for query"),
        (Foreign, "the executor Foreign reports what it was not asked: Failure"),
        (Idle, "20 answers are missing"),
        (lambda _: object(), "the executor odd has no process, leads, sole, hold, journal, run"),
        (giving(None), "gave back None, which is no Outcome"),
        (giving(Outcome(None, {})), "gave back failures that are none: None"),  # type: ignore[arg-type]
        (giving(Outcome([Failure(["coco"], "x")], {})), "gave back failures that are none"),  # type: ignore[arg-type]
        (giving(Outcome([], "long")), "gave back seconds that are none: 'long'"),  # type: ignore[arg-type]
    ],
)
def test_what_an_executor_says_and_journals_is_checked(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, executor: Any, message: str
) -> None:
    monkeypatch.setattr(registry, "executor", lambda name: executor if name == "odd" else LocalExecutor)
    arguments = (*FAST, "--data-root", root, "--out", "run")
    result = cli(*arguments, "--executor", "odd")
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    if executor in (Misplacing, MisplacingElsewhere):  # what else there is, is there; that answer is not
        assert cli("score", "run").returncode == (2 if executor is MisplacingElsewhere else 0)
    assert cli(*arguments).returncode == 0
    assert [row["score"] for row in read_lines(Path("run/scores.jsonl"))].count(0) > 0
    run_scripted(cli, root, "other")
    assert Path("run/scores.jsonl").read_text() == Path("other/scores.jsonl").read_text()


@pytest.mark.parametrize("executor", [Unmeasured, Retrying])
def test_an_executor_need_not_measure_and_may_try_again(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, executor: Any
) -> None:
    monkeypatch.setattr(registry, "executor", lambda _: executor)
    run_scripted(cli, root)
    assert not Path("run/failures.json").exists()
    run_scripted(cli, root)


@pytest.mark.slow
def test_answers_of_earlier_commands_whose_demonstrations_have_changed_do_not_count(root: Path, cli: Cli) -> None:
    run = ("coco", "--seeds", "42", "--checkpoint", "scripted", "--select", "rices", "--rices-model", "scripted",
           "--data-root", root, "--out", "run")  # fmt: skip
    assert cli(*run, "--shots", "2").returncode == 0
    images = sorted((root / "coco" / "train2014").iterdir())
    content = [image.read_bytes() for image in images]
    for image, other in zip(images, [*content[6:], *content[:6]], strict=True):
        image.write_bytes(other)
    extended = cli(*run, "--shots", "4")
    assert extended.returncode == 0, extended.stderr
    assert "answers of earlier commands do not hold any more; those commands ask again" in extended.stderr
    for command in (("score", "run"), ("report", "run")):
        result = cli(*command)
        assert result.returncode == 2
        assert "answers are missing in 1 trial (coco, 2 shots, seed 42)" in result.stderr
    assert cli("show", "run", "--query", "501").returncode == 0
    assert cli(*run, "--shots", "2,4").returncode == 0
    assert cli(*run[:-1], "anew", "--shots", "2,4").returncode == 0
    assert Path("run/scores.jsonl").read_text() == Path("anew/scores.jsonl").read_text()


@pytest.mark.slow
def test_answers_of_earlier_commands_whose_image_has_changed_do_not_count(root: Path, cli: Cli) -> None:
    """With random demonstrations too."""
    run = ("coco", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    assert cli(*run, "--shots", "0").returncode == 0
    changed = next((root / "coco").rglob("*501.png"))
    changed.write_bytes(next((root / "coco").rglob("*502.png")).read_bytes())
    extended = cli(*run, "--shots", "4")
    assert "1 answers of earlier commands do not hold any more" in extended.stderr
    assert "answers are missing in 1 trial (coco, 0 shots, seed 42)" in cli("score", "run").stderr
    assert cli(*run, "--shots", "0,4").returncode == 0
    assert cli("score", "run").returncode == 0


def test_a_ranking_is_kept_only_while_every_image_is_what_it_was(root: Path, cli: Cli) -> None:
    run = ("coco", "--seeds", "42", "--checkpoint", "scripted", "--select", "rices", "--rices-model", "scripted", "--shots",
           "2", "--data-root", root, "--on-error", "skip")  # fmt: skip
    images = sorted((root / "coco" / "val2014").iterdir())
    content = [image.read_bytes() for image in images]

    def scored(out: str) -> tuple[int, str]:
        result = cli(*run, "--out", out)
        return result.returncode, Path(out, "scores.jsonl").read_text()

    assert scored("run")[0] == 0
    images[0].unlink()
    assert scored("run")[0] == 0, "its answer holds, and so does the ranking"
    train = sorted((root / "coco" / "train2014").iterdir())
    images[1].write_bytes(train[7].read_bytes())  # one is gone, another one is another
    assert scored("run") == scored("anew")
    images[0].write_bytes(content[0])
    images[2].unlink()
    assert scored("run") == scored("anew2"), "what is there again is asked; what is gone now is not"
    images[2].write_bytes(content[2])
    assert scored("run") == scored("anew3")


@pytest.mark.slow
def test_an_answer_that_was_to_be_given_again_does_not_count(root: Path, cli: Cli) -> None:
    """Also where the command that should have asked again was ended before it could."""
    run_scripted(cli, root)
    changed = next((root / "coco").rglob("*501.png"))
    changed.write_bytes(next((root / "coco").rglob("*502.png")).read_bytes())

    class Ending(Says):
        def info(self) -> ModelInfo:
            return registry.model_source("scripted").info()

        def answer(self, prepared: Any, task: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flamingo_eval.evaluate(Ending(), "coco", shots=[0, 2], seeds=[42, 43], data_root=root, out="run")
    result = cli("score", "run")
    assert result.returncode == 2
    assert "answers are missing in 4 trials" in result.stderr
    assert "unfinished" in cli("runs", ".").stdout
    run_scripted(cli, root)
    assert cli("score", "run").returncode == 0


def test_a_request_carries_what_is_known_of_its_own_images_alone(root: Path) -> None:
    images = Images(root / "coco")
    paths = [path.relative_to(images.root).as_posix() for path in sorted(images.root.rglob("*.png"))]
    for path in paths:
        images.digest(path)
    prompt = Prompt((), Turn((paths[0],), "q"))
    request = Request(("coco", 0, 42, 1, 0), (prompt,), Decoding(5), images, (paths[0],), "k")
    there = pickle.loads(pickle.dumps(request))  # noqa: S301  # our own
    assert there.images._digests == {paths[0]: images.digest(paths[0])}
    Path(images.root / paths[0]).write_bytes(b"another")
    with pytest.raises(QueryError, match="has changed since"):
        there.images.read(paths[0])
