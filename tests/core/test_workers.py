"""How the threads of the libraries that compute wait for work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
COMMAND = "import sys; sys.argv = ['flamingo-eval', '--version']; from flamingo_eval.cli.main import main; main()"
LIBRARY = "import flamingo_eval; flamingo_eval.evaluate('demo', 'nosuch')"


@pytest.mark.parametrize("code", [COMMAND, LIBRARY])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_threads_do_not_spin_for_long_unless_the_user_says_so(
    code: str, given: dict[str, str], expected: dict[str, str]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    script = (
        "import atexit, os, sys\n"
        f"atexit.register(lambda: print({{n: os.environ[n] for n in {NAMES!r} if n in os.environ}}, "
        "'torch' in sys.modules, file=sys.stderr))\n" + code
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                            env={**environment, **given, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert result.stderr.splitlines()[-1] == f"{expected} False", "and torch, which reads it once, is not loaded before"


def test_a_host_that_has_loaded_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from flamingo_eval.core.workers import bound_spinning

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    bound_spinning()
    assert not any(name in os.environ for name in NAMES)
