"""A server's address and key, from options, the environment or a file. The key is never shown."""

from __future__ import annotations

import html
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.paths import is_file
from flamingo_eval.core.reading import read_text

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
"""The names that OpenAI's own clients use."""

LONGEST_URL = 2000

HIDDEN = "[key]"
"""Replaces a key in a text."""

SECRET = 8
"""Length from which a key is treated as secret, in characters; see :meth:`Endpoint.without_key`."""


@dataclass(frozen=True)
class Endpoint:
    """A server.

    Attributes:
        url: its address with the version, such as ``http://localhost:8000/v1``.
        key: the API key; None for none.
        ca_file: certificates to trust besides those of the system.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @staticmethod
    def of(base_url: str | None, key_file: Path | None, ca_file: Path | None) -> Endpoint:
        """From the options, or else from the environment. Raises UserError."""
        where = "--base-url" if base_url else URL_VARIABLE
        url = (base_url or os.environ.get(URL_VARIABLE, "")).strip()
        if not url:
            raise UserError(
                f"where is the server? Say --base-url, such as --base-url http://localhost:8000, or set {URL_VARIABLE}"
            )
        if ca_file is not None and not is_file(ca_file):
            raise UserError(f"--ca-file {ca_file} does not exist")
        key = _key(key_file)
        if key is not None and len(key) >= SECRET and key in url:
            raise UserError(f"{where} holds the key, which would stand in records")
        return Endpoint(with_version(url, where), key, ca_file)

    def without_key(self, text: str) -> str:
        """A text from a server or a library, with the key removed; for messages, records and answers.

        A short key is a dummy, which local servers accept. It may be any word, so it is not removed.
        """
        if self.key is None or len(self.key) < SECRET:
            return text
        for form in {self.key, html.escape(self.key), quote(self.key), quote(self.key, safe="")}:
            text = text.replace(form, HIDDEN).replace(form.lower(), HIDDEN)
        return text

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine (a local server, or the start of an SSH tunnel): then no proxy is used."""
        host = urlsplit(self.url).hostname or ""
        return host == "localhost" or host.startswith("127.") or host == "::1"


def with_version(url: str, where: str) -> str:
    """An address with the version of the API, which is added if it is missing.

    >>> with_version("http://localhost:8000/", "--base-url")
    'http://localhost:8000/v1'
    >>> with_version("https://example.org/openai/v1beta", "--base-url")
    'https://example.org/openai/v1beta'

    Raises:
        UserError: it is not an address, or contains a password or a query, which would appear in records.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for a port that is not a number
        (parts.hostname or "").encode("idna")
        if not url.isascii() or not url.isprintable() or " " in url or len(url) > LONGEST_URL:
            raise ValueError(f"it is longer than {LONGEST_URL} characters, or holds others than plain ones")
    except ValueError as error:
        raise UserError(f"{where} is no address of a server: {error}") from error
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError(f"{where} holds more than an address (a password, a query): give the key by {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{where} {url}: give an address such as http://localhost:8000 or https://example.org/v1")
    url = url.rstrip("/")
    return url if re.search(r"/v\d+\w*(/|$)", parts.path) else f"{url}/v1"


def _key(file: Path | None) -> str | None:
    """The key from a file, or else from the environment. Raises UserError for a key that can't be sent."""
    where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    if file is not None:
        where, key = f"--api-key-file {file}", read_text(file)
    key = key.strip()
    if file is not None and not key:
        raise UserError(f"{where} is empty")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(f"{where} holds more than one word of plain characters, so it is no key")
    return key or None
