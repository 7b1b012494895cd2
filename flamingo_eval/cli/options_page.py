"""The documentation's page of options, made from the settings: ``python -m flamingo_eval.cli.options_page``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flamingo_eval.cli import spec as specs
from flamingo_eval.core import registry
from flamingo_eval.core.run_settings import COMMAND_LINE_ONLY, PER_BENCHMARK, SETTINGS
from flamingo_eval.core.settings import Setting

_COMMANDS = {
    "a benchmark, `run`": specs.RUN,
    "`slurm`": specs.SLURM,
    "`bench`": specs.BENCH,
    "`plan`": specs.PLAN,
    "`features`": specs.FEATURES,
    "`controls`": specs.CONTROLS,
    "`reproduce`": specs.REPRODUCE,
    "`score`": specs.SCORE,
    "`score --predictions FILE --out RUN`": specs.GIVEN,
    "`report`": specs.REPORT,
    "`data where`": specs.DATA,
    "`data prepare`": specs.DATA_PREPARE,
    "`data check`": specs.DATA_CHECK,
}
_HEAD = """# Options

Every option here has an environment variable and a key of `flamingo-eval.toml`, and is an argument of
`flamingo_eval.evaluate`. These four are equivalent: `--pool-size 512`, `FLAMINGO_EVAL_POOL_SIZE=512`,
`pool-size = 512` and `pool_size=512`. Some options are for the command line only, and no arguments of `evaluate`:
{not_here}.

The command line wins over the environment, which wins over a benchmark's section of the file. The file's top level
comes last. Switches are `--plain` and `--no-plain`, in the file `true` and `false`, in the environment `1` and `0`.

In a run of several benchmarks each can have its own {own} in the file. All other settings must be the same for all.
"""


def reference() -> str:
    """The page, in Markdown."""
    own, not_here = (", ".join(sorted(names)) for names in (PER_BENCHMARK, COMMAND_LINE_ONLY))
    lines = [_HEAD.format(own=own, not_here=not_here)]
    for panel in dict.fromkeys(one.panel for one in SETTINGS.values()):
        lines += [f"## {panel}\n", *_table([one for one in SETTINGS.values() if one.panel == panel])]
    for name, selector in registry.selectors().items():
        if selector.settings:
            lines += [f"## For `--select {name}`\n", *_table(selector.settings)]
    lines += ["## Which commands take which\n", "| command | options |", "| --- | --- |"]
    for command, names in _COMMANDS.items():
        listed = " ".join(one.option for one in SETTINGS.values() if one.name in names)
        lines.append(f"| {command} | `{listed}`{', those of the selector' if 'select' in names else ''} |")
    return "\n".join(lines) + "\n"


def _table(settings: Sequence[Setting]) -> Iterator[str]:
    yield "| option | value | default | changes answers | |"
    yield "| --- | --- | --- | --- | --- |"
    for one in settings:
        default = one.default_text or (
            "" if one.default is None else "off" if one.default is False else str(one.default)
        )
        value = "switch" if one.values.switch else one.metavar or "TEXT"
        cells = (f"`{one.option}`", value, default, "yes" if one.changes_answers else "no", one.help)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
    yield ""


if __name__ == "__main__":
    print(reference(), end="")
