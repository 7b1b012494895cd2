"""Download addresses: of owners, of mirrors, of data sets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from flamingo_eval.core.errors import UserError
from flamingo_eval.core.layout import SourceFile

_HUB = "hf://datasets/"


@dataclass(frozen=True)
class Address:
    """Where a file is downloaded from.

    Attributes:
        url: http or https.
        headers: sent with the request, but never to another host.
        gated: advice for when access to the file is denied; empty if there is none.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    gated: str = ""

    def hidden(self, text: str) -> str:
        """A text in which the secrets of this address and its headers are replaced by ``***``."""
        secrets = [value.removeprefix("Bearer ") for value in self.headers.values()]
        for secret in filter(None, (*secrets, urlsplit(self.url).password)):
            for form in (secret, repr(secret)[1:-1]):
                text = text.replace(form, "***")
        return text

    @property
    def shown(self) -> str:
        """The address for messages: without user name, password and query."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def check_mirror(text: str) -> None:
    """Raises UserError if a text can't be the address of a mirror."""
    try:
        parts = urlsplit(text)
        fits = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not parts.query
            and not parts.fragment
        )
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            "--from: give a folder, or an address such as https://mirror.example/data (no query, no fragment)"
        )


def is_address(text: str) -> bool:
    """Whether ``--from`` names an address, not a folder."""
    return "://" in text


def addresses(source: SourceFile, mirrors: tuple[str, ...]) -> list[Address]:
    """The addresses that a file can be downloaded from, mirrors first."""
    found = [Address(f"{mirror.rstrip('/')}/{quote(source.name)}") for mirror in mirrors]
    if source.address.startswith(_HUB):
        found.append(_on_hub(source.address.removeprefix(_HUB)))
    elif source.address:
        found.append(Address(source.address))
    return found


def _on_hub(path: str) -> Address:
    from huggingface_hub import constants, get_token, hf_hub_url

    owner, name, file = path.split("/", 2)
    token = get_token()
    page = f"{constants.ENDPOINT}/datasets/{owner}/{name}"
    gated = (
        f"the repository is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN "
        "(a token is sent already, and is not enough)"
        if token
        else f"the repository is gated or private: accept its terms at {page}, then log in with `hf auth login` or set "
        "HF_TOKEN"
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Address(hf_hub_url(f"{owner}/{name}", file, repo_type="dataset"), headers, gated)
