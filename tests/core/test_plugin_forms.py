"""Plug-ins of another form than the protocols have: each is named, and breaks nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import flamingo_eval
from flamingo_eval.core import plugins, registry
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.prompting import INTERLEAVED, Interleaved
from flamingo_eval.core.protocols import Capabilities, ModelInfo
from flamingo_eval.core.records import Ranking
from flamingo_eval.core.run_settings import RunSpec
from flamingo_eval.core.settings import Setting
from flamingo_eval.core.source import read_source
from flamingo_eval.engine.asking import ensembled
from flamingo_eval.engine.plan import plan_trial
from tests.support.helpers import FAST, Cli
from tests.support.small_models import Says

pytestmark = pytest.mark.slow


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
        ("selectors", Raising(), "inspecting it raised RuntimeError"),
        ("models", 5, "it has no options, known"),
        ("models", family(renderers=lambda: None), "inspecting it raised TypeError"),
        ("models", family(renderers=lambda: [5]), r"known\(\) should give a mapping, and renderers\(\)"),
        (
            "models",
            family(known=lambda: __import__("vllm_of_nobody")),
            "inspecting it raised ModuleNotFoundError",
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
            with pytest.raises(UserError, match=f"the {kind[:-1]} 'odd' can't be used: {message}"):
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
        ("renderer", "plain", "Says.renderer is 'plain': expected a flamingo_eval.core.protocols.Renderer"),
        ("info", lambda: "mine", r"Says.info\(\) is 'mine': expected a ModelInfo"),
        ("info", lambda: ModelInfo("mine", None, {}), r"Says.info\(\) is ModelInfo"),  # type: ignore[arg-type]
        ("info", lambda: ModelInfo("mine", "1", {"a": Path()}), r"Says.info\(\).parts can't be kept"),
        ("capabilities", Capabilities(images="8"), "expected Capabilities"),  # type: ignore[arg-type]
        ("renderer", Interleaved, "expected a flamingo_eval.core.protocols.Renderer"),
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
        output: Any = None

        def answer(self, prepared: Any, task: Any) -> Any:
            return [self.output] * len(prepared)

    model, task = Ranks(), Ranking(("no", "yes"))
    model.output = {"no": np.float32(-0.5), "yes": np.array(-1.5)}
    [answer] = ensembled(model, [["a"]], task)
    assert answer == {"no": -0.5, "yes": -1.5}
    assert isinstance(answer, dict)
    assert {type(value) for value in answer.values()} == {float}
    model.output = {"no": 10**400, "yes": -1.5}
    with pytest.raises(UserError, match="log-likelihoods are numbers: int too large"):
        ensembled(model, [["a"]], task)
    model.output = {"no": "-0.5", "yes": -1.5}
    with pytest.raises(UserError, match=r"log-likelihoods are numbers: '-0\.5' is a text"):
        ensembled(model, [["a"]], task)


@pytest.mark.parametrize(
    ("value", "message"),
    [(5, "rices_model 5: give a text"), (Path("x"), "give a text"), (" ", "rices_model is empty")],
)
def test_a_selectors_settings_have_their_kinds(root: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flamingo_eval.evaluate(Says(), "coco", shots=[0], data_root=root, selector="rices", rices_model=value)


def test_an_encoder_gives_one_embedding_for_each_image(
    root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flamingo_eval.models.scripted import ThumbnailEncoder

    monkeypatch.setenv("FLAMINGO_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ThumbnailEncoder, "encode", lambda _, prepared: np.ones((len(prepared) - 1, 4), np.float32))
    result = cli(*FAST, "--data-root", root, "--select", "rices", "--rices-model", "scripted", "--out", "run")
    assert result.returncode == 2
    assert "the image encoder thumbnails gave no embedding for each of" in result.stderr
