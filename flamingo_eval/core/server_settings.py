"""The settings of a run for requests to a server; see :mod:`flamingo_eval.core.run_settings`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from flamingo_eval.core.settings import AMOUNT, PATH, SECONDS, SERVER, TEXT, declared, integer


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server is, and how requests are sent; none of these settings changes what is asked."""

    base_url: str | None = declared(
        None,
        TEXT,
        "Where the server of an openai: model is, such as http://localhost:8000, with or without /v1.",
        metavar="URL",
        panel=SERVER,
        changes_answers=False,
        default_text="OPENAI_BASE_URL of the environment",
    )
    api_key_file: Path | None = declared(  # noqa: RUF009  # it is a field
        None,
        PATH,
        "A file that holds nothing but the server's key.",
        metavar="FILE",
        panel=SERVER,
        changes_answers=False,
        default_text="OPENAI_API_KEY of the environment",
    )
    ca_file: Path | None = declared(  # noqa: RUF009
        None,
        PATH,
        "Certificates to trust besides the system's, in PEM form, for a server with one of its own.",
        metavar="FILE",
        panel=SERVER,
        changes_answers=False,
        default_text="none",
    )
    concurrency: int | None = declared(
        None,
        integer(1, 4096),
        "Requests to the server at once, at most; fewer while it pushes back.",
        metavar="N",
        panel=SERVER,
        changes_answers=False,
        default_text="16",
    )
    timeout: float | None = declared(
        None,
        SECONDS,
        "Until the server must have replied.",
        metavar="SECONDS",
        panel=SERVER,
        changes_answers=False,
        default_text="600",
    )
    retries: int | None = declared(
        None,
        integer(0, 100),
        "How often a request is sent again that was not answered, or badly, with longer and longer pauses.",
        metavar="N",
        panel=SERVER,
        changes_answers=False,
        default_text="8",
    )
    max_requests: int | None = declared(
        None,
        integer(1),
        "Send no more requests than this. A run that needs more is refused; what is answered before retries "
        "reach it is saved.",
        metavar="N",
        panel=SERVER,
        changes_answers=False,
        default_text="any number",
    )
    max_cost: float | None = declared(
        None,
        AMOUNT,
        "Spend no more than this, by --price-in and --price-out; requests on their way still come.",
        metavar="AMOUNT",
        panel=SERVER,
        changes_answers=False,
        default_text="any amount",
    )
    price_in: float | None = declared(
        None,
        AMOUNT,
        "What a million tokens of prompts cost.",
        metavar="AMOUNT",
        panel=SERVER,
        changes_answers=False,
        default_text="unknown",
    )
    price_out: float | None = declared(
        None,
        AMOUNT,
        "What a million tokens of answers cost.",
        metavar="AMOUNT",
        panel=SERVER,
        changes_answers=False,
        default_text="unknown",
    )


SERVER_SETTINGS = tuple(one.name for one in fields(ServerSettings))
