"""Chat templates: what they can be told. They are read here, and run by transformers alone, in its sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.models.transformers_vlm.checkpoint import PREFIX

_THINKING = ("enable_thinking", "thinking")
"""What templates call the switch for reasoning before an answer (Qwen3, SmolLM3, GLM; Granite)."""


def switches_of(template: str | None, given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The switches of a template: as given, and thinking off where there is such a switch.

    Raises:
        UserError: the template has no such switch.
        CheckpointError: it is no template.
    """
    if template is None:
        if given:
            raise UserError(f"{PREFIX}{name} has no chat template, so --template-arg {next(iter(given))} has no effect")
        return {}
    known = variables_of(template, name)
    for key in given:
        if key not in known:
            raise UserError(
                f"--template-arg {key}: the chat template of {PREFIX}{name} has no such switch; it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )
    return {**{key: False for key in _THINKING if key in known}, **given}


_GIVEN_ANYWAY = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token",
                 "raise_exception", "strftime_now", "unk_token"}  # fmt: skip


def variables_of(template: str, name: str) -> set[str]:
    """What a template asks for besides messages and tokens. Raises CheckpointError if it is none."""
    try:
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        environment.parse(template)
    except TemplateError:
        # transformers' own extension, {% generation %}, is no variable
        bare = template.replace("generation %}", "set _ = 1 %}")
        try:
            return meta.find_undeclared_variables(environment.parse(bare)) - _GIVEN_ANYWAY
        except TemplateError as error:
            raise CheckpointError(f"the chat template of {PREFIX}{name} can't be read: {error}") from error
    return meta.find_undeclared_variables(environment.parse(template)) - _GIVEN_ANYWAY


def thinking_off(template: str, given: Mapping[str, Any], name: str) -> list[str]:
    """Switches for reasoning that are off because nobody said otherwise. Raises CheckpointError."""
    return [key for key in _THINKING if key not in given and key in variables_of(template, name)]
