"""Tokenizers of other language hosts do what they did under transformers 4.28."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flamingo_eval.core.errors import CheckpointError
from tests.support.helpers import LazyModule

pytestmark = pytest.mark.torch
hosts: Any = LazyModule("flamingo_eval.models.flamingo.hosts")
tokenizers: Any = LazyModule("flamingo_eval.models.flamingo.tokenizer")


@pytest.mark.parametrize("host", ["llama", "opt"])
def test_ids_and_texts(golden: Path, host: str) -> None:
    """BOS in front, LLaMA's space after every special token, special tokens that vanish again, spaces tidied or not."""
    folder = golden / "tokenizers" / host
    tokenizer = tokenizers.FlamingoTokenizer(folder, tidies_spaces=hosts.HOSTS[host].tidies_spaces)
    expected = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    assert len(tokenizer) == expected["length"]
    assert len(expected["probes"]) >= 9
    for probe in expected["probes"]:
        assert tokenizer.encode(probe["text"]) == probe["ids"], probe["text"]
        assert tokenizer.encode_plain(probe["text"]) == probe["plain_ids"]
        assert tokenizer.decode(probe["ids"]) == probe["decoded"]
    with_spaces = [p for p in expected["probes"] if "<image>" in p["text"] or "<|endofchunk|>" in p["text"]]
    assert with_spaces, "some of them hold special tokens"


def test_a_tokenizer_that_must_be_converted_first(golden: Path, tmp_path: Path) -> None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / file).write_bytes((golden / "tokenizers" / "llama" / file).read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*tokenizer\.model only must be converted once"):
        tokenizers.FlamingoTokenizer(tmp_path)
