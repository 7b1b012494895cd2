"""Plug-ins that do other things than the ports say: each is named, and no answer of theirs counts that should not."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flamingo_eval
from flamingo_eval import plugins, registry
from flamingo_eval.engine.answer import ensembled
from flamingo_eval.engine.executor import Outcome
from flamingo_eval.engine.executors.local import LocalExecutor
from flamingo_eval.engine.journal import Entry, Failure, Journal
from flamingo_eval.engine.plan import plan_trial, read_source
from flamingo_eval.engine.requests import Request
from flamingo_eval.errors import DataError, QueryError, UserError
from flamingo_eval.images import Images
from flamingo_eval.nouns import Decoding, Prediction, Prompt, Ranking, Turn
from flamingo_eval.ports import Capabilities, ModelBase, ModelInfo
from flamingo_eval.prompting import INTERLEAVED, Interleaved
from flamingo_eval.runspec import RunSpec
from flamingo_eval.settings import Setting
from tests.helpers import FAST, Cli, read_lines, run_scripted


class Says(ModelBase):
    """Says the same to everything; fails over some images."""

    def __init__(self, text: str = "a thing", fails: Sequence[str] = ()) -> None:
        self.text, self.fails = text, fails

    def info(self) -> ModelInfo:
        return ModelInfo("says", "says-1", {})

    def prepare(self, prompt: Prompt, task: Any, images: Images) -> Prompt:
        for image in prompt.images:
            images.digest(image)
        if any(image.endswith(name) for name in self.fails for image in prompt.query.images):
            raise QueryError(f"{self.fails[0]} can't be read")
        return prompt

    def answer(self, prepared: Sequence[Prompt], task: Any) -> list[str]:
        return [self.text] * len(prepared)


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
        assert "answers are missing in 1 trials (coco, 0 shots, seed 42)" in result.stderr
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
        assert "answers are missing in 1 trials (coco, 2 shots, seed 42)" in result.stderr
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
    assert "answers are missing in 1 trials (coco, 0 shots, seed 42)" in cli("score", "run").stderr
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


def selector(**other: Any) -> Any:
    about = {"about": "odd", "needs": "nothing", "settings": (), "select": lambda _: []}
    return SimpleNamespace(**{**about, **other})


class Raising:
    about, needs, select = "odd", "nothing", print

    @property
    def settings(self) -> Any:
        raise RuntimeError("no")


def family(**other: Any) -> Any:
    about = {"options": frozenset(), "known": dict, "renderers": list, "find": print, "adopt": print}
    return SimpleNamespace(**{**about, **other})


@pytest.mark.parametrize(
    ("kind", "plugin", "message"),
    [
        ("selectors", 5, "it has no about, needs, settings, select"),
        ("selectors", selector(needs="luck"), "it needs 'luck', and there are"),
        ("selectors", selector(needs="image embeddings"), "it needs embeddings and has no retrieval"),
        ("selectors", selector(settings=5), "its settings are no sequence"),
        ("selectors", selector(settings=[Setting("my-thing", str, "")]), "its setting 'my-thing' has no name"),
        (
            "selectors",
            selector(settings=[Setting("a", str, ""), Setting("a", str, "")]),
            "its setting 'a' has no name of its own",
        ),
        (
            "selectors",
            selector(settings=[Setting("a", str, "", default=5)]),
            "the default of its setting 'a' is 5, which is no str",
        ),
        (
            "selectors",
            selector(settings=[Setting("shots", str, "")]),
            "its setting 'shots' has the name of another one",
        ),
        ("selectors", selector(settings=[Setting("class", str, "")]), "its setting 'class' has no name"),
        ("selectors", selector(settings=[Setting("no_plain", str, "")]), "its setting 'no_plain' has no name"),
        ("selectors", selector(settings=[Setting("like", str, "")]), "its setting 'like' has the name of another one"),
        ("selectors", selector(settings=[Setting("rices_model", bool, "", default=True)]), None),
        ("selectors", Raising(), "asked about itself it raises RuntimeError"),
        ("models", 5, "it has no options, known"),
        ("models", family(renderers=lambda: None), "asked about itself it raises TypeError"),
        ("models", family(renderers=lambda: [5]), r"known\(\) should give a mapping, and renderers\(\)"),
        (
            "models",
            family(known=lambda: __import__("vllm_of_nobody")),
            "asked about itself it raises ModuleNotFoundError",
        ),
        ("models", Says, "it is a class, and should be an object"),
        ("loaders", object(), "it has no examples, references"),
        ("metrics", object(), "it has no title"),
        ("executors", 5, "it should be a class"),
    ],
)
def test_an_object_that_is_no_plugin_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, kind: str, plugin: Any, message: str | None
) -> None:
    found = plugins.found

    def with_it(of: str) -> Any:
        return {**found(of), **({"odd": lambda: plugin} if of == kind else {})}

    monkeypatch.setattr(registry, "found", with_it)
    for cached in (registry._usable, registry.selectors, registry.metric):
        cached.cache_clear()
    try:
        if message is not None:
            with pytest.raises(UserError, match=f"the {kind[:-1]} 'odd' is none: {message}"):
                registry._plugin(kind, "odd")
        assert cli("list").returncode == 0
        assert "odd" not in registry.selectors()
        with pytest.raises(UserError, match="unknown selector 'odd'"):
            registry.selector("odd")
    finally:
        for cached in (registry._usable, registry.selectors, registry.metric):
            cached.cache_clear()


@pytest.mark.parametrize(
    ("picks", "message"),
    [
        (lambda _: [[[0]]], "picked demonstrations for 1 queries of 5"),
        (lambda _: [[[0]]] * 5, "picked 1 demonstrations; asked for were 2"),
        (lambda _: [[[0, 1, 2]]] * 5, "picked 3 demonstrations; asked for were 2"),
        (lambda _: [[[0, 1], [1, 0]]] * 5, "picked 2 orders; asked for were 1"),
        (lambda _: [[[0, 12]]] * 5, "picked a demonstration that is none of 0 to 11"),
        (lambda _: None, "picked no numbers for each order of each query: None"),
        (lambda _: [[0, 1]] * 5, "picked no numbers for each order of each query"),
        (lambda _: [[[0.0, 1.0]]] * 5, "picked no numbers for each order of each query"),
    ],
)
def test_what_a_selector_picks_is_checked(
    root: Path, monkeypatch: pytest.MonkeyPatch, picks: Any, message: str
) -> None:
    monkeypatch.setattr(registry, "selector", lambda _: selector(select=picks))
    with pytest.raises(UserError, match=message):
        plan_trial(read_source("coco", root), INTERLEAVED, RunSpec(select="odd"), shots=2, seed=1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("capabilities", {"beams": False}, "Says.capabilities is .*: expected Capabilities"),
        ("renderer", "plain", "Says.renderer is 'plain': expected a flamingo_eval.ports.Renderer"),
        ("info", lambda: "mine", r"Says.info\(\) is 'mine': expected a ModelInfo"),
        ("info", lambda: ModelInfo("mine", None, {}), r"Says.info\(\) is ModelInfo"),  # type: ignore[arg-type]
        ("info", lambda: ModelInfo("mine", "1", {"a": Path()}), r"Says.info\(\).parts can't be kept"),
        ("capabilities", Capabilities(images="8"), "expected Capabilities"),  # type: ignore[arg-type]
        ("renderer", Interleaved, "expected a flamingo_eval.ports.Renderer"),
        ("capabilities", Capabilities(images=0), "takes no images, and every query here shows one"),
    ],
)
def test_what_a_model_says_of_itself_is_checked(root: Path, name: str, value: Any, message: str) -> None:
    model = Says()
    setattr(model, name, value)
    with pytest.raises(UserError, match=message):
        flamingo_eval.evaluate(model, "coco", shots=[0], seeds=[42], data_root=root)


def test_a_model_may_have_modules_that_are_none_of_torchs(root: Path) -> None:
    model: Any = Says()
    model.modules = 5
    assert flamingo_eval.evaluate(model, "coco", shots=[0], seeds=[42], data_root=root)[0].complete


def test_log_likelihoods_may_be_any_librarys_numbers() -> None:
    class Ranks(Says):
        said: Any = None

        def answer(self, prepared: Any, task: Any) -> Any:
            return [self.said] * len(prepared)

    model, task = Ranks(), Ranking(("no", "yes"))
    model.said = {"no": np.float32(-0.5), "yes": np.array(-1.5)}
    [answer] = ensembled(model, [["a"]], task)
    assert answer == {"no": -0.5, "yes": -1.5}
    assert isinstance(answer, dict)
    assert {type(value) for value in answer.values()} == {float}
    model.said = {"no": 10**400, "yes": -1.5}
    with pytest.raises(UserError, match="log-likelihoods are numbers: int too large"):
        ensembled(model, [["a"]], task)
    model.said = {"no": "-0.5", "yes": -1.5}
    with pytest.raises(UserError, match=r"log-likelihoods are numbers: '-0\.5' is a text"):
        ensembled(model, [["a"]], task)


@pytest.mark.parametrize(
    ("value", "message"),
    [(5, "rices_model 5: give a text"), (Path("x"), "give a text"), (" ", "rices_model is empty")],
)
def test_a_selectors_settings_have_their_kinds(root: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flamingo_eval.evaluate(Says(), "coco", shots=[0], data_root=root, selector="rices", rices_model=value)


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


def test_an_encoder_gives_one_embedding_for_each_image(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flamingo_eval.models.scripted import ThumbnailEncoder

    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ThumbnailEncoder, "encode", lambda _, prepared: np.ones((len(prepared) - 1, 4), np.float32))
    result = cli(*FAST, "--data-root", root, "--select", "rices", "--rices-model", "scripted", "--out", "run")
    assert result.returncode == 2
    assert "the image encoder thumbnails gave no embedding for each of" in result.stderr
