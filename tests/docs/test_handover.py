"""What stands around the code is in order: citation, workflow, hooks, pinned versions."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.version import __version__

CHECKOUT = Path(__file__).parents[2]


def read(name: str) -> Any:
    yaml: Any = importlib.import_module("yaml")  # without types; huggingface_hub brings it
    return yaml.safe_load((CHECKOUT / name).read_text(encoding="utf-8"))


def test_the_citation_names_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "abstract", "authors"} <= citation.keys()
    assert citation["authors"] == [{"name": "the flamingo-eval authors"}]
    assert citation["license"] == "MIT"
    assert citation["version"] == __version__
    papers = [one["identifiers"][0]["value"] for one in citation["references"]]
    assert papers == ["arXiv:2308.01390", "arXiv:2204.14198"]
    for one in citation["references"]:
        assert {"type", "title", "authors"} <= one.keys()
        assert one["url"] == "https://arxiv.org/abs/" + one["identifiers"][0]["value"].removeprefix("arXiv:")


def test_the_workflow_tests_every_python() -> None:
    workflow = read(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    jobs = workflow["jobs"]
    assert jobs.keys() == {"lint", "tests", "docs"}
    assert jobs["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    actions = {step["uses"] for step in steps if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions), actions
    targets = set(re.findall(r"^(\w[\w-]*):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = {match[1] for step in steps if (match := re.match(r"make ([\w-]+)", step.get("run", "")))}
    assert {"lint", "test", "gate", "docs"} <= called <= targets


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_forms_have_fields(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    fields = [one for one in form["body"] if one["type"] != "markdown"]
    assert fields
    assert len({one["id"] for one in fields}) == len(fields)
    assert all(one["attributes"]["label"] for one in fields)
    assert isinstance(read(".github/ISSUE_TEMPLATE/config.yml")["blank_issues_enabled"], bool)


def test_versions_are_pinned_by_name_alone() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    for line in pinned:
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*==[0-9][0-9A-Za-z.]*", line), "a name and a version, no address"
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pinned]
    assert len(set(names)) == len(names)
    assert "flamingo-eval" not in names
    assert names == sorted(names)


def test_hooks_call_commands_of_the_environment() -> None:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local", "nothing is downloaded"
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format", "mypy", "lint-imports"}
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        command = hook["entry"].split()[0]
        assert shutil.which(command, path=places), command


@pytest.mark.parametrize("name", ["renew-constraints", "release", "run"])
def test_scripts_can_be_run(name: str) -> None:
    script = CHECKOUT / ".ci" / name
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("found", re.findall(r"`([\w/]+\.py)`", (CHECKOUT / "SECURITY.md").read_text(encoding="utf-8")))
def test_promises_name_files_that_exist(found: str) -> None:
    assert (CHECKOUT / "flamingo_eval" / found.removeprefix("flamingo_eval/")).is_file()
