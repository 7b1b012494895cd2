"""Chat templates and their switches. They are only parsed here; transformers runs them, in its sandbox."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flamingo_eval.core.errors import CheckpointError, UserError
from flamingo_eval.models.transformers_vlm.checkpoint import PREFIX
from flamingo_eval.models.transformers_vlm.foreign import Switches

_THINKING = ("enable_thinking", "thinking")
"""Names of the switch for reasoning before an answer (Qwen3, SmolLM3, GLM; Granite)."""


def switches_of(template: str | None, given: Switches, name: str) -> Switches:
    """The switches of a template: as given, and reasoning off unless it is given.

    Raises:
        UserError: the template does not have a given switch.
        CheckpointError: the template can't be parsed.
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


class _Generation(Extension):
    """The tag of transformers that marks the assistant's text in templates (``chat_template_utils.py``).

    Here it only has to be accepted by the parser.
    """

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Any) -> Any:
        """The statements inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables_of(template: str, name: str) -> set[str]:
    """Variables that a template uses besides those it always gets. Raises CheckpointError if it can't be parsed."""
    return meta.find_undeclared_variables(_parsed(template, name)) - _GIVEN_ANYWAY


def _parsed(template: str, name: str) -> nodes.Template:
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        return environment.parse(template)
    except TemplateError as error:
        raise CheckpointError(f"the chat template of {PREFIX}{name} can't be read: {error}") from error


TODAY = date(2024, 7, 26)
"""The date in every conversation, since prompts must not change from day to day. (Llama 3.2 uses this date, too.)"""

_ASKS_FOR_TODAY = re.compile(r"""strftime_now\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""")


def with_fixed_date(template: str, name: str) -> str:
    """The template with :data:`TODAY` in place of today's date.

    Raises CheckpointError if the template asks for the date in an unknown way.
    """
    fixed = _ASKS_FOR_TODAY.sub(lambda found: repr(TODAY.strftime(found[1] or found[2] or "")), template)
    tree = _parsed(fixed, name)
    asked = {id(one.node) for one in tree.find_all(nodes.Test) if one.name in ("defined", "undefined")}
    if any(one.name == "strftime_now" and id(one) not in asked for one in tree.find_all(nodes.Name)):
        raise CheckpointError(f"the chat template of {PREFIX}{name} asks for today's date in a way that can't be fixed")
    return fixed


def notes_on(template: str, given: Switches, name: str) -> tuple[str, ...]:
    """What a reader of the results should know about this template's conversations. Raises CheckpointError."""
    known = variables_of(template, name)
    off = [f"the template's {key} is off; --template-arg {key}=true puts it on"
           for key in _THINKING if key in known and key not in given]  # fmt: skip
    on = [f"the template's {key} is on: answers are cut off after a few tokens, reasoning among them"
          for key in _THINKING if given.get(key)]  # fmt: skip
    dated = _ASKS_FOR_TODAY.search(template) is not None
    return (*off, *on, *([f"the template asks for the date: it is always {TODAY}"] if dated else []))
