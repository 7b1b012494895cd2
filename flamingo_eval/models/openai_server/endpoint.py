"""Where a server is, and with which key: from options, the environment, a file. The key is shown nowhere."""

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
"""As OpenAI's own clients call them."""

LONGEST_URL = 2000

HIDDEN = "[key]"
"""What stands where a key stood."""

SECRET = 8
"""Characters that a key has at least."""


@dataclass(frozen=True)
class Endpoint:
    """A server.

    Attributes:
        url: its address with the version, such as ``http://localhost:8000/v1``.
        key: what it wants to know users by; None for none.
        ca_file: certificates to trust besides those of the system.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @staticmethod
    def of(base_url: str | None, key_file: Path | None, ca_file: Path | None) -> Endpoint:
        """What options say, or else the environment. Raises UserError."""
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
        """What a server or a library said, without the key should it stand in it; for people, records and answers.

        A short key is a dummy, as servers on one's own machine take them, and may be any word.
        """
        if self.key is None or len(self.key) < SECRET:
            return text
        for form in {self.key, html.escape(self.key), quote(self.key), quote(self.key, safe="")}:
            text = text.replace(form, HIDDEN).replace(form.lower(), HIDDEN)
        return text

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, or an SSH tunnel to another one begins here: no proxy is on the way."""
        host = urlsplit(self.url).hostname or ""
        return host == "localhost" or host.startswith("127.") or host == "::1"


def with_version(url: str, where: str) -> str:
    """An address with the version of the API, which may be left out.

    >>> with_version("http://localhost:8000/", "--base-url")
    'http://localhost:8000/v1'
    >>> with_version("https://example.org/openai/v1beta", "--base-url")
    'https://example.org/openai/v1beta'

    Raises:
        UserError: it is none, or holds a password or a key, which would stand in records.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises for one that is no number
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
    """The key from a file, or else from the environment. Raises UserError for one that can't be sent."""
    where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    if file is not None:
        where, key = f"--api-key-file {file}", read_text(file)
    key = key.strip()
    if file is not None and not key:
        raise UserError(f"{where} is empty")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise UserError(f"{where} holds more than one word of plain characters, so it is no key")
    return key or None
