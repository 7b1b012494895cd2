"""``openai:MODEL``: a model behind a server with OpenAI's API (vLLM, SGLang, ``transformers serve``, hosted ones).

Nothing is sent before a run is prepared. The HTTP client is imported only then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_eval.core.digests import digest
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.progress import note
from flamingo_eval.core.prompting import Chat
from flamingo_eval.core.protocols import UNPINNED, Capabilities, ModelInfo
from flamingo_eval.core.records import Decoding, Ranking, Task

if TYPE_CHECKING:
    from flamingo_eval.models.openai_server.adapter import ServerModel
    from flamingo_eval.models.openai_server.client import Client
    from flamingo_eval.models.openai_server.endpoint import Endpoint
    from flamingo_eval.models.openai_server.probing import Found
    from flamingo_eval.models.openai_server.ranking import Ranker
    from flamingo_eval.models.openai_server.replies import Body
    from flamingo_eval.models.openai_server.spending import Spending

PREFIX = "openai:"
LOOKS, LOOK_SECONDS = 2, 120.0
"""Retries and timeout in seconds of a request that only probes the server: a mistyped address is reported soon."""

CONCURRENCY, TIMEOUT, RETRIES = 16, 600.0, 8
"""Requests at once; seconds until the complete reply; how often a request is sent again."""


@dataclass(frozen=True)
class Options:
    """How requests are sent to a server; see the run settings with the same names."""

    base_url: str | None = None
    ca_file: Path | None = None
    api_key_file: Path | None = None
    concurrency: int = CONCURRENCY
    timeout: float = TIMEOUT
    retries: int = RETRIES
    max_requests: int | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    system: str | None = None
    template_arg: Mapping[str, object] = field(default_factory=dict)
    max_pixels: int | None = None
    rendering: str = "auto"


class ServerSource:
    """A model behind a server.

    Args:
        model: the server's name for it.
        options: how requests are sent.

    Raises:
        UserError: ``rendering`` is ``interleaved``, which can't be sent to a server.
    """

    capabilities = Capabilities(beams=False, reproducible=False)

    def __init__(self, model: str, options: Options) -> None:
        if options.rendering == "interleaved":
            raise UserError("--rendering interleaved: a server is sent conversations (--rendering chat)")
        self.model, self.options = model, options
        self.renderer = Chat(options.system)
        self._rankers: dict[tuple[str, ...], Ranker] = {}
        self._found: Found | None = None

    @property
    def _name(self) -> str:
        return f"{PREFIX}{self.model}"

    @cached_property
    def _endpoint(self) -> Endpoint:
        from flamingo_eval.models.openai_server.endpoint import Endpoint

        return Endpoint.of(self.options.base_url, self.options.api_key_file, self.options.ca_file)

    @cached_property
    def _spending(self) -> Spending:
        from flamingo_eval.models.openai_server.spending import Budget, Spending

        chosen = self.options
        budget = Budget(chosen.max_requests, chosen.max_cost, chosen.price_in, chosen.price_out)
        budget.check()
        return Spending(budget)

    def _client(self, retries: int, found: Found | None = None) -> Client:
        """A client, which the caller must close; ``found`` is what is known about the server."""
        from flamingo_eval.models.openai_server.client import Client

        chosen = self.options
        return Client(
            self._endpoint, self._spending, concurrency=chosen.concurrency,
            timeout=chosen.timeout if found else min(chosen.timeout, LOOK_SECONDS),
            retries=retries, answers_as=found.answers_as if found else "",
            small=found.small if found else None,
        )  # fmt: skip

    @property
    def _body(self) -> Body:
        """What every request contains: greedy decoding, and as reproducible as the server allows."""
        switches = {"chat_template_kwargs": dict(self.options.template_arg)} if self.options.template_arg else {}
        return {"model": self.model, "temperature": 0, "seed": 0, "repetition_penalty": 1, **switches}

    def find_out(self, tasks: Sequence[Task]) -> None:
        """Probes the server: its models, the requests it accepts, how it can rank names if needed. Raises UserError."""
        from flamingo_eval.models.openai_server.probing import find_ranker, look

        for task in tasks:
            if isinstance(task, Decoding) and task.min_new_tokens:
                raise UserError(f"{self._name}: answers of at least {task.min_new_tokens} tokens can't be asked for")
        note(f"asking {self._endpoint.url} how it answers")
        with closing(self._client(min(self.options.retries, LOOKS))) as client:
            found = self._found = look(client, self.model, self._body)
            if self.options.max_cost is not None and not found.counts:
                raise UserError(f"--max-cost: {self._endpoint.url} does not count tokens, so the cost is unknown")
            for names in dict.fromkeys(task.names for task in tasks if isinstance(task, Ranking)):
                self._rankers[names] = find_ranker(client, found.body, names, found.limit)

    def _looked(self) -> Found:
        """What is known about the server; asks it now if that has not been done yet."""
        if self._found is None:
            self.find_out(())
        assert self._found is not None
        return self._found

    def info(self) -> ModelInfo:
        """Its name, and what the server reports about it. It can't be checked that the model has not changed since."""
        found = self._looked()
        ways = {way.name: way.about for way in self._rankers.values()}
        ranked = [f"class names ranked by {name}: {about}" for name, about in ways.items()]
        says = {**found.says, **({"ranking": " and ".join(ways)} if ways else {})}
        return ModelInfo(
            self._name,
            digest([PREFIX, self.model]),
            {"server": self._endpoint.url},
            (UNPINNED, *found.notes, *ranked),
            server=says,
        )

    def resolve(self, device: str, precision: str) -> tuple[str, str]:
        """Always ``server``: the server decides both. Raises UserError if the user chose a device or a precision."""
        for option, value in (("--device", device), ("--precision", precision)):
            if value not in ("auto", "server") and not value.startswith("local:"):  # one of several processes
                raise UserError(f"{option} {value}: {self._name} runs as its server is configured")
        return "server", "server"

    def load(self, device: str, precision: str) -> ServerModel:
        """Returns a model that is ready to answer. Raises UserError."""
        from flamingo_eval.models.openai_server.adapter import ServerModel
        from flamingo_eval.models.openai_server.messages import Messages

        messages = Messages(self.renderer, self.options.max_pixels)
        found = self._looked()
        return ServerModel(self._client(self.options.retries, found), messages, found.body, found.limit, self._rankers)


class ServerFamily:
    """Models behind servers, named ``openai:MODEL``."""

    options = frozenset(Options.__dataclass_fields__)

    def known(self) -> Mapping[str, str]:
        """No known names."""
        return {}

    def renderers(self) -> tuple[Chat, ...]:
        """No renderers of its own."""
        return ()

    def find(self, checkpoint: str, options: Mapping[str, Any]) -> ServerSource | None:
        """The source for a name that begins with ``openai:``; None for any other. Raises UserError."""
        if not checkpoint.startswith(PREFIX):
            return None
        model = checkpoint.removeprefix(PREFIX)
        if not model.strip():
            raise UserError(
                f"--checkpoint {PREFIX}: name the model as its server does, such as {PREFIX}Qwen/Qwen3-VL-8B"
            )
        return ServerSource(model, Options(**options))

    def adopt(self, model: Any, name: str, options: Mapping[str, Any]) -> None:
        """Always None: these models are never in memory."""


MODEL = ServerFamily()
